// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/client"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// One caller follows an operation on each of many agents: a connection each and few
// goroutines, none when it is over, and what happens to one connection is no other's
// affair.
func TestManyAgentsAtOnce(t *testing.T) {
	const agents = 100
	r := serve(t)
	// All agents are this one server; the client does not know.
	certificate := r.ca.Certificate(t, controller)
	type way struct {
		*client.Client
		dials atomic.Int64
		news  atomic.Int64 // that came on its stream of events
		mu    sync.Mutex
		conn  net.Conn
	}
	ways := make([]*way, agents)
	open := atomic.Int64{}
	for i := range ways {
		w := &way{}
		w.Client = client.New(client.Options{Pin: r.pin, Certificate: certificate, Silence: time.Minute, Dial: func(ctx context.Context) (net.Conn, error) {
			w.dials.Add(1)
			c, err := r.dial(ctx)
			if err != nil {
				return nil, err
			}
			open.Add(1)
			w.mu.Lock()
			defer w.mu.Unlock()
			w.conn = &counted{Conn: c, open: &open}
			return w.conn, nil
		}})
		ways[i] = w
	}
	before, memory := settled(), heap()

	requests := func(i int) api.StartRequest {
		req := request
		snapshot := *req.Snapshot
		req.ID, snapshot.Path = fmt.Sprintf("op-%d", i), fmt.Sprintf("/%d", i)
		req.Snapshot = &snapshot
		return req
	}
	var ends sync.WaitGroup
	failures := make(chan error, agents)
	for i, w := range ways {
		ends.Go(func() {
			if _, err := w.Run(t.Context(), requests(i), func(api.Progress) { w.news.Add(1) }); err != nil {
				failures <- fmt.Errorf("agent %d: %w", i, err)
			}
		})
	}
	testenv.Eventually(t, 3*time.Minute, "all are followed", func() bool {
		return !slices.ContainsFunc(ways, func(w *way) bool { return w.news.Load() == 0 })
	})
	during := settled()
	// The server's side counts too: it is of this process. Alone it has its operation
	// and, for a connection, two goroutines and one for the request.
	perAgent := float64(during-before) / agents
	t.Logf("%d agents followed: %d connections, %.1f goroutines and %.0f KiB each, both sides together",
		agents, open.Load(), perAgent, float64(heap()-memory)/agents/1024)
	if perAgent > 10 {
		t.Errorf("%.1f goroutines for an agent", perAgent)
	}
	if n := open.Load(); n != agents {
		t.Errorf("%d connections to %d agents", n, agents)
	}

	dialled := make([]int64, agents) // a slow machine may have needed a second try
	for i, w := range ways {
		dialled[i] = w.dials.Load()
	}
	heard := ways[7].news.Load()
	ways[7].mu.Lock()
	ways[7].conn.Close()
	ways[7].mu.Unlock()
	testenv.Eventually(t, 3*time.Minute, "the broken one is followed again", func() bool { return ways[7].dials.Load() == dialled[7]+1 && ways[7].news.Load() > heard })
	close(r.runner.steps)
	ends.Wait()
	close(failures)
	for err := range failures {
		t.Error(err)
	}
	for i, w := range ways {
		want := dialled[i]
		if i == 7 {
			want++
		}
		if n := w.dials.Load(); n != want {
			t.Errorf("agent %d was dialled %d times, want %d", i, n, want)
		}
		w.Close()
	}
	testenv.Eventually(t, 3*time.Minute, "no connection is left", func() bool { return open.Load() == 0 })
	if n := r.runner.runs.Load(); n != agents {
		t.Errorf("%d operations ran, want %d", n, agents)
	}
	testenv.Eventually(t, 3*time.Minute, "their goroutines end", func() bool { return runtime.NumGoroutine() <= before+20 })
}

type counted struct {
	net.Conn
	open *atomic.Int64
	once sync.Once
}

func (c *counted) Close() error {
	c.once.Do(func() { c.open.Add(-1) })
	return c.Conn.Close()
}

// settled is how many goroutines there are when their number does not change.
func settled() int {
	n := runtime.NumGoroutine()
	for same := 0; same < 5; {
		runtime.Gosched()
		timer := time.NewTimer(10 * time.Millisecond)
		<-timer.C
		if now := runtime.NumGoroutine(); now == n {
			same++
		} else {
			n, same = now, 0
		}
	}
	return n
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// A way that ends in nowhere is found out, although nothing breaks: the operation is
// asked for on a new one.
func TestSilentConnection(t *testing.T) {
	r := serve(t)
	proxy := testenv.StartProxy(t, r.address)
	dials := atomic.Int64{}
	c := client.New(client.Options{
		Pin: r.pin, Certificate: r.ca.Certificate(t, controller), Silence: 200 * time.Millisecond,
		Dial: func(ctx context.Context) (net.Conn, error) {
			dials.Add(1)
			address := proxy.Address
			if dials.Load() > 1 {
				address = r.address
			}
			return (&net.Dialer{}).DialContext(ctx, "tcp", address)
		},
	})
	t.Cleanup(c.Close)
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("it hangs"))
	defer cancel()
	once := sync.Once{}
	result, err := c.Run(ctx, request, func(p api.Progress) {
		if p.Files == 0 {
			once.Do(func() { proxy.Cut(); go close(r.runner.steps) })
		}
	})
	if err != nil || result.Snapshot.ID != "saved" || dials.Load() < 2 {
		t.Errorf("%+v, %v after %d connections", result, err, dials.Load())
	}
}

// Both sides' certificates are replaced while agent and caller go on: the CA that the
// agent trusts, and the certificate that the caller shows. Nothing is started anew.
func TestRotation(t *testing.T) {
	r := serve(t)
	next := testenv.NewCA(t)
	var mu sync.Mutex
	show := r.ca.Certificate(t, controller)
	c := client.New(client.Options{Dial: r.dial, Pin: r.pin, Certificate: func() (*tls.Certificate, error) {
		mu.Lock()
		defer mu.Unlock()
		return show()
	}})
	t.Cleanup(c.Close)
	done := make(chan error, 1)
	followed := make(chan struct{})
	once := sync.Once{}
	go func() {
		_, err := c.Run(t.Context(), request, func(api.Progress) { once.Do(func() { close(followed) }) })
		done <- err
	}()
	<-followed
	ask := func(what string, want bool) {
		t.Helper()
		r.cut() // whoever comes back shows what he has now
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		var err error
		// The connection that was cut may only now be noticed.
		for range 5 {
			if _, err = c.Info(ctx); (err == nil) == want {
				return
			}
		}
		t.Errorf("%s: %v, want it let in: %t", what, err, want)
	}
	ask("before", true)
	r.trust(t, append(append([]byte{}, next.PEM...), r.ca.PEM...))
	ask("both CAs", true)
	mu.Lock()
	show = next.Certificate(t, controller)
	mu.Unlock()
	ask("the new certificate", true)
	r.trust(t, next.PEM)
	ask("the new CA alone", true)
	mu.Lock()
	show = r.ca.Certificate(t, controller)
	mu.Unlock()
	ask("the old certificate", false)
	mu.Lock()
	show = next.Certificate(t, controller)
	mu.Unlock()
	close(r.runner.steps)
	if err := <-done; err != nil {
		t.Errorf("the operation that was followed all the time: %v", err)
	}
	if n := r.runner.runs.Load(); n != 1 {
		t.Errorf("%d runs, want 1", n)
	}
}
