// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/test/scenario"
)

// several is the namespace of these specs.
const several = "e2e-several"

// act is a function of a Blueprint as a phase.
func act(name, function string, args crv1alpha1.JSONMap) crv1alpha1.BlueprintPhase {
	return crv1alpha1.BlueprintPhase{Name: name, Func: function, Args: args}
}

// severalBlueprint is for a StatefulSet of several pods, as the cassandra and
// mongodb examples of Kanister are.
var severalBlueprint = &crv1alpha1.Blueprint{
	ObjectMeta: metav1.ObjectMeta{Name: "e2e-several"},
	Actions: map[string]*crv1alpha1.BlueprintAction{
		"backup": {
			OutputArtifacts: map[string]crv1alpha1.Artifact{"all": {KeyValue: map[string]string{
				"info": "{{ .Phases.saveAll.Output.BackupAllInfo }}", "said": "{{ .Phases.mark.Output.said }}",
			}}},
			Phases: []crv1alpha1.BlueprintPhase{
				act("mark", "KubeExecAll", crv1alpha1.JSONMap{
					"namespace": "{{ .StatefulSet.Namespace }}", "containers": "app",
					"pods":    "{{ range .StatefulSet.Pods }} {{ . }}{{ end }}",
					"command": []any{"sh", "-c", `hostname > /data/tree/marked && echo 'it says ###Phase-output###: {"key":"said","value":"done"}'`},
				}),
				act("saveAll", "BackupDataAll", crv1alpha1.JSONMap{
					"namespace": "{{ .StatefulSet.Namespace }}", "container": "app", "includePath": "/data/tree",
					"backupArtifactPrefix": "{{ .Profile.Location.Bucket }}/e2e/several",
				}),
			},
		},
		"restore": {
			Phases: []crv1alpha1.BlueprintPhase{
				act("stopAll", "ScaleWorkload", crv1alpha1.JSONMap{"replicas": 0}),
				act("restoreAll", "RestoreDataAll", crv1alpha1.JSONMap{
					"namespace": "{{ .StatefulSet.Namespace }}", "image": "ignored",
					"backupArtifactPrefix": "{{ .Profile.Location.Bucket }}/e2e/several", "backupInfo": "{{ .ArtifactsIn.all.KeyValue.info }}",
				}),
			},
			DeferPhase: &crv1alpha1.BlueprintPhase{Name: "startAll", Func: "ScaleWorkload", Args: crv1alpha1.JSONMap{"replicas": 2}},
		},
		"stats": {Phases: []crv1alpha1.BlueprintPhase{act("measure", "BackupDataStats", crv1alpha1.JSONMap{
			"namespace": "{{ .StatefulSet.Namespace }}", "statsMode": "{{ .Options.mode }}",
			"backupArtifactPrefix": "e2e/several/{{ .Options.pod }}", "backupID": "{{ .Options.id }}",
		})}},
		"check": {Phases: []crv1alpha1.BlueprintPhase{act("check", "CheckRepository", crv1alpha1.JSONMap{
			"backupArtifactPrefix": "e2e/several",
		})}},
		"delete": {Phases: []crv1alpha1.BlueprintPhase{act("deleteAll", "DeleteDataAll", crv1alpha1.JSONMap{
			"namespace": "{{ .StatefulSet.Namespace }}", "backupArtifactPrefix": "e2e/several",
			"backupInfo": "{{ .ArtifactsIn.all.KeyValue.info }}", "reclaimSpace": "true",
		})}},
	},
}

