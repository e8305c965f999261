// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"context"
	"errors"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Who asks early is told in the moment in which the repository is served, and is not kept
// longer than a probe waits.
func TestReadiness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReadiness()
		ask := func() (status int, took time.Duration) {
			began, w := time.Now(), httptest.NewRecorder()
			r.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/readyz", nil))
			return w.Code, time.Since(began)
		}
		if status, took := ask(); status != 503 || took >= 5*time.Second {
			t.Errorf("not opened yet: %d after %s; the kubelet waits for 5 s", status, took)
		}
		time.AfterFunc(1300*time.Millisecond, r.begin)
		if status, took := ask(); status != 200 || took != 1300*time.Millisecond {
			t.Errorf("opened after 1.3 s: %d after %s", status, took)
		}
		if status, took := ask(); status != 200 || took != 0 {
			t.Errorf("open: %d after %s", status, took)
		}
		r.end()
		if status, took := ask(); status != 503 || took != 0 {
			t.Errorf("closed: %d after %s", status, took)
		}
	})
}

// A server whose Kopia hangs is started again after a while; one that is only busy is not,
// nor is one whose storage does not answer, for however long.
func TestLiveness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := &storageWatch{now: time.Now}
		l := &liveness{now: time.Now, storage: storage}
		// probed is what the kubelet sees, who asks every 20 s for so long.
		probed := func(d time.Duration) (failed int) {
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(20 * time.Second) {
				began, w := time.Now(), httptest.NewRecorder()
				l.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/healthz", nil))
				if took := time.Since(began); took >= 5*time.Second {
					t.Errorf("answered after %s; the kubelet waits for 5 s", took)
				}
				if w.Code != 200 {
					failed++
				}
			}
			return failed
		}
		if n := probed(time.Hour); n > 0 {
			t.Errorf("before Kopia has started: %d probes failed", n)
		}
		hangs := false
		l.ask = func(ctx context.Context) error {
			if hangs {
				<-ctx.Done()
			}
			return ctx.Err()
		}
		if n := probed(time.Hour); n > 0 {
			t.Errorf("while Kopia answers: %d probes failed", n)
		}
		for range 10 {
			hangs = true
			if n := probed(5 * time.Minute); n > 0 {
				t.Errorf("while Kopia is busy: %d probes failed", n)
			}
			hangs = false
			probed(time.Minute)
		}
		hangs = true
		storage.saw(errors.New("no route to host"))
		if n := probed(5 * time.Hour); n > 0 {
			t.Errorf("in an outage of the storage: %d probes failed", n)
		}
		storage.saw(nil)
		if n := probed(5 * time.Minute); n > 0 {
			t.Errorf("a moment after the outage: %d probes failed", n)
		}
		if n := probed(15 * time.Minute); n < 3 {
			t.Errorf("Kopia hangs: %d probes failed, the kubelet kills after 3", n)
		}
	})
}

// Several who ask at once are one question to Kopia, and who goes away takes the answer from
// nobody.
func TestLivenessAskedByMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &liveness{now: time.Now, storage: &storageWatch{now: time.Now}}
		var questions atomic.Int64
		l.ask = func(ctx context.Context) error {
			questions.Add(1)
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Second):
				return nil
			}
		}
		var all sync.WaitGroup
		impatient, leave := context.WithCancel(t.Context())
		ask := func(ctx context.Context) {
			all.Go(func() {
				w := httptest.NewRecorder()
				l.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "GET", "/healthz", nil))
				if got := w.Body.String(); ctx == t.Context() && got != "kopia answers\n" {
					t.Errorf("answered %q", got)
				}
			})
		}
		ask(impatient)
		synctest.Wait()
		for range 20 {
			ask(t.Context())
		}
		synctest.Wait()
		leave()
		all.Wait()
		if n := questions.Load(); n != 1 {
			t.Errorf("Kopia was asked %d times", n)
		}
	})
}
