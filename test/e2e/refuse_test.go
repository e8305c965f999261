// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/test/scenario"
)

// Namespaces of these specs. The controller has its rights in both.
const (
	optedIn = "e2e-in"
	plain   = "e2e-plain"
)

// filesBlueprint backs up and restores whatever the options say.
var filesBlueprint = &crv1alpha1.Blueprint{
	ObjectMeta: metav1.ObjectMeta{Name: "e2e-files"},
	Actions: map[string]*crv1alpha1.BlueprintAction{
		"backup": {
			OutputArtifacts: map[string]crv1alpha1.Artifact{"files": {KeyValue: map[string]string{"backupID": "{{ .Phases.save.Output.backupID }}"}}},
			Phases: []crv1alpha1.BlueprintPhase{{Func: "BackupData", Name: "save", Args: crv1alpha1.JSONMap{
				"namespace": "{{ .Namespace.Name }}", "pod": "{{ .Options.pod }}", "container": "app",
				"includePath": "{{ .Options.path }}", "backupArtifactPrefix": "e2e/files",
			}}},
		},
		"restore": {Phases: []crv1alpha1.BlueprintPhase{{Func: "RestoreData", Name: "bringBack", Args: crv1alpha1.JSONMap{
			"namespace": "{{ .Namespace.Name }}", "image": "ignored", "volumes": map[string]any{"files": "/data"},
			"backupArtifactPrefix": "e2e/files", "backupIdentifier": "{{ .ArtifactsIn.files.KeyValue.backupID }}",
			"restorePath": "{{ .Options.to }}",
		}}}},
	},
}

// files runs one of its actions.
func files(ctx context.Context, action, namespace, profile string, options map[string]string, parent *crv1alpha1.ActionSet) (*crv1alpha1.ActionSet, error) {
	return runOn(ctx, filesBlueprint.Name, action, namespace, profile, options, parent)
}

// runOn runs an action of a Blueprint on a namespace.
func runOn(ctx context.Context, blueprint, action, namespace, profile string, options map[string]string, parent *crv1alpha1.ActionSet) (*crv1alpha1.ActionSet, error) {
	spec := crv1alpha1.ActionSpec{
		Name: action, Blueprint: blueprint, Options: options,
		Object:  crv1alpha1.ObjectReference{Kind: "namespace", Namespace: namespace, Name: namespace},
		Profile: &crv1alpha1.ObjectReference{Namespace: names.ControlPlaneNamespace, Name: profile},
	}
	if parent != nil {
		spec = scenario.From(spec, parent)
	}
	return cluster.Run(ctx, &crv1alpha1.ActionSet{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-" + action + "-"},
		Spec:       &crv1alpha1.ActionSetSpec{Actions: []crv1alpha1.ActionSpec{spec}},
	}, nil)
}

