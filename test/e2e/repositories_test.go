// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kanister-kopia/kanister-kopia/internal/pause"
	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/test/scenario"
)

const (
	// Namespaces with a repository each, and those that share one.
	ownRepositories = 10
	sharers         = 3
	// team is the shared repository.
	team = "e2e-team"
	// trialProfile is of one bucket for all.
	trialProfile = "e2e-repositories"
	// impatience is the idle timeout of the trial's servers.
	impatience = 5 * time.Second
)

// application is a namespace of the trial, with one pod and the backups of it.
type application struct {
	namespace string
	rounds    int
	kept      []kept
	failed    []string
}

func ownNamespace(i int) string { return fmt.Sprintf("e2e-own-%d", i) }
func sharer(i int) string       { return fmt.Sprintf("e2e-shares-%d", i) }

// kept is a backup that was reported as done, and what the tree was when it began.
type kept struct {
	set  *crv1alpha1.ActionSet
	tree string
}

// causes are what a failure may say while servers, controllers and the storage are killed:
// what was gone, or what to do.
var causes = regexp.MustCompile(strings.Join([]string{
	`the storage has not answered since \S+: .+`,
	`look at the storage of the repository`,
	`the storage refuses us: .+`,
	`else look at the repository server`,
	`look at the repository server's log`,
	`the operation's password is not, or no longer, valid for this server`,
	`no operation is going on with this user and password`,
	`start repository server \S+: .+`,
	`reach repository server \S+: .+`,
	`at repository server \S+: .+`,
	`its pod is being replaced: run the action again`,
	`reach the agent in container \S+ of pod \S+: .+`,
}, "|"))

// bare are ends of a text that tell nobody anything, whatever is before them.
var bare = regexp.MustCompile(`(?i)(^|[: ])(EOF|context (canceled|deadline exceeded)|internal( error)?|unknown( error)?)\W*$`)

