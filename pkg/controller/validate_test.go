// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kanister-kopia/kanister-kopia/pkg/function"
)

const (
	goodBlueprint = `apiVersion: cr.kanister.io/v1alpha1
kind: Blueprint
metadata: {name: good}
actions:
  backup: {type: StatefulSet, phases: [{func: KubeTask, name: a, args: {image: i, command: ["{{ toJson .Profile }}"]}}]}
`
	badBlueprint = `apiVersion: cr.kanister.io/v1alpha1
kind: Blueprint
metadata: {name: bad}
actions:
  backup: {phases: [{func: CreateRDSSnapshot, name: a, args: {instanceID: x}}]}
`
	noBlueprint = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n"
	// kanisterio/kanister examples/helm: a chart puts the rest in front.
	fragment = `actions:
  backup: {type: StatefulSet, phases: [{func: KubeTask, name: a, args: {image: i, command: [a]}}]}
`
	// What YAML takes for numbers and booleans are texts, as for kanctl.
	numbers = `apiVersion: cr.kanister.io/v1alpha1
kind: Blueprint
metadata: {name: numbers, labels: {version: 15}}
actions:
  backup:
    outputArtifacts: {dump: {keyValue: {keep: 7, all: yes}}}
    phases: [{func: KubeTask, name: 01, objects: {s: {kind: Secret, name: on, namespace: n}}, args: {image: i, command: [a]}}]
`
	// kubevirt-kanister-bp of jdtate101: as the API server gives it back.
	exported = `actions:
  backupPrehook: {kind: "", name: "", phases: [{args: {command: [a], image: i}, func: KubeTask, name: lock, objects: {s: {apiVersion: "", group: "", kind: Secret, name: s, namespace: n1, resource: ""}}}]}
apiVersion: cr.kanister.io/v1alpha1
kind: Blueprint
metadata: {name: exported, creationTimestamp: null, resourceVersion: "7"}
`
	// hopkdj/openswap-guide: an object reference that is a text.
	textForObject = `apiVersion: cr.kanister.io/v1alpha1
kind: Blueprint
metadata: {name: wrong}
actions:
  backup: {objects: [statefulset], phases: [{func: KubeExec, name: dump, objects: {db: "{{ .StatefulSet.Name }}"}, args: {namespace: n1, pod: p, command: [a]}}]}
`
	// kanisterio/kanister examples/helm, templates
	template = `apiVersion: cr.kanister.io/v1alpha1
kind: Blueprint
metadata:
  name: {{ template "mysql.fullname" . }}-blueprint
  namespace: {{ .Values.controller }}
`
	// Crossplane, windsor and others have kinds of this name.
	foreign = `apiVersion: factory.crossplane.io/v1alpha1
kind: Blueprint
metadata: {name: test}
actions: [a]
---
apiVersion: v1alpha1
kind: Blueprint
metadata: {name: windsor}
---
actions: [no, map]
---
actions: {no: phases}
---
- a list
`
)

// greet is a function of another program.
type greet struct{}

func (greet) Name() string           { return "Greet" }
func (greet) RequiredArgs() []string { return []string{"name"} }
func (greet) Arguments() []string    { return []string{"name"} }
func (greet) Resumable() bool        { return true }

func (greet) Exec(context.Context, function.Call) (map[string]any, error) {
	return nil, errors.New("nobody runs it")
}

