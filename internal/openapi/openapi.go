// SPDX-License-Identifier: Apache-2.0

// Package openapi reads docs/agent-api.yaml, for the tests that hold it against the code.
package openapi

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// Document is what is compared of the description.
type Document struct {
	Paths      map[string]map[string]any `json:"paths"`
	Components struct {
		Schemas map[string]Schema `json:"schemas"`
	} `json:"components"`
}

// Schema is one of the description.
type Schema struct {
	Ref                  string            `json:"$ref"`
	Type                 string            `json:"type"`
	Format               string            `json:"format"`
	Enum                 []string          `json:"enum"`
	Required             []string          `json:"required"`
	Properties           map[string]Schema `json:"properties"`
	Items                *Schema           `json:"items"`
	AdditionalProperties any               `json:"additionalProperties"`
}

// Read reads the description.
func Read(t testing.TB) *Document {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(testenv.Root(t), "docs", "agent-api.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	d := &Document{}
	if err := yaml.Unmarshal(raw, d); err != nil {
		t.Fatal(err)
	}
	return d
}

// Routes are the operations of the paths below a prefix, as Go writes them:
// "GET /v1/info", sorted.
func (d *Document) Routes(prefix string) []string {
	var list []string
	for path, methods := range d.Paths {
		for method := range methods {
			if method != "parameters" && strings.HasPrefix(path, prefix) {
				list = append(list, strings.ToUpper(method)+" "+path)
			}
		}
	}
	slices.Sort(list)
	return list
}

// Route is what the description says of one operation, with names of schemas: "[]X" is
// a list of them, "string" a text, "" nothing.
type Route struct {
	// Request and Answer are bodies; Status is that of the answer, Type its content type.
	Request, Answer, Status, Type string
	// Parameters, sorted: "header X", "path id".
	Parameters []string
	// Problems says that everything else is a problem.
	Problems bool
}

type body struct {
	Ref     string `json:"$ref"`
	Content map[string]struct {
		Schema Schema `json:"schema"`
	} `json:"content"`
}

func (b body) one() (contentType, name string) {
	for contentType, c := range b.Content {
		switch s := c.Schema; {
		case s.Items != nil:
			return contentType, "[]" + path.Base(s.Items.Ref)
		case s.Ref != "":
			return contentType, path.Base(s.Ref)
		default:
			return contentType, s.Type
		}
	}
	return "", ""
}

// Route returns what is said of a route, as Routes writes it.
func (d *Document) Route(t testing.TB, route string) Route {
	t.Helper()
	method, at, _ := strings.Cut(route, " ")
	type parameter struct{ In, Name string }
	var said struct {
		RequestBody body            `json:"requestBody"`
		Responses   map[string]body `json:"responses"`
		Parameters  []parameter     `json:"parameters"`
	}
	var shared []parameter
	for from, to := range map[string]any{strings.ToLower(method): &said, "parameters": &shared} {
		raw, err := json.Marshal(d.Paths[at][from])
		if err == nil {
			err = json.Unmarshal(raw, to)
		}
		if err != nil {
			t.Fatalf("%s: %v", route, err)
		}
	}
	var r Route
	_, r.Request = said.RequestBody.one()
	for status, response := range said.Responses {
		if status == "default" {
			r.Problems = response.Ref == "#/components/responses/Problem"
			continue
		}
		r.Status = status
		r.Type, r.Answer = response.one()
	}
	for _, p := range append(shared, said.Parameters...) {
		r.Parameters = append(r.Parameters, p.In+" "+p.Name)
	}
	slices.Sort(r.Parameters)
	return r
}

// Serves holds what is said of the routes against what a server does when it is asked in
// turn; where a path has an id it is "a".
func (d *Document) Serves(t *testing.T, protocolHeader string, handler http.Handler, wires []Wire) {
	t.Helper()
	ask := func(w Wire, body string, header string) *httptest.ResponseRecorder {
		method, at, _ := strings.Cut(w.Route, " ")
		req := httptest.NewRequestWithContext(t.Context(), method, strings.Replace(at, "{id}", "a", 1), strings.NewReader(body))
		if header != "" {
			req.Header.Set(protocolHeader, header)
		}
		rec := httptest.NewRecorder()
		handler.ServeHTTP(rec, req)
		return rec
	}
	refused := func(w Wire, what string, rec *httptest.ResponseRecorder) {
		if rec.Code != http.StatusBadRequest || rec.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s with %s: %d %s, want a refusal", w.Route, what, rec.Code, rec.Body)
		}
	}
	for _, w := range wires {
		said := d.Route(t, w.Route)
		want := Route{Request: nameOf(w.Request), Answer: nameOf(w.Answer), Status: said.Status, Type: said.Type, Problems: true}
		if w.Versioned {
			want.Parameters = append(want.Parameters, "header "+protocolHeader)
		}
		for _, header := range w.Headers {
			want.Parameters = append(want.Parameters, "header "+header)
		}
		if strings.Contains(w.Route, "{id}") {
			want.Parameters = append(want.Parameters, "path id")
		}
		slices.Sort(want.Parameters)
		if diff := cmp.Diff(said, want); diff != "" {
			t.Errorf("%s (-description +code)\n%s", w.Route, diff)
		}
		body := ""
		if w.Request != nil {
			raw, err := json.Marshal(w.Request)
			if err != nil {
				t.Fatal(err)
			}
			body = string(raw)
			refused(w, "a field that is not known", ask(w, `{"unheardOf":1,`+strings.TrimPrefix(body, "{"), ""))
		}
		if w.Versioned {
			refused(w, "a version that is not spoken", ask(w, body, "9999"))
		}
		rec := ask(w, body, "")
		if got := strconv.Itoa(rec.Code); got != said.Status || rec.Header().Get("Content-Type") != said.Type {
			t.Errorf("%s: %s %q %s, described as %s %q", w.Route, got, rec.Header().Get("Content-Type"), rec.Body, said.Status, said.Type)
		}
		switch reflect.ValueOf(w.Answer).Kind() {
		case reflect.Invalid:
			if rec.Body.Len() > 0 {
				t.Errorf("%s: %s, described as nothing", w.Route, rec.Body)
			}
		case reflect.String:
		default:
			decoder := json.NewDecoder(rec.Body)
			decoder.DisallowUnknownFields()
			if err := decoder.Decode(reflect.New(reflect.TypeOf(w.Answer)).Interface()); err != nil {
				t.Errorf("%s: it does not answer with %s: %v", w.Route, nameOf(w.Answer), err)
			}
		}
	}
}

// Wire is a route, and what goes over it: a request that it takes, and a value of the type
// of its answer; nil is none.
type Wire struct {
	Route           string
	Request, Answer any
	// Versioned routes refuse a request of a version that is not spoken.
	Versioned bool
	// Headers that it reads besides.
	Headers []string
}

func nameOf(v any) string {
	switch t := reflect.TypeOf(v); {
	case t == nil:
		return ""
	case t.Kind() == reflect.Slice:
		return "[]" + t.Elem().Name()
	default:
		return t.Name()
	}
}
