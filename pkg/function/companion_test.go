// SPDX-License-Identifier: Apache-2.0

package function

import (
	"context"
	"errors"
	"io"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/pkg/param"
)

func TestFillPaths(t *testing.T) {
	object := map[string]any{
		"status": map[string]any{
			"phase": "Bound", "n": int64(3), "odd": "a \"b\" {{ .Profile }} `c`",
			"conditions": []any{map[string]any{"type": "Ready", "status": "True"}},
		},
	}
	for _, c := range []struct{ template, want, err string }{
		{`{{ if (eq "{ $.status.phase }" "Bound")}}true{{ end }}`, `{{ if (eq "Bound" "Bound")}}true{{ end }}`, ""},
		{`{{ if (eq "{$.status.phase}" "Bound") }}true{{ else }}{$.status.n}{{ end }}`, `{{ if (eq "Bound" "Bound") }}true{{ else }}3{{ end }}`, ""},
		{`{{ if gt {$.status.n} 2 }}true{{ end }}`, `{{ if gt 3 2 }}true{{ end }}`, ""},
		{"{{ eq \"{ $.status.conditions[?(@.type==\"Ready\")].status }\" \"True\" }}", `{{ eq "True" "True" }}`, ""},
		{`{{ eq "{$.status.odd}" "" }}`, `{{ eq "a \"b\" {{ .Profile }} ` + "`c`" + `" "" }}`, ""},
		{"{{ eq `{$.status.odd}` `` }}", "", "holds a backquote"},
		{`{$.status.odd}`, "", "write the path in double quotes"},
		{`{{ $.Options.x }}`, `{{ $.Options.x }}`, ""},
		{`{$.status.lost}`, "", "lost is not found"},
		{`plain`, `plain`, ""},
	} {
		got, err := fillPaths(c.template, object)
		switch {
		case c.err != "":
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %q, error %v, want %q in it", c.template, got, err, c.err)
			}
		case err != nil || got != c.want:
			t.Errorf("%s: %q, %v; want %q", c.template, got, err, c.want)
		}
	}
}

// FuzzFillPaths: whatever an object holds, in quotes it stays one text of the
// template, and is never run.
func FuzzFillPaths(f *testing.F) {
	f.Add(`x`)
	f.Add(`" }}{{ .Profile.Credential.KeyPair.Secret }}{{ "`)
	f.Add("`\\\n\x00")
	f.Fuzz(func(t *testing.T, value string) {
		filled, err := fillPaths(`{{ if eq "{$.v}" "" }}empty{{ else }}{{ print "{$.v}" }}{{ end }}`, map[string]any{"v": value})
		if err != nil {
			t.Fatal(err)
		}
		out, err := param.Render(filled, &param.TemplateParams{Profile: &param.Profile{Credential: param.Credential{KeyPair: &param.KeyPair{Secret: "s3cr3t"}}}})
		if err != nil {
			t.Fatalf("%q: %v", filled, err)
		}
		want := strings.ToValidUTF8(value, "\uFFFD")
		if value == "" {
			want = "empty"
		}
		if strings.ToValidUTF8(out, "\uFFFD") != want {
			t.Errorf("%q printed %q", value, out)
		}
	})
}

