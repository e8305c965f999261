// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"crypto/rand"
	"io"
	"maps"
	"strings"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kanister-kopia/kanister-kopia/internal/pause"
	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/test/scenario"
)

// keyed is the namespace of this spec, and the name of what it makes for it.
const keyed = "e2e-keyed"

// keyedBlueprint backs up and restores with an encryptionKey.
var keyedBlueprint = func() *crv1alpha1.Blueprint {
	const key = `{{ index .Secrets.key.Data "key" | toString }}`
	return &crv1alpha1.Blueprint{
		ObjectMeta: metav1.ObjectMeta{Name: keyed},
		Actions: map[string]*crv1alpha1.BlueprintAction{
			"backup": {
				OutputArtifacts: map[string]crv1alpha1.Artifact{"files": {KeyValue: map[string]string{"backupID": "{{ .Phases.save.Output.backupID }}"}}},
				Phases: []crv1alpha1.BlueprintPhase{act("save", "BackupData", crv1alpha1.JSONMap{
					"namespace": keyed, "pod": "app", "container": "app", "includePath": "/data/tree", "backupArtifactPrefix": "e2e/keyed", "encryptionKey": key,
				})},
			},
			"restore": {Phases: []crv1alpha1.BlueprintPhase{act("bringBack", "RestoreData", crv1alpha1.JSONMap{
				"namespace": keyed, "image": "ignored", "volumes": map[string]any{"files": "/data"}, "backupArtifactPrefix": "e2e/keyed",
				"backupIdentifier": "{{ .ArtifactsIn.files.KeyValue.backupID }}", "restorePath": "/data/back", "encryptionKey": key,
			})}},
		},
	}
}()

// What is secret is nowhere to be seen, also not of what comes and goes: the logs of
// temporary pods, servers and maintenance, and the processes that they run meanwhile.
var _ = Describe("the secrets of backups", Ordered, func() {
	planted := map[string]string{"the encryptionKey": "marker-" + rand.Text(), "the external user's password": "marker-" + rand.Text()}
	var gone *witness

	BeforeAll(func(ctx SpecContext) {
		clean := func(ctx SpecContext) {
			Expect(cluster.DeleteNamespace(ctx, keyed)).To(Succeed())
			Expect(client.IgnoreNotFound(cluster.Delete(ctx, external()))).To(Succeed())
		}
		clean(ctx)
		DeferCleanup(clean, NodeTimeout(short))
		keys, err := cluster.StartS3(ctx)
		Expect(err).NotTo(HaveOccurred())
		Expect(cluster.PutProfile(ctx, "e2e", keys, "e2e")).To(Succeed())
		Expect(cluster.Blueprint(ctx, keyedBlueprint)).To(Succeed())
		Expect(cluster.Blueprint(ctx, filesBlueprint)).To(Succeed())
		for name, data := range map[string]map[string]string{
			keyed + "-key":  {"key": planted["the encryptionKey"]},
			keyed + "-user": {"username": "user", "hostname": "host", "password": planted["the external user's password"]},
		} {
			Expect(cluster.Put(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: names.ControlPlaneNamespace, Name: name}, StringData: data})).To(Succeed())
		}
		a := &application{namespace: keyed}
		a.start(ctx, nil)
		_, err = cluster.Exec(ctx, keyed, "app", "app", `mkdir /data/tree && seq 1 100000 > /data/tree/numbers`)
		Expect(err).NotTo(HaveOccurred())
		gone = observe(keyed, names.ControlPlaneNamespace)
		DeferCleanup(func() { gone.stop() })
	}, NodeTimeout(long))

	run := func(ctx context.Context, action string, parent *crv1alpha1.ActionSet) *crv1alpha1.ActionSet {
		GinkgoHelper()
		spec := crv1alpha1.ActionSpec{
			Name: action, Blueprint: keyed, Object: crv1alpha1.ObjectReference{Kind: "namespace", Namespace: keyed, Name: keyed},
			Profile: &crv1alpha1.ObjectReference{Namespace: names.ControlPlaneNamespace, Name: "e2e"},
			Secrets: map[string]crv1alpha1.ObjectReference{"key": {Namespace: names.ControlPlaneNamespace, Name: keyed + "-key"}},
		}
		if parent != nil {
			spec = scenario.From(spec, parent)
		}
		as, err := cluster.Run(ctx, &crv1alpha1.ActionSet{
			ObjectMeta: metav1.ObjectMeta{GenerateName: keyed + "-"}, Spec: &crv1alpha1.ActionSetSpec{Actions: []crv1alpha1.ActionSpec{spec}},
		}, nil)
		Expect(err).NotTo(HaveOccurred())
		return as
	}

	It("backs up and restores with an encryptionKey, and maintains that repository", func(ctx SpecContext) {
		backup := run(ctx, "backup", nil)
		run(ctx, "restore", backup)
		Expect(listing(ctx, keyed, "app", "/data/back/data/tree")).To(Equal(listing(ctx, keyed, "app", "/data/tree")))
		repo, err := cluster.RepositoryOf(ctx, scenario.Output(backup, "save", "backupID"))
		Expect(err).NotTo(HaveOccurred())
		Expect(repo.Spec.KeyID).NotTo(Equal("default"))
		change, old := repo.DeepCopy(), metav1.NewTime(time.Now().Add(-48*time.Hour))
		change.Status.Initialized = &old
		Expect(cluster.Status().Patch(ctx, change, client.MergeFrom(repo))).To(Succeed())
		Eventually(func(g Gomega) {
			now, err := cluster.RepositoryOf(ctx, scenario.Output(backup, "save", "backupID"))
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(now.Status.Maintenance).NotTo(BeNil())
			g.Expect(now.Status.Maintenance.LastFull).NotTo(BeNil(), "conditions %+v", now.Status.Conditions)
		}).WithContext(ctx).WithTimeout(short).WithPolling(time.Second).Should(Succeed())
		gone.saw("/restore-data-", "the temporary pod of the restore")
		gone.saw("/"+repo.Name+"-maintenance", "the maintenance")
	}, SpecTimeout(long))

	It("says of an external server that is not there what is wrong", func(ctx SpecContext) {
		Expect(cluster.Create(ctx, external())).To(Succeed())
		_, err := cluster.Kubectl(ctx, "annotate", "namespace", keyed, names.RepositoryAnnotation+"="+keyed)
		Expect(err).NotTo(HaveOccurred())
		_, err = files(ctx, "backup", keyed, "e2e", map[string]string{"pod": "app", "path": "/data/tree"}, nil)
		Expect(err).To(MatchError(ContainSubstring("nowhere.invalid")))
		Expect(err.Error()).NotTo(ContainSubstring(planted["the external user's password"]))
		gone.saw("/"+keyed+"-", "the pod for the external server")
	}, SpecTimeout(long))

	It("shows none of them", func(ctx SpecContext) {
		maps.Copy(planted, secretsOf(ctx))
		shown := visible(ctx, keyed)
		maps.Copy(shown, gone.stop())
		for where, text := range shown {
			for name, secret := range planted {
				Expect(strings.Contains(text, secret)).To(BeFalse(), "%s shows %s", where, name)
			}
		}
	}, SpecTimeout(short))
})

