// SPDX-License-Identifier: Apache-2.0

//go:build integration

package function_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

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
		w.must(err)
		if !reflect.DeepEqual(out, reference("made", shop)) {
			w.Errorf("outputs %v", out)
		}
		w.refused("KubeOps", "ko-2", param.TemplateParams{}, args{"operation": "create", "spec": "a: b\n---\nc: d\n"}, "create object")
	})
	w.run("namespace", func(w *world) {
		out, err := w.exec("KubeOps", "ko-3", param.TemplateParams{}, args{"operation": "create", "spec": `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"here"}}`})
		w.must(err)
		if !reflect.DeepEqual(out, reference("here", "default")) {
			w.Errorf("outputs %v, want namespace default", out)
		}
		out, err = w.exec("KubeOps", "ko-4", param.TemplateParams{}, args{"operation": "create", "spec": `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"made"}}`})
		w.must(err)
		if out["namespace"] != "" || out["kind"] != "Namespace" {
			w.Errorf("outputs %v of an object without a namespace", out)
		}
	})
	ref := args{"apiVersion": "v1", "resource": "configmaps", "name": "made", "namespace": shop}
	w.run("objectReference", func(w *world) {
		out, err := w.exec("KubeOps", "ko-5", param.TemplateParams{}, args{"operation": "patch", "objectReference": ref, "spec": "data: {more: yes-it-is}"})
		w.must(err)
		if !reflect.DeepEqual(out, reference("made", shop)) {
			w.Errorf("outputs %v", out)
		}
		var m corev1.ConfigMap
		w.must(w.Get(w.context(), client.ObjectKey{Namespace: shop, Name: "made"}, &m))
		if m.Data["k"] != "v" || m.Data["more"] != "yes-it-is" {
			w.Errorf("data %v", m.Data)
		}
	})
	w.run("operation", func(w *world) {
		for _, operation := range []string{"ko-6", "ko-7"} { // once more is no error
			out, err := w.exec("KubeOps", operation, param.TemplateParams{}, args{"operation": "delete", "objectReference": ref})
			w.must(err)
			if !reflect.DeepEqual(out, reference("made", shop)) {
				w.Errorf("outputs %v", out)
			}
		}
		if err := w.Get(w.context(), client.ObjectKey{Namespace: shop, Name: "made"}, &corev1.ConfigMap{}); !apierrors.IsNotFound(err) {
			w.Errorf("error %v, want that it is gone", err)
		}
		// kanctl's way to write a group.
		w.refused("KubeOps", "ko-8", param.TemplateParams{}, args{"operation": "patch", "spec": "a: b", "objectReference": args{
			"apiVersion": "v1", "group": "apps/", "resource": "deployments", "name": "lost", "namespace": shop,
		}}, `deployments.apps "lost" not found`)
	})
}

func testWait(w *world) {
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: shop, Name: "waited"}, Data: map[string]string{"phase": "new"}}
	w.must(w.Create(w.context(), m))
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
			w.must(w.Update(w.context(), m))
			w.refused(name, "w-1", params, args{"timeout": "10ms", "conditions": args{"allOf": []any{condition(text, ref)}}},
				"Failed to wait for the condition to be met")
			w.refused(name, "w-2", params, args{"timeout": "10ms", "conditions": args{"anyOf": []any{condition(text, lost)}}},
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
			w.must(w.Update(w.context(), m))
			w.must(<-ended)
			if time.Since(start) > 20*time.Second {
				w.Error("it waited for its end")
			}
			_, err := w.exec(name, "w-4", params, args{"timeout": "30s", "conditions": args{"allOf": []any{condition(text, ref), condition("true", ref)}}})
			w.must(err)
			w.refused(name, "w-5", params, args{"timeout": "10ms", "conditions": args{"allOf": []any{condition(text, ref), condition("no", ref)}}},
				`condition "no" printed "no"`)
		})
	}
	w.run("a key that is not there", func(w *world) {
		_, err := w.exec("WaitV2", "w-6", params, args{"timeout": "30s", "conditions": args{"allOf": []any{condition(`{{ if not $.data.deleted }}true{{ end }}`, ref)}}})
		w.must(err)
	})
}