// Servers start and stop on demand for namespaces that all work at once, while what
// they depend on is killed at random. A backup may fail, and says why; one that was reported
// as done comes back entry by entry, and in the end nothing runs and nothing is held.
var _ = Describe("repositories of many namespaces under load", Ordered, Label("soak"), func() {
	var apps []*application
	var random *rand.Rand

	BeforeAll(func(ctx SpecContext) {
		random = rand.New(rand.NewPCG(uint64(GinkgoRandomSeed()), 0))
		DeferCleanup(func(ctx SpecContext) {
			each(apps, len(apps), func(a *application) { Expect(cluster.DeleteNamespace(ctx, a.namespace)).To(Succeed()) })
			Expect(client.IgnoreNotFound(cluster.Delete(ctx, teamServer(nil)))).To(Succeed())
		}, NodeTimeout(long))
		keys, err := cluster.StartS3(ctx)
		Expect(err).NotTo(HaveOccurred())
		Expect(cluster.PutProfile(ctx, trialProfile, keys, trialProfile)).To(Succeed())
		Expect(cluster.Blueprint(ctx, filesBlueprint)).To(Succeed())
		var consent []string
		for i := range ownRepositories {
			apps = append(apps, &application{namespace: ownNamespace(i)})
		}
		for i := range sharers {
			consent = append(consent, sharer(i))
			apps = append(apps, &application{namespace: sharer(i)})
		}
		Expect(client.IgnoreNotFound(cluster.Delete(ctx, teamServer(nil)))).To(Succeed())
		Expect(cluster.Create(ctx, teamServer(consent))).To(Succeed())
		each(apps, len(apps), func(a *application) {
			var annotations map[string]string
			if slices.Contains(consent, a.namespace) {
				annotations = map[string]string{names.RepositoryAnnotation: team}
			}
			a.start(ctx, annotations)
		})
	}, NodeTimeout(long))

	It("backs up while servers, controllers and the storage are killed", func(ctx SpecContext) {
		over, stop := context.WithTimeout(ctx, killingTime)
		defer stop()
		killed, stops := map[string]int{}, 0
		var beside sync.WaitGroup
		beside.Go(func() {
			defer GinkgoRecover()
			stops = countStops(over)
		})
		beside.Go(func() {
			defer GinkgoRecover()
			for next := []int(nil); pause.For(over, time.Duration(3000+random.IntN(4000))*time.Millisecond) == nil; next = next[1:] {
				if len(next) == 0 {
					next = random.Perm(len(victims))
				}
				if v := victims[next[0]]; killOne(ctx, random, v) {
					killed[v.name]++
				}
			}
		})
		each(apps, len(apps), func(a *application) {
			// Long enough for some servers to be stopped in between.
			for pause.For(over, time.Duration(rand.IntN(20_000))*time.Millisecond) == nil {
				if err := a.backup(ctx); err != nil {
					a.failed = append(a.failed, err.Error())
				}
				hurry(ctx, a)
			}
		})
		beside.Wait()
		done, failures := 0, 0
		for _, a := range apps {
			done, failures = done+len(a.kept), failures+len(a.failed)
			for _, reason := range a.failed {
				GinkgoWriter.Printf("a backup of %s failed: %s\n", a.namespace, reason)
			}
		}
		GinkgoWriter.Printf("killed %v; %d backups done, %d failed; %d times a server was stopped\n", killed, done, failures, stops)
		if killingTime > 5*time.Minute { // in one, on a slow machine, none has the time
			Expect(stops).To(BeNumerically(">", 0), "servers stopped between two backups")
		}
		for _, v := range victims {
			Expect(killed).To(HaveKey(v.name), "no %s was killed", v.name)
		}
		// On two cores a minute has some fifteen.
		Expect(done).To(BeNumerically(">=", ownRepositories/2), "backups done although something was killed all the time")
		for _, a := range apps {
			for _, reason := range a.failed {
				Expect(reason).To(And(MatchRegexp(causes.String()), Not(MatchRegexp(bare.String()))), "a backup of %s", a.namespace)
			}
		}
	}, SpecTimeout(killingTime+long))

	It("works again as soon as nothing is killed any more", func(ctx SpecContext) {
		Expect(cluster.Rollout(ctx, names.ControlPlaneNamespace, "deployment/kanister-kopia-controller")).To(Succeed())
		Expect(cluster.Rollout(ctx, scenario.S3Namespace, "deployment/s3")).To(Succeed())
		// On a slow machine none had the time to be stopped in between.
		Eventually(func() bool {
			return slices.ContainsFunc(apps, func(a *application) bool {
				return slices.ContainsFunc(serversOf(ctx, a), func(rs kopiav1alpha1.RepositoryServer) bool {
					return rs.Status.Phase == kopiav1alpha1.PhaseStopped
				})
			})
		}).WithContext(ctx).WithTimeout(short).Should(BeTrue(), "a server that nobody uses is stopped")
		each(apps, len(apps), func(a *application) {
			// A server that failed to start waits before it is tried again.
			Eventually(func() error { return a.backup(ctx) }).WithContext(ctx).WithTimeout(short).WithPolling(time.Second).Should(Succeed(), a.namespace)
			hurry(ctx, a)
		})
	}, SpecTimeout(long))

	It("restores every backup that was reported as done", func(ctx SpecContext) {
		each(apps, 6, func(a *application) {
			for i, backup := range a.kept {
				to := fmt.Sprintf("/data/back-%d", i)
				_, err := files(ctx, "restore", a.namespace, trialProfile, map[string]string{"to": to}, backup.set)
				Expect(err).NotTo(HaveOccurred(), "backup %d of %s", i, a.namespace)
				Expect(listing(ctx, a.namespace, "app", to+"/data/tree")).To(Equal(backup.tree), "backup %d of %s", i, a.namespace)
			}
		})
	}, SpecTimeout(killingTime+2*long))

	It("leaves nothing running and nothing held", func(ctx SpecContext) {
		each(apps, len(apps), func(a *application) {
			Expect(serversOf(ctx, a)).To(HaveLen(1), "repositories of %s", a.namespace)
			Eventually(func(g Gomega) {
				for _, rs := range serversOf(ctx, a) {
					g.Expect(rs.Status.Phase).To(Equal(kopiav1alpha1.PhaseStopped), "%s: %+v", rs.Name, rs.Status.Conditions)
					g.Expect(rs.Status.Users).To(BeZero(), rs.Name)
					g.Expect(podsOf(ctx, rs.Namespace, names.RepositoryLabel, rs.Name)).To(BeEmpty(), "server or maintenance of %s", rs.Name)
					var lease coordinationv1.Lease
					err := cluster.Get(ctx, client.ObjectKey{Namespace: rs.Namespace, Name: rs.Name + "-maintenance"}, &lease)
					g.Expect(client.IgnoreNotFound(err)).NotTo(HaveOccurred())
					g.Expect(lease.Spec.HolderIdentity).To(Or(BeNil(), HaveValue(BeEmpty())), rs.Name)
				}
				var pods corev1.PodList
				g.Expect(cluster.List(ctx, &pods, client.InNamespace(a.namespace))).To(Succeed())
				g.Expect(pods.Items).To(HaveLen(1), "besides the application in %s", a.namespace)
				for _, op := range operationsIn(ctx, a.namespace, "app") {
					g.Expect(op.State.Done()).To(BeTrue(), "operation %s of %s is %s", op.ID, a.namespace, op.State)
				}
			}).WithContext(ctx).WithTimeout(short).WithPolling(time.Second).Should(Succeed())
		})
		for _, name := range []string{ownNamespace(0), sharer(0)} {
			for _, rs := range serversOf(ctx, &application{namespace: name}) {
				Expect(rs.Status.Maintenance).NotTo(BeNil(), "%s was maintained meanwhile", rs.Name)
			}
		}
	}, SpecTimeout(long))
})

