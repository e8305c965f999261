// SPDX-License-Identifier: Apache-2.0

//go:build integration

package actionset_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/yaml"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
	"github.com/kanister-kopia/kanister-kopia/pkg/actionset"
	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/function"
)

// show is a Blueprint that prints what templates see.
func (w *world) show(name string, templates map[string]string) {
	w.Helper()
	a := crv1alpha1.Artifact{KeyValue: templates}
	w.blueprint(name, &crv1alpha1.BlueprintAction{
		OutputArtifacts: map[string]crv1alpha1.Artifact{"seen": a},
		Phases:          []crv1alpha1.BlueprintPhase{phase("p", "Echo", crv1alpha1.JSONMap{"value": "x"})},
	})
}

// on starts action "act" of a Blueprint on an object and waits for its end.
func (w *world) on(name, blueprint string, object crv1alpha1.ObjectReference) *crv1alpha1.ActionSetStatus {
	w.Helper()
	as := &crv1alpha1.ActionSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       &crv1alpha1.ActionSetSpec{Actions: []crv1alpha1.ActionSpec{{Name: "act", Blueprint: blueprint, Object: object}}},
	}
	w.Must(w.Create(w.Context(), as))
	return w.wait(client.ObjectKeyFromObject(as), "the end", finished)
}

// pod of a workload, Running, with our agent beside two containers of the app.
func (w *world) pod(name string, owner client.Object, kind schema.GroupVersionKind) *corev1.Pod {
	w.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: owner.GetNamespace(), Name: name, Labels: map[string]string{"app": "db"},
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(owner, kind)},
		},
		Spec: corev1.PodSpec{
			InitContainers: []corev1.Container{{Name: "kopia-agent", Image: "i", RestartPolicy: new(corev1.ContainerRestartPolicyAlways),
				VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/volumes/data"}}}},
			Containers: []corev1.Container{
				{Name: "one", Image: "i", VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/first"}}},
				{Name: "two", Image: "i", VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/last"}}},
			},
			Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data-" + name},
			}}},
		},
	}
	w.Must(w.Create(w.Context(), pod))
	pod.Status.Phase = corev1.PodRunning
	pod.Status.InitContainerStatuses = []corev1.ContainerStatus{{Name: "kopia-agent"}}
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "one"}, {Name: "two"}}
	w.Must(w.Status().Update(w.Context(), pod))
	return pod
}

func template() corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "db"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "one", Image: "i"}}},
	}
}

var selector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "db"}}

const workloadTemplates = `{{ %[1]s.Name }} {{ %[1]s.Namespace }} {{ join "," %[1]s.Pods }} {{ index %[1]s.Containers 0 0 }} ` +
	`{{ len (index %[1]s.Containers 0) }} {{ range $pod, $claims := %[1]s.PersistentVolumeClaims }}{{ range $c, $p := $claims }}{{ $c }}={{ $p }};{{ end }}{{ end }} {{ .Object.kind }} {{ .Object.metadata.name }}`

// TestIntegrationParams: what templates see of each kind of object, with references
// as people and kanctl write them.
func TestIntegrationParams(t *testing.T) {
	w := newWorld(t)
	w.controller(w.functions())
	shop := "shop"
	w.Must(w.Create(w.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: shop, Labels: map[string]string{"team": "a"}}}))
	meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: shop, Name: name} }

	set := &appsv1.StatefulSet{ObjectMeta: meta("db"), Spec: appsv1.StatefulSetSpec{Replicas: new(int32(11)), Selector: selector, Template: template()}}
	w.Must(w.Create(w.Context(), set))
	for _, n := range []string{"db-10", "db-2", "db-0"} {
		w.pod(n, set, appsv1.SchemeGroupVersion.WithKind("StatefulSet"))
	}
	// Neither one that does not run yet nor one that ends.
	starting, ending := w.pod("db-1", set, appsv1.SchemeGroupVersion.WithKind("StatefulSet")), w.pod("db-3", set, appsv1.SchemeGroupVersion.WithKind("StatefulSet"))
	starting.Status.Phase = corev1.PodPending
	w.Must(w.Status().Update(w.Context(), starting))
	ending.Finalizers = []string{"example.org/held"}
	w.Must(w.Update(w.Context(), ending))
	w.Must(w.Delete(w.Context(), ending))
	deployment := &appsv1.Deployment{ObjectMeta: meta("web"), Spec: appsv1.DeploymentSpec{Selector: selector, Template: template()}}
	deployment.Annotations = map[string]string{"deployment.kubernetes.io/revision": "2"}
	w.Must(w.Create(w.Context(), deployment))
	for revision, name := range map[string]string{"1": "web-old", "2": "web-new"} {
		rs := &appsv1.ReplicaSet{ObjectMeta: meta(name), Spec: appsv1.ReplicaSetSpec{Selector: selector, Template: template()}}
		rs.Annotations = map[string]string{"deployment.kubernetes.io/revision": revision}
		rs.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(deployment, appsv1.SchemeGroupVersion.WithKind("Deployment"))}
		w.Must(w.Create(w.Context(), rs))
		w.pod(name+"-x", rs, appsv1.SchemeGroupVersion.WithKind("ReplicaSet"))
	}
	w.customResource("apps.openshift.io", "DeploymentConfig", "deploymentconfigs")
	dc := object("apps.openshift.io/v1", "DeploymentConfig", shop, "dc")
	dc.Object["status"] = map[string]any{"latestVersion": int64(3)}
	w.Must(w.Create(w.Context(), dc))
	rc := &corev1.ReplicationController{ObjectMeta: meta("dc-3"), Spec: corev1.ReplicationControllerSpec{Selector: selector.MatchLabels, Template: new(template())}}
	rc.Annotations = map[string]string{"openshift.io/deployment-config.latest-version": "3"}
	rc.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(dc, dc.GroupVersionKind())}
	w.Must(w.Create(w.Context(), rc))
	w.pod("dc-3-x", rc, corev1.SchemeGroupVersion.WithKind("ReplicationController"))
	w.Must(w.Create(w.Context(), &corev1.PersistentVolumeClaim{ObjectMeta: meta("claim"), Spec: corev1.PersistentVolumeClaimSpec{
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
	}}))
	w.customResource("postgres.example.org", "Cluster", "clusters")
	w.Must(w.Create(w.Context(), object("postgres.example.org/v1", "Cluster", shop, "pg")))

	for name, c := range map[string]struct {
		template string
		object   crv1alpha1.ObjectReference
		want     string
	}{
		"statefulset": {fmt.Sprintf(workloadTemplates, ".StatefulSet"), crv1alpha1.ObjectReference{Kind: "statefulset", Namespace: shop, Name: "db"},
			"db shop db-0,db-2,db-10 one 2 data-db-0=/last;data-db-10=/last;data-db-2=/last; StatefulSet db"},
		"deployment": {fmt.Sprintf(workloadTemplates, ".Deployment"), crv1alpha1.ObjectReference{Kind: "Deployment", Namespace: shop, Name: "web"},
			"web shop web-new-x one 2 data-web-new-x=/last; Deployment web"},
		"deploymentconfig": {fmt.Sprintf(workloadTemplates, ".DeploymentConfig"), crv1alpha1.ObjectReference{Kind: "deploymentconfig", Namespace: shop, Name: "dc"},
			"dc shop dc-3-x one 2 data-dc-3-x=/last; DeploymentConfig dc"},
		"pvc": {"{{ .PVC.Namespace }}/{{ .PVC.Name }} {{ .Object.kind }}", crv1alpha1.ObjectReference{Kind: "pvc", Namespace: shop, Name: "claim"}, "shop/claim PersistentVolumeClaim"},
		"namespace": {"{{ .Namespace.Name }} {{ .Namespace.Namespace }} {{ .Object.metadata.labels.team }}",
			crv1alpha1.ObjectReference{Kind: "namespace", Namespace: shop, Name: shop}, "shop shop a"},
		"unstructured": {"{{ .Object.kind }} {{ .Object.metadata.name }}",
			crv1alpha1.ObjectReference{Kind: "unstructured", Group: "postgres.example.org/", APIVersion: "v1", Resource: "clusters", Namespace: shop, Name: "pg"}, "Cluster pg"},
		"kanctl-O": {"{{ .Object.kind }} {{ .Object.metadata.name }}",
			crv1alpha1.ObjectReference{Group: "apps/", APIVersion: "v1", Resource: "statefulsets", Namespace: shop, Name: "db"}, "StatefulSet db"},
	} {
		blueprint := "see-" + strings.ToLower(name)
		w.show(blueprint, map[string]string{"text": c.template, "time": "{{ .Time }}"})
		s := w.on(blueprint, blueprint, c.object)
		got := s.Actions[0].Artifacts["seen"].KeyValue
		if s.State != crv1alpha1.StateComplete || got["text"] != c.want {
			t.Errorf("%s: %s %q: templates saw\n%q, want\n%q", name, s.State, s.Error.Message, got["text"], c.want)
		}
		if at, err := time.Parse(time.RFC3339Nano, got["time"]); err != nil || at.Location() != time.UTC {
			t.Errorf("%s: .Time is %q", name, got["time"])
		}
	}
	for name, c := range map[string]struct {
		object crv1alpha1.ObjectReference
		want   string
	}{
		"gone":    {crv1alpha1.ObjectReference{Kind: "statefulset", Namespace: shop, Name: "lost"}, `"lost" not found`},
		"unknown": {crv1alpha1.ObjectReference{Kind: "Thing", Namespace: shop, Name: "x"}, "Not a known object Kind Thing. Action act must specify Resource name and API version"},
		"no-kind": {crv1alpha1.ObjectReference{Group: "nobody.example", APIVersion: "v1", Resource: "things", Name: "x"}, "things"},
	} {
		s := w.on("bad-"+name, "see-pvc", c.object)
		if s.State != crv1alpha1.StateFailed || !strings.Contains(s.Error.Message, c.want) {
			t.Errorf("%s: %s, error %q, want %q in it", name, s.State, s.Error.Message, c.want)
		}
	}
}

