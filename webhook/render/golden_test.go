// SPDX-License-Identifier: Apache-2.0

package render_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/kanister-kopia/kanister-kopia/webhook/decide"
	"github.com/kanister-kopia/kanister-kopia/webhook/render"
)

var update = flag.Bool("update", false, "write testdata/*.golden.yaml anew")

var options = render.Options{Image: "kanister-kopia.local/agent:v1", Version: "v1"}

// TestGolden injects each pod of testdata. A file holds the namespace and the pod,
// and on top what is expected, written by hand:
//
//	# expect: injected; volumes: data, wal; uid: 999
//
// (uid "-": the cluster chooses; otherwise just the reason). Its twin holds the
// decision and the pod that results. `make golden` refreshes the twins; it cannot
// change what is expected.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, file := range files {
		if strings.HasSuffix(file, ".golden.yaml") {
			continue
		}
		count++
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			ns, document, expect := readCase(t, file)
			decision, injected := inject(t, document, ns, options)
			if got := summary(decision); got != expect {
				t.Fatalf("got %q, want %q", got, expect)
			}
			converges(t, injected, ns)
			touchesOnlyOurs(t, parse(t, document), parse(t, injected))
			if decision.Inject() {
				sound(t, parse(t, document), parse(t, injected), strings.Contains(file, "privileged-namespace"))
			}

			got := golden(t, decision, injected)
			twin := strings.TrimSuffix(file, ".yaml") + ".golden.yaml"
			if *update {
				if err := os.WriteFile(twin, got, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(twin)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
	if count < 60 {
		t.Errorf("only %d pods found", count)
	}
}

// inject does what the server does, on the pod's document; the patch is what the
// API server would apply.
func inject(t testing.TB, document []byte, ns decide.Namespace, o render.Options) (decide.Decision, []byte) {
	t.Helper()
	pod := parse(t, document)
	d := decide.Decide(pod, ns)
	if !d.Inject() {
		return d, document
	}
	edit := render.Inject(pod, d.Plan, o)
	ops := edit.Patch(pod)
	if edit.Empty() != (len(ops) == 0) {
		t.Errorf("empty edit: %v, but %d operations", edit.Empty(), len(ops))
	}
	patched := document
	if len(ops) > 0 {
		raw, err := json.Marshal(ops)
		if err != nil {
			t.Fatal(err)
		}
		patch, err := jsonpatch.DecodePatch(raw)
		if err != nil {
			t.Fatal(err)
		}
		if patched, err = patch.Apply(document); err != nil {
			t.Fatalf("apply %s: %v", raw, err)
		}
	}
	// The two renderings of an edit say the same.
	if diff := cmp.Diff(edit.Apply(pod), parse(t, patched)); diff != "" {
		t.Errorf("Apply and Patch differ (-apply +patch)\n%s", diff)
	}
	return d, patched
}

// converges: twice is once, also over another version's agent, and after another
// webhook changed our container and added containers and a volume.
func converges(t *testing.T, injected []byte, ns decide.Namespace) {
	t.Helper()
	_, twice := inject(t, injected, ns, options)
	if diff := cmp.Diff(string(injected), string(twice)); diff != "" {
		t.Errorf("a second injection changed the pod (-once +twice)\n%s", diff)
	}

	_, other := inject(t, injected, ns, render.Options{Image: "elsewhere/agent:v2", Version: "v2"})
	_, back := inject(t, other, ns, options)
	if diff := cmp.Diff(parse(t, injected), parse(t, back)); diff != "" {
		t.Errorf("another version's agent is not brought to ours (-want +got)\n%s", diff)
	}

	meddled := parse(t, injected)
	for i := range meddled.Spec.InitContainers {
		c := &meddled.Spec.InitContainers[i]
		if c.Name != "kopia-agent" {
			continue
		}
		c.RestartPolicy = nil
		c.Env = append(c.Env, corev1.EnvVar{Name: "MESH", Value: "1"})
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "mesh", MountPath: "/mesh"})
		c.SecurityContext.ReadOnlyRootFilesystem = nil
	}
	before := parse(t, marshal(t, meddled))
	_, repaired := inject(t, marshal(t, meddled), ns, options)
	want, got := agentOf(parse(t, injected)), agentOf(parse(t, repaired))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("our container is not put right (-want +got)\n%s", diff)
	}
	touchesOnlyOurs(t, before, parse(t, repaired))
}

// touchesOnlyOurs: without our container, volumes and annotations the pods are equal.
func touchesOnlyOurs(t testing.TB, before, after *corev1.Pod) {
	t.Helper()
	if diff := cmp.Diff(strip(before), strip(after)); diff != "" {
		t.Errorf("something that is not ours changed (-before +after)\n%s", diff)
	}
}

func strip(pod *corev1.Pod) *corev1.Pod {
	pod = pod.DeepCopy()
	delete(pod.Annotations, "kopia.kanister.io/status")
	delete(pod.Annotations, "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes")
	if len(pod.Annotations) == 0 {
		pod.Annotations = nil
	}
	pod.Spec.InitContainers = remove(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == "kopia-agent" })
	pod.Spec.Volumes = remove(pod.Spec.Volumes, func(v corev1.Volume) bool { return strings.HasPrefix(v.Name, "kopia-agent-") })
	return pod
}

func remove[T any](list []T, ours func(T) bool) []T {
	var rest []T
	for _, v := range list {
		if !ours(v) {
			rest = append(rest, v)
		}
	}
	return rest
}

func agentOf(pod *corev1.Pod) *corev1.Container {
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == "kopia-agent" {
			return &pod.Spec.InitContainers[i]
		}
	}
	return nil
}

func parse(t testing.TB, document []byte) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{}
	if err := json.Unmarshal(document, pod); err != nil {
		t.Fatal(err)
	}
	return pod
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func readCase(t testing.TB, file string) (decide.Namespace, []byte, string) {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	first, second, ok := bytes.Cut(raw, []byte("\n---\n"))
	if !ok {
		t.Fatalf("%s: expected a Namespace and a Pod", file)
	}
	var ns corev1.Namespace
	if err := yaml.UnmarshalStrict(first, &ns); err != nil {
		t.Fatal(err)
	}
	document, err := yaml.YAMLToJSON(second)
	if err != nil {
		t.Fatal(err)
	}
	_, expect, _ := strings.Cut(string(first), "# expect: ")
	expect, _, _ = strings.Cut(expect, "\n")
	return decide.Namespace{Name: ns.Name, Labels: ns.Labels, Annotations: ns.Annotations, Mode: decide.ModeOf(ns.Labels)}, document, expect
}

// summary is a decision in the words of an expectation.
func summary(d decide.Decision) string {
	if !d.Inject() {
		return string(d.Reason)
	}
	uid := "-"
	if d.Plan.RunAs.EffectiveUID != nil {
		uid = strconv.FormatInt(*d.Plan.RunAs.EffectiveUID, 10)
	}
	if len(d.Plan.Devices) > 0 {
		return fmt.Sprintf("%s; volumes: %s; devices: %s; uid: %s", d.Reason, strings.Join(d.Plan.Volumes, ", "), strings.Join(d.Plan.Devices, ", "), uid)
	}
	return fmt.Sprintf("%s; volumes: %s; uid: %s", d.Reason, strings.Join(d.Plan.Volumes, ", "), uid)
}

func golden(t *testing.T, d decide.Decision, document []byte) []byte {
	t.Helper()
	b, err := yaml.JSONToYAML(document)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Appendf(nil, "# %s: %s\n%s", d.Reason, d.Message(), b)
}
