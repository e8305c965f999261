// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/operation"
)

// fuzzed is an agent whose operations end at once, and its folder.
func fuzzed(t *testing.T) (http.Handler, string) {
	dir := t.TempDir()
	ops, err := operation.New(operation.Options{
		Runner: &oneRunner{}, StateDir: dir, Now: time.Now,
		Kinds: []api.Kind{
			api.KindSnapshot, api.KindRestore, api.KindRecord, api.KindFind, api.KindDelete,
			api.KindList, api.KindStats, api.KindVerify,
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ops.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return (&Server{config: Config{Operations: ops, Info: (&Volumes{Dir: dir, Devices: dir}).Info}}).routes(), dir
}

// said asks and holds the answer against what every answer is: JSON, an error that is
// the caller's fault with a code and a word, and never a fault of ours.
func said(t *testing.T, handler http.Handler, method, path, body string) *httptest.ResponseRecorder {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "https://agent", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.URL.Path = path
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, req)
	switch {
	case w.Code >= 500:
		t.Errorf("%s %q: %d %s", method, path, w.Code, w.Body)
	case w.Code >= 400 || w.Header().Get("Content-Type") == "application/problem+json":
		var p api.Problem
		if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || w.Header().Get("Content-Type") != "application/problem+json" ||
			w.Code < 400 || p.Status != w.Code || p.Code == "" || p.Title == "" {
			t.Errorf("%s %q: %d %s, %v", method, path, w.Code, w.Body, err)
		}
	case w.Code == http.StatusOK && w.Header().Get("Content-Type") == "application/json" && !json.Valid(w.Body.Bytes()):
		t.Errorf("%s %q: %s", method, path, w.Body)
	}
	return w
}

// kept holds what is on disk against what may be: one file an operation, named by it.
func kept(t *testing.T, dir string) {
	t.Helper()
	name := regexp.MustCompile(`^operations(/[a-z0-9-]{1,128}\.json(\.new)?)?$`)
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if at, _ := filepath.Rel(dir, path); err == nil && at != "." && !name.MatchString(at) {
			t.Errorf("it keeps %q", at)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func seeds(f *testing.F, pattern string) {
	f.Helper()
	files, err := filepath.Glob("api/testdata/protocol-*/requests/" + pattern)
	if err != nil || len(files) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(raw))
	}
}

// What is not served is refused as everything else: by a problem with a code, and with
// the methods that are.
func TestNotServed(t *testing.T) {
	handler, _ := fuzzed(t)
	for _, c := range []struct {
		method, path, allow string
		want                int
	}{
		{"GET", "/", "", 404},
		{"GET", "/v1/operation", "", 404},
		{"POST", "/v1/operations/a/b/c", "", 404},
		{"GET", "/v1//nowhere", "", 404},
		{"PUT", "/v1/operations", "GET, HEAD, POST", 405},
		{"POST", "/v1/operations/a", "DELETE, GET, HEAD, PATCH", 405},
		{"BREW", "/v1/info", "GET, HEAD", 405},
	} {
		w := said(t, handler, c.method, c.path, "{}")
		var p api.Problem
		if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || w.Code != c.want || p.Code != api.CodeUnsupported || !strings.Contains(p.Title, c.path) || w.Header().Get("Allow") != c.allow {
			t.Errorf("%s %s: %d %s (Allow %q), %v, want %d", c.method, c.path, w.Code, w.Body, w.Header().Get("Allow"), err, c.want)
		}
	}
}

// FuzzStart: whatever is posted is refused, or is an operation that comes to an end and
// is the same one when it is asked for again.
func FuzzStart(f *testing.F) {
	seeds(f, "start-*.json")
	for _, seed := range []string{"", "null", "[]", `{"id":"../a","kind":"find","find":{}}`, `{"id":"a","kind":"snapshot","snapshot":null}`,
		`{"id":"a","kind":"find","find":{"prefix":"","keyID":""},"rateLimit":-1}`, strings.Repeat("[", 10000)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		handler, dir := fuzzed(t)
		w := said(t, handler, "POST", "/v1/operations", body)
		kept(t, dir)
		if w.Code != http.StatusOK {
			return
		}
		var op, again api.Operation
		if err := json.Unmarshal(w.Body.Bytes(), &op); err != nil || op.ID == "" {
			t.Fatalf("%s, %v", w.Body, err)
		}
		if w := said(t, handler, "GET", "/v1/operations/"+op.ID+"/events", ""); op.ID != "bad" && !strings.Contains(w.Body.String(), `"state":"succeeded"`) {
			t.Errorf("it does not end: %s", w.Body)
		}
		w = said(t, handler, "POST", "/v1/operations", body)
		if err := json.Unmarshal(w.Body.Bytes(), &again); err != nil || again.ID != op.ID || !again.Created.Equal(op.Created) || !again.State.Done() {
			t.Errorf("asked for again: %d %s, %v", w.Code, w.Body, err)
		}
	})
}

// FuzzPatch: a limit that may be is in force, any other is refused and changes nothing.
func FuzzPatch(f *testing.F) {
	seeds(f, "patch.json")
	for _, seed := range []string{"{}", `{"rateLimit":null}`, `{"rateLimit":-1}`, `{"rateLimit":1}`, `{"rateLimit":0}`, `{"rateLimit":1e30}`, `{"rateLimit":65536,"id":"b"}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		dir := t.TempDir()
		runner := &waitingRunner{release: make(chan struct{})}
		ops, err := operation.New(operation.Options{Runner: runner, StateDir: dir, Now: time.Now, Kinds: []api.Kind{api.KindFind}})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { close(runner.release); _ = ops.Close(context.Background()) }()
		handler := (&Server{config: Config{Operations: ops}}).routes()
		said(t, handler, "POST", "/v1/operations", `{"id":"a","kind":"find","find":{"prefix":"","keyID":""},"credentials":{},"rateLimit":32768}`)
		w := said(t, handler, "PATCH", "/v1/operations/a", body)
		op, err := ops.Get("a")
		if err != nil {
			t.Fatal(err)
		}
		var asked api.PatchRequest
		switch err := json.Unmarshal([]byte(body), &asked); {
		case w.Code != http.StatusOK:
			if op.RateLimit != 32768 {
				t.Errorf("%q is refused and the limit is %d", body, op.RateLimit)
			}
		case err == nil && (asked.RateLimit == nil || op.RateLimit != *asked.RateLimit), op.RateLimit != 0 && op.RateLimit < api.LeastRateLimit:
			t.Errorf("%q: the limit is %d", body, op.RateLimit)
		}
	})
}

// waitingRunner runs until it is released.
type waitingRunner struct{ release chan struct{} }

func (r *waitingRunner) Run(ctx context.Context, _ api.StartRequest, _ <-chan int64, _ func(api.Progress)) (*api.Result, *api.Problem) {
	select {
	case <-r.release:
		return &api.Result{}, nil
	case <-ctx.Done():
		return nil, &api.Problem{Code: api.CodeCancelled, Title: "cancelled"}
	}
}

// FuzzPath: no id in a path leads anywhere but to an operation of that name.
func FuzzPath(f *testing.F) {
	for _, method := range []string{"GET", "DELETE", "PATCH"} {
		for _, id := range []string{"a", "b", "", "..", "../info", "a/events", "a/../b", "%2e%2e", "a\x00", "\xff", "a.json", strings.Repeat("a", 200), "a/", "{id}"} {
			f.Add(method, id)
		}
	}
	f.Fuzz(func(t *testing.T, method, id string) {
		if !slices.Contains([]string{"GET", "DELETE", "PATCH"}, method) {
			return
		}
		handler, dir := fuzzed(t)
		said(t, handler, "POST", "/v1/operations", `{"id":"a","kind":"find","find":{"prefix":"","keyID":""},"credentials":{}}`)
		said(t, handler, "GET", "/v1/operations/a/events", "")
		w := said(t, handler, method, "/v1/operations/"+id, `{"rateLimit":0}`)
		var op api.Operation
		if w.Code == http.StatusOK && w.Header().Get("Content-Type") == "application/json" && json.Unmarshal(w.Body.Bytes(), &op) == nil && op.ID != "a" {
			t.Errorf("%s %q: %s", method, id, w.Body)
		}
		kept(t, dir)
	})
}