var _ = Describe("files of a plain pod", Ordered, func() {
	BeforeAll(func(ctx SpecContext) {
		keys, err := cluster.StartS3(ctx)
		Expect(err).NotTo(HaveOccurred())
		Expect(cluster.PutProfile(ctx, "e2e", keys, "e2e")).To(Succeed())
		wrong := keys
		wrong.Secret = "wrong-" + keys.Secret
		// Another prefix: another repository, whose server is not running yet.
		Expect(cluster.PutProfile(ctx, "e2e-wrong-key", wrong, "e2e-wrong-key")).To(Succeed())
		Expect(cluster.Blueprint(ctx, filesBlueprint)).To(Succeed())
		for _, namespace := range []string{optedIn, plain} {
			Expect(cluster.DeleteNamespace(ctx, namespace)).To(Succeed())
		}
		Expect(cluster.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
			Name: optedIn, Labels: map[string]string{names.InjectionLabel: names.InjectionEnabled},
		}})).To(Succeed())
		Expect(cluster.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: plain}})).To(Succeed())
		for _, namespace := range []string{optedIn, plain} {
			Expect(cluster.Bind(ctx, namespace, "kanister-kopia-namespace")).To(Succeed())
			Expect(cluster.Create(ctx, claim(namespace))).To(Succeed())
		}
		// The webhook is asked about the first and the third only.
		asked := map[string]string{names.InjectLabel: "true"}
		Expect(cluster.Create(ctx, filesPod(optedIn, "labelled", asked))).To(Succeed())
		Expect(cluster.Create(ctx, filesPod(optedIn, "unlabelled", nil))).To(Succeed())
		networked := filesPod(optedIn, "networked", asked)
		networked.Spec.HostNetwork = true
		Expect(cluster.Create(ctx, networked)).To(Succeed())
		Expect(cluster.Create(ctx, filesPod(plain, "labelled", asked))).To(Succeed())
		for _, pod := range []string{optedIn + "/labelled", optedIn + "/unlabelled", plain + "/labelled"} {
			namespace, name, _ := strings.Cut(pod, "/")
			_, err := cluster.Kubectl(ctx, "wait", "--for=condition=Ready", "pod/"+name, "-n", namespace, "--timeout=3m")
			Expect(err).NotTo(HaveOccurred())
		}
	}, NodeTimeout(long))

	It("leaves an unlabelled namespace and an unlabelled pod alone", func(ctx SpecContext) {
		for _, key := range []client.ObjectKey{{Namespace: plain, Name: "labelled"}, {Namespace: optedIn, Name: "unlabelled"}} {
			var pod corev1.Pod
			Expect(cluster.Get(ctx, key, &pod)).To(Succeed())
			Expect(pod.Spec.InitContainers).To(BeEmpty(), key.String())
			Expect(pod.Annotations).NotTo(HaveKey(names.StatusAnnotation), key.String())
		}
		var configMaps corev1.ConfigMapList
		Expect(cluster.List(ctx, &configMaps, client.InNamespace(plain))).To(Succeed())
		for _, m := range configMaps.Items {
			Expect(m.Name).NotTo(Equal(names.CAConfigMap), "nothing of ours is in a namespace that did not opt in")
		}
	}, SpecTimeout(short))

	It("gives the agent no token of the application's service account", func(ctx SpecContext) {
		var pod corev1.Pod
		Expect(cluster.Get(ctx, client.ObjectKey{Namespace: optedIn, Name: "labelled"}, &pod)).To(Succeed())
		tokens := map[string]bool{}
		for _, v := range pod.Spec.Volumes {
			tokens[v.Name] = v.Projected != nil
		}
		Expect(pod.Spec.Containers[0].VolumeMounts).To(ContainElement(WithTransform(func(m corev1.VolumeMount) bool { return tokens[m.Name] }, BeTrue())),
			"the application has its token")
		Expect(pod.Spec.InitContainers[0].VolumeMounts).NotTo(ContainElement(WithTransform(func(m corev1.VolumeMount) bool { return tokens[m.Name] }, BeTrue())))
	}, SpecTimeout(short))

	It("restores content, modes, owners, times and links as they were", func(ctx SpecContext) {
		_, err := cluster.Exec(ctx, optedIn, "labelled", "app", `
			cd /data && rm -rf tree back && mkdir -p tree/dir/empty && cd tree
			seq 1 100000 > numbers && : > nothing && printf 'a\000b' > 'odd name' && ln -s numbers link && ln -s ../nowhere dangling
			echo x > dir/script && chmod 750 dir/script && chmod 1770 dir/empty && chmod 400 nothing
			touch -d '2001-02-03 04:05:06' numbers dir/script dir/empty dir .`)
		Expect(err).NotTo(HaveOccurred())
		before := listing(ctx, optedIn, "labelled", "/data/tree")

		backup, err := files(ctx, "backup", optedIn, "e2e", map[string]string{"pod": "labelled", "path": "/data/tree"}, nil)
		Expect(err).NotTo(HaveOccurred())
		_, err = files(ctx, "restore", optedIn, "e2e", map[string]string{"to": "/data/back"}, backup)
		Expect(err).NotTo(HaveOccurred())
		Expect(listing(ctx, optedIn, "labelled", "/data/back/data/tree")).To(Equal(before), "below restorePath, under the path that was backed up")
	}, SpecTimeout(long))

	It("goes on with a backup after the controller was killed", func(ctx SpecContext) {
		_, err := cluster.Exec(ctx, optedIn, "labelled", "app", "head -c 700000000 /dev/urandom > /data/large")
		Expect(err).NotTo(HaveOccurred())
		killed := false
		as, err := cluster.Run(ctx, &crv1alpha1.ActionSet{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-killed-"},
			Spec: &crv1alpha1.ActionSetSpec{Actions: []crv1alpha1.ActionSpec{{
				Name: "backup", Blueprint: filesBlueprint.Name, Options: map[string]string{"pod": "labelled", "path": "/data/large"},
				Object:  crv1alpha1.ObjectReference{Kind: "namespace", Namespace: optedIn, Name: optedIn},
				Profile: &crv1alpha1.ObjectReference{Namespace: names.ControlPlaneNamespace, Name: "e2e"},
			}}},
		}, func(as *crv1alpha1.ActionSet) {
			// Bytes have gone over the wire, not all of them.
			if killed || as.Status == nil || as.Status.State.Done() || as.Status.Progress.SizeUploadedB == 0 {
				return
			}
			killed = true
			killController(ctx)
		})
		Expect(err).NotTo(HaveOccurred())
		Expect(killed).To(BeTrue(), "the backup was over before anything could be killed")
		Expect(scenario.Output(as, "save", "fileCount")).To(Equal("1"))
		Expect(as.Status.Progress.SizeUploadedB).To(BeNumerically(">=", 600e6))
		log, err := cluster.Kubectl(ctx, "logs", "-n", optedIn, "labelled", "-c", names.AgentContainer)
		Expect(err).NotTo(HaveOccurred())
		Expect(strings.Count(log, `"operation started","id":"`+string(as.UID)+"-0-")).To(Equal(1), "one phase is one operation")
		_, err = cluster.Exec(ctx, optedIn, "labelled", "app", "rm /data/large")
		Expect(err).NotTo(HaveOccurred())
	}, SpecTimeout(long))

	DescribeTable("says what is wrong and what to do",
		func(spec SpecContext, namespace, pod, path, profile string, wants ...string) {
			ctx, cancel := context.WithTimeout(spec, short)
			defer cancel()
			as, err := files(ctx, "backup", namespace, profile, map[string]string{"pod": pod, "path": path}, nil)
			Expect(err).To(HaveOccurred())
			for _, want := range wants {
				Expect(err.Error()).To(ContainSubstring(want))
			}
			Expect(as.Status.State).To(Equal(crv1alpha1.StateFailed))
			Expect(as.Status.Actions[0].Phases[0].State).NotTo(Equal(crv1alpha1.StateComplete))
			Expect(as.Status.Actions[0].Artifacts["files"].KeyValue["backupID"]).To(HavePrefix("{{"), "no artifact of a failed backup")
			for name, secret := range secretsOf(ctx) {
				Expect(err.Error()).NotTo(ContainSubstring(secret), name)
			}
		},
		Entry("namespace not opted in", plain, "labelled", "/data", "e2e", "has no agent", "has not opted in", "kopia.kanister.io/injection=enabled"),
		Entry("pod without the label", optedIn, "unlabelled", "/data", "e2e", "has no agent", "kopia.kanister.io/inject=true"),
		Entry("pod on the host's network", optedIn, "networked", "/data", "e2e", "has no agent", "uses the host's network", "kopia.kanister.io/inject=false"),
		Entry("path outside any volume", optedIn, "labelled", "/etc", "e2e", "/etc of container app is on no volume"),
		Entry("path that climbs out", optedIn, "labelled", "/data/../etc", "e2e", "/etc"),
		Entry("path that does not exist", optedIn, "labelled", "/data/lost", "e2e", "/lost does not exist"),
		Entry("unknown pod", optedIn, "lost", "/data", "e2e", "lost", "not found"),
		Entry("wrong bucket key", optedIn, "labelled", "/data", "e2e-wrong-key", "bucket backups", "signature"),
		Entry("unknown Profile", optedIn, "labelled", "/data", "e2e-lost", "e2e-lost", "not found"),
	)
})