func TestMultiContainerRunPod(t *testing.T) {
	m := multiPod{
		namespace: "ns", init: command{"i", []string{"a"}}, background: command{"b", []string{"c"}}, output: command{"o", []string{"d"}},
		medium: "Memory", size: "1Gi", dir: "/shared", pod: podArgs{labels: map[string]string{"team": "x"}},
	}
	pod, err := m.render(Call{OperationID: "op"}, &Companion{PullPolicy: corev1.PullIfNotPresent})
	if err != nil {
		t.Fatal(err)
	}
	s := pod.Spec
	if len(s.Containers) != 2 || s.Containers[0].Name != "output" || s.Containers[1].Name != "background" || len(s.InitContainers) != 1 || s.InitContainers[0].Name != "init" {
		t.Fatalf("containers %+v, init containers %+v", s.Containers, s.InitContainers)
	}
	for _, c := range append(s.InitContainers, s.Containers...) {
		if len(c.VolumeMounts) != 1 || c.VolumeMounts[0].MountPath != "/shared" {
			t.Errorf("container %s mounts %+v, want the shared volume", c.Name, c.VolumeMounts)
		}
	}
	if e := s.Volumes[0].EmptyDir; e.Medium != "Memory" || e.SizeLimit.String() != "1Gi" {
		t.Errorf("shared volume %+v", e)
	}
	if pod.Labels["team"] != "x" || pod.Labels["createdBy"] != "kanister" || pod.Annotations[names.OperationAnnotation] != "op" {
		t.Errorf("labels %v, annotations %v", pod.Labels, pod.Annotations)
	}
	if m.init.image = ""; true {
		if pod, err = m.render(Call{}, &Companion{}); err != nil || len(pod.Spec.InitContainers) != 0 {
			t.Errorf("without an init image: %+v, %v", pod.Spec.InitContainers, err)
		}
	}
}

// An ActionSet's override of "container", which all other functions have, is for
// both containers, unless it names one of them.
func TestForBoth(t *testing.T) {
	container := func(name, image string) map[string]any { return map[string]any{"name": name, "image": image} }
	for _, c := range []struct {
		name     string
		in, want []any
	}{
		{"the common name", []any{container("x", "1"), container("container", "2")}, []any{container("x", "1"), container("background", "2"), container("output", "2")}},
		{"a name of its own", []any{container("container", "1"), container("output", "2")}, []any{container("container", "1"), container("output", "2")}},
		{"others", []any{container("x", "1")}, []any{container("x", "1")}},
	} {
		in := map[string]any{"containers": c.in, "nodeName": "n"}
		if got := forBoth(in); !reflect.DeepEqual(got["containers"], c.want) || got["nodeName"] != "n" {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	if got := forBoth(nil); got != nil {
		t.Errorf("nothing: %v", got)
	}
}

// Kanister: of two labels of one name the Blueprint's wins, of two overrides the
// ActionSet's.
func TestPodArguments(t *testing.T) {
	call := Call{
		Args: map[string]any{
			"podLabels":      map[string]any{"a": "blueprint", "createdBy": "me"},
			"podAnnotations": map[string]any{"n": int64(1)},
			"podOverride":    map[string]any{"containers": []any{map[string]any{"name": "container", "image": "blueprint"}}},
		},
		Params: param.TemplateParams{
			PodLabels: map[string]string{"a": "actionset", "b": "actionset"}, PodAnnotations: map[string]string{"m": "actionset"},
			PodOverride: map[string]any{"containers": []any{map[string]any{"name": "container", "image": "actionset"}}},
		},
		OperationID: "op",
	}
	p, err := decodePod(call)
	if err != nil {
		t.Fatal(err)
	}
	if want := map[string]string{"a": "blueprint", "b": "actionset", "createdBy": "me"}; !reflect.DeepEqual(p.labels, want) {
		t.Errorf("labels %v, want %v", p.labels, want)
	}
	if want := map[string]string{"m": "actionset", "n": "1"}; !reflect.DeepEqual(p.annotations, want) {
		t.Errorf("annotations %v, want %v", p.annotations, want)
	}
	pod, err := new(Companion).render(call, task{prefix: "kanister-job-", namespace: "ns", image: "task", pod: p})
	if err != nil {
		t.Fatal(err)
	}
	if pod.Spec.Containers[0].Image != "actionset" || pod.Labels["createdBy"] != "me" || pod.Labels[names.ManagedByLabel] != names.ManagedByValue {
		t.Errorf("image %s, labels %v", pod.Spec.Containers[0].Image, pod.Labels)
	}
}

func TestTaskPod(t *testing.T) {
	pod, err := (&Companion{ToolsImage: "tools"}).render(Call{OperationID: "op"}, task{
		prefix: "prepare-data-job-", namespace: "ns", image: "i", command: []string{"c"}, serviceAccount: "account",
		claims: map[string]string{"b": "/b", "a": "/a"},
	})
	if err != nil {
		t.Fatal(err)
	}
	c := pod.Spec.Containers[0]
	if pod.Namespace != "ns" || c.Name != "container" || pod.Spec.ServiceAccountName != "account" {
		t.Errorf("pod %+v", pod)
	}
	if want := []corev1.EnvVar{{Name: "KANISTER_TOOLS", Value: "tools"}}; !reflect.DeepEqual(c.Env, want) {
		t.Errorf("environment %v, want %v", c.Env, want)
	}
	for i, claim := range []string{"a", "b"} {
		if pod.Spec.Volumes[i].PersistentVolumeClaim.ClaimName != claim || c.VolumeMounts[i].MountPath != "/"+claim || c.VolumeMounts[i].Name != pod.Spec.Volumes[i].Name {
			t.Errorf("claim %s: volume %+v, mount %+v", claim, pod.Spec.Volumes[i], c.VolumeMounts[i])
		}
	}
}

// A pod has the token of an account that the Blueprint or the ActionSet names, and
// no other. What they say of the token itself stands.
func TestTaskPodToken(t *testing.T) {
	for _, c := range []struct {
		name, account string
		override      map[string]any
		want          *bool
	}{
		{"nobody's account", "", nil, new(false)},
		{"the argument's", "account", nil, nil},
		{"podOverride's", "", map[string]any{"serviceAccountName": "account"}, nil},
		{"asked for", "", map[string]any{"automountServiceAccountToken": true}, new(true)},
		{"refused", "account", map[string]any{"automountServiceAccountToken": false}, new(false)},
	} {
		p := podArgs{override: c.override}
		one, err := new(Companion).render(Call{}, task{image: "i", serviceAccount: c.account, pod: p})
		if err != nil {
			t.Fatal(err)
		}
		if got := one.Spec.AutomountServiceAccountToken; !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: token %v", c.name, got)
		}
		if c.account != "" {
			continue
		}
		several, err := multiPod{pod: p}.render(Call{}, new(Companion))
		if err != nil {
			t.Fatal(err)
		}
		if got := several.Spec.AutomountServiceAccountToken; !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s, of several containers: token %v", c.name, got)
		}
	}
}