// TestIntegrationSnapshot: after a restart templates see the pods that were there
// when the action started, and the replicas, though the workload was scaled down.
func TestIntegrationSnapshot(t *testing.T) {
	w := newWorld(t)
	w.Must(w.Create(w.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}))
	set := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db"}, Spec: appsv1.StatefulSetSpec{Replicas: new(int32(2)), Selector: selector, Template: template()}}
	w.Must(w.Create(w.Context(), set))
	for _, n := range []string{"db-0", "db-1"} {
		w.pod(n, set, appsv1.SchemeGroupVersion.WithKind("StatefulSet"))
	}
	release := make(chan struct{})
	functions := w.functions(&scripted{name: "Resume", resumable: true, exec: func(ctx context.Context, _ function.Call) (map[string]any, error) {
		w.did("begins")
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-release:
			return nil, nil
		}
	}})
	w.Must(w.Create(w.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "used"}}))
	w.blueprint("scale", &crv1alpha1.BlueprintAction{
		OutputArtifacts: map[string]crv1alpha1.Artifact{"seen": {KeyValue: map[string]string{
			"text": `{{ join "," .StatefulSet.Pods }} {{ index .StatefulSet.Containers 1 1 }} {{ index (index .StatefulSet.PersistentVolumeClaims "db-0") "data-db-0" }} {{ .Object.spec.replicas }} {{ .Time }}`,
			"time": "{{ .Phases.before.Output.value }}",
		}}},
		Phases: []crv1alpha1.BlueprintPhase{
			// Its Secret is gone when the next controller comes: nobody asks for it again.
			{Name: "before", Func: "Echo", Args: crv1alpha1.JSONMap{"value": "{{ .Time }}"},
				ObjectRefs: map[string]crv1alpha1.ObjectReference{"s": {Kind: "Secret", Namespace: "shop", Name: "used"}}},
			phase("p", "Resume", nil),
		},
	})
	stop := w.controller(functions)
	key := client.ObjectKey{Namespace: namespace, Name: "scale"}
	w.Must(w.Create(w.Context(), &crv1alpha1.ActionSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name},
		Spec: &crv1alpha1.ActionSetSpec{Actions: []crv1alpha1.ActionSpec{{Name: "act", Blueprint: "scale",
			Object: crv1alpha1.ObjectReference{Kind: "StatefulSet", Namespace: "shop", Name: "db"}}}},
	}))
	testenv.Eventually(t, time.Minute, "the phase runs", func() bool { return slices.Contains(w.done(), "begins") })
	stop()
	for _, n := range []string{"db-0", "db-1"} {
		w.Must(w.Delete(w.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: n}}, client.GracePeriodSeconds(0)))
	}
	w.Must(w.Delete(w.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "used"}}))
	set.Spec.Replicas = new(int32(0))
	w.Must(w.Update(w.Context(), set))
	w.controller(functions)
	close(release)
	s := w.wait(key, "the end", finished)
	got := s.Actions[0].Artifacts["seen"].KeyValue
	if want := "db-0,db-1 two /last 2 " + got["time"]; s.State != crv1alpha1.StateComplete || got["text"] != want {
		t.Errorf("%s %q: templates saw %q, want %q", s.State, s.Error.Message, got["text"], want)
	}
}

// TestIntegrationKanctl runs ActionSets of the shapes that kanctl sends. They are
// written by hand from what is known of it; no kanctl ran.
func TestIntegrationKanctl(t *testing.T) {
	w := newWorld(t)
	w.controller(w.functions())
	w.Must(w.Create(w.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}))
	w.Must(w.Create(w.Context(), &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db"}, Spec: appsv1.StatefulSetSpec{Selector: selector, Template: template()}}))
	w.Must(w.Create(w.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "keys"}, StringData: map[string]string{"aws_access_key_id": "AK", "aws_secret_access_key": "planted-secret"}}))
	w.Must(w.Create(w.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "settings"}, Data: map[string]string{"k": "from-config"}}))
	w.show("backup", map[string]string{
		"text": `{{ .Profile.Location.Bucket }} {{ .Profile.Credential.KeyPair.ID }} {{ .ConfigMaps.settings.Data.k }} {{ index .Secrets.keys.Data "aws_access_key_id" | toString }} {{ .Options.keep }}`,
	})
	w.show("restore", map[string]string{"text": "{{ .ArtifactsIn.seen.KeyValue.text }}"})
	files, err := filepath.Glob("testdata/kanctl-*.yaml")
	w.Must(err)
	if len(files) < 4 {
		t.Fatalf("fixtures: %v", files)
	}
	for _, file := range files { // in their order: profile, backup, -O, restore
		content, err := os.ReadFile(file)
		w.Must(err)
		u := &unstructured.Unstructured{}
		w.Must(yaml.Unmarshal(content, &u.Object))
		w.Must(w.Create(w.Context(), u))
		if u.GetKind() != "ActionSet" {
			continue
		}
		s := w.wait(client.ObjectKeyFromObject(u), file, finished)
		if got := s.Actions[0].Artifacts["seen"].KeyValue["text"]; s.State != crv1alpha1.StateComplete || got != "bucket AK from-config AK 3" {
			t.Errorf("%s: %s %q, artifact %q", file, s.State, s.Error.Message, got)
		}
	}
}