// listing is what a folder of an application's pod holds: every entry with its type,
// mode, owner and time, and what is in it.
func listing(ctx context.Context, namespace, pod, dir string) string {
	GinkgoHelper()
	out, err := cluster.Exec(ctx, namespace, pod, "app", `cd `+dir+` && find . | sort | while read -r f; do
		stat -c '%n %f %u %g %Y' "$f"; if [ -L "$f" ]; then readlink "$f"; elif [ -f "$f" ]; then md5sum < "$f"; fi; done`)
	Expect(err).NotTo(HaveOccurred())
	return out
}

func claim(namespace string) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "files"},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		},
	}
}

func filesPod(namespace, name string, labels map[string]string) *corev1.Pod {
	uid := int64(1000)
	grace := int64(0)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &grace,
			SecurityContext:               &corev1.PodSecurityContext{RunAsUser: &uid, RunAsGroup: &uid, FSGroup: &uid},
			Containers: []corev1.Container{{
				Name: "app", Image: "kanister-kopia.local/busybox:dev", ImagePullPolicy: corev1.PullIfNotPresent,
				Command:      []string{"sleep", "1000000"},
				VolumeMounts: []corev1.VolumeMount{{Name: "files", MountPath: "/data"}},
			}},
			Volumes: []corev1.Volume{{Name: "files", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "files"},
			}}},
		},
	}
}

// insidePod starts a pod, does something with its shell and removes it.
func insidePod(ctx context.Context, pod *corev1.Pod, do func(shell func(script string) string)) {
	GinkgoHelper()
	Expect(cluster.Create(ctx, pod)).To(Succeed())
	_, err := cluster.Kubectl(ctx, "wait", "--for=condition=Ready", "pod/"+pod.Name, "-n", pod.Namespace, "--timeout=3m")
	Expect(err).NotTo(HaveOccurred())
	do(func(script string) string {
		GinkgoHelper()
		out, err := cluster.Exec(ctx, pod.Namespace, pod.Name, "app", script)
		Expect(err).NotTo(HaveOccurred())
		return strings.TrimSpace(out)
	})
	_, err = cluster.Kubectl(ctx, "delete", "pod", "-n", pod.Namespace, pod.Name, "--wait", "--grace-period=0", "--force")
	Expect(err).NotTo(HaveOccurred())
}