// victim is something that may die at any time.
type victim struct {
	name, namespace string
	labels          client.MatchingLabels
	// lease is held by the one that works, if the others only wait for their turn.
	lease string
}

// victims, servers more often than the rest: there are more of them.
var victims = func() []victim {
	server := victim{name: "server", namespace: names.ControlPlaneNamespace, labels: client.MatchingLabels{names.ComponentLabel: "repository-server"}}
	return []victim{
		server, server, server,
		{
			"controller", names.ControlPlaneNamespace, client.MatchingLabels{"app.kubernetes.io/name": "kanister-kopia-controller"},
			"kanister-kopia-controller",
		},
		{name: "storage", namespace: scenario.S3Namespace, labels: client.MatchingLabels{"app": "s3"}},
	}
}()

// killOne removes one of them by force, and waits for one that works. It returns false if
// there is none now, or none before ctx is over.
func killOne(ctx context.Context, random *rand.Rand, v victim) bool {
	GinkgoHelper()
	for {
		pods, err := v.candidates(ctx)
		if ctx.Err() != nil {
			return false
		}
		Expect(err).NotTo(HaveOccurred())
		switch {
		case len(pods) > 0:
			pod := &pods[random.IntN(len(pods))]
			Expect(client.IgnoreNotFound(cluster.Delete(context.WithoutCancel(ctx), pod, client.GracePeriodSeconds(0)))).To(Succeed())
			return true
		case v.lease == "" || pause.For(ctx, 200*time.Millisecond) != nil:
			return false
		}
	}
}

// candidates are the pods whose end is felt.
func (v victim) candidates(ctx context.Context) ([]corev1.Pod, error) {
	var pods corev1.PodList
	if err := cluster.List(ctx, &pods, client.InNamespace(v.namespace), v.labels); err != nil || v.lease == "" {
		return pods.Items, err
	}
	var lease coordinationv1.Lease
	if err := cluster.Get(ctx, client.ObjectKey{Namespace: v.namespace, Name: v.lease}, &lease); err != nil {
		return nil, err
	}
	if lease.Spec.HolderIdentity == nil {
		return nil, nil
	}
	// A pod's name and a number of the process.
	holder, _, _ := strings.Cut(*lease.Spec.HolderIdentity, "_")
	return slices.DeleteFunc(pods.Items, func(p corev1.Pod) bool { return p.Name != holder }), nil
}

// start makes the namespace anew, with a pod that has an agent.
func (a *application) start(ctx context.Context, annotations map[string]string) {
	GinkgoHelper()
	Expect(cluster.DeleteNamespace(ctx, a.namespace)).To(Succeed())
	Expect(cluster.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: a.namespace, Labels: map[string]string{names.InjectionLabel: names.InjectionEnabled}, Annotations: annotations,
	}})).To(Succeed())
	Expect(cluster.Bind(ctx, a.namespace, "kanister-kopia-namespace")).To(Succeed())
	Expect(cluster.Create(ctx, claim(a.namespace))).To(Succeed())
	// The webhook fails open when it has too much to do.
	Eventually(func(g Gomega) {
		pod := filesPod(a.namespace, "app", labelled)
		g.Expect(cluster.Create(ctx, pod)).To(Succeed())
		if !hasAgent(pod) {
			g.Expect(cluster.Delete(ctx, pod, client.GracePeriodSeconds(0))).To(Succeed())
		}
		g.Expect(hasAgent(pod)).To(BeTrue())
	}).WithContext(ctx).WithTimeout(short).WithPolling(time.Second).Should(Succeed(), a.namespace)
	_, err := cluster.Kubectl(ctx, "wait", "--for=condition=Ready", "pod/app", "-n", a.namespace, "--timeout=8m")
	Expect(err).NotTo(HaveOccurred())
}

