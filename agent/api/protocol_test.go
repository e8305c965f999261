// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func codeOf(err error) Code {
	var p *Problem
	if errors.As(err, &p) {
		return p.Code
	}
	return ""
}

func TestNegotiate(t *testing.T) {
	for _, c := range []struct {
		name              string
		controller, agent Protocols
		want              int
		hint              string
	}{
		{"the same", Protocols{1, 1}, Protocols{1, 1}, 1, ""},
		{"an older agent", Protocols{2, 3}, Protocols{1, 2}, 2, ""},
		{"a newer agent", Protocols{1, 2}, Protocols{2, 3}, 2, ""},
		{"more than one in common", Protocols{1, 3}, Protocols{1, 4}, 3, ""},
		{"too old an agent", Protocols{2, 3}, Protocols{1, 1}, 0, "restart its workload"},
		{"too new an agent", Protocols{1, 2}, Protocols{3, 4}, 0, "the controller is too old"},
		{"an agent that says nothing", Protocols{1, 2}, Info{}.Protocols(), 0, "restart its workload"},
		{"an agent that says one", Protocols{1, 2}, Info{Protocol: 1}.Protocols(), 1, ""},
	} {
		got, err := Negotiate(c.controller, c.agent)
		if got != c.want || (err == nil) != (c.hint == "") || err != nil && (codeOf(err) != CodeProtocol || !strings.Contains(err.Error(), c.hint)) {
			t.Errorf("%s: %d, %v, want %d, %q", c.name, got, err, c.want, c.hint)
		}
	}
}

// A hint is left out for an older peer; what changes the meaning is not asked for.
// The caller's own request stays as it is.
func TestWritten(t *testing.T) {
	type inner struct {
		Path  string    `json:"path"`
		Depth int       `json:"depth,omitempty" since:"2"`
		Hurry bool      `json:"hurry,omitempty" since:"3,hint"`
		When  time.Time `json:"when"`
	}
	type request struct {
		ID    string `json:"id"`
		Inner *inner `json:"inner,omitempty"`
		Why   string `json:"why,omitempty" since:"2,hint"`
	}
	when := time.Date(2026, 11, 1, 10, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name    string
		version int
		in      request
		want    request
		text    string
	}{
		{"nothing new", 1, request{ID: "a", Inner: &inner{Path: "/"}}, request{ID: "a", Inner: &inner{Path: "/"}}, ""},
		{"as new as it gets", 3, request{Inner: &inner{Depth: 1, Hurry: true, When: when}, Why: "x"}, request{Inner: &inner{Depth: 1, Hurry: true, When: when}, Why: "x"}, ""},
		{"a hint", 1, request{ID: "a", Why: "x"}, request{ID: "a"}, ""},
		{"a hint below", 2, request{Inner: &inner{Depth: 1, Hurry: true}, Why: "x"}, request{Inner: &inner{Depth: 1}, Why: "x"}, ""},
		{"not only a hint", 1, request{Inner: &inner{Depth: 1}}, request{}, "the agent speaks protocol 1, inner.depth needs 2"},
	} {
		given, _ := json.Marshal(c.in)
		got, err := Written(c.in, c.version)
		switch {
		case c.text != "":
			if codeOf(err) != CodeProtocol || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%s: %v, want %q", c.name, err, c.text)
			}
		case err != nil || !reflect.DeepEqual(got, c.want):
			t.Errorf("%s: %+v, %v, want %+v", c.name, got, err, c.want)
		}
		if now, _ := json.Marshal(c.in); !bytes.Equal(now, given) {
			t.Errorf("%s: the caller's request became %s", c.name, now)
		}
	}
	if got, err := Written[any](request{Why: "x"}, 1); err != nil || got != (request{}) {
		t.Errorf("behind an interface: %+v, %v", got, err)
	}
}

// wire are the bodies of the API by the folder and the beginning of the files that
// show them.
var wire = map[string]reflect.Type{
	"requests/start-":    reflect.TypeFor[StartRequest](),
	"requests/patch":     reflect.TypeFor[PatchRequest](),
	"requests/session":   reflect.TypeFor[SessionRequest](),
	"answers/operation-": reflect.TypeFor[Operation](),
	"answers/info":       reflect.TypeFor[Info](),
	"answers/session":    reflect.TypeFor[Session](),
}

// What was said in a version that is still spoken is understood, to the last field,
// and said the same way. The files are what peers out there send: a new version gets
// a folder of its own, and none of an old one is ever changed.
func TestProtocolContract(t *testing.T) {
	for version := OldestProtocol; version <= ProtocolVersion; version++ {
		for name, typ := range wire {
			files, err := filepath.Glob(fmt.Sprintf("testdata/protocol-%d/%s*.json", version, name))
			if err != nil || len(files) == 0 {
				t.Errorf("version %d has no example of %s", version, name)
			}
			shown := map[string]bool{}
			for _, file := range files {
				raw, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				body := reflect.New(typ)
				decoder := json.NewDecoder(bytes.NewReader(raw))
				decoder.DisallowUnknownFields()
				if err := decoder.Decode(body.Interface()); err != nil {
					t.Errorf("%s: %v", file, err)
					continue
				}
				again, err := json.Marshal(body.Interface())
				if err != nil {
					t.Fatal(err)
				}
				var had, has any
				if err := errors.Join(json.Unmarshal(raw, &had), json.Unmarshal(again, &has)); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(had, has); diff != "" {
					t.Errorf("%s (-file +code)\n%s", file, diff)
				}
				show(body.Elem(), typ.Name(), shown)
			}
			for _, field := range fields(typ, typ.Name(), version, nil) {
				if !shown[field] {
					t.Errorf("version %d has no example of %s", version, field)
				}
			}
		}
	}
}

// show notes the fields that are set.
func show(v reflect.Value, at string, shown map[string]bool) {
	switch {
	case v.Kind() == reflect.Pointer && !v.IsNil():
		show(v.Elem(), at, shown)
	case v.Kind() == reflect.Slice && v.Len() > 0:
		show(v.Index(0), at, shown)
	case v.Kind() == reflect.Struct && v.Type() != reflect.TypeFor[time.Time]():
		for i := range v.NumField() {
			where := at + "." + v.Type().Field(i).Name
			// What is always sent is shown even if it is zero.
			if !v.Field(i).IsZero() || !strings.Contains(v.Type().Field(i).Tag.Get("json"), "omitempty") {
				shown[where] = true
			}
			show(v.Field(i), where, shown)
		}
	}
}

// fields are those of a version.
func fields(typ reflect.Type, at string, version int, above []reflect.Type) (all []string) {
	switch typ.Kind() {
	case reflect.Pointer, reflect.Slice:
		return fields(typ.Elem(), at, version, above)
	case reflect.Struct:
	default:
		return nil
	}
	if typ == reflect.TypeFor[time.Time]() || slices.Contains(above, typ) {
		return nil
	}
	for i := range typ.NumField() {
		f := typ.Field(i)
		number, _, _ := strings.Cut(f.Tag.Get("since"), ",")
		if since, _ := strconv.Atoi(number); since > version {
			continue
		}
		where := at + "." + f.Name
		all = append(append(all, where), fields(f.Type, where, version, append(above, typ))...)
	}
	return all
}
