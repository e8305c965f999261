// SPDX-License-Identifier: Apache-2.0

//go:build integration

package function_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
	"github.com/kanister-kopia/kanister-kopia/pkg/param"
)

func jsonUnmarshal(text any, into any) error { return json.Unmarshal([]byte(fmt.Sprint(text)), into) }

func testKubeOps(w *world) {
	reference := func(name, namespace string) map[string]any {
		return map[string]any{"apiVersion": "v1", "group": "", "kind": "ConfigMap", "resource": "configmaps", "name": name, "namespace": namespace}
	}
	w.run("spec", func(w *world) {
		out, err := w.exec("KubeOps", "ko-1", param.TemplateParams{}, args{
			"operation": "create", "namespace": shop, "spec": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: made}\ndata: {k: v}\n",
		})
		w.Must(err)
		if !reflect.DeepEqual(out, reference("made", shop)) {
			w.Errorf("outputs %v", out)
		}
		w.refused("KubeOps", "ko-2", param.TemplateParams{}, args{"operation": "create", "spec": "a: b\n---\nc: d\n"}, "create object")
		// As kastendevhub/enterprise-blueprint maximo/mongoce does.
		out, err = w.exec("KubeOps", "ko-9", param.TemplateParams{}, args{
			"operation": "create", "namespace": "default", "spec": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: first, namespace: " + shop + "}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: last}\n---\n",
		})
		w.Must(err)
		if !reflect.DeepEqual(out, reference("last", "default")) {
			w.Errorf("outputs %v, want those of the last one", out)
		}
		w.Must(w.Get(w.Context(), client.ObjectKey{Namespace: shop, Name: "first"}, &corev1.ConfigMap{}))
		w.refused("KubeOps", "ko-10", param.TemplateParams{}, args{
			"operation": "create", "namespace": shop, "spec": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: half}\n---\na: [\n",
		}, "read spec")
		if err := w.Get(w.Context(), client.ObjectKey{Namespace: shop, Name: "half"}, &corev1.ConfigMap{}); !apierrors.IsNotFound(err) {
			w.Errorf("error %v, want that nothing was made of half a text", err)
		}
	})
	w.run("namespace", func(w *world) {
		out, err := w.exec("KubeOps", "ko-3", param.TemplateParams{}, args{"operation": "create", "spec": `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"here"}}`})
		w.Must(err)
		if !reflect.DeepEqual(out, reference("here", "default")) {
			w.Errorf("outputs %v, want namespace default", out)
		}
		out, err = w.exec("KubeOps", "ko-4", param.TemplateParams{}, args{"operation": "create", "spec": `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"made"}}`})
		w.Must(err)
		if out["namespace"] != "" || out["kind"] != "Namespace" {
			w.Errorf("outputs %v of an object without a namespace", out)
		}
	})
	ref := args{"apiVersion": "v1", "resource": "configmaps", "name": "made", "namespace": shop}
	w.run("objectReference", func(w *world) {
		out, err := w.exec("KubeOps", "ko-5", param.TemplateParams{}, args{"operation": "patch", "objectReference": ref, "spec": "data: {more: yes-it-is}"})
		w.Must(err)
		if !reflect.DeepEqual(out, reference("made", shop)) {
			w.Errorf("outputs %v", out)
		}
		var m corev1.ConfigMap
		w.Must(w.Get(w.Context(), client.ObjectKey{Namespace: shop, Name: "made"}, &m))
		if m.Data["k"] != "v" || m.Data["more"] != "yes-it-is" {
			w.Errorf("data %v", m.Data)
		}
	})
	w.run("operation", func(w *world) {
		for _, operation := range []string{"ko-6", "ko-7"} { // once more is no error
			out, err := w.exec("KubeOps", operation, param.TemplateParams{}, args{"operation": "delete", "objectReference": ref})
			w.Must(err)
			if !reflect.DeepEqual(out, reference("made", shop)) {
				w.Errorf("outputs %v", out)
			}
		}
		if err := w.Get(w.Context(), client.ObjectKey{Namespace: shop, Name: "made"}, &corev1.ConfigMap{}); !apierrors.IsNotFound(err) {
			w.Errorf("error %v, want that it is gone", err)
		}
		held := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: shop, Name: "held", Finalizers: []string{"example.com/hold"}}}
		w.Must(w.Create(w.Context(), held))
		key, ended := client.ObjectKeyFromObject(held), make(chan error, 1)
		go func() {
			_, err := w.exec("KubeOps", "ko-11", param.TemplateParams{}, args{"operation": "delete", "objectReference": args{
				"apiVersion": "v1", "resource": "configmaps", "name": "held", "namespace": shop,
			}})
			if found := w.Get(w.Context(), key, &corev1.ConfigMap{}); !apierrors.IsNotFound(found) {
				err = errors.Join(err, fmt.Errorf("it did not wait: %v", found))
			}
			ended <- err
		}()
		testenv.Eventually(w, time.Minute, "it is being deleted", func() bool {
			return w.Get(w.Context(), key, held) == nil && held.DeletionTimestamp != nil
		})
		select {
		case err := <-ended:
			w.Fatalf("it did not wait: %v", err)
		default:
		}
		held.Finalizers = nil
		w.Must(w.Update(w.Context(), held))
		w.Must(<-ended)
		// kanctl's way to write a group.
		w.refused("KubeOps", "ko-8", param.TemplateParams{}, args{"operation": "patch", "spec": "a: b", "objectReference": args{
			"apiVersion": "v1", "group": "apps/", "resource": "deployments", "name": "lost", "namespace": shop,
		}}, `deployments.apps "lost" not found`)
	})
}

