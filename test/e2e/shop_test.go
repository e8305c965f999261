// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/test/scenario"
)

var _ = Describe("a PostgreSQL backed up, destroyed and restored", Ordered, func() {
	var shop *scenario.Shop
	var wire *sniffer

	BeforeAll(func(ctx SpecContext) {
		shop = &scenario.Shop{Cluster: cluster, Profile: "e2e"}
		Expect(shop.Storage(ctx)).To(Succeed())
		wire = sniff(ctx)
		_, err := shop.Start(ctx)
		Expect(err).NotTo(HaveOccurred())
	}, NodeTimeout(long))

	It("injects the agent as a native sidecar that may do nothing else", func(ctx SpecContext) {
		pod, err := shop.Pod(ctx)
		Expect(err).NotTo(HaveOccurred())
		Expect(pod.Spec.Containers).To(HaveLen(1), "the application's containers are as they were")
		agent := pod.Spec.InitContainers[len(pod.Spec.InitContainers)-1]
		Expect(agent.Name).To(Equal(names.AgentContainer))
		Expect(agent.RestartPolicy).To(HaveValue(Equal(corev1.ContainerRestartPolicyAlways)))
		Expect(agent.VolumeMounts).To(ContainElement(And(
			HaveField("MountPath", "/volumes/data"), HaveField("ReadOnly", true))))
		sc := agent.SecurityContext
		Expect(sc.AllowPrivilegeEscalation).To(HaveValue(BeFalse()))
		Expect(sc.ReadOnlyRootFilesystem).To(HaveValue(BeTrue()))
		Expect(sc.RunAsNonRoot).To(HaveValue(BeTrue()))
		Expect(sc.Capabilities.Drop).To(ConsistOf(corev1.Capability("ALL")))
	}, SpecTimeout(short))

	It("backs up, and the second time only what is new", func(ctx SpecContext) {
		_, err := shop.Fill(ctx, 20000)
		Expect(err).NotTo(HaveOccurred())
		_, err = shop.Backup(ctx)
		Expect(err).NotTo(HaveOccurred())
		_, err = shop.Fill(ctx, 500)
		Expect(err).NotTo(HaveOccurred())
		_, err = shop.Backup(ctx)
		Expect(err).NotTo(HaveOccurred())

		first, second := shop.Backups()[0], shop.Backups()[1]
		for _, as := range shop.Backups() {
			Expect(scenario.Output(as, "saveBase", "backupID")).To(MatchRegexp(`^[a-z0-9-]{1,63}$`))
			Expect(scenario.Output(as, "saveBase", "version")).To(Equal("v0.0.0"))
			Expect(as.Status.Progress.PercentCompleted).To(Equal("100"))
		}
		// PostgreSQL's own files change little; its WAL segment of 16 MiB changes every time.
		Expect(uploaded(second)).To(BeNumerically("<", uploaded(first)*3/4),
			"uploaded first %d, then %d bytes", uploaded(first), uploaded(second))
	}, SpecTimeout(long))

	It("restores the rows after the table was dropped and files were damaged, while the controller is killed", func(ctx SpecContext) {
		_, err := shop.Destroy(ctx)
		Expect(err).NotTo(HaveOccurred())
		killed := false
		shop.Watch = killing(ctx, "restoreBase", &killed)
		_, err = shop.Restore(ctx)
		shop.Watch = nil
		Expect(err).NotTo(HaveOccurred())
		Expect(killed).To(BeTrue(), "the restore was over before anything could be killed")
		_, err = shop.Compare(ctx)
		Expect(err).NotTo(HaveOccurred())
	}, SpecTimeout(long))

	It("stops the repository server that nobody uses, and starts it for the next backup", func(ctx SpecContext) {
		repo := repositoryOf(ctx, shop)
		change := repo.DeepCopy()
		change.Spec.IdleTimeout = &metav1.Duration{Duration: 10 * time.Second}
		Expect(cluster.Patch(ctx, change, client.MergeFrom(repo))).To(Succeed())
		Eventually(func(g Gomega) {
			g.Expect(repositoryOf(ctx, shop).Status.Phase).To(Equal(kopiav1alpha1.PhaseStopped))
			var pods corev1.PodList
			g.Expect(cluster.List(ctx, &pods, client.InNamespace(names.ControlPlaneNamespace), client.MatchingLabels{
				names.RepositoryLabel: repo.Name, names.ComponentLabel: "repository-server",
			})).To(Succeed())
			g.Expect(pods.Items).To(BeEmpty())
		}).WithContext(ctx).WithTimeout(3 * time.Minute).Should(Succeed())
		_, err := shop.Backup(ctx)
		Expect(err).NotTo(HaveOccurred())
	}, SpecTimeout(long))

	It("maintains the repository in a pod of its own, and loses no backup by it", func(ctx SpecContext) {
		repo := repositoryOf(ctx, shop)
		change := repo.DeepCopy()
		// As if it were of the day before yesterday.
		old := metav1.NewTime(time.Now().Add(-48 * time.Hour))
		change.Status.Initialized = &old
		Expect(cluster.Status().Patch(ctx, change, client.MergeFrom(repo))).To(Succeed())
		Eventually(func(g Gomega) {
			now := repositoryOf(ctx, shop)
			g.Expect(now.Status.Maintenance).NotTo(BeNil())
			g.Expect(now.Status.Maintenance.LastFull).NotTo(BeNil(), "conditions %+v", now.Status.Conditions)
			g.Expect(now.Status.Maintenance.Contents).To(BeNumerically(">", 0))
			var pod corev1.Pod
			err := cluster.Get(ctx, client.ObjectKey{Namespace: names.ControlPlaneNamespace, Name: repo.Name + "-maintenance"}, &pod)
			g.Expect(apierrors.IsNotFound(err)).To(BeTrue(), "the pod is still there")
		}).WithContext(ctx).WithTimeout(4 * time.Minute).Should(Succeed())
		_, err := shop.Destroy(ctx)
		Expect(err).NotTo(HaveOccurred())
		_, err = shop.Restore(ctx)
		Expect(err).NotTo(HaveOccurred())
		_, err = shop.Compare(ctx)
		Expect(err).NotTo(HaveOccurred())
	}, SpecTimeout(long))

	It("leaves no temporary pod behind", func(ctx SpecContext) {
		Eventually(func() ([]corev1.Pod, error) {
			var pods corev1.PodList
			err := cluster.List(ctx, &pods, client.InNamespace(scenario.ShopNamespace), client.MatchingLabels{names.ManagedByLabel: names.ManagedByValue})
			return pods.Items, err
		}).WithContext(ctx).Should(BeEmpty())
	}, SpecTimeout(short))

	It("sends no row in the clear", func(ctx SpecContext) {
		if wire == nil {
			Skip("this machine does not let us look at the node's network")
		}
		Expect(wire.Stop()).To(Succeed())
		Expect(wire.Seen("kube-probe/")).To(BeTrue(), "the sniffer sees the kubelet's probes, so it would see rows")
		Expect(wire.BytesOn(names.RepositoryPort)).To(BeNumerically(">", 20<<20), "the backups went over this port")
		Expect(wire.Seen(scenario.RowMarker)).To(BeFalse())
	}, SpecTimeout(short))

	It("stores no row in the clear", func(ctx SpecContext) {
		out, err := cluster.OnNode(ctx, `cd /var/local-path-provisioner/*_s3_data/backups && find . -type f | wc -l && grep -rl `+scenario.RowMarker+` . | head -3 || true`)
		Expect(err).NotTo(HaveOccurred())
		lines := strings.Fields(out)
		Expect(lines).To(HaveLen(1), "files with plaintext: %s", out)
		Expect(lines[0]).NotTo(Equal("0"), "the bucket is empty: nothing was checked")
	}, SpecTimeout(short))

	It("shows no key and no password anywhere", func(ctx SpecContext) {
		var secrets corev1.SecretList
		Expect(cluster.List(ctx, &secrets, client.InNamespace(scenario.ShopNamespace))).To(Succeed())
		Expect(secrets.Items).To(BeEmpty(), "the application's namespace holds no Secret of ours")

		planted := secretsOf(ctx)
		Expect(len(planted)).To(BeNumerically(">=", 2), "the storage key and a repository password")
		for where, text := range visible(ctx, scenario.ShopNamespace) {
			for name, secret := range planted {
				Expect(strings.Contains(text, secret)).To(BeFalse(), "%s shows %s", where, name)
			}
		}
	}, SpecTimeout(short))

	It("deletes a backup, which then cannot be restored", func(ctx SpecContext) {
		first := shop.Backups()[0]
		remove := scenario.From(crv1alpha1.ActionSpec{
			Name: "delete", Blueprint: "postgresql",
			Object:  crv1alpha1.ObjectReference{Kind: "namespace", Namespace: scenario.ShopNamespace, Name: scenario.ShopNamespace},
			Profile: first.Spec.Actions[0].Profile,
			Options: map[string]string{"namespace": scenario.ShopNamespace, "name": "db"},
		}, first)
		run := func(action crv1alpha1.ActionSpec) (*crv1alpha1.ActionSet, error) {
			return cluster.Run(ctx, &crv1alpha1.ActionSet{
				ObjectMeta: metav1.ObjectMeta{GenerateName: action.Name + "-"},
				Spec:       &crv1alpha1.ActionSetSpec{Actions: []crv1alpha1.ActionSpec{action}},
			}, nil)
		}
		as, err := run(remove)
		Expect(err).NotTo(HaveOccurred())
		Expect(scenario.Output(as, "deleteBase", "spaceFreed")).To(Equal("0 B"))
		_, err = run(remove)
		Expect(err).NotTo(HaveOccurred(), "deleting it again is no error")

		Expect(cluster.Blueprint(ctx, restoreOnly)).To(Succeed())
		_, err = run(scenario.From(crv1alpha1.ActionSpec{
			Name: "restore", Blueprint: restoreOnly.Name,
			Object:  crv1alpha1.ObjectReference{Kind: "statefulset", Namespace: scenario.ShopNamespace, Name: "db"},
			Profile: first.Spec.Actions[0].Profile,
		}, first))
		Expect(err).To(MatchError(ContainSubstring("not found")))
		_, err = shop.Compare(ctx)
		Expect(err).NotTo(HaveOccurred(), "the refused restore changed nothing")
	}, SpecTimeout(long))
})

