// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/kanister-kopia/kanister-kopia/internal/openport"
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

// liveness is whether Kopia's server, which is of this process, still answers: one that hangs
// is to be started again. Until it has started, and where there is none, it lives.
//
// An outage of the storage is no reason to: Kopia waits for it while it holds its lock, and
// would after a start again, but what runs would be lost.
type liveness struct {
	now     func() time.Time
	storage *storageWatch
	asking  singleflight.Group

	mu     sync.Mutex // protects the following
	ask    func(context.Context) error
	silent time.Time // since when it does not answer though the storage does; zero: it answers
}

const (
	// livenessTimeout is of one question; it is shorter than the probe's own.
	livenessTimeout = 4 * time.Second
	// livenessPatience is how long Kopia may be silent: many times what it needs to read the
	// index of a large repository on a busy node, or to give up a call to the storage.
	livenessPatience = 10 * time.Minute
)

// watch asks a server from now on.
func (l *liveness) watch(k *kopiaServer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ask = func(ctx context.Context) error { return k.controlCall(ctx, http.MethodGet, "status") }
}

// ServeHTTP is /healthz.
func (l *liveness) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	ask := l.ask
	l.mu.Unlock()
	if ask == nil {
		fmt.Fprintln(w, "ok")
		return
	}
	// Whoever asks meanwhile has the same answer, also when the first does not wait for it.
	_, err, _ := l.asking.Do("", func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), livenessTimeout)
		defer cancel()
		return nil, ask(ctx)
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	switch {
	case err == nil:
		l.silent = time.Time{}
		fmt.Fprintln(w, "kopia answers")
		return
	case !l.storage.answers():
		l.silent = time.Time{}
	case l.silent.IsZero():
		l.silent = now
	case now.Sub(l.silent) >= livenessPatience:
		http.Error(w, fmt.Sprintf("kopia has not answered since %s: %v", l.silent.UTC().Format(time.RFC3339), err), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintf(w, "kopia does not answer at the moment: %v\n", err)
}

func serveHealth(ctx context.Context, address string, ready, alive, metrics http.Handler) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.Handle("GET /healthz", alive)
	mux.Handle("GET /readyz", ready)
	return openport.ServeHealth(ctx, address, mux)
}