func testWait(w *world) {
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: shop, Name: "waited"}, Data: map[string]string{"phase": "new"}}
	w.Must(w.Create(w.Context(), m))
	params := param.TemplateParams{Options: map[string]string{"name": "waited", "timeout": "30s"}}
	ref := args{"apiVersion": "v1", "resource": "configmaps", "name": "{{ .Options.name }}", "namespace": shop}
	condition := func(text string, ref args) args { return args{"condition": text, "objectReference": ref} }
	ready := map[string]string{
		"Wait":   `{{ if (eq "{ $.data.phase }" "ready") }}true{{ else }}false{{ end }}`,
		"WaitV2": `{{ if (eq $.data.phase "ready") }}true{{ end }}`,
	}
	lost := args{"apiVersion": "v1", "resource": "configmaps", "name": "lost", "namespace": shop}
	for name, text := range ready {
		w.run(name, func(w *world) {
			m.Data["phase"] = "new"
			w.Must(w.Update(w.Context(), m))
			w.refused(name, "w-1", params, args{"timeout": "500ms", "conditions": args{"allOf": []any{condition(text, ref)}}},
				"Failed to wait for the condition to be met")
			w.refused(name, "w-2", params, args{"timeout": "500ms", "conditions": args{"anyOf": []any{condition(text, lost)}}},
				"Failed to wait for the condition to be met", `"lost" not found`)
			ended := make(chan error, 1)
			start := time.Now()
			go func() {
				_, err := w.exec(name, "w-3", params, args{"timeout": "{{ .Options.timeout }}", "conditions": args{
					"anyOf": []any{condition("false", ref), condition(text, ref)},
				}})
				ended <- err
			}()
			m.Data["phase"] = "ready"
			w.Must(w.Update(w.Context(), m))
			w.Must(<-ended)
			if time.Since(start) > 20*time.Second {
				w.Error("it waited for its end")
			}
			_, err := w.exec(name, "w-4", params, args{"timeout": "30s", "conditions": args{"allOf": []any{condition(text, ref), condition("true", ref)}}})
			w.Must(err)
			w.refused(name, "w-5", params, args{"timeout": "500ms", "conditions": args{"allOf": []any{condition(text, ref), condition("no", ref)}}},
				`condition "no" printed "no"`)
		})
	}
	w.run("a key that is not there", func(w *world) {
		_, err := w.exec("WaitV2", "w-6", params, args{"timeout": "30s", "conditions": args{"allOf": []any{condition(`{{ if not $.data.deleted }}true{{ end }}`, ref)}}})
		w.Must(err)
	})
}

