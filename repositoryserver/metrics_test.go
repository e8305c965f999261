// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

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
