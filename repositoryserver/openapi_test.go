// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"context"
	"io"
	"log/slog"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kanister-kopia/kanister-kopia/agent"
	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/operation"
	"github.com/kanister-kopia/kanister-kopia/internal/openapi"
)

// Each of these routes takes and answers what is said of it.
func TestOpenAPIWire(t *testing.T) {
	operations, err := operation.New(operation.Options{StateDir: t.TempDir(), Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	letIn := func(context.Context, *api.Session) error { return nil }
	routes := sessionRoutes(newSessions(1, time.Now), letIn, operations, &storageWatch{now: time.Now})
	server, err := agent.NewServer(agent.Config{
		Operations: operations, Routes: routes, StateDir: t.TempDir(), CADir: t.TempDir(), Log: slog.New(slog.DiscardHandler), Out: agent.NewLog(io.Discard, time.Now), Now: time.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	wires := []openapi.Wire{
		{Route: "POST /v1/sessions", Request: api.SessionRequest{ID: "a", Username: "pvc.a", Hostname: "ns"}, Answer: api.Session{}, Versioned: true},
		{Route: "GET /v1/activity", Answer: api.Activity{}, Versioned: true},
		{Route: "DELETE /v1/sessions/{id}", Versioned: true},
		{Route: "POST /v1/drain", Request: api.DrainRequest{}, Answer: api.Activity{}, Versioned: true},
	}
	if len(wires) != len(routes) {
		t.Errorf("%d routes are known here, %d are served", len(wires), len(routes))
	}
	openapi.Read(t).Serves(t, api.ProtocolHeader, server.Handler(), wires)
}

// docs/agent-api.yaml says what a repository server's agent serves besides operations.
func TestOpenAPIRoutes(t *testing.T) {
	got := slices.Sorted(maps.Keys(sessionRoutes(nil, nil, nil, nil)))
	doc := openapi.Read(t)
	want := slices.Concat(doc.Routes("/v1/sessions"), doc.Routes("/v1/activity"), doc.Routes("/v1/drain"))
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-description +server)\n%s", diff)
	}
}