func TestValidateCommand(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := write("good/good.yaml", noBlueprint+"---\n"+goodBlueprint)
	bad := write("bad.yml", goodBlueprint+"---\n"+badBlueprint)
	other := write("other/c.yaml", noBlueprint)
	broken := write("broken/b.yaml", "a: [")
	write("bad-notes.txt", "a: [")
	found := filepath.Dir(write("found/1-fragment.yaml", fragment))
	write("found/2-numbers.yaml", numbers)
	write("found/3-exported.yml", exported)
	write("found/4-foreign.yaml", foreign)
	write("found/5-json.json", `{"apiVersion": "cr.kanister.io/v1alpha1", "kind": "Blueprint", "metadata": {"generateName": "made-"}, "actions": {}}`)
	added := write("added/b.yaml", strings.ReplaceAll(strings.ReplaceAll(badBlueprint, "CreateRDSSnapshot", "Greet"), "instanceID", "name"))
	lacking := write("lacking/b.yaml", strings.ReplaceAll(badBlueprint, "CreateRDSSnapshot", "Greet"))
	wrong := filepath.Dir(write("wrong/1-text.yaml", goodBlueprint+"---\n"+textForObject))
	write("wrong/2-template.yaml", template)
	write("wrong/3-good.yaml", goodBlueprint)
	alone := filepath.Dir(write("foreign/foreign.yaml", foreign))
	// A mounted ConfigMap is links, and so are examples of Kanister.
	linked := filepath.Dir(write("linked/..data-1/b.yaml", goodBlueprint))
	for link, target := range map[string]string{"a.yaml": good, "b.yaml": "..data-1/b.yaml", "c.yaml": filepath.Join(dir, "good")} {
		if err := os.Symlink(target, filepath.Join(filepath.Dir(linked), link)); err != nil {
			t.Fatal(err)
		}
	}
	linked = filepath.Dir(linked)
	for name, c := range map[string]struct {
		args   string
		output []string
		err    string
	}{
		"a good one":      {"blueprint -f " + good, []string{"good.yaml: blueprint good: valid", "good.yaml: blueprint good: warning: phase a renders .Profile into a command of KubeTask"}, ""},
		"one of two":      {"blueprint -f " + bad, []string{"bad.yml: blueprint good: valid", "bad.yml: blueprint bad: refused: Failed to validate action backup: Requested function {CreateRDSSnapshot} has not been registered"}, "1 of 2 refused"},
		"several":         {"blueprint -f " + good + " -f " + bad, []string{"good.yaml: blueprint good: valid"}, "1 of 3 refused"},
		"a directory":     {"blueprint -f " + filepath.Join(dir, "good"), []string{"good.yaml: blueprint good: valid"}, ""},
		"nothing of ours": {"blueprint -f " + other, nil, "no Blueprint in"},
		"broken":          {"blueprint -f " + broken, []string{"b.yaml: refused: error converting YAML to JSON: yaml: "}, "1 of 1 refused"},
		"found": {"blueprint -f " + found, []string{
			"1-fragment.yaml: blueprint without a name: valid\n", "2-numbers.yaml: blueprint numbers: valid\n",
			"3-exported.yml: blueprint exported: valid\n", "5-json.json: blueprint made-: valid\n",
		}, ""},
		"what cannot be read does not hide the others": {"blueprint -f " + wrong, []string{
			"1-text.yaml: blueprint good: valid\n", "1-text.yaml: refused: error unmarshaling JSON: ", "cannot unmarshal string into Go struct field",
			"2-template.yaml: refused: error converting YAML to JSON: ", "it is a chart's template: validate what `helm template` makes of it",
			"3-good.yaml: blueprint good: valid\n",
		}, "2 of 4 refused"},
		"an added function":        {"blueprint -f " + added, []string{"b.yaml: blueprint bad: valid\n"}, ""},
		"an added one's arguments": {"blueprint -f " + lacking, []string{"refused", "argument instanceID is not supported"}, "1 of 1 refused"},
		"of others":                {"blueprint -f " + alone, nil, "no Blueprint in"},
		"links":                    {"blueprint -f " + linked + " -f " + bad, []string{"a.yaml: blueprint good: valid\n", "b.yaml: blueprint good: valid\n"}, "1 of 4 refused"},
		"not there":                {"blueprint -f " + dir + "/lost", nil, "no such file"},
		"no file":                  {"blueprint", nil, "-f is required"},
		"something else":           {"profile", nil, "validate what?"},
	} {
		var out bytes.Buffer
		err := command(append([]string{"validate"}, strings.Fields(c.args)...), &out, []function.Func{greet{}})
		if (c.err == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: error %v, want %q", name, err, c.err)
		}
		for _, want := range c.output {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: prints\n%s\nwant %q in it", name, out.String(), want)
			}
		}
	}
}

func TestHealth(t *testing.T) {
	for _, path := range []string{"/healthz", "/readyz", "/v0/healthz", "/v0/readyz", "/metrics"} {
		r := httptest.NewRecorder()
		healthHandler().ServeHTTP(r, httptest.NewRequest(http.MethodGet, path, nil))
		if r.Code != http.StatusOK {
			t.Errorf("%s: %d", path, r.Code)
		}
	}
}
