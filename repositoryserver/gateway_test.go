// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// Whatever an external server says is an answer, if it is the one that is trusted; and
// nothing is left open at it.
func TestExternalServerAnswers(t *testing.T) {
	hang := make(chan struct{})
	var open atomic.Int32
	theirs := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-hang:
			<-r.Context().Done()
		default:
			http.Redirect(w, r, "https://127.0.0.1:1/nowhere", http.StatusFound)
		}
	}))
	theirs.EnableHTTP2 = true
	theirs.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		switch s {
		case http.StateNew:
			open.Add(1)
		case http.StateClosed:
			open.Add(-1)
		}
	}
	theirs.StartTLS()
	defer theirs.Close()
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: theirs.Certificate().Raw}))
	look := answering(&External{URL: theirs.URL, CA: ca})
	if err := look(t.Context()); err != nil {
		t.Errorf("it answers, and is told not to: %v", err)
	}
	testenv.Eventually(t, 30*time.Second, "the connection is closed", func() bool { return open.Load() == 0 })

	foreign := answering(&External{URL: theirs.URL, CA: string(testenv.NewCA(t).PEM)})
	if unknown := (x509.UnknownAuthorityError{}); !errors.As(foreign(t.Context()), &unknown) {
		t.Errorf("another's certificate: %v", foreign(t.Context()))
	}
	close(hang)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := look(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("it hangs, and that is told as: %v", err)
	}
	theirs.CloseClientConnections()
	theirs.Close()
	if err := look(t.Context()); err == nil {
		t.Error("it is gone, and answers")
	}
}

// About a minute after an external server hangs, what is begun is refused in words that name it,
// and goes on when it is back.
func TestExternalServerIsWatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		w := &storageWatch{now: time.Now, name: "the external server", code: api.CodeServerUnreachable}
		open := newSessions(mostSessions, time.Now)
		admit := admission(open, w)
		w.start(t.Context(), func(ctx context.Context) error {
			if down.Load() { // as a process that is stopped
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		})
		pass := func() { time.Sleep(65 * time.Second); synctest.Wait() }
		pass()
		if err := errors.Join(admit(api.KindFind), w.refuse(t.Context())); err != nil || !w.answers() {
			t.Errorf("it answers, and is refused: %v", err)
		}
		down.Store(true)
		pass()
		for what, err := range map[string]error{"a session": w.refuse(t.Context()), "a look-up": admit(api.KindFind)} {
			if codeOf(err) != api.CodeServerUnreachable || !strings.Contains(err.Error(), "the external server has not answered since") {
				t.Errorf("%s in the outage: %v", what, err)
			}
		}
		if err := admit(api.KindRecord); err != nil {
			t.Errorf("what ends an operation is refused: %v", err)
		}
		down.Store(false)
		pass()
		if err := errors.Join(admit(api.KindFind), w.refuse(t.Context())); err != nil {
			t.Errorf("it is back, and is refused: %v", err)
		}
	})
}
