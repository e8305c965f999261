// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/internal/openapi"
)

// docs/agent-api.yaml says what the server serves.
func TestOpenAPIRoutes(t *testing.T) {
	doc := openapi.Read(t)
	got := slices.Sorted(maps.Keys((&Server{}).operations()))
	want := slices.Concat(doc.Routes("/v1/operations"), doc.Routes("/v1/info"))
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-description +server)\n%s", diff)
	}
}

// Each route takes and answers what is said of it.
func TestOpenAPIWire(t *testing.T) {
	handler, _ := fuzzed(t)
	start := api.StartRequest{ID: "a", Kind: api.KindFind, Find: &api.FindRequest{}, Credentials: &api.Credentials{}}
	limit := int64(0)
	wires := []openapi.Wire{
		{Route: "GET /v1/info", Answer: api.Info{}},
		{Route: "POST /v1/operations", Request: start, Answer: api.Operation{}, Versioned: true, Headers: []string{api.TenantHeader}},
		{Route: "GET /v1/operations", Answer: []api.Operation{}, Versioned: true},
		{Route: "GET /v1/operations/{id}", Answer: api.Operation{}, Versioned: true},
		{Route: "GET /v1/operations/{id}/events", Answer: "", Versioned: true},
		{Route: "PATCH /v1/operations/{id}", Request: api.PatchRequest{RateLimit: &limit}, Answer: api.Operation{}, Versioned: true},
		{Route: "DELETE /v1/operations/{id}", Answer: api.Operation{}, Versioned: true},
	}
	if got, want := len(wires), len((&Server{}).operations()); got != want {
		t.Errorf("%d routes are known here, %d are served", got, want)
	}
	openapi.Read(t).Serves(t, api.ProtocolHeader, handler, wires)
}

// Every type that goes over the wire has its schema: the same fields, of the same
// types, and required where they are always there.
func TestOpenAPISchemas(t *testing.T) {
	doc := openapi.Read(t)
	described := map[string]bool{}
	closed := true // as requests are, of which unknown fields are refused; answers may have more
	var describe func(reflect.Type)
	describe = func(typ reflect.Type) {
		switch {
		case typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice || typ.Kind() == reflect.Map:
			describe(typ.Elem())
			return
		case typ.Kind() != reflect.Struct || typ == reflect.TypeFor[time.Time]() || described[typ.Name()]:
			return
		}
		described[typ.Name()] = true
		want := openapi.Schema{Type: "object", Properties: map[string]openapi.Schema{}}
		for _, f := range reflect.VisibleFields(typ) {
			name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name == "-" {
				continue
			}
			want.Properties[name] = schemaOf(f.Type)
			if !strings.Contains(options, "omitempty") {
				want.Required = append(want.Required, name)
			}
			describe(f.Type)
		}
		got, ok := doc.Components.Schemas[typ.Name()]
		if !ok {
			t.Errorf("%s is not described", typ.Name())
			return
		}
		slices.Sort(got.Required)
		slices.Sort(want.Required)
		if closed {
			want.AdditionalProperties = false
		}
		if diff := cmp.Diff(got, want); diff != "" {
			t.Errorf("%s (-description +code)\n%s", typ.Name(), diff)
		}
	}
	answers := []reflect.Type{
		reflect.TypeFor[api.Operation](), reflect.TypeFor[api.Info](), reflect.TypeFor[api.Problem](),
		reflect.TypeFor[api.Session](), reflect.TypeFor[api.Activity](),
	}
	requests := []reflect.Type{
		reflect.TypeFor[api.StartRequest](), reflect.TypeFor[api.PatchRequest](), reflect.TypeFor[api.SessionRequest](), reflect.TypeFor[api.DrainRequest](),
	}
	// What is in both may have more fields, in an answer.
	for _, types := range [][]reflect.Type{answers, requests} {
		closed = !closed
		for _, typ := range types {
			describe(typ)
		}
	}
	constants := constantsOf(t)
	for name, schema := range doc.Components.Schemas {
		switch {
		case schema.Type == "string":
			if diff := cmp.Diff(schema.Enum, constants[name]); diff != "" {
				t.Errorf("%s (-description +code)\n%s", name, diff)
			}
		case !described[name]:
			t.Errorf("%s is described and goes over no wire", name)
		}
	}
}

func schemaOf(t reflect.Type) openapi.Schema {
	switch t.Kind() {
	case reflect.Pointer:
		return schemaOf(t.Elem())
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return openapi.Schema{Type: "string", Format: "byte"}
		}
		items := schemaOf(t.Elem())
		return openapi.Schema{Type: "array", Items: &items}
	case reflect.Map:
		return openapi.Schema{Type: "object", AdditionalProperties: map[string]any{"type": "string"}}
	case reflect.Bool:
		return openapi.Schema{Type: "boolean"}
	case reflect.Int, reflect.Int64, reflect.Uint32:
		return openapi.Schema{Type: "integer", Format: "int64"}
	}
	switch {
	case t == reflect.TypeFor[time.Time]():
		return openapi.Schema{Type: "string", Format: "date-time"}
	case t.PkgPath() != "":
		return openapi.Schema{Ref: "#/components/schemas/" + t.Name()}
	default:
		return openapi.Schema{Type: "string"}
	}
}

// constantsOf are the values of the constants of package api, by type, in order.
func constantsOf(t *testing.T) map[string][]string {
	t.Helper()
	values := map[string][]string{}
	for _, file := range []string{"api/api.go", "api/problem.go"} {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok {
				return true
			}
			typ, ok := spec.Type.(*ast.Ident)
			if !ok {
				return true
			}
			value, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			values[typ.Name] = append(values[typ.Name], value)
			return true
		})
	}
	return values
}
