// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strconv"
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

// midway is the namespace of this spec.
const midway = "e2e-midway"

// freezer stops each process on the node that is called as /run/e2e-freeze says, until
// that is gone, and makes /run/e2e-frozen when it has looked at all once. It starts no
// process: looking that often would take half a core.
const freezer = `
exec 3<> <(:)
while read -r which < /run/e2e-freeze; do
  for p in /proc/[0-9]*; do
    mapfile -d "" -n 2 args < $p/cmdline
    [[ "${args[0]} ${args[1]}" == $which* ]] && kill -STOP ${p#/proc/}
  done
  > /run/e2e-frozen
  read -t 0.02 -u 3
done`

// midwayBlueprint has an action for each of the eight functions, named as it is, with
// one phase, and one that makes what they work on.
func midwayBlueprint() *crv1alpha1.Blueprint {
	from := func(function, prefix string, more crv1alpha1.JSONMap) crv1alpha1.JSONMap {
		args := crv1alpha1.JSONMap{"namespace": midway, "backupArtifactPrefix": "e2e/midway/" + prefix}
		if strings.HasPrefix(function, "Restore") {
			args["image"] = "ignored"
		}
		for k, v := range more {
			args[k] = v
		}
		return args
	}
	const pods = "files-0 files-1"
	// Two paths: of one, the second backup would wait for the first.
	one := crv1alpha1.JSONMap{"container": "app", "pod": "files-0", "includePath": "/data/alone"}
	all := crv1alpha1.JSONMap{"container": "app", "pods": pods, "includePath": "/data/tree"}
	b := &crv1alpha1.Blueprint{
		ObjectMeta: metav1.ObjectMeta{Name: "e2e-midway"},
		Actions: map[string]*crv1alpha1.BlueprintAction{"make": {
			OutputArtifacts: map[string]crv1alpha1.Artifact{"made": {KeyValue: map[string]string{
				"id": "{{ .Phases.one.Output.backupID }}", "info": "{{ .Phases.all.Output.BackupAllInfo }}",
				"lostID": "{{ .Phases.lostOne.Output.backupID }}", "lostInfo": "{{ .Phases.lostAll.Output.BackupAllInfo }}",
			}}},
			Phases: []crv1alpha1.BlueprintPhase{
				act("one", "BackupData", from("BackupData", "one", one)), act("lostOne", "BackupData", from("BackupData", "one", one)),
				act("all", "BackupDataAll", from("BackupDataAll", "all", all)), act("lostAll", "BackupDataAll", from("BackupDataAll", "all", all)),
			},
		}},
	}
	for function, args := range map[string]crv1alpha1.JSONMap{
		"BackupData":      from("BackupData", "one", one),
		"BackupDataAll":   from("BackupDataAll", "all", all),
		"CopyVolumeData":  {"namespace": midway, "dataArtifactPrefix": "e2e/midway/copy", "volume": "data-files-2"},
		"BackupDataStats": from("BackupDataStats", "one", crv1alpha1.JSONMap{"backupID": "{{ .ArtifactsIn.made.KeyValue.id }}"}),
		"RestoreData": from("RestoreData", "one", crv1alpha1.JSONMap{
			"backupIdentifier": "{{ .ArtifactsIn.made.KeyValue.id }}", "volumes": map[string]any{"data-files-3": "/data"},
		}),
		"RestoreDataAll": from("RestoreDataAll", "all", crv1alpha1.JSONMap{
			"backupInfo": "{{ .ArtifactsIn.made.KeyValue.info }}", "pods": pods, "restorePath": "/data/back",
		}),
		"DeleteData":    from("DeleteData", "one", crv1alpha1.JSONMap{"backupID": "{{ .ArtifactsIn.made.KeyValue.lostID }}"}),
		"DeleteDataAll": from("DeleteDataAll", "all", crv1alpha1.JSONMap{"backupInfo": "{{ .ArtifactsIn.made.KeyValue.lostInfo }}"}),
		// Counts what is left.
		"LocationDelete": {"artifact": "e2e/midway"},
	} {
		b.Actions[function] = &crv1alpha1.BlueprintAction{Phases: []crv1alpha1.BlueprintPhase{act(function, function, args)}}
	}
	return b
}