func testScaleWorkload(w *world) {
	template := corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "scaled"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
	selector := &metav1.LabelSelector{MatchLabels: template.Labels}
	set := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: shop, Name: "scaled"}, Spec: appsv1.StatefulSetSpec{Replicas: new(int32(3)), ServiceName: "scaled", Selector: selector, Template: template}}
	other := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: shop, Name: "other"}, Spec: appsv1.DeploymentSpec{Replicas: new(int32(1)), Selector: selector, Template: template}}
	w.Must(w.Create(w.Context(), set))
	w.Must(w.Create(w.Context(), other))
	object := param.TemplateParams{StatefulSet: &param.StatefulSetParams{Namespace: shop, Name: "scaled"}}
	replicas := func(o client.Object) int32 {
		w.Must(w.Get(w.Context(), client.ObjectKeyFromObject(o), o))
		if s, ok := o.(*appsv1.StatefulSet); ok {
			return *s.Spec.Replicas
		}
		return *o.(*appsv1.Deployment).Spec.Replicas
	}
	w.run("replicas", func(w *world) {
		for _, c := range []struct {
			replicas any
			before   int64
			after    int32
		}{{int64(0), 3, 0}, {"2", 0, 2}} {
			out, err := w.exec("ScaleWorkload", "sw-1", object, args{"replicas": c.replicas, "waitForReady": false})
			w.Must(err)
			if out["originalReplicaCount"] != c.before || replicas(set) != c.after {
				w.Errorf("outputs %v, replicas %d; want %d, then %d", out, replicas(set), c.before, c.after)
			}
		}
	})
	w.run("name", func(w *world) {
		out, err := w.exec("ScaleWorkload", "sw-2", object, args{"replicas": 4, "namespace": shop, "name": "other", "kind": "deployment", "waitForReady": "false"})
		w.Must(err)
		if out["originalReplicaCount"] != int64(1) || replicas(other) != 4 || replicas(set) != 2 {
			w.Errorf("outputs %v", out)
		}
	})
	w.run("kind", func(w *world) {
		w.refused("ScaleWorkload", "sw-3", object, args{"replicas": 1, "kind": "DaemonSet"}, `Unsupported workload type "DaemonSet"`)
		w.refused("ScaleWorkload", "sw-4", param.TemplateParams{}, args{"replicas": 1}, "give name, namespace and kind")
	})
	w.run("waitForReady", func(w *world) {
		ended := make(chan error, 1)
		go func() {
			_, err := w.exec("ScaleWorkload", "sw-5", object, args{"replicas": 1})
			ended <- err
		}()
		testenv.Eventually(w, time.Minute, "it is scaled", func() bool { return replicas(set) == 1 })
		select {
		case err := <-ended:
			w.Fatalf("it did not wait: %v", err)
		default:
		}
		set.Status = appsv1.StatefulSetStatus{ObservedGeneration: set.Generation, Replicas: 1, ReadyReplicas: 1}
		w.Must(w.Status().Update(w.Context(), set))
		w.Must(<-ended)
	})
	// A Deployment does not count a pod that is going; one that stays is not waited for.
	w.run("until pods are gone", func(w *world) {
		labels := map[string]string{"app": "fewer"}
		pod := func(name, owner string, finalizers ...string) *corev1.Pod {
			p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
				Namespace: shop, Name: name, Labels: map[string]string{"app": "fewer", "pod-template-hash": "5d4f"}, Finalizers: finalizers,
				OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: owner, UID: "u", Controller: new(true)}},
			}, Spec: template.Spec}
			w.Must(w.Create(w.Context(), p))
			return p
		}
		ofFewer := *template.DeepCopy()
		ofFewer.Labels = labels
		fewer := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: shop, Name: "fewer"}, Spec: appsv1.DeploymentSpec{
			Replicas: new(int32(2)), Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: ofFewer,
		}}
		w.Must(w.Create(w.Context(), fewer))
		pod("fewer-a", "fewer-5d4f")
		pod("exporter", "exporter-5d4f") // has the labels, and is another's
		going := pod("fewer-b", "fewer-5d4f", "kopia.kanister.io/test")
		w.Must(w.Delete(w.Context(), going))
		ended := make(chan error, 1)
		go func() {
			_, err := w.exec("ScaleWorkload", "sw-6", param.TemplateParams{}, args{"replicas": 1, "namespace": shop, "name": "fewer", "kind": "Deployment"})
			ended <- err
		}()
		testenv.Eventually(w, time.Minute, "it is scaled", func() bool { return replicas(fewer) == 1 })
		fewer.Status = appsv1.DeploymentStatus{ObservedGeneration: fewer.Generation, Replicas: 1, UpdatedReplicas: 1, ReadyReplicas: 1, AvailableReplicas: 1}
		w.Must(w.Status().Update(w.Context(), fewer))
		select {
		case err := <-ended:
			w.Fatalf("it did not wait for the pod that is going: %v", err)
		default:
		}
		before := going.DeepCopy()
		going.Finalizers = nil
		w.Must(w.Patch(w.Context(), going, client.MergeFrom(before)))
		select {
		case err := <-ended:
			w.Must(err)
		case <-time.After(time.Minute):
			w.Fatal("it waits for a pod that stays")
		}
	})
}
