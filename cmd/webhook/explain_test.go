// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

const statefulSet = `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: shop, labels: {WORKLOAD: x}}
spec:
  volumeClaimTemplates: [{metadata: {name: data}}]
  template:
    metadata: {labels: {app: db, TEMPLATE: "true"}}
    spec:
      securityContext: {runAsUser: 999}
      containers: [{name: db, image: db, volumeMounts: [{name: data, mountPath: /data}, {name: tmp, mountPath: /tmp}]}]
      volumes: [{name: tmp, emptyDir: {}}]
`

func workload(onWorkload, onTemplate string) string {
	return strings.NewReplacer("WORKLOAD", onWorkload, "TEMPLATE", onTemplate).Replace(statefulSet)
}

const inject = "kopia.kanister.io/inject"

func TestExplain(t *testing.T) {
	pod := "apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {kopia.kanister.io/inject: 'true'}}\nspec: {containers: [{name: c}]}\n"
	for _, tc := range []struct {
		name, stdin string
		args        []string
		want        []string // lines
		not         string
		err         string
	}{
		{
			name: "a StatefulSet, with the volumes of its templates", stdin: workload("x", inject),
			want: []string{
				"statefulset db: injected", "why:       the agent is injected (injected)", "volume:    data at /volumes/data",
				"skipped:   tmp: an emptyDir is mirrored only when annotation kopia.kanister.io/volumes lists it",
				"uid:       999: the user of the pod", "QoS class: BestEffort, kept; the agent may use 512 MiB",
			},
			not: "warning",
		},
		{
			name: "without a port", stdin: strings.Replace(workload("x", inject), "labels: {app: db,", "annotations: {kopia.kanister.io/health: 'false'}, labels: {app: db,", 1),
			want: []string{"statefulset db: injected", "health:    no port: neither /healthz nor /metrics"},
		},
		{
			name: "the label in the wrong place", stdin: workload(inject, "x"),
			want: []string{"statefulset db: not injected", "warning:   label kopia.kanister.io/inject on the workload itself does nothing; put it into the labels of its pod template"},
		},
		{
			name: "a namespace in the same file", stdin: "kind: Namespace\nmetadata: {name: shop}\n---\n" + workload("x", inject),
			want: []string{"statefulset db: not injected", "why:       the namespace has no label kopia.kanister.io/injection=enabled or =all: namespace shop (namespace-not-opted-in)"},
		},
		{
			name: "flags have the last word", stdin: "kind: Namespace\nmetadata: {name: shop}\n---\n" + workload("x", inject),
			args: []string{"-namespace-labels", "kopia.kanister.io/injection=all"},
			want: []string{"statefulset db: injected"},
		},
		{
			name: "a list, as kubectl prints it, with the namespace's rules", stdin: `{"kind": "List", "items": [
				{"kind": "Namespace", "metadata": {"name": "shop", "labels": {"kopia.kanister.io/injection": "enabled"}}},
				{"kind": "LimitRange", "spec": {"limits": [{"type": "Container", "max": {"memory": "16Mi"}}]}},
				{"kind": "ConfigMap", "metadata": {"name": "x"}},
				{"kind": "Pod", "metadata": {"name": "p", "labels": {"kopia.kanister.io/inject": "true"}}, "spec": {
					"containers": [{"name": "c", "resources": {"limits": {"memory": "16Mi"}}, "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
					"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "v"}}]}}]}`,
			want: []string{"pod p: not injected", "why:       a LimitRange of the namespace leaves no room for the agent: container kopia-agent would get 16Mi of memory and needs 32Mi (limit-range)"},
		},
		{name: "two of them", stdin: pod + "---\n" + workload("x", inject), want: []string{"pod p: not injected", "statefulset db: injected"}},
		{name: "no pod", stdin: "kind: ConfigMap\nmetadata: {name: x}\n", err: "the file holds no Pod and no workload that makes one; it holds: ConfigMap x"},
		{name: "nothing", stdin: "", err: "it holds: nothing"},
		{name: "not YAML", stdin: "{", err: "read pod: "},
		{name: "unknown output", stdin: pod, args: []string{"-o", "json"}, err: `unknown output "json"; accepted: yaml`},
		{name: "not injected, so no pod to print", stdin: pod, args: []string{"-o", "yaml"}, err: "the pod has no volume that the agent mirrors"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out bytes.Buffer
			err := run(append([]string{"explain", "-f", "-"}, tc.args...), strings.NewReader(tc.stdin), &out)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("error %v, want %q", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, line := range tc.want {
				if !strings.Contains("\n"+out.String(), "\n"+line+"\n") {
					t.Errorf("no line %q in\n%s", line, &out)
				}
			}
			if tc.not != "" && strings.Contains(out.String(), tc.not) {
				t.Errorf("%q in\n%s", tc.not, &out)
			}
		})
	}
}

func TestExplainPrintsThePod(t *testing.T) {
	var out bytes.Buffer
	if err := run([]string{"explain", "-f", "-", "-o", "yaml", "-agent-image", "agent:x"}, strings.NewReader(workload("x", inject)), &out); err != nil {
		t.Fatal(err)
	}
	var pod corev1.Pod
	if err := yaml.UnmarshalStrict(out.Bytes(), &pod); err != nil {
		t.Fatal(err)
	}
	if pod.Kind != "Pod" || len(pod.Spec.InitContainers) != 1 || pod.Spec.InitContainers[0].Image != "agent:x" {
		t.Errorf("%s", &out)
	}
}