func TestDefaultContainer(t *testing.T) {
	pod := &corev1.Pod{Spec: corev1.PodSpec{
		InitContainers: []corev1.Container{{Name: names.AgentContainer}, {Name: "init"}},
		Containers:     []corev1.Container{{Name: "db"}, {Name: "proxy"}},
	}}
	if got := defaultContainer(pod); got != "db" {
		t.Errorf("%s, want the first", got)
	}
	pod.Annotations = map[string]string{"kubectl.kubernetes.io/default-container": "proxy"}
	if got := defaultContainer(pod); got != "proxy" {
		t.Errorf("%s, want the one that the pod names", got)
	}
}

// What a command says on standard error is logged, and the end of it is in the error.
func TestStandardError(t *testing.T) {
	var lines []string
	s := &standardError{line: func(l string) { lines = append(lines, l) }, tail: tail{limit: 8}}
	for _, text := range []string{"fir", "st\r\n\nsec", "ond\nla", "st"} {
		if n, err := s.Write([]byte(text)); n != len(text) || err != nil {
			t.Errorf("wrote %d of %q: %v", n, text, err)
		}
	}
	if said := s.end(); said != "ond\nlast" || !reflect.DeepEqual(lines, []string{"first", "second", "last"}) {
		t.Errorf("lines %q, the end %q", lines, said)
	}
	// A progress bar never ends its line.
	lines = nil
	if _, err := s.Write([]byte(strings.Repeat("#", longLine))); err != nil || len(lines) != 1 {
		t.Errorf("%d lines, %v, want what is there", len(lines), err)
	}
}

