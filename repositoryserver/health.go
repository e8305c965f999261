// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"
)

// readiness is whether the repository is served: not before begin, not after end.
type readiness struct {
	begun  chan struct{} // closed by begin
	serves atomic.Bool
}

func newReadiness() *readiness { return &readiness{begun: make(chan struct{})} }

// begin may be called once.
func (r *readiness) begin() {
	r.serves.Store(true)
	close(r.begun)
}

func (r *readiness) end() { r.serves.Store(false) }

// probePatience is how long /readyz keeps who asks too early: a phase waits for the server,
// and would else learn of it with the kubelet's next try, up to a second later. It is
// shorter than the probe's own.
const probePatience = 4 * time.Second

// ServeHTTP is /readyz.
func (r *readiness) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	patience := time.NewTimer(probePatience)
	defer patience.Stop()
	select {
	case <-r.begun:
	case <-patience.C:
	case <-req.Context().Done():
	}
	if !r.serves.Load() {
		http.Error(w, "the repository is being opened", http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

func serveHealth(ctx context.Context, address string, ready http.Handler, metrics http.Handler) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.Handle("GET /readyz", ready)
	server := &http.Server{Addr: address, Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	return fmt.Errorf("serve health: %w", server.ListenAndServe())
}
