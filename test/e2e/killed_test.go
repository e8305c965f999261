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

// midway is the namespace of this spec.
const midway = "e2e-midway"

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

// The storage stands still, so all of them are in the middle of what they do when
// the controller is killed, and stay there until it is back.
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
	// phases are the states of the phases of ActionSets.
	phases := func(ctx context.Context, sets ...*crv1alpha1.ActionSet) map[string]crv1alpha1.State {
		GinkgoHelper()
		states := map[string]crv1alpha1.State{}
		for _, as := range sets {
			var now crv1alpha1.ActionSet
			Expect(cluster.Get(ctx, client.ObjectKeyFromObject(as), &now)).To(Succeed())
			for _, spec := range now.Spec.Actions {
				states[spec.Name] = ""
			}
			if now.Status == nil {
				continue
			}
			for _, a := range now.Status.Actions {
				states[a.Name] = a.Phases[0].State
			}
		}
		return states
	}
	// busy is how many operations agents of a namespace have that have not ended.
	busy := func(ctx context.Context, namespace string, labels map[string]string) int {
		GinkgoHelper()
		var pods corev1.PodList
		Expect(cluster.List(ctx, &pods, client.InNamespace(namespace), client.MatchingLabels(labels))).To(Succeed())
		sum := 0
		for _, pod := range pods.Items {
			// One that only starts, or ends, does not answer.
			text, err := cluster.Kubectl(ctx, "get", "--raw", fmt.Sprintf("/api/v1/namespaces/%s/pods/%s:%d/proxy/metrics", namespace, pod.Name, names.AgentHealthPort))
			if err != nil {
				continue
			}
			for line := range strings.Lines(text) {
				var state string
				var n int
				if _, err := fmt.Sscanf(line, "kopia_agent_operations{state=%q} %d", &state, &n); err == nil && (state == "running" || state == "queued") {
					sum += n
				}
			}
		}
		return sum
	}
	const storage, server = "-x versitygw", "-f '^/repository-server serve'"
	signal := func(ctx context.Context, name, process string) {
		GinkgoHelper()
		_, err := cluster.OnNode(ctx, "pkill -"+name+" "+process)
		Expect(err).NotTo(HaveOccurred())
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

		// A new server has nothing cached: it asks the storage for everything.
		repo, err := cluster.RepositoryOf(ctx, scenario.Output(made, "one", "backupID"))
		Expect(err).NotTo(HaveOccurred())
		_, err = cluster.Kubectl(ctx, "delete", "pods", "-n", names.ControlPlaneNamespace, "-l", names.RepositoryLabel+"="+repo.Name, "--grace-period=1", "--wait")
		Expect(err).NotTo(HaveOccurred())
		Expect(cluster.Rollout(ctx, names.ControlPlaneNamespace, "deployment/"+repo.Name)).To(Succeed())
		for i := range replicas {
			inside(fmt.Sprintf("files-%d", i), `mkdir -p /data/tree /data/alone; seq 1 400000 | tee /data/tree/more > /data/alone/more`)
		}

		DeferCleanup(func(ctx SpecContext) {
			_, _ = cluster.OnNode(ctx, "pkill -CONT "+storage+" || true; pkill -CONT "+server+" || true")
		}, NodeTimeout(short))
		signal(ctx, "STOP", storage)
		seven := begin(ctx, made, "BackupData", "BackupDataAll", "CopyVolumeData", "RestoreData", "RestoreDataAll", "DeleteData", "DeleteDataAll")
		Eventually(func(g Gomega) {
			g.Expect(busy(ctx, midway, nil)).To(Equal(3+1+1+2), "operations of sidecars and temporary pods")
			g.Expect(busy(ctx, names.ControlPlaneNamespace, map[string]string{names.RepositoryLabel: repo.Name})).To(Equal(2), "deletions")
		}).WithContext(ctx).WithTimeout(short).WithPolling(200 * time.Millisecond).Should(Succeed())
		// What is measured is in the server's memory: it stands still, too.
		signal(ctx, "STOP", server)
		eighth := begin(ctx, made, "BackupDataStats")
		Eventually(phases).WithArguments(ctx, eighth).WithPolling(50 * time.Millisecond).Should(HaveKeyWithValue("BackupDataStats", crv1alpha1.StateRunning))

		_, err = cluster.Kubectl(ctx, "delete", "pod", "-n", names.ControlPlaneNamespace, "--grace-period=0", "--force",
			"-l", "app.kubernetes.io/name=kanister-kopia-controller")
		Expect(err).NotTo(HaveOccurred())
		Expect(phases(ctx, seven, eighth)).To(And(HaveLen(8), HaveEach(crv1alpha1.StateRunning)))
		signal(ctx, "CONT", server)
		signal(ctx, "CONT", storage)

		end(ctx, seven)
		measured := end(ctx, eighth)
		Expect(scenario.Output(measured, "BackupDataStats", "fileCount")).To(Equal("2"))
		inside("files-3", "rm /data/alone/more")
		Expect(sums("files-3", "/data/alone")).To(Equal(zero))
		Expect(sums("files-0", "/data/back/data/tree")).To(Equal(zero))
		Expect(sums("files-1", "/data/back/data/tree")).To(Equal(one))
		// One and two that were there, one, two and a copy that were made now.
		left := end(ctx, begin(ctx, nil, "LocationDelete"))
		Expect(scenario.Output(left, "LocationDelete", "deletedBackups")).To(Equal("7"))
	}, SpecTimeout(long))
})