// restoreOnly restores without a word to the workload: what it asks for must not exist.
var restoreOnly = &crv1alpha1.Blueprint{
	ObjectMeta: metav1.ObjectMeta{Name: "e2e-restore-only"},
	Actions: map[string]*crv1alpha1.BlueprintAction{"restore": {Phases: []crv1alpha1.BlueprintPhase{{
		Func: "RestoreData", Name: "restoreOnly", Args: crv1alpha1.JSONMap{
			"namespace": "{{ .StatefulSet.Namespace }}", "image": "ignored",
			"pod":                  "{{ index .StatefulSet.Pods 0 }}",
			"backupArtifactPrefix": "{{ .Profile.Location.Bucket }}/postgresql/{{ .StatefulSet.Namespace }}/{{ .StatefulSet.Name }}",
			"backupIdentifier":     "{{ .ArtifactsIn.base.KeyValue.backupID }}",
		},
	}}}},
}

func uploaded(as *crv1alpha1.ActionSet) int64 { return as.Status.Progress.SizeUploadedB }

// secretsOf are the secrets of the control plane that must not be seen elsewhere.
func secretsOf(ctx context.Context) map[string]string {
	GinkgoHelper()
	planted := map[string]string{}
	var keys corev1.Secret
	Expect(cluster.Get(ctx, client.ObjectKey{Namespace: names.ControlPlaneNamespace, Name: "e2e-s3-keys"}, &keys)).To(Succeed())
	planted["the storage's secret key"] = string(keys.Data["aws_secret_access_key"])
	var repositories kopiav1alpha1.RepositoryServerList
	Expect(cluster.List(ctx, &repositories, client.InNamespace(names.ControlPlaneNamespace))).To(Succeed())
	for _, r := range repositories.Items {
		var s corev1.Secret
		if err := cluster.Get(ctx, client.ObjectKey{Namespace: r.Namespace, Name: r.Name + "-password"}, &s); err == nil {
			planted["the password of repository "+r.Name] = string(s.Data["password"])
		}
		// One that was derived from an encryptionKey, or is an external server's user's.
		if err := cluster.Get(ctx, client.ObjectKey{Namespace: r.Namespace, Name: r.Name + "-config"}, &s); err == nil {
			var config struct {
				Password string
				External struct{ Password string }
			}
			Expect(json.Unmarshal(s.Data["config.json"], &config)).To(Succeed())
			for _, password := range []string{config.Password, config.External.Password} {
				if password != "" {
					planted["a password in the configuration of "+r.Name] = password
				}
			}
		}
	}
	return planted
}