// TestIntegrationTold: Events with Kanister's reasons and texts, its log fields, its
// metric and ours; and no secret in any of them.
func TestIntegrationTold(t *testing.T) {
	w := newWorld(t)
	w.controller(w.functions(&scripted{name: "Command", required: []string{"value"}, exec: func(_ context.Context, call function.Call) (map[string]any, error) {
		call.Log.Info("a line", "LogKind", "datapath")
		w.did("job %s", call.Params.PodLabels["kanister.io/JobID"])
		return nil, nil
	}}))
	w.Must(w.Create(w.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "db"}, StringData: map[string]string{"password": "planted-secret"}}))
	w.blueprint("good", &crv1alpha1.BlueprintAction{
		Phases:     []crv1alpha1.BlueprintPhase{phase("one", "Echo", crv1alpha1.JSONMap{"value": "x"}), phase("two", "Command", crv1alpha1.JSONMap{"value": nil})},
		DeferPhase: &crv1alpha1.BlueprintPhase{Name: "last", Func: "Echo", Args: crv1alpha1.JSONMap{"value": "x"}},
	})
	ref := map[string]crv1alpha1.ObjectReference{"db": {Kind: "secret", Namespace: namespace, Name: "db"}}
	w.blueprint("bad", &crv1alpha1.BlueprintAction{Phases: []crv1alpha1.BlueprintPhase{{Name: "breaks", Func: "Fail", ObjectRefs: ref, Args: crv1alpha1.JSONMap{"value": `{{ index .Phases.breaks.Secrets.db.Data "password" | toString }}`}}}})
	w.Must(w.Create(w.Context(), &crv1alpha1.Blueprint{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "invalid"},
		Actions: map[string]*crv1alpha1.BlueprintAction{"act": {Phases: []crv1alpha1.BlueprintPhase{phase("p", "NoSuch", nil)}}}}))

	labelled := &crv1alpha1.ActionSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "fine", Labels: map[string]string{"kanister.io/JobID": "job-7", "team": "not-logged"}},
		Spec: &crv1alpha1.ActionSetSpec{Actions: []crv1alpha1.ActionSpec{{Name: "act", Blueprint: "good", PreferredVersion: "v2.0.0",
			Object: crv1alpha1.ObjectReference{Kind: "namespace", Name: namespace, Namespace: namespace}}}},
	}
	w.Must(w.Create(w.Context(), labelled))
	w.wait(client.ObjectKeyFromObject(labelled), "complete", finished)
	failed := w.wait(w.start("broken", "bad"), "failed", finished)
	named := func(name string, spec *crv1alpha1.ActionSetSpec) *crv1alpha1.ActionSetStatus {
		as := &crv1alpha1.ActionSet{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: spec}
		w.Must(w.Create(w.Context(), as))
		return w.wait(client.ObjectKeyFromObject(as), name+" ends", finished)
	}
	if s := named("nothing", nil); s.State != crv1alpha1.StateFailed || s.Error.Message != "Spec must be non-nil" {
		t.Errorf("without a spec: %s %q", s.State, s.Error.Message)
	}
	version := func(v string) *crv1alpha1.ActionSetSpec {
		spec := labelled.Spec.DeepCopy()
		spec.Actions[0].PreferredVersion = v
		return spec
	}
	if s := named("kopia-version", version("v1.0.0-alpha")); s.State != crv1alpha1.StateComplete {
		t.Errorf("version v1.0.0-alpha: %s %q", s.State, s.Error.Message)
	}
	if s := named("no-version", version("latest")); !strings.Contains(s.Error.Message, "Failed to parse function version {latest}") {
		t.Errorf("version latest: %s %q", s.State, s.Error.Message)
	}
	resume := w.refuseEnd("unwritten")
	w.start("unwritten", "good")

	// An event comes after the status that it tells of.
	for name, last := range map[string]string{
		"fine": "Update Complete", "broken": "ActionSetFailed", "bad": "ActionSetFailed", "nothing": "Error",
		"kopia-version": "Update Complete", "no-version": "Error", "unwritten": "ActionSetFailed",
	} {
		testenv.Eventually(t, time.Minute, "the last event", func() bool {
			return slices.ContainsFunc(w.told(name), func(e string) bool { return strings.Contains(e, last) })
		})
	}
	is := "*v1alpha1.ActionSet fine Normal "
	want := []string{
		is + "Started Action: Executing action act",
		is + "Started Phase: Executing phase one", is + "Ended Phase: Completed phase one",
		is + "Started Phase: Executing phase two", is + "Ended Phase: Completed phase two",
		is + "Started deferPhase: Executing deferPhase last", is + "Ended deferPhase: Completed deferPhase last",
		is + "Update Complete: Updated ActionSet 'fine' Status->complete",
	}
	if got := w.told("fine"); !slices.Equal(got, want) {
		t.Errorf("events\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	warning := " Warning ActionSetFailed Action: act: Failed to execute phase breaks: phase breaks: the disk is on fire"
	if got := w.told("broken"); got[len(got)-1] != "*v1alpha1.ActionSet broken"+warning {
		t.Errorf("events of the failed ActionSet: %q", got)
	}
	if got := w.told("bad"); !slices.Contains(got, "*v1alpha1.Blueprint bad Normal Added: Added blueprint bad") || !slices.Contains(got, "*v1alpha1.Blueprint bad"+warning) {
		t.Errorf("events of its Blueprint: %q", got)
	}
	if got := w.told("invalid"); !slices.Contains(got, "*v1alpha1.Blueprint invalid Warning Invalid: Invalid blueprint, Failed to validate action act: Requested function {NoSuch} has not been registered") {
		t.Errorf("events of a Blueprint that cannot run: %q", got)
	}
	if got := w.told("nothing"); !slices.Equal(got, []string{"*v1alpha1.ActionSet nothing Warning Error: Could not start ActionSet: Spec must be non-nil"}) {
		t.Errorf("events of an ActionSet that could not start: %q", got)
	}
	// The API server says no to the end: nothing tells that it is complete, until it is.
	complete := func(e string) bool { return strings.Contains(e, "Update Complete") }
	got := w.told("unwritten")
	if !slices.ContainsFunc(got, func(e string) bool {
		return strings.Contains(e, "Warning Update Failed: Failed to update ActionSet unwritten: ") && strings.Contains(e, "held by a test")
	}) || slices.ContainsFunc(got, complete) {
		t.Errorf("events of one whose end cannot be written: %q", got)
	}
	resume()
	w.wait(client.ObjectKey{Namespace: namespace, Name: "unwritten"}, "the next change completes it", finished)
	testenv.Eventually(t, time.Minute, "that is told", func() bool { return slices.ContainsFunc(w.told("unwritten"), complete) })
	if !slices.Contains(w.done(), "job job-7") {
		t.Errorf("the job's label is not for pods: %q", w.done())
	}

	w.mu.Lock()
	log := w.log.String()
	w.mu.Unlock()
	find := func(actionSet, msg string) map[string]any {
		for l := range strings.Lines(log) {
			var fields map[string]any
			w.Must(json.Unmarshal([]byte(l), &fields))
			if fields["msg"] == msg && fields["ActionSet"] == actionSet {
				return fields
			}
		}
		return nil
	}
	line := func(actionSet, msg string) map[string]any {
		f := find(actionSet, msg)
		if f == nil {
			t.Errorf("no log line %q of %s", msg, actionSet)
		}
		return f
	}
	if f := line("broken", "Failed to execute phase breaks"); f["error"] != "phase breaks: the disk is on fire" || f["level"] != "ERROR" || f["Action"] != "act" {
		t.Errorf("fields of a failure's line: %v", f)
	}
	if f := line("nothing", "ActionSet refused"); f["error"] != "Spec must be non-nil" {
		t.Errorf("fields of a refusal's line: %v", f)
	}
	line("unwritten", "a failure is not written down")
	if f := line("fine", "a line"); f["Phase"] != "two" || f["kanister.io/JobID"] != "job-7" || f["LogKind"] != "datapath" || f["team"] != nil {
		t.Errorf("fields of a function's line: %v", f)
	}
	const fallback = "Falling back to default version of the function"
	line("fine", fallback)
	if find("kopia-version", fallback) != nil {
		t.Error("v1.0.0-alpha fell back")
	}
	if status, err := json.Marshal(failed); err != nil || strings.Contains(string(status)+log+strings.Join(w.events, ""), "planted-secret") {
		t.Errorf("a secret is in the status, the log or an event (%v)", err)
	}

	metrics := `
# HELP kanister_action_set_resolutions_total Ended ActionSets, by how they ended.
# TYPE kanister_action_set_resolutions_total counter
kanister_action_set_resolutions_total{resolution="failure"} 3
kanister_action_set_resolutions_total{resolution="success"} 3
# HELP kanister_kopia_action_sets_running ActionSets that run now.
# TYPE kanister_kopia_action_sets_running gauge
kanister_kopia_action_sets_running 0
# HELP kanister_kopia_phase_bytes_total Bytes that phases moved, by function and direction: upload to a repository, download from one.
# TYPE kanister_kopia_phase_bytes_total counter
kanister_kopia_phase_bytes_total{direction="upload",function="Echo"} 30
`
	testenv.Eventually(t, time.Minute, "the metrics", func() bool {
		return testutil.GatherAndCompare(w.metrics, strings.NewReader(metrics), "kanister_action_set_resolutions_total", "kanister_kopia_action_sets_running", "kanister_kopia_phase_bytes_total") == nil
	})
	if n, err := testutil.GatherAndCount(w.metrics, "kanister_kopia_phase_duration_seconds"); err != nil || n != 3 {
		t.Errorf("%d histograms of phases, %v; want those of Echo, Command and Fail", n, err)
	}
}

// refuseEnd makes the API server refuse that an ActionSet ends, until again is called,
// which changes the ActionSet.
func (w *world) refuseEnd(name string) (again func()) {
	w.Helper()
	meta := metav1.ObjectMeta{Name: "refuse-end"}
	writes := []admissionregistrationv1.OperationType{admissionregistrationv1.Create, admissionregistrationv1.Update}
	policy := &admissionregistrationv1.ValidatingAdmissionPolicy{ObjectMeta: meta, Spec: admissionregistrationv1.ValidatingAdmissionPolicySpec{
		MatchConstraints: &admissionregistrationv1.MatchResources{ResourceRules: []admissionregistrationv1.NamedRuleWithOperations{{
			RuleWithOperations: admissionregistrationv1.RuleWithOperations{Operations: writes, Rule: admissionregistrationv1.Rule{
				APIGroups: []string{"cr.kanister.io"}, APIVersions: []string{"*"}, Resources: []string{"actionsets"},
			}},
		}}},
		Validations: []admissionregistrationv1.Validation{{
			Expression: "object.metadata.name != '" + name + "' || !has(object.status) || !has(object.status.state) || !(object.status.state in ['complete', 'failed'])",
			Message:    "held by a test",
		}},
	}}
	w.Must(w.Create(w.Context(), policy))
	w.Must(w.Create(w.Context(), &admissionregistrationv1.ValidatingAdmissionPolicyBinding{ObjectMeta: meta, Spec: admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec{
		PolicyName: meta.Name, ValidationActions: []admissionregistrationv1.ValidationAction{admissionregistrationv1.Deny},
	}}))
	probe := func() error {
		return w.Create(w.Context(), &crv1alpha1.ActionSet{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
			Status:     &crv1alpha1.ActionSetStatus{State: crv1alpha1.StateComplete},
		}, client.DryRunAll)
	}
	testenv.Eventually(w, time.Minute, "the end is refused", func() bool { return probe() != nil })
	return func() {
		w.Helper()
		w.Must(w.Delete(w.Context(), policy))
		testenv.Eventually(w, time.Minute, "the end is not refused any more", func() bool { return probe() == nil })
		as := &crv1alpha1.ActionSet{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
		w.Must(w.Patch(w.Context(), as, client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"annotations":{"example.org/looked-at":"now"}}}`))))
	}
}

// TestIntegrationDefects: what Kanister gets wrong (docs/reference/engine.md).
func TestIntegrationDefects(t *testing.T) {
	w := newWorld(t)
	hold := make(chan struct{})
	var mu sync.Mutex
	progress := map[string]int64{}
	w.controller(w.functions(
		&scripted{name: "Panic", exec: func(context.Context, function.Call) (map[string]any, error) { panic("a bug") }},
		&scripted{name: "Lose", exec: func(context.Context, function.Call) (map[string]any, error) {
			return nil, fmt.Errorf("back up: %w", &api.Problem{Code: api.CodeStorage, Title: "flush data", Details: []string{"PutBlob(p1): connection refused"}, Hint: "look at the storage"})
		}},
		&scripted{name: "Huge", exec: func(context.Context, function.Call) (map[string]any, error) {
			return map[string]any{"k": strings.Repeat("x", 2<<20)}, nil
		}},
		&scripted{name: "Slow", required: []string{"value"}, exec: func(ctx context.Context, call function.Call) (map[string]any, error) {
			mu.Lock()
			progress[call.ActionSet]++
			n := progress[call.ActionSet]
			mu.Unlock()
			size := map[string]int64{"slow-a": 10, "slow-b": 20}[call.ActionSet]
			call.Progress(api.Progress{Bytes: size * n, EstimatedBytes: 40, UploadedBytes: size})
			select {
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			case <-hold:
				return map[string]any{"value": call.Args["value"]}, nil
			}
		}},
	))
	gone := map[string]crv1alpha1.ObjectReference{"s": {Kind: "Secret", Namespace: namespace, Name: "not-there"}}
	echo := func(name string) crv1alpha1.BlueprintPhase {
		return phase(name, "Echo", crv1alpha1.JSONMap{"value": "x"})
	}
	last := func(refs map[string]crv1alpha1.ObjectReference, fn string) *crv1alpha1.BlueprintPhase {
		p := phase("last", fn, nil)
		if fn == "Echo" {
			p = echo("last")
		}
		p.ObjectRefs = refs
		return &p
	}
	lost := echo("p")
	lost.ObjectRefs = gone
	cleans := []string{"echo x"}
	for name, c := range map[string]struct {
		action crv1alpha1.BlueprintAction
		state  crv1alpha1.State
		// phases and deferPhase as they end.
		phases, deferPhase string
		message            string
	}{
		"a-secret-that-is-not-there":            {crv1alpha1.BlueprintAction{Phases: []crv1alpha1.BlueprintPhase{lost}, DeferPhase: last(nil, "Echo")}, crv1alpha1.StateFailed, "failed", "complete", `"not-there" not found`},
		"a-deferphase-secret-that-is-not-there": {crv1alpha1.BlueprintAction{Phases: []crv1alpha1.BlueprintPhase{echo("p")}, DeferPhase: last(gone, "Echo")}, crv1alpha1.StateFailed, "complete", "failed", `"not-there" not found`},
		"both-fail-and-the-first-is-told":       {crv1alpha1.BlueprintAction{Phases: []crv1alpha1.BlueprintPhase{lost}, DeferPhase: last(nil, "Fail")}, crv1alpha1.StateFailed, "failed", "failed", `phase p: read Secret`},
		"a-null-argument":                       {crv1alpha1.BlueprintAction{Phases: []crv1alpha1.BlueprintPhase{phase("p", "Echo", crv1alpha1.JSONMap{"value": nil})}}, crv1alpha1.StateComplete, "complete", "", ""},
		"a-panic":                               {crv1alpha1.BlueprintAction{Phases: []crv1alpha1.BlueprintPhase{phase("p", "Panic", nil), echo("q")}, DeferPhase: last(nil, "Echo")}, crv1alpha1.StateFailed, "failed pending", "complete", "internal error: a bug"},
		"all-that-an-agent-tells":               {crv1alpha1.BlueprintAction{Phases: []crv1alpha1.BlueprintPhase{phase("p", "Lose", nil)}}, crv1alpha1.StateFailed, "failed", "", "back up: flush data: PutBlob(p1): connection refused (look at the storage)"},
		"outputs-too-large":                     {crv1alpha1.BlueprintAction{Phases: []crv1alpha1.BlueprintPhase{phase("p", "Huge", nil)}, DeferPhase: last(nil, "Echo")}, crv1alpha1.StateFailed, "failed", "complete", "rite the status of ActionSet"},
		"an-artifact-that-cannot-be-rendered":   {crv1alpha1.BlueprintAction{Phases: []crv1alpha1.BlueprintPhase{echo("p")}, OutputArtifacts: map[string]crv1alpha1.Artifact{"a": {KopiaSnapshot: "{{ .Phases.q.Output.x }}"}}}, crv1alpha1.StateFailed, "complete", "", "render artifact a"},
		"only-a-deferphase":                     {crv1alpha1.BlueprintAction{DeferPhase: last(nil, "Echo")}, crv1alpha1.StateComplete, "", "complete", ""},
		"an-action-of-nothing":                  {crv1alpha1.BlueprintAction{}, crv1alpha1.StateComplete, "", "", ""},
	} {
		w.blueprint(name, &c.action)
		s := w.wait(w.start(name, name), name, finished)
		var phases []string
		for _, p := range s.Actions[0].Phases {
			phases = append(phases, string(p.State))
		}
		if got := strings.Join(phases, " "); s.State != c.state || got != c.phases || string(s.Actions[0].DeferPhase.State) != c.deferPhase || !strings.Contains(s.Error.Message, c.message) {
			t.Errorf("%s: %s, phases %q, deferPhase %q, error %q; want %s, %q, %q, %q", name, s.State, got, s.Actions[0].DeferPhase.State, s.Error.Message, c.state, c.phases, c.deferPhase, c.message)
		}
		if s.Progress.RunningPhase != "" {
			t.Errorf("%s: running phase %q at the end", name, s.Progress.RunningPhase)
		}
	}
	if !slices.Contains(w.done(), cleans[0]) {
		t.Error("no deferPhase ran")
	}

	// Two at once, of one Blueprint: neither the progress nor the arguments are shared.
	w.blueprint("slow", &crv1alpha1.BlueprintAction{Phases: []crv1alpha1.BlueprintPhase{echo("first"), phase("second", "Slow", crv1alpha1.JSONMap{"value": "{{ .Options.option }}"})}})
	for name, bytes := range map[string]int64{"slow-a": 10, "slow-b": 20} {
		s := w.wait(w.start(name, "slow"), "progress", func(s *crv1alpha1.ActionSetStatus) bool { return s.Progress.SizeUploadedB > 5 })
		want := fmt.Sprint((100 + 100*bytes/40) / 2)
		if p := s.Progress; p.SizeUploadedB != 5+bytes || p.RunningPhase != "second" || p.PercentCompleted != want {
			t.Errorf("%s: progress %+v, want %s%% and %d bytes", name, p, want, 5+bytes)
		}
	}

	// Made anew under the name of one that runs: the old run ends, the new one is another.
	w.Must(w.Delete(w.Context(), &crv1alpha1.ActionSet{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "slow-a"}}))
	key := w.start("slow-a", "slow")
	w.wait(key, "the new one runs", func(s *crv1alpha1.ActionSetStatus) bool {
		return s.Actions[0].Phases[1].State == crv1alpha1.StateRunning
	})
	close(hold)
	for _, name := range []string{"slow-a", "slow-b"} {
		s := w.wait(client.ObjectKey{Namespace: namespace, Name: name}, "complete", finished)
		if s.State != crv1alpha1.StateComplete || s.Actions[0].Phases[1].Output["value"] != "o" {
			t.Errorf("%s: %s %q", name, s.State, s.Error.Message)
		}
	}

	// kanctl and a stock Kanister may leave an empty status.
	empty := &crv1alpha1.ActionSet{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "empty-status"}, Spec: &crv1alpha1.ActionSetSpec{}, Status: &crv1alpha1.ActionSetStatus{}}
	w.Must(w.Create(w.Context(), empty))
	w.wait(client.ObjectKeyFromObject(empty), "complete", func(s *crv1alpha1.ActionSetStatus) bool { return s.State == crv1alpha1.StateComplete })
}

// TestIntegrationSecretsInCommands: told about, or refused before anything runs.
func TestIntegrationSecretsInCommands(t *testing.T) {
	w := newWorld(t)
	command := &commanding{scripted{name: "Run", required: []string{"value"}, exec: func(_ context.Context, call function.Call) (map[string]any, error) {
		w.did("ran with %v", call.Args["value"])
		return nil, nil
	}}}
	ref := crv1alpha1.ObjectReference{Namespace: namespace, Name: "keys"}
	w.Must(w.Create(w.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: ref.Name}, StringData: map[string]string{"id": "AK", "key": "planted"}}))
	w.Must(w.Create(w.Context(), &crv1alpha1.Profile{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: ref.Name},
		Location:   crv1alpha1.Location{Type: crv1alpha1.LocationTypeS3Compliant, Bucket: "bucket"},
		Credential: crv1alpha1.Credential{Type: crv1alpha1.CredentialTypeKeyPair, KeyPair: &crv1alpha1.KeyPair{IDField: "id", SecretField: "key", Secret: ref}},
	}))
	start := func(name string) client.ObjectKey {
		as := &crv1alpha1.ActionSet{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
			Spec: &crv1alpha1.ActionSetSpec{Actions: []crv1alpha1.ActionSpec{{
				Name: "act", Blueprint: "shows", Profile: &ref, Object: crv1alpha1.ObjectReference{Kind: "Namespace", Name: namespace, Namespace: namespace},
			}}},
		}
		w.Must(w.Create(w.Context(), as))
		return client.ObjectKeyFromObject(as)
	}
	w.blueprint("shows", &crv1alpha1.BlueprintAction{Phases: []crv1alpha1.BlueprintPhase{
		phase("before", "Echo", crv1alpha1.JSONMap{"value": "x"}),
		phase("p", "Run", crv1alpha1.JSONMap{"value": "{{ .Profile.Location.Bucket }} {{ .Profile.Credential.KeyPair.Secret }}"}),
	}})
	stop := w.controller(w.functions(command))
	if s := w.wait(start("told"), "the end", finished); s.State != crv1alpha1.StateComplete {
		t.Errorf("state %s: %s", s.State, s.Error.Message)
	}
	ran := []string{"echo x", "ran with bucket planted"}
	if got := w.done(); !slices.Equal(got, ran) {
		t.Errorf("ran %q, want %q", got, ran)
	}
	if got := w.told("told"); !slices.ContainsFunc(got, func(e string) bool {
		return strings.Contains(e, "Warning SecretInCommand: phase p renders .Profile.Credential.KeyPair.Secret into a command of Run")
	}) {
		t.Errorf("events %q", got)
	}
	stop()
	w.controller(w.functions(command), func(e *actionset.Engine, _ *ctrl.Options) { e.RefuseSecretsInCommands = true })
	s := w.wait(start("refused"), "the end", finished)
	if s.State != crv1alpha1.StateFailed || !strings.Contains(s.Error.Message, "refuse secrets in commands: phase p renders .Profile") {
		t.Errorf("%s: %q", s.State, s.Error.Message)
	}
	if got := w.done(); !slices.Equal(got, ran) {
		t.Errorf("after the refusal ran %q", got[len(ran):])
	}
}

type commanding struct{ scripted }

func (*commanding) CommandArgs() []string { return []string{"value"} }

// TestIntegrationTakeover: of two controllers one works; when it ends the other goes
// on with what it did.
func TestIntegrationTakeover(t *testing.T) {
	w := newWorld(t)
	release := make(chan struct{})
	functions := func(who string) *function.Registry {
		return w.functions(&scripted{name: "Resume", resumable: true, exec: func(ctx context.Context, call function.Call) (map[string]any, error) {
			w.did("%s works on %s", who, call.OperationID)
			select {
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			case <-release:
				return nil, nil
			}
		}})
	}
	elect := func(_ *actionset.Engine, o *ctrl.Options) {
		o.LeaderElection, o.LeaderElectionID, o.LeaderElectionNamespace, o.LeaderElectionReleaseOnCancel = true, "engine", namespace, true
	}
	w.blueprint("resumes", &crv1alpha1.BlueprintAction{Phases: []crv1alpha1.BlueprintPhase{phase("p", "Resume", nil)}})
	stop := w.controller(functions("first"), elect)
	key := w.start("handed-over", "resumes")
	works := func(who string) func() bool {
		return func() bool {
			return slices.ContainsFunc(w.done(), func(s string) bool { return strings.HasPrefix(s, who+" works") })
		}
	}
	testenv.Eventually(t, 2*time.Minute, "the first works", works("first"))
	w.controller(functions("second"), elect)
	if works("second")() {
		t.Error("two controllers work at once")
	}
	stop()
	testenv.Eventually(t, 2*time.Minute, "the second takes over", works("second"))
	close(release)
	if s := w.wait(key, "complete", finished); s.State != crv1alpha1.StateComplete {
		t.Errorf("%s: %q", s.State, s.Error.Message)
	}
	var ids []string
	for _, d := range w.done() {
		ids = append(ids, strings.Fields(d)[3])
	}
	if len(ids) != 2 || ids[0] != ids[1] {
		t.Errorf("operations %q, want one that is taken over", w.done())
	}
}

// TestIntegrationKilled: whatever a controller wrote last before it was killed, the
// next one goes on from there and comes to the same end. A phase is two writes, and
// there are no others.
func TestIntegrationKilled(t *testing.T) {
	w := newWorld(t)
	functions := w.functions(&scripted{name: "Again", resumable: true, required: []string{"value"}, exec: func(_ context.Context, call function.Call) (map[string]any, error) {
		return map[string]any{"value": call.Args["value"]}, nil
	}})
	again := func(name, value string) crv1alpha1.BlueprintPhase {
		return phase(name, "Again", crv1alpha1.JSONMap{"value": value})
	}
	w.blueprint("whole", &crv1alpha1.BlueprintAction{
		OutputArtifacts: map[string]crv1alpha1.Artifact{"a": {KeyValue: map[string]string{
			"seen": "{{ .Phases.one.Output.value }} {{ .Phases.two.Output.value }} {{ .DeferPhase.Output.value }}",
		}}},
		Phases:     []crv1alpha1.BlueprintPhase{again("one", "{{ .Time }}"), again("two", "{{ .Phases.one.Output.value }}2")},
		DeferPhase: new(again("last", "{{ .Phases.two.Output.value }}3")),
	})
	w.blueprint("breaks", &crv1alpha1.BlueprintAction{
		Phases:     []crv1alpha1.BlueprintPhase{again("one", "1"), phase("two", "Fail", nil), again("never", "2")},
		DeferPhase: new(again("last", "3")),
	})
	watch, err := w.Watch(w.Context(), &crv1alpha1.ActionSetList{}, client.InNamespace(namespace))
	w.Must(err)
	stop := w.controller(functions)
	written := map[string][]*crv1alpha1.ActionSetStatus{}
	for _, name := range []string{"whole", "breaks"} {
		w.start(name, name)
		for e := range watch.ResultChan() {
			as := e.Object.(*crv1alpha1.ActionSet)
			if as.Status == nil {
				continue
			}
			written[name] = append(written[name], as.Status)
			if finished(as.Status) {
				break
			}
		}
	}
	stop()
	// The state of a phase that fails and the ActionSet's are two: the second holds the
	// reason.
	if whole, breaks := len(written["whole"]), len(written["breaks"]); whole != 6 || breaks != 7 {
		t.Errorf("%d writes of three phases, %d of three with a failure", whole, breaks)
	}
	for name, statuses := range written {
		for i, s := range statuses {
			as := &crv1alpha1.ActionSet{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprint(name, i)}, Status: s.DeepCopy()}
			as.Spec = &crv1alpha1.ActionSetSpec{Actions: []crv1alpha1.ActionSpec{{Name: "act", Blueprint: name, Object: s.Actions[0].Object}}}
			w.Must(w.Create(w.Context(), as))
		}
	}
	w.controller(functions)
	for name, statuses := range written {
		want := statuses[len(statuses)-1]
		for i := range statuses {
			got := w.wait(client.ObjectKey{Namespace: namespace, Name: fmt.Sprint(name, i)}, "the end", finished)
			if got.State != want.State || got.Progress.RunningPhase != "" || got.Error.Message == "" != (want.Error.Message == "") ||
				fmt.Sprint(got.Actions[0].Artifacts) != fmt.Sprint(want.Actions[0].Artifacts) {
				t.Errorf("%s after write %d: %s %q, artifacts %v; want %s, %v", name, i, got.State, got.Error.Message, got.Actions[0].Artifacts, want.State, want.Actions[0].Artifacts)
			}
			for j, p := range append(got.Actions[0].Phases, got.Actions[0].DeferPhase) {
				if want := append(want.Actions[0].Phases, want.Actions[0].DeferPhase)[j]; p.State != want.State {
					t.Errorf("%s after write %d: phase %s is %s, want %s", name, i, p.Name, p.State, want.State)
				}
			}
		}
	}
}

// TestIntegrationMany: 200 ActionSets at once, 20 of which fail and five of which are
// deleted while they run, and none disturbs another.
func TestIntegrationMany(t *testing.T) {
	w := newWorld(t)
	const many = 200
	var running, most int
	var mu sync.Mutex
	all, release := make(chan struct{}), make(chan struct{})
	w.blueprint("many", &crv1alpha1.BlueprintAction{
		OutputArtifacts: map[string]crv1alpha1.Artifact{"a": {KeyValue: map[string]string{"who": "{{ .Phases.two.Output.who }}"}}},
		Phases: []crv1alpha1.BlueprintPhase{
			phase("one", "Echo", crv1alpha1.JSONMap{"value": "{{ .Options.who }}"}),
			phase("two", "Meet", crv1alpha1.JSONMap{"value": "{{ .Phases.one.Output.value }}"}),
		},
		DeferPhase: &crv1alpha1.BlueprintPhase{Name: "three", Func: "Echo", Args: crv1alpha1.JSONMap{"value": "{{ .Options.who }}"}},
	})
	functions := w.functions(&scripted{name: "Meet", required: []string{"value"}, exec: func(ctx context.Context, call function.Call) (map[string]any, error) {
		mu.Lock()
		running++
		if most = max(most, running); running == many {
			close(all)
		}
		mu.Unlock()
		select {
		case <-ctx.Done():
			w.did("%s ends: %v", call.ActionSet, context.Cause(ctx))
			return nil, context.Cause(ctx)
		case <-release:
		}
		if strings.HasSuffix(call.ActionSet, "7") {
			return nil, errors.New("unlucky " + call.ActionSet)
		}
		return map[string]any{"who": call.Args["value"]}, nil
	}})
	for i := range many {
		name := fmt.Sprintf("many-%03d", i)
		w.Must(w.Create(w.Context(), &crv1alpha1.ActionSet{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
			Spec: &crv1alpha1.ActionSetSpec{Actions: []crv1alpha1.ActionSpec{{Name: "act", Blueprint: "many", Options: map[string]string{"who": name},
				Object: crv1alpha1.ObjectReference{Kind: "namespace", Name: namespace, Namespace: namespace}}}},
		}))
	}
	before := heap()
	began := time.Now()
	w.controller(functions)
	testenv.Eventually(t, 5*time.Minute, "all have met", func() bool {
		select {
		case <-all:
			return true
		default:
			return false
		}
	})
	met, used := time.Since(began), heap()-before
	var ends []string
	for _, name := range []string{"many-000", "many-042", "many-077", "many-123", "many-199"} {
		w.Must(w.Delete(w.Context(), &crv1alpha1.ActionSet{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}))
		ends = append(ends, name+" ends: the ActionSet was deleted")
	}
	ended := func() []string {
		out := slices.DeleteFunc(w.done(), func(s string) bool { return !strings.Contains(s, " ends: ") })
		slices.Sort(out)
		return out
	}
	testenv.Eventually(t, time.Minute, "the operations of the deleted ones end", func() bool { return len(ended()) >= len(ends) })
	close(release)
	list := &crv1alpha1.ActionSetList{}
	testenv.Eventually(t, 5*time.Minute, "all have ended", func() bool {
		w.Must(w.List(w.Context(), list, client.InNamespace(namespace)))
		return !slices.ContainsFunc(list.Items, func(a crv1alpha1.ActionSet) bool { return a.Status == nil || !finished(a.Status) })
	})
	t.Logf("%d ActionSets: all in their second phase after %s, ended after %s; %d KiB of heap for each while they run", many, met, time.Since(began), used/many/1024)
	if got := ended(); !slices.Equal(got, ends) || len(list.Items) != many-len(ends) {
		t.Errorf("operations that ended early: %q, want %q; %d ActionSets are left", got, ends, len(list.Items))
	}
	for _, as := range list.Items {
		s := as.Status
		switch unlucky := strings.HasSuffix(as.Name, "7"); {
		case unlucky && (s.State != crv1alpha1.StateFailed || s.Error.Message != "phase two: unlucky "+as.Name):
			t.Errorf("%s: %s %q", as.Name, s.State, s.Error.Message)
		case !unlucky && (s.State != crv1alpha1.StateComplete || s.Actions[0].Artifacts["a"].KeyValue["who"] != as.Name):
			t.Errorf("%s: %s %q, artifact %v", as.Name, s.State, s.Error.Message, s.Actions[0].Artifacts)
		}
		if s.Actions[0].DeferPhase.Output["value"] != as.Name {
			t.Errorf("%s: deferPhase printed %v", as.Name, s.Actions[0].DeferPhase.Output)
		}
	}
}

// heap is what lives on it, in bytes.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkIntegrationPhase is what the engine itself costs: an ActionSet of one
// phase and one of eleven that do nothing, against a real API server.
func BenchmarkIntegrationPhase(b *testing.B) {
	w := newWorld(b)
	w.controller(w.functions())
	of := func(phases int) *crv1alpha1.BlueprintAction {
		a := &crv1alpha1.BlueprintAction{}
		for i := range phases {
			a.Phases = append(a.Phases, phase(fmt.Sprint("p", i), "Echo", crv1alpha1.JSONMap{"value": "{{ .Time }}"}))
		}
		return a
	}
	w.blueprint("one", of(1))
	w.blueprint("eleven", of(11))
	n := 0
	took := func(blueprint string) time.Duration {
		n++
		began := time.Now()
		key := w.start(fmt.Sprintf("bench-%d", n), blueprint)
		watch, err := w.Watch(context.Background(), &crv1alpha1.ActionSetList{}, client.InNamespace(namespace))
		w.Must(err)
		defer watch.Stop()
		for e := range watch.ResultChan() {
			if as, ok := e.Object.(*crv1alpha1.ActionSet); ok && as.Name == key.Name && as.Status != nil && as.Status.State.Done() {
				if as.Status.State != crv1alpha1.StateComplete {
					b.Fatal(as.Status.Error.Message)
				}
				break
			}
		}
		return time.Since(began)
	}
	took("one")
	var one, eleven time.Duration
	for b.Loop() {
		one += took("one")
		eleven += took("eleven")
	}
	each := time.Duration(n / 2)
	b.ReportMetric(float64(one/each)/1e6, "ms/actionset")
	b.ReportMetric(float64((eleven-one)/each)/10/1e6, "ms/phase")
	b.ReportMetric(0, "ns/op")
}

// customResource makes a kind known to the API server.
func (w *world) customResource(group, kind, plural string) {
	w.Helper()
	crd := &apiextensionsv1.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: plural + "." + group},
		Spec: apiextensionsv1.CustomResourceDefinitionSpec{
			Group: group, Scope: apiextensionsv1.NamespaceScoped,
			Names: apiextensionsv1.CustomResourceDefinitionNames{Kind: kind, ListKind: kind + "List", Plural: plural, Singular: strings.ToLower(kind)},
			Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{Name: "v1", Served: true, Storage: true,
				Schema: &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{Type: "object", XPreserveUnknownFields: new(true)}}}},
		},
	}
	w.Must(w.Create(w.Context(), crd))
	testenv.Eventually(w, time.Minute, kind+" is served", func() bool {
		w.Must(w.Get(w.Context(), client.ObjectKeyFromObject(crd), crd))
		return slices.ContainsFunc(crd.Status.Conditions, func(c apiextensionsv1.CustomResourceDefinitionCondition) bool {
			return c.Type == apiextensionsv1.Established && c.Status == apiextensionsv1.ConditionTrue
		})
	})
	// Discovery follows after.
	testenv.Eventually(w, time.Minute, kind+" is in discovery", func() bool {
		_, err := w.RESTMapper().RESTMapping(schema.GroupKind{Group: group, Kind: kind}, "v1")
		return err == nil
	})
}

func object(apiVersion, kind, namespace, name string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": apiVersion, "kind": kind, "metadata": map[string]any{"namespace": namespace, "name": name},
	}}
}

// TestIntegrationSideBySide: an action that fails leaves the others alone, also when the
// controller is restarted: what they do is theirs until it ends, and only then they
// clean up.
func TestIntegrationSideBySide(t *testing.T) {
	w := newWorld(t)
	release := make(chan struct{})
	var mu sync.Mutex
	works := map[string]string{} // operation by ActionSet
	functions := w.functions(&scripted{name: "Resume", resumable: true, exec: func(ctx context.Context, call function.Call) (map[string]any, error) {
		mu.Lock()
		works[call.ActionSet] = call.OperationID
		mu.Unlock()
		w.did("%s works", call.ActionSet)
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-release:
			w.did("%s ends", call.ActionSet)
			return nil, nil
		}
	}})
	stop := w.controller(functions)
	begun := []crv1alpha1.BlueprintPhase{phase("long", "Resume", nil), phase("never", "Echo", crv1alpha1.JSONMap{"value": "never"})}
	w.blueprint("fails", &crv1alpha1.BlueprintAction{Phases: []crv1alpha1.BlueprintPhase{phase("p", "Fail", nil)}})
	w.blueprint("plain", &crv1alpha1.BlueprintAction{Phases: begun})
	w.blueprint("cleans", &crv1alpha1.BlueprintAction{Phases: begun, DeferPhase: new(phase("last", "Echo", crv1alpha1.JSONMap{"value": "cleaned"}))})
	w.blueprint("changes", &crv1alpha1.BlueprintAction{Phases: begun})
	w.blueprint("loses", &crv1alpha1.BlueprintAction{Phases: begun})
	names := []string{"plain", "cleans", "changes", "loses"}
	keys := map[string]client.ObjectKey{}
	for _, name := range names[:3] {
		keys[name] = w.start(name, "fails", name)
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "lost-later"}}
	w.Must(w.Create(w.Context(), secret))
	about := crv1alpha1.ObjectReference{Kind: "Namespace", Name: namespace, Namespace: namespace}
	loses := &crv1alpha1.ActionSet{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "loses"}, Spec: &crv1alpha1.ActionSetSpec{Actions: []crv1alpha1.ActionSpec{
		{Name: "act", Blueprint: "fails", Object: about},
		{Name: "act", Blueprint: "loses", Object: about, Secrets: map[string]crv1alpha1.ObjectReference{"s": {Namespace: namespace, Name: secret.Name}}},
	}}}
	w.Must(w.Create(w.Context(), loses))
	keys["loses"] = client.ObjectKeyFromObject(loses)
	for _, name := range names {
		w.wait(keys[name], "one action failed, the other works", func(s *crv1alpha1.ActionSetStatus) bool {
			return s.State == crv1alpha1.StateFailed && s.Actions[1].Phases[0].State == crv1alpha1.StateRunning
		})
	}
	worked := func(times int, names ...string) func() bool {
		return func() bool {
			return !slices.ContainsFunc(names, func(name string) bool {
				return len(slices.DeleteFunc(w.done(), func(d string) bool { return d != name+" works" })) < times
			})
		}
	}
	testenv.Eventually(t, time.Minute, "all work", worked(1, names...))
	alive := func(name string) bool {
		t.Helper()
		running, err := actionset.Running(w.Context(), w.WithWatch, namespace)
		w.Must(err)
		mu.Lock()
		defer mu.Unlock()
		return running(works[name])
	}
	for _, name := range names {
		if !alive(name) {
			t.Errorf("%s: what works counts as a leftover", name)
		}
	}
	stop()
	var b crv1alpha1.Blueprint
	w.Must(w.Get(w.Context(), client.ObjectKey{Namespace: namespace, Name: "changes"}, &b))
	b.Actions["act"].Phases[0].Name = "renamed"
	w.Must(w.Update(w.Context(), &b))
	w.Must(w.Delete(w.Context(), secret))
	w.controller(functions)
	testenv.Eventually(t, time.Minute, "what worked is followed", worked(2, "plain", "cleans"))
	// Nobody can follow these, so nobody will.
	for _, name := range []string{"changes", "loses"} {
		s := w.wait(keys[name], "nothing works", func(s *crv1alpha1.ActionSetStatus) bool {
			return s.Actions[1].Phases[0].State == crv1alpha1.StateFailed
		})
		if alive(name) {
			t.Errorf("%s: its leftovers would stay for ever", name)
		}
		if s.Error.Message != "phase p: the disk is on fire" {
			t.Errorf("%s: error %q, want the first", name, s.Error.Message)
		}
	}
	if slices.Contains(w.done(), "echo cleaned") {
		t.Error("the deferPhase ran while the phase did")
	}
	close(release)
	for _, name := range []string{"plain", "cleans"} {
		s := w.wait(keys[name], "the end", func(s *crv1alpha1.ActionSetStatus) bool {
			return s.Actions[1].Phases[0].State == crv1alpha1.StateComplete && finished(s)
		})
		if p := s.Actions[1].Phases; s.State != crv1alpha1.StateFailed || p[1].State != crv1alpha1.StatePending {
			t.Errorf("%s: %s, phases %+v; want a failure, and nothing new", name, s.State, p)
		}
		testenv.Eventually(t, time.Minute, "nothing of it runs", func() bool { return !alive(name) })
	}
	if !slices.Contains(w.done(), "echo cleaned") {
		t.Error("no deferPhase ran")
	}
}

// TestIntegrationUnanswered: a connection that is refused is no answer, whatever the
// engine asks for.
func TestIntegrationUnanswered(t *testing.T) {
	w := newWorld(t)
	var refused sync.Map
	var taken atomic.Bool
	release := make(chan struct{})
	functions := w.functions(&scripted{name: "Resume", resumable: true, exec: func(ctx context.Context, call function.Call) (map[string]any, error) {
		w.did("works")
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-release:
			return nil, nil
		}
	}})
	refuseOnce := func(e *actionset.Engine, _ *ctrl.Options) {
		e.Client = interceptor.NewClient(w.WithWatch, interceptor.Funcs{Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
			if _, known := refused.LoadOrStore(key.Name, true); !known && strings.HasPrefix(key.Name, "refused") {
				return &url.Error{Op: "Get", URL: "https://10.0.0.1", Err: errors.New("connect: connection refused")}
			}
			if taken.Load() && key.Name == "forbidden" {
				return apierrors.NewForbidden(schema.GroupResource{Resource: "secrets"}, key.Name, errors.New("no"))
			}
			return c.Get(ctx, key, o, opts...)
		}})
	}
	stop := w.controller(functions, refuseOnce)
	w.blueprint("refused-blueprint", &crv1alpha1.BlueprintAction{Phases: []crv1alpha1.BlueprintPhase{phase("p", "Echo", crv1alpha1.JSONMap{"value": "x"})}})
	if s := w.wait(w.start("reads", "refused-blueprint"), "the end", finished); s.State != crv1alpha1.StateComplete {
		t.Errorf("a Blueprint that could not be read once: %s %q", s.State, s.Error.Message)
	}

	reads := phase("reads", "Echo", crv1alpha1.JSONMap{"value": "x"})
	reads.ObjectRefs = map[string]crv1alpha1.ObjectReference{}
	for _, name := range []string{"refused-secret", "forbidden"} {
		w.Must(w.Create(w.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}))
		reads.ObjectRefs[strings.ReplaceAll(name, "-", "")] = crv1alpha1.ObjectReference{Kind: "Secret", Namespace: namespace, Name: name}
	}
	w.blueprint("taken-over", &crv1alpha1.BlueprintAction{Phases: []crv1alpha1.BlueprintPhase{reads, phase("works", "Resume", nil)}})
	key := w.start("taken-over", "taken-over")
	works := func() bool { return slices.Contains(w.done(), "works") }
	testenv.Eventually(t, time.Minute, "the first phase is complete", works)
	stop()
	refused.Clear()
	taken.Store(true)
	w.controller(functions, refuseOnce)
	close(release)
	if s := w.wait(key, "the end", finished); s.State != crv1alpha1.StateComplete {
		t.Errorf("a phase that was complete, and whose Secrets cannot be read: %s %q, phases %+v", s.State, s.Error.Message, s.Actions[0].Phases)
	}
}