// KubeExecAll: of two outputs of one name the last place's stays; an error names all
// that failed.
func TestMergeOutputs(t *testing.T) {
	type outputs = map[string]any
	places := []place{{"p", "a"}, {"p", "b"}, {"q", "a"}, {"q", "b"}}
	ok := func(o outputs) outcome[outputs] { return outcome[outputs]{value: o} }
	got, err := mergeOutputs("ns", places, []outcome[outputs]{ok(outputs{"k": "1", "x": "1"}), ok(outputs{"k": "2"}), ok(nil), ok(outputs{"y": "4"})})
	if want := (outputs{"k": "2", "x": "1", "y": "4"}); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	if got, err := mergeOutputs("ns", places[:2], []outcome[outputs]{ok(nil), ok(nil)}); got != nil || err != nil {
		t.Errorf("no outputs: %v, %v; want nil", got, err)
	}
	bad := outcome[outputs]{err: errors.New("no such file")}
	got, err = mergeOutputs("ns", places, []outcome[outputs]{bad, ok(outputs{"k": "2"}), ok(nil), bad})
	if err == nil || got != nil || !strings.Contains(err.Error(), "container a of pod ns/p") || !strings.Contains(err.Error(), "container b of pod ns/q") {
		t.Errorf("%v, error %v", got, err)
	}
}

// A log is read to its end, however the stream that follows it ends.
func TestWholeLog(t *testing.T) {
	log := func(text string, err error) io.ReadCloser {
		return io.NopCloser(io.MultiReader(strings.NewReader(text), iotest.ErrReader(err)))
	}
	broken, lost := errors.New("connection reset"), errors.New("the pod is lost")
	for _, c := range []struct {
		name        string
		first, rest io.ReadCloser
		restErr     error
		want        string
		err         error
	}{
		{"to its end", log("one\ntwo\n", io.EOF), log("one\ntwo\n", io.EOF), nil, "one\ntwo\n", nil},
		{"an early end", log("one\nt", io.EOF), log("one\ntwo\n", io.EOF), nil, "one\ntwo\n", nil},
		{"broken off", log("one\nt", broken), log("one\ntwo\n", io.EOF), nil, "one\ntwo\n", nil},
		{"rotated away", log("one\ntwo\n", io.EOF), log("two\n", io.EOF), nil, "one\ntwo\n", nil},
		{"broken off twice", log("one\n", broken), log("one\nt", broken), nil, "one\nt", broken},
		{"no rest", log("one\n", broken), nil, lost, "one\n", lost},
	} {
		got, err := io.ReadAll(&wholeLog{stream: c.first, rest: func() (io.ReadCloser, error) { return c.rest, c.restErr }})
		if string(got) != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: %q, %v; want %q, %v", c.name, got, err, c.want, c.err)
		}
	}
}

func TestClaimsOf(t *testing.T) {
	claims := map[string]map[string]string{"p-0": {"a": "/x"}, "p-1": {"b": "/x"}}
	want := map[string]string{"a": "/mnt/prepare_data/a", "b": "/mnt/prepare_data/b"}
	for name, params := range map[string]param.TemplateParams{
		"StatefulSet": {StatefulSet: &param.StatefulSetParams{PersistentVolumeClaims: claims}},
		"Deployment":  {Deployment: &param.DeploymentParams{PersistentVolumeClaims: claims}},
	} {
		if got := claimsOf(params); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}

// Whoever waits for pods to end goes on when the API server answers again.
func TestAwaitPodsUnanswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		ask := func() error {
			if asked++; asked == 1 || asked == 3 { // a watch, and the list after one
				return &url.Error{Op: "Get", URL: "https://api", Err: errors.New("connection refused")}
			}
			return nil
		}
		c := interceptor.NewClient(nil, interceptor.Funcs{
			List: func(context.Context, client.WithWatch, client.ObjectList, ...client.ListOption) error { return ask() },
			Watch: func(context.Context, client.WithWatch, client.ObjectList, ...client.ListOption) (watch.Interface, error) {
				return watch.NewFake(), ask()
			},
		})
		f := &scaleWorkload{&Companion{Client: c}}
		if err := f.awaitPods(t.Context(), "shop", labels.Everything(), func(*corev1.Pod) bool { return true }, 0); err != nil || asked != 5 {
			t.Errorf("asked %d times: %v", asked, err)
		}
	})
}