// external is a server of somebody else's that is not there.
func external() *kopiav1alpha1.RepositoryServer {
	return &kopiav1alpha1.RepositoryServer{
		ObjectMeta: metav1.ObjectMeta{Namespace: names.ControlPlaneNamespace, Name: keyed},
		Spec: kopiav1alpha1.RepositoryServerSpec{
			Namespaces: []string{keyed},
			External:   &kopiav1alpha1.External{URL: "https://nowhere.invalid:51515", CABundle: "none", UserSecret: keyed + "-user"},
		},
	}
}

// witness keeps what is gone later: the logs of our pods, from their beginning to their
// end, and each argument and environment variable of a process on the node.
type witness struct {
	cancel context.CancelFunc
	all    sync.WaitGroup

	mu        sync.Mutex // protects the following
	logs      map[string]string
	processes map[string]bool
}

// observe looks on until it is stopped.
func observe(namespaces ...string) *witness {
	GinkgoHelper()
	ctx, cancel := context.WithCancel(context.Background())
	w := &witness{cancel: cancel, logs: map[string]string{}, processes: map[string]bool{}}
	for _, namespace := range namespaces {
		pods, err := cluster.Watch(ctx, &corev1.PodList{}, client.InNamespace(namespace), client.MatchingLabels{names.ManagedByLabel: names.ManagedByValue})
		Expect(err).NotTo(HaveOccurred())
		w.all.Go(func() {
			defer GinkgoRecover()
			context.AfterFunc(ctx, pods.Stop)
			seen := map[string]bool{}
			for event := range pods.ResultChan() {
				pod, ok := event.Object.(*corev1.Pod)
				if !ok {
					continue
				}
				for _, c := range append(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses...) {
					// One that was started again has another log.
					if id := c.ContainerID; id != "" && !seen[id] {
						seen[id] = true
						w.all.Go(func() { w.read(ctx, pod.Namespace, pod.Name, c.Name) })
					}
				}
			}
		})
	}
	w.all.Go(func() {
		defer GinkgoRecover()
		for pause.For(ctx, 200*time.Millisecond) == nil {
			found := processes(context.WithoutCancel(ctx))
			w.mu.Lock()
			for line := range strings.Lines(found) {
				w.processes[line] = true
			}
			w.mu.Unlock()
		}
	})
	return w
}

// read keeps the log of a container, to its end.
func (w *witness) read(ctx context.Context, namespace, pod, container string) {
	stream, err := cluster.Kube.CoreV1().Pods(namespace).GetLogs(pod, &corev1.PodLogOptions{Container: container, Follow: true}).Stream(ctx)
	if err != nil {
		return // it went too fast; saw tells if that is the one that counts
	}
	defer stream.Close()
	text, _ := io.ReadAll(stream) // what there was until ctx was over
	w.mu.Lock()
	defer w.mu.Unlock()
	w.logs["the log of "+namespace+"/"+pod+" while it ran"] += string(text)
}

// saw expects the whole log of a pod whose name is or begins so.
func (w *witness) saw(pod, what string) {
	GinkgoHelper()
	Eventually(func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		for where, text := range w.logs {
			if strings.Contains(where, pod) && text != "" {
				return true
			}
		}
		return false
	}).WithTimeout(short).WithPolling(100*time.Millisecond).Should(BeTrue(), "the log of %s was read", what)
}

// stop returns all that was seen.
func (w *witness) stop() map[string]string {
	w.cancel()
	w.all.Wait()
	out := maps.Clone(w.logs)
	var all strings.Builder
	for line := range w.processes {
		all.WriteString(line)
	}
	out["an argument or an environment of a process meanwhile"] = all.String()
	return out
}
