// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
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
)

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
		"broken":          {"blueprint -f " + broken, nil, "broken/b.yaml"},
		"not there":       {"blueprint -f " + dir + "/lost", nil, "no such file"},
		"no file":         {"blueprint", nil, "-f is required"},
		"something else":  {"profile", nil, "validate what?"},
	} {
		var out bytes.Buffer
		err := command(append([]string{"validate"}, strings.Fields(c.args)...), &out, nil)
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