// volumeBlueprint copies a bare claim and brings it back in the two ways that
// Kanister documents.
var volumeBlueprint = &crv1alpha1.Blueprint{
	ObjectMeta: metav1.ObjectMeta{Name: "e2e-volume"},
	Actions: map[string]*crv1alpha1.BlueprintAction{
		"copy": {
			OutputArtifacts: map[string]crv1alpha1.Artifact{"copy": {KeyValue: map[string]string{
				"id": "{{ .Phases.copyVolume.Output.backupID }}", "tag": "{{ .Phases.copyVolume.Output.backupTag }}",
				"root": "{{ .Phases.copyVolume.Output.backupRoot }}", "location": "{{ .Phases.copyVolume.Output.backupArtifactLocation }}",
			}}},
			Phases: []crv1alpha1.BlueprintPhase{act("copyVolume", "CopyVolumeData", crv1alpha1.JSONMap{
				"namespace": "{{ .PVC.Namespace }}", "volume": "{{ .PVC.Name }}", "dataArtifactPrefix": "e2e/volume",
			})},
		},
		"restoreInPlace": {Phases: []crv1alpha1.BlueprintPhase{act("inPlace", "RestoreData", crv1alpha1.JSONMap{
			"namespace": "{{ .PVC.Namespace }}", "image": "ignored", "backupArtifactPrefix": "{{ .ArtifactsIn.copy.KeyValue.location }}",
			"volumes": map[string]any{"{{ .PVC.Name }}": "{{ .ArtifactsIn.copy.KeyValue.root }}"}, "backupTag": "{{ .ArtifactsIn.copy.KeyValue.tag }}",
		})}},
		"restoreElsewhere": {Phases: []crv1alpha1.BlueprintPhase{act("elsewhere", "RestoreData", crv1alpha1.JSONMap{
			"namespace": "{{ .PVC.Namespace }}", "image": "ignored", "backupArtifactPrefix": "{{ .ArtifactsIn.copy.KeyValue.location }}",
			"volumes": map[string]any{"{{ .PVC.Name }}": "/mnt/other"}, "restorePath": "/mnt/other",
			"backupPath": "{{ .ArtifactsIn.copy.KeyValue.root }}", "backupIdentifier": "{{ .ArtifactsIn.copy.KeyValue.id }}",
		})}},
		"forget": {Phases: []crv1alpha1.BlueprintPhase{act("forget", "LocationDelete", crv1alpha1.JSONMap{"artifact": "{{ .ArtifactsIn.copy.KeyValue.location }}"})}},
	},
}

// companionBlueprint runs what needs nothing backed up.
var companionBlueprint = &crv1alpha1.Blueprint{
	ObjectMeta: metav1.ObjectMeta{Name: "e2e-companions"},
	Actions: map[string]*crv1alpha1.BlueprintAction{"act": {Phases: []crv1alpha1.BlueprintPhase{
		act("together", "MultiContainerRun", crv1alpha1.JSONMap{
			"namespace": several, "sharedVolumeDir": "/shared", "sharedVolumeMedium": "Memory", "sharedVolumeSizeLimit": "16Mi",
			"initImage": busybox, "initCommand": []any{"mkfifo", "/shared/pipe"},
			"backgroundImage": busybox, "backgroundCommand": []any{"sh", "-c", "echo through the pipe > /shared/pipe"},
			"outputImage": busybox, "outputCommand": []any{"sh", "-c", `printf '###Phase-output###: {"key":"heard","value":"%s"}\n' "$(cat /shared/pipe)"`},
			"podOverride": restricted,
		}),
		act("long", "KubeTask", crv1alpha1.JSONMap{
			"namespace": several, "image": busybox, "podOverride": restricted,
			"command": []any{"sh", "-c", `printf 'mid-line ###Phase-output###: {"key":"long","value":"'; head -c 100000 /dev/zero | tr '\0' x; printf '"}'`},
		}),
	}}},
}

const busybox = "kanister-kopia.local/busybox:dev"

// restricted is what a namespace with Pod Security asks of an image of nobody's.
var restricted = map[string]any{"securityContext": map[string]any{"runAsUser": 1000, "runAsNonRoot": true}}