// backup changes the tree and backs it up.
func (a *application) backup(ctx context.Context) error {
	a.rounds++
	_, err := cluster.Exec(ctx, a.namespace, "app", "app", "n="+strconv.Itoa(a.rounds)+`
		mkdir -p /data/tree && cd /data/tree
		for d in 1 2 3 4 5 6 7 8; do [ -d d$d ] || { mkdir d$d && echo $d > d$d/kept && : > d$d/empty; }; done
		echo $n > round && ln -sfn d$((n % 8 + 1)) link && seq 1 $((n * 1000)) > numbers
		head -c $((n % 5 * 100000 + 1)) /dev/urandom > d$((n % 8 + 1))/noise
		rm -f d$(((n + 3) % 8 + 1))/noise && chmod $((600 + n % 8)) d1/kept`)
	if err != nil {
		return err
	}
	tree := listing(ctx, a.namespace, "app", "/data/tree")
	set, err := files(ctx, "backup", a.namespace, trialProfile, map[string]string{"pod": "app", "path": "/data/tree"}, nil)
	if err == nil {
		a.kept = append(a.kept, kept{set, tree})
	}
	return err
}

// teamServer is the repository that namespaces share.
func teamServer(consent []string) *kopiav1alpha1.RepositoryServer {
	return &kopiav1alpha1.RepositoryServer{
		ObjectMeta: metav1.ObjectMeta{Namespace: names.ControlPlaneNamespace, Name: team},
		Spec: kopiav1alpha1.RepositoryServerSpec{
			Namespaces: consent, IdleTimeout: &metav1.Duration{Duration: impatience},
			Storage: kopiav1alpha1.Storage{S3: &kopiav1alpha1.S3Storage{
				Bucket: scenario.S3Bucket, Endpoint: scenario.S3Endpoint, Prefix: team + "/", Region: "us-east-1",
			}},
		},
	}
}

// serversOf are the repositories of an application's namespace.
func serversOf(ctx context.Context, a *application) []kopiav1alpha1.RepositoryServer {
	GinkgoHelper()
	var all kopiav1alpha1.RepositoryServerList
	Expect(cluster.List(ctx, &all, client.InNamespace(names.ControlPlaneNamespace))).To(Succeed())
	return slices.DeleteFunc(all.Items, func(rs kopiav1alpha1.RepositoryServer) bool {
		return !slices.Contains(rs.Spec.Namespaces, a.namespace) && (rs.Spec.Tenant == nil || rs.Spec.Tenant.Namespace != a.namespace)
	})
}

// hurry has the server of an application stopped soon after its last use, and two of
// the repositories maintained now, as if they were of the day before yesterday.
func hurry(ctx context.Context, a *application) {
	GinkgoHelper()
	for _, rs := range serversOf(ctx, a) {
		change := rs.DeepCopy()
		change.Spec.IdleTimeout = &metav1.Duration{Duration: impatience}
		Expect(cluster.Patch(ctx, change, client.MergeFrom(&rs))).To(Succeed())
		maintained := rs.Name == team || a.namespace == ownNamespace(0)
		if first := rs.Status.Initialized; maintained && first != nil && time.Since(first.Time) < 24*time.Hour {
			rs, old := change.DeepCopy(), metav1.NewTime(time.Now().Add(-48*time.Hour))
			change.Status.Initialized = &old
			Expect(cluster.Status().Patch(ctx, change, client.MergeFrom(rs))).To(Succeed())
		}
	}
}

// countStops counts how often a running server was stopped, until ctx is over.
func countStops(ctx context.Context) int {
	GinkgoHelper()
	w, err := cluster.Watch(ctx, &kopiav1alpha1.RepositoryServerList{}, client.InNamespace(names.ControlPlaneNamespace))
	Expect(err).NotTo(HaveOccurred())
	defer w.Stop()
	stops, last := 0, map[string]kopiav1alpha1.Phase{}
	for event := range w.ResultChan() {
		if rs, ok := event.Object.(*kopiav1alpha1.RepositoryServer); ok {
			if last[rs.Name] == kopiav1alpha1.PhaseReady && rs.Status.Phase == kopiav1alpha1.PhaseStopped {
				stops++
			}
			last[rs.Name] = rs.Status.Phase
		}
	}
	return stops
}

// each calls do for all of them, some at once.
func each(apps []*application, atOnce int, do func(*application)) {
	GinkgoHelper()
	slots := make(chan struct{}, atOnce)
	var all sync.WaitGroup
	for _, a := range apps {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			defer GinkgoRecover()
			do(a)
		})
	}
	all.Wait()
}
