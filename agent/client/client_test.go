// SPDX-License-Identifier: Apache-2.0

package client_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/kanister-kopia/kanister-kopia/agent"
	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/client"
)

// Each question goes through the API server: none is asked whose answer is known. A
// stream that ends without the operation's end proves nothing, and it is asked again.
func TestRunAsksForLittle(t *testing.T) {
	done := api.Operation{ID: "op", Kind: api.KindSnapshot, State: api.StateSucceeded, Result: &api.Result{Snapshot: &api.SnapshotResult{ID: "s"}}}
	running := api.Operation{ID: "op", Kind: api.KindSnapshot, State: api.StateRunning}
	for name, c := range map[string]struct {
		events [][]api.Operation // of the first stream, the second …
		want   map[string]int    // questions
	}{
		"the end comes over the stream": {[][]api.Operation{{running, done}}, map[string]int{"GET info": 1, "POST operations": 1, "GET events": 1}},
		"the stream is cut":             {[][]api.Operation{{running}, {done}}, map[string]int{"GET info": 1, "POST operations": 2, "GET events": 2}},
	} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			asked, streams := map[string]int{}, c.events
			count := func(what string) {
				mu.Lock()
				defer mu.Unlock()
				asked[what]++
			}
			mux := http.NewServeMux()
			mux.HandleFunc("GET /v1/info", func(w http.ResponseWriter, _ *http.Request) {
				count("GET info")
				_ = json.NewEncoder(w).Encode(api.Info{Protocol: api.ProtocolVersion, OldestProtocol: api.OldestProtocol})
			})
			mux.HandleFunc("POST /v1/operations", func(w http.ResponseWriter, _ *http.Request) {
				count("POST operations")
				_ = json.NewEncoder(w).Encode(running)
			})
			mux.HandleFunc("GET /v1/operations/op/events", func(w http.ResponseWriter, _ *http.Request) {
				count("GET events")
				mu.Lock()
				defer mu.Unlock()
				for _, op := range streams[0] {
					raw, _ := json.Marshal(op)
					fmt.Fprintf(w, "data: %s\n\n", raw)
				}
				streams = streams[1:]
			})
			a := connect(t, mux)
			if _, err := a.Info(t.Context()); err != nil {
				t.Fatal(err)
			}
			result, err := a.Run(t.Context(), api.StartRequest{ID: "op", Kind: api.KindSnapshot}, func(api.Progress) {})
			if err != nil || result.Snapshot.ID != "s" {
				t.Fatalf("result %+v, %v", result, err)
			}
			if !maps.Equal(asked, c.want) {
				t.Errorf("asked %v, want %v", asked, c.want)
			}
		})
	}
}

// An agent is in the hands of its pod: one that says that it has succeeded, and not with
// what, has failed.
func TestRunBelievesNoEmptyResult(t *testing.T) {
	for _, kind := range []api.Kind{api.KindSnapshot, api.KindRestore, api.KindStats, api.KindVerify} {
		for _, result := range []*api.Result{nil, {}, {Records: []api.Record{{}}}} {
			mux := http.NewServeMux()
			mux.HandleFunc("GET /v1/info", func(w http.ResponseWriter, _ *http.Request) {
				_ = json.NewEncoder(w).Encode(api.Info{Protocol: api.ProtocolVersion, OldestProtocol: api.OldestProtocol})
			})
			mux.HandleFunc("POST /v1/operations", func(w http.ResponseWriter, _ *http.Request) {
				_ = json.NewEncoder(w).Encode(api.Operation{ID: "op", Kind: kind, State: api.StateSucceeded, Result: result})
			})
			got, err := connect(t, mux).Run(t.Context(), api.StartRequest{ID: "op", Kind: kind}, func(api.Progress) {})
			if err == nil || !strings.Contains(err.Error(), "not with what") {
				t.Errorf("%s with %+v: %+v, %v", kind, result, got, err)
			}
		}
	}
}

// connect serves what an agent would, and returns a client of it.
func connect(t *testing.T, agentOf http.Handler) *client.Client {
	t.Helper()
	peer := httptest.NewUnstartedServer(agentOf)
	peer.EnableHTTP2 = true
	peer.StartTLS()
	t.Cleanup(peer.Close)
	c := client.New(client.Options{
		Dial: func(ctx context.Context) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", peer.Listener.Addr().String())
		},
		Certificate: func() (*tls.Certificate, error) { return &tls.Certificate{}, nil },
		Pin:         agent.SPKIHash(peer.Certificate()),
	})
	t.Cleanup(c.Close)
	return c
}