// Their operations stand still, so all of them are in the middle of what they do when
// the controller is killed.
var _ = Describe("the controller killed in the middle of the functions", Ordered, func() {
	begin := func(ctx context.Context, parent *crv1alpha1.ActionSet, functions ...string) *crv1alpha1.ActionSet {
		GinkgoHelper()
		as := &crv1alpha1.ActionSet{
			ObjectMeta: metav1.ObjectMeta{Namespace: names.ControlPlaneNamespace, GenerateName: "e2e-midway-"},
			Spec:       &crv1alpha1.ActionSetSpec{},
		}
		for _, f := range functions {
			spec := crv1alpha1.ActionSpec{
				Name: f, Blueprint: "e2e-midway",
				Object:  crv1alpha1.ObjectReference{Kind: "namespace", Namespace: midway, Name: midway},
				Profile: &crv1alpha1.ObjectReference{Namespace: names.ControlPlaneNamespace, Name: midway},
			}
			if parent != nil {
				spec = scenario.From(spec, parent)
			}
			as.Spec.Actions = append(as.Spec.Actions, spec)
		}
		Expect(cluster.Create(ctx, as)).To(Succeed())
		return as
	}
	end := func(ctx context.Context, as *crv1alpha1.ActionSet) *crv1alpha1.ActionSet {
		GinkgoHelper()
		as, err := cluster.Follow(ctx, as, nil)
		Expect(err).NotTo(HaveOccurred())
		return as
	}
	read := func(ctx context.Context, as *crv1alpha1.ActionSet) *crv1alpha1.ActionSet {
		GinkgoHelper()
		var now crv1alpha1.ActionSet
		Expect(cluster.Get(ctx, client.ObjectKeyFromObject(as), &now)).To(Succeed())
		return &now
	}
	// operations are the processes of agents, beside are those next to a volume, not a
	// repository server's. One that stands still for long finds that its server did not answer.
	const operations = "/operation "
	const beside = operations + "-volumes-dir"
	// freeze stops those that are there, and each as soon as it is there, until thaw. One that
	// was started ahead needs no time to do what it gets.
	freeze := func(ctx context.Context, which string) {
		GinkgoHelper()
		_, err := cluster.OnNode(ctx, "rm -f /run/e2e-frozen; echo '"+which+"' > /run/e2e-freeze; echo '"+freezer+"' > /run/e2e-freezer; "+
			"nohup nice -n -20 bash /run/e2e-freezer > /dev/null 2>&1 & until [ -e /run/e2e-frozen ]; do sleep 0.02; done")
		Expect(err).NotTo(HaveOccurred())
	}
	thaw := func(ctx context.Context) {
		GinkgoHelper()
		_, err := cluster.OnNode(ctx, "rm -f /run/e2e-freeze; while pgrep -f '^bash /run/e2e-freezer' > /dev/null; do sleep 0.02; done; pkill -CONT -f '^"+operations+"' || true")
		Expect(err).NotTo(HaveOccurred())
	}
	frozen := func(ctx context.Context) (int, error) {
		out, err := cluster.OnNode(ctx, "pgrep -c -r T -f '^"+operations+"' || true")
		if err != nil {
			return 0, err
		}
		return strconv.Atoi(strings.TrimSpace(out))
	}
	temporary := func(ctx context.Context) ([]corev1.Pod, error) {
		var pods corev1.PodList
		err := cluster.List(ctx, &pods, client.InNamespace(midway), client.MatchingLabels{names.ManagedByLabel: names.ManagedByValue})
		return pods.Items, err
	}
	// kill kills the controller while all phases of these ActionSets run.
	kill := func(ctx context.Context, sets ...*crv1alpha1.ActionSet) {
		GinkgoHelper()
		killController(ctx)
		for _, as := range sets {
			for _, action := range read(ctx, as).Status.Actions {
				Expect(action.Phases[0].State).To(Equal(crv1alpha1.StateRunning), action.Name)
			}
		}
	}

	It("goes on with all eight, and does each once", func(ctx SpecContext) {
		keys, err := cluster.StartS3(ctx)
		Expect(err).NotTo(HaveOccurred())
		Expect(cluster.PutProfile(ctx, midway, keys, midway)).To(Succeed())
		Expect(cluster.DeleteNamespace(ctx, midway)).To(Succeed())
		Expect(cluster.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
			Name: midway, Labels: map[string]string{names.InjectionLabel: names.InjectionEnabled},
		}})).To(Succeed())
		DeferCleanup(func(ctx SpecContext) { Expect(cluster.DeleteNamespace(ctx, midway)).To(Succeed()) }, NodeTimeout(short))
		Expect(cluster.Bind(ctx, midway, "kanister-kopia-namespace")).To(Succeed())
		Expect(cluster.Blueprint(ctx, midwayBlueprint())).To(Succeed())
		// Pods 0 and 1 are backed up and restored beside it, 2 is copied and 3 restored to.
		replicas := int32(4)
		set := &appsv1.StatefulSet{
			ObjectMeta: metav1.ObjectMeta{Namespace: midway, Name: "files"},
			Spec: appsv1.StatefulSetSpec{
				Replicas: &replicas, ServiceName: "files", Selector: selector("files"), PodManagementPolicy: appsv1.ParallelPodManagement,
				Template:             template(labelled, func(p *corev1.PodSpec) { p.Volumes = nil }),
				VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}, Spec: claim(midway).Spec}},
			},
		}
		set.Spec.Template.Labels["app"] = "files"
		Expect(cluster.Create(ctx, set)).To(Succeed())
		Expect(cluster.Rollout(ctx, midway, "statefulset/files")).To(Succeed())
		inside := func(pod, script string) string {
			GinkgoHelper()
			out, err := cluster.Exec(ctx, midway, pod, "app", script)
			Expect(err).NotTo(HaveOccurred())
			return strings.TrimSpace(out)
		}
		for i := range replicas {
			inside(fmt.Sprintf("files-%d", i), `mkdir /data/tree /data/alone; cd /data/tree; hostname > name; seq 1 500000 > numbers; cp * /data/alone`)
		}
		inside("files-3", "rm -r /data/*")
		sums := func(pod, dir string) string { return inside(pod, "cd "+dir+" && find . -type f | sort | xargs md5sum") }
		zero, one := sums("files-0", "/data/tree"), sums("files-1", "/data/tree")
		made := end(ctx, begin(ctx, nil, "make"))

		DeferCleanup(thaw, NodeTimeout(short))
		freeze(ctx, operations)
		five := begin(ctx, made, "BackupData", "BackupDataAll", "BackupDataStats", "DeleteData", "DeleteDataAll")
		// Those that were started ahead of an operation stand still, too.
		Eventually(frozen).WithContext(ctx).WithTimeout(short).WithPolling(100 * time.Millisecond).Should(BeNumerically(">=", 1+2+1+1+1))
		kill(ctx, five)
		thaw(ctx)
		measured := end(ctx, five)

		// Temporary pods start when they like: one operation stands still, the others do or
		// are about to begin.
		freeze(ctx, beside)
		two := begin(ctx, made, "RestoreData", "RestoreDataAll")
		Eventually(frozen).WithContext(ctx).WithTimeout(short).WithPolling(100 * time.Millisecond).Should(BeNumerically(">", 0))
		copied := begin(ctx, made, "CopyVolumeData")
		Eventually(temporary).WithContext(ctx).WithTimeout(short).WithPolling(100 * time.Millisecond).Should(HaveLen(1 + 2 + 1))
		kill(ctx, two, copied)
		thaw(ctx)
		end(ctx, two)
		end(ctx, copied)
		Expect(scenario.Output(measured, "BackupDataStats", "fileCount")).To(Equal("2"))
		Expect(sums("files-3", "/data/alone")).To(Equal(zero))
		Expect(sums("files-0", "/data/back/data/tree")).To(Equal(zero))
		Expect(sums("files-1", "/data/back/data/tree")).To(Equal(one))
		// One and two that were there, one, two and a copy that were made now.
		left := end(ctx, begin(ctx, nil, "LocationDelete"))
		Expect(scenario.Output(left, "LocationDelete", "deletedBackups")).To(Equal("7"))
		Eventually(temporary).WithContext(ctx).WithTimeout(time.Minute).Should(BeEmpty())
	}, SpecTimeout(long))
})