// visible is what people and neighbours see of an application and of the control
// plane: objects, with their conditions and Events, logs and process lists.
func visible(ctx context.Context, application string) map[string]string {
	GinkgoHelper()
	out := map[string]string{}
	for _, args := range []string{
		"get pods,statefulsets,configmaps,events,persistentvolumeclaims -o yaml -n " + application,
		"get actionsets,blueprints,profiles,repositoryservers,pods,deployments,configmaps,leases,certificates -n kanister-kopia -o yaml",
		"get events.v1.,events.v1.events.k8s.io -A -o yaml",
	} {
		text, err := cluster.Kubectl(ctx, strings.Fields(args)...)
		Expect(err).NotTo(HaveOccurred())
		out["kubectl "+args] = text
	}
	for _, namespace := range []string{application, names.ControlPlaneNamespace} {
		var pods corev1.PodList
		Expect(cluster.List(ctx, &pods, client.InNamespace(namespace))).To(Succeed())
		for _, pod := range pods.Items {
			text, err := cluster.Kubectl(ctx, "logs", "-n", namespace, pod.Name, "--all-containers")
			if err != nil && apierrors.IsNotFound(cluster.Get(ctx, client.ObjectKeyFromObject(&pod), &pod)) {
				continue // a server that was not needed any more
			}
			Expect(err).NotTo(HaveOccurred())
			out[fmt.Sprintf("the log of %s/%s", namespace, pod.Name)] = text
		}
	}
	processes := processes(ctx)
	Expect(processes).To(ContainSubstring("repository-server"), "the list of processes has ours")
	Expect(processes).To(ContainSubstring("GOMEMLIMIT="), "the list of processes has their environments")
	out["an argument list or an environment on the node"] = processes
	return out
}

// processes are the arguments and the environments of all on the node, but for the S3
// gateway's, which has its own keys from there.
func processes(ctx context.Context) string {
	GinkgoHelper()
	out, err := cluster.OnNode(ctx, `exec 2> /dev/null; bash -c '
		for p in /proc/[0-9]*; do
			mapfile -d "" -n 1 args < $p/cmdline
			[[ "${args[0]}" == *versitygw ]] || files+=($p/cmdline $p/environ)
		done
		cat "${files[@]}"' | tr '\0' '\n' || true`)
	Expect(err).NotTo(HaveOccurred())
	return out
}

// repositoryOf is the repository of the shop's last backup.
func repositoryOf(ctx context.Context, shop *scenario.Shop) *kopiav1alpha1.RepositoryServer {
	GinkgoHelper()
	repo, err := cluster.RepositoryOf(ctx, scenario.Output(shop.LastBackup(), "saveBase", "backupID"))
	Expect(err).NotTo(HaveOccurred())
	return repo
}
