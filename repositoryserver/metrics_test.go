// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

// What an operator is to be woken for is a line of its own: a storage that is gone, and
// guessing.
func TestMetrics(t *testing.T) {
	c := newClock()
	open := newSessions(mostSessions, c.Now)
	watch := &storageWatch{now: c.Now, look: func(context.Context) error { return nil }}
	metrics := newMetrics(open, watch)
	says := func(when string, lines ...string) {
		t.Helper()
		w := httptest.NewRecorder()
		metrics.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		for _, line := range lines {
			if !strings.Contains(w.Body.String(), "\nkanister_kopia_repository_"+line+"\n") {
				t.Errorf("%s: no line %q", when, line)
			}
		}
	}
	says("at first", "storage_up 1", "denied_streams_total 0", "sessions 0")
	s, err := open.start(api.SessionRequest{ID: "one", Username: "pod.db", Hostname: "uid"})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := open.authenticate("pod.db", "uid", s.Password); !ok {
		t.Error("the right password is refused")
	}
	says("with a session", "denied_streams_total 0", "sessions 1", "users 1")
	for _, guess := range []string{"", "guess"} {
		if _, ok := open.authenticate("pod.db", "uid", guess); ok {
			t.Errorf("password %q is let in", guess)
		}
	}
	outage := errors.New("connection refused")
	for range 5 {
		watch.saw(outage)
	}
	says("after two guesses and in an outage", "storage_up 0", "denied_streams_total 2")
	watch.saw(nil)
	says("when the storage answers again", "storage_up 1")
}

// Whoever asks for metrics again and again is put off: two are gathered for at once.
func TestMetricsAtOnce(t *testing.T) {
	c := newClock()
	open := newSessions(mostSessions, c.Now)
	metrics := newMetrics(open, &storageWatch{now: c.Now})
	answers := make(chan int, 3)
	open.mu.Lock() // who gathers waits
	for range cap(answers) {
		go func() {
			w := httptest.NewRecorder()
			metrics.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
			answers <- w.Code
		}()
	}
	select {
	case status := <-answers:
		if status != http.StatusServiceUnavailable {
			t.Errorf("the third is answered %d", status)
		}
	case <-time.After(30 * time.Second):
		t.Error("three are gathered for at once")
	}
	open.mu.Unlock()
	for range cap(answers) - 1 {
		if status := <-answers; status != http.StatusOK {
			t.Errorf("answered %d", status)
		}
	}
}