var _ = Describe("the functions", Ordered, func() {
	run := func(ctx context.Context, spec crv1alpha1.ActionSpec, parent *crv1alpha1.ActionSet, watch func(*crv1alpha1.ActionSet)) (*crv1alpha1.ActionSet, error) {
		spec.Profile = &crv1alpha1.ObjectReference{Namespace: names.ControlPlaneNamespace, Name: "e2e-several"}
		if parent != nil {
			spec = scenario.From(spec, parent)
		}
		return cluster.Run(ctx, &crv1alpha1.ActionSet{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-" + strings.ToLower(spec.Name) + "-"},
			Spec:       &crv1alpha1.ActionSetSpec{Actions: []crv1alpha1.ActionSpec{spec}},
		}, watch)
	}
	onSet := func(action string, options map[string]string) crv1alpha1.ActionSpec {
		return crv1alpha1.ActionSpec{
			Name: action, Blueprint: severalBlueprint.Name, Options: options,
			Object: crv1alpha1.ObjectReference{Kind: "statefulset", Namespace: several, Name: "files"},
		}
	}
	onClaim := func(action string) crv1alpha1.ActionSpec {
		return crv1alpha1.ActionSpec{
			Name: action, Blueprint: volumeBlueprint.Name,
			Object: crv1alpha1.ObjectReference{Kind: "pvc", Namespace: several, Name: "files"},
		}
	}
	tree := func(ctx context.Context, pod string) string {
		GinkgoHelper()
		out, err := cluster.Exec(ctx, several, pod, "app", `cd /data/tree && find . -type f | sort | xargs md5sum`)
		Expect(err).NotTo(HaveOccurred())
		return out
	}
	BeforeAll(func(ctx SpecContext) {
		DeferCleanup(func(ctx SpecContext) {
			Expect(client.IgnoreNotFound(cluster.Delete(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: several}}))).To(Succeed())
		}, NodeTimeout(short))
		keys, err := cluster.StartS3(ctx)
		Expect(err).NotTo(HaveOccurred())
		Expect(cluster.PutProfile(ctx, "e2e-several", keys, "e2e-several")).To(Succeed())
		Expect(cluster.DeleteNamespace(ctx, several)).To(Succeed())
		Expect(cluster.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: several, Labels: map[string]string{
			names.InjectionLabel: names.InjectionEnabled, "pod-security.kubernetes.io/enforce": "restricted",
		}}})).To(Succeed())
		for _, role := range []string{"kanister-kopia-namespace", "kanister-kopia-companions"} {
			Expect(cluster.Bind(ctx, several, role)).To(Succeed())
		}
		for _, b := range []*crv1alpha1.Blueprint{severalBlueprint, volumeBlueprint, companionBlueprint} {
			Expect(cluster.Blueprint(ctx, b)).To(Succeed())
		}
		replicas := int32(2)
		set := &appsv1.StatefulSet{
			ObjectMeta: metav1.ObjectMeta{Namespace: several, Name: "files"},
			Spec: appsv1.StatefulSetSpec{
				Replicas: &replicas, ServiceName: "files", Selector: selector("files"), PodManagementPolicy: appsv1.ParallelPodManagement,
				Template: template(labelled, func(p *corev1.PodSpec) { p.Volumes = nil }),
				VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{
					ObjectMeta: metav1.ObjectMeta{Name: "data"}, Spec: claim(several).Spec,
				}},
			},
		}
		set.Spec.Template.Labels["app"] = "files"
		Expect(cluster.Create(ctx, set)).To(Succeed())
		Expect(cluster.Rollout(ctx, several, "statefulset/files")).To(Succeed())
		for _, pod := range []string{"files-0", "files-1"} {
			_, err := cluster.Exec(ctx, several, pod, "app", `mkdir -p /data/tree && cd /data/tree && hostname > name && seq 1 50000 > numbers`)
			Expect(err).NotTo(HaveOccurred())
		}
	}, NodeTimeout(long))

	var backup *crv1alpha1.ActionSet
	It("backs up both pods of a StatefulSet", func(ctx SpecContext) {
		var err error
		backup, err = run(ctx, onSet("backup", nil), nil, nil)
		Expect(err).NotTo(HaveOccurred())
		artifact := backup.Status.Actions[0].Artifacts["all"].KeyValue
		Expect(artifact["said"]).To(Equal("done"))
		Expect(artifact["info"]).To(MatchRegexp(`^\{"files-0":\{"PodName":"files-0","BackupID":"[a-z0-9-]+","BackupTag":"[a-z0-9-]+"\},"files-1":\{.*\}\}$`))
		Expect(backup.Status.Progress.PercentCompleted).To(Equal("100"))
	}, SpecTimeout(long))

	It("restores each pod's own data while the controller is killed", func(ctx SpecContext) {
		before := map[string]string{}
		for _, pod := range []string{"files-0", "files-1"} {
			before[pod] = tree(ctx, pod)
			_, err := cluster.Exec(ctx, several, pod, "app", `cd /data/tree && echo damaged > numbers && rm name`)
			Expect(err).NotTo(HaveOccurred())
		}
		Expect(before["files-0"]).NotTo(Equal(before["files-1"]))
		killed := false
		_, err := run(ctx, onSet("restore", nil), backup, killing(ctx, "restoreAll", &killed))
		Expect(err).NotTo(HaveOccurred())
		Expect(killed).To(BeTrue(), "the restore was over before anything could be killed")
		Expect(cluster.Rollout(ctx, several, "statefulset/files")).To(Succeed())
		for pod, want := range before {
			Expect(tree(ctx, pod)).To(Equal(want), pod)
		}
	}, SpecTimeout(long))

	It("measures a backup in each of restic's modes", func(ctx SpecContext) {
		id := field(backup.Status.Actions[0].Artifacts["all"].KeyValue["info"], `"files-1":{"PodName":"files-1","BackupID":"`)
		for mode, files := range map[string]string{"restore-size": "3", "files-by-contents": "2"} {
			as, err := run(ctx, onSet("stats", map[string]string{"mode": mode, "pod": "files-1", "id": id}), nil, nil)
			Expect(err).NotTo(HaveOccurred())
			Expect(scenario.Output(as, "measure", "mode")).To(Equal(mode))
			// "name" and "marked" both hold the pod's name.
			Expect(scenario.Output(as, "measure", "fileCount")).To(Equal(files), mode)
			Expect(scenario.Output(as, "measure", "size")).To(HaveSuffix(" KiB"))
		}
		_, err := run(ctx, onSet("stats", map[string]string{"mode": "raw-data", "pod": "files-0", "id": id}), nil, nil)
		Expect(err).To(MatchError(ContainSubstring("not found")), "under another pod's prefix")
	}, SpecTimeout(long))

	It("deletes what it saved, and says so of the repository", func(ctx SpecContext) {
		check := func() string {
			as, err := run(ctx, onSet("check", nil), nil, nil)
			Expect(err).NotTo(HaveOccurred())
			return scenario.Output(as, "check", "passwordIncorrect") + " " + scenario.Output(as, "check", "repoUnavailable")
		}
		Expect(check()).To(Equal("false false"))
		for range 2 {
			as, err := run(ctx, onSet("delete", nil), backup, nil)
			Expect(err).NotTo(HaveOccurred())
			Expect(scenario.Output(as, "deleteAll", "spaceFreed")).To(Equal("0 B"))
		}
		Expect(check()).To(Equal("false true"), "nothing is left under the prefix")
		_, err := run(ctx, onSet("restore", nil), backup, nil)
		Expect(err).To(MatchError(And(ContainSubstring("nothing was written"), ContainSubstring("not found"))))
		Expect(cluster.Rollout(ctx, several, "statefulset/files")).To(Succeed())
	}, SpecTimeout(long))

	It("restores a Deployment whose pod has another name", func(ctx SpecContext) {
		Expect(cluster.Create(ctx, claimed(several, "web", corev1.ReadWriteOnce))).To(Succeed())
		web := deployment(several, "web", 1, labelled, func(p *corev1.PodSpec) {
			p.Volumes[0] = corev1.Volume{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "web"}}}
		})
		web.Spec.Strategy.Type = appsv1.RecreateDeploymentStrategyType
		Expect(cluster.Create(ctx, web)).To(Succeed())
		Expect(cluster.Rollout(ctx, several, "deployment/web")).To(Succeed())
		pod := func() string { return running(ctx, several, "web")[0].Name }
		_, err := cluster.Exec(ctx, several, pod(), "app", `mkdir -p /data/tree && echo kept > /data/tree/page`)
		Expect(err).NotTo(HaveOccurred())
		Expect(cluster.Blueprint(ctx, onDeployment(severalBlueprint))).To(Succeed())
		spec := func(action string) crv1alpha1.ActionSpec {
			return crv1alpha1.ActionSpec{Name: action, Blueprint: "e2e-deployment", Object: crv1alpha1.ObjectReference{Kind: "deployment", Namespace: several, Name: "web"}}
		}
		saved, err := run(ctx, spec("backup"), nil, nil)
		Expect(err).NotTo(HaveOccurred())
		old := pod()
		_, err = cluster.Exec(ctx, several, old, "app", `echo lost > /data/tree/page`)
		Expect(err).NotTo(HaveOccurred())
		_, err = cluster.Kubectl(ctx, "delete", "pod", "-n", several, old, "--wait")
		Expect(err).NotTo(HaveOccurred())
		Expect(cluster.Rollout(ctx, several, "deployment/web")).To(Succeed())
		killed := false
		_, err = run(ctx, spec("restore"), saved, killing(ctx, "restoreAll", &killed))
		Expect(err).NotTo(HaveOccurred())
		Expect(killed).To(BeTrue(), "the restore was over before anything could be killed")
		Expect(cluster.Rollout(ctx, several, "deployment/web")).To(Succeed())
		out, err := cluster.Exec(ctx, several, pod(), "app", `cat /data/tree/page`)
		Expect(err).NotTo(HaveOccurred())
		Expect(strings.TrimSpace(out)).To(Equal("kept"))
	}, SpecTimeout(long))

	It("copies a bare claim and brings it back in both documented ways", func(ctx SpecContext) {
		Expect(cluster.Create(ctx, claim(several))).To(Succeed())
		look := func(script string) (out string) {
			GinkgoHelper()
			pod := filesPod(several, "look", nil)
			pod.Spec.SecurityContext.RunAsNonRoot = new(true)
			pod.Spec.SecurityContext.SeccompProfile = &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}
			pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{
				AllowPrivilegeEscalation: new(false), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			}
			insidePod(ctx, pod, func(shell func(string) string) { out = shell(script) })
			return out
		}
		look(`cd /data && mkdir -p dir && echo first > dir/file && chmod 755 dir && chmod 644 dir/file`)
		killed := false
		copied, err := run(ctx, onClaim("copy"), nil, killing(ctx, "copyVolume", &killed))
		Expect(err).NotTo(HaveOccurred())
		Expect(killed).To(BeTrue(), "the copy was over before anything could be killed")
		artifact := copied.Status.Actions[0].Artifacts["copy"].KeyValue
		Expect(artifact["root"]).To(Equal("/mnt/vol_data/files"))
		Expect(artifact["location"]).To(Equal(scenario.S3Bucket + "/e2e/volume"))
		for _, action := range []string{"restoreInPlace", "restoreElsewhere"} {
			look(`echo damaged > /data/dir/file; chmod 666 /data/dir/file; chmod 777 /data/dir`)
			spec := onClaim(action)
			// Nothing mounts the claim and root owns it: who may write is for us to say.
			spec.PodOverride = crv1alpha1.JSONMap{
				"securityContext": map[string]any{"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000},
				"containers":      []any{map[string]any{"name": "container", "securityContext": map[string]any{"runAsUser": 1000, "runAsGroup": 1000}}},
			}
			_, err := run(ctx, spec, copied, nil)
			Expect(err).NotTo(HaveOccurred(), action)
			Expect(look(`cat /data/dir/file; ls /data`)).To(HavePrefix("first"), action)
		}
		_, err = run(ctx, onClaim("forget"), copied, nil)
		Expect(err).NotTo(HaveOccurred())
		_, err = run(ctx, onClaim("restoreInPlace"), copied, nil)
		Expect(err).To(MatchError(ContainSubstring("not found")))
	}, SpecTimeout(long))

	It("runs containers side by side and keeps long outputs", func(ctx SpecContext) {
		as, err := run(ctx, crv1alpha1.ActionSpec{
			Name: "act", Blueprint: companionBlueprint.Name, Object: crv1alpha1.ObjectReference{Kind: "namespace", Namespace: several, Name: several},
		}, nil, nil)
		Expect(err).NotTo(HaveOccurred())
		Expect(scenario.Output(as, "together", "heard")).To(Equal("through the pipe"))
		Expect(scenario.Output(as, "long", "long")).To(HaveLen(100000))
	}, SpecTimeout(long))

	It("leaves no temporary pod behind", func(ctx SpecContext) {
		Eventually(func() ([]corev1.Pod, error) {
			var pods corev1.PodList
			err := cluster.List(ctx, &pods, client.InNamespace(several), client.MatchingLabels{names.ManagedByLabel: names.ManagedByValue})
			return pods.Items, err
		}).WithContext(ctx).WithTimeout(time.Minute).Should(BeEmpty())
	}, SpecTimeout(short))
})

// onDeployment is the same Blueprint for a Deployment of one pod.
func onDeployment(b *crv1alpha1.Blueprint) *crv1alpha1.Blueprint {
	out := b.DeepCopy()
	out.Name = "e2e-deployment"
	var change func(v any) any
	change = func(v any) any {
		switch v := v.(type) {
		case string:
			return strings.ReplaceAll(v, ".StatefulSet", ".Deployment")
		case []any:
			for i := range v {
				v[i] = change(v[i])
			}
		}
		return v
	}
	for _, name := range []string{"backup", "restore"} {
		for _, phase := range out.Actions[name].Phases {
			for k, v := range phase.Args {
				phase.Args[k] = change(v)
			}
		}
	}
	out.Actions["restore"].DeferPhase.Args["replicas"] = 1
	return out
}

// field is what follows a text up to the next quote.
func field(text, before string) string {
	GinkgoHelper()
	_, rest, ok := strings.Cut(text, before)
	Expect(ok).To(BeTrue(), fmt.Sprintf("%s in %s", before, text))
	value, _, _ := strings.Cut(rest, `"`)
	return value
}
