// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/contents"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// startFront runs a front with one session, of u@h, before something that it takes for
// Kopia. send calls it.
func startFront(t *testing.T, kopia http.HandlerFunc) (f *front, address string, session api.Session, send func(user, password string) *http.Response) {
	t.Helper()
	behind := httptest.NewUnstartedServer(kopia)
	behind.EnableHTTP2 = true
	behind.StartTLS()
	t.Cleanup(behind.Close)
	open := newSessions(mostSessions, time.Now)
	session, err := open.start(api.SessionRequest{ID: "1", Username: "u", Hostname: "h"})
	if err != nil {
		t.Fatal(err)
	}
	f = newFront(open, &kopiaServer{address: behind.Listener.Addr().String(), client: behind.Client()}, nil,
		func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &behind.TLS.Certificates[0], nil }, func() {}, slog.New(slog.DiscardHandler))
	f.password = func(context.Context, string, string) (string, error) { return "private", nil }
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = f.serve(l) }()
	t.Cleanup(func() { _ = f.server.Close() })
	roots := x509.NewCertPool()
	roots.AddCert(behind.Certificate())
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}}
	t.Cleanup(client.CloseIdleConnections)
	return f, l.Addr().String(), session, func(user, password string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+l.Addr().String()+kopiaService+"Session", strings.NewReader(""))
		if err != nil {
			t.Fatal(err)
		}
		req.Header["Kopia-Username"], req.Header["Kopia-Hostname"], req.Header["Kopia-Password"] = []string{user, "admin"}, []string{"h"}, []string{password}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
}

// Who takes nothing of what Kopia says keeps it from nobody: it is taken for him, and his
// session ends when that is too much. When a session ends, such a stream ends with it.
func TestFrontClientThatDoesNotRead(t *testing.T) {
	for name, c := range map[string]struct {
		says int64
		over bool
	}{"little": {mostUntaken / 2, false}, "without end": {1 << 40, true}} {
		t.Run(name, func(t *testing.T) {
			said, gone := make(chan int64, 1), make(chan struct{})
			f, _, one, send := startFront(t, func(w http.ResponseWriter, r *http.Request) {
				defer close(gone)
				n := int64(0)
				for block := []byte(message(text(17, string(make([]byte, 64<<10))))); n < c.says; n += int64(len(block)) {
					if _, err := w.Write(block); err != nil {
						break
					}
				}
				said <- n
				<-r.Context().Done()
			})
			resp := send("u", one.Password)
			defer resp.Body.Close()
			within := time.After(2 * time.Minute)
			select {
			case n := <-said:
				if (n < c.says) != c.over {
					t.Errorf("Kopia said %d bytes of %d", n, c.says)
				}
			case <-within:
				t.Fatal("Kopia waits for a client")
			}
			if !c.over {
				if _, ok := f.sessions.authenticate("u", "h", one.Password); !ok || len(f.slots) != 1 {
					t.Errorf("the session goes on: %t, with %d streams, want one", ok, len(f.slots))
				}
				f.sessions.end("1")
			}
			select {
			case <-gone:
			case <-within:
				t.Fatal("the stream is not cut")
			}
			testenv.Eventually(t, time.Minute, "its slot is free", func() bool { return len(f.slots) == 0 })
			if _, ok := f.sessions.authenticate("u", "h", one.Password); ok {
				t.Error("the session goes on")
			}
		})
	}
}

// A session's streams are no others': who opens all that he can keeps nobody out, and can
// open another when one has ended.
func TestFrontStreamsOfSession(t *testing.T) {
	f := &front{sessions: newSessions(mostSessions, time.Now), slots: make(chan struct{}, maxStreams)}
	var passwords []string
	for i := range mostSessions {
		s, err := f.sessions.start(api.SessionRequest{ID: strconv.Itoa(i), Username: "u", Hostname: "h"})
		if err != nil {
			t.Fatal(err)
		}
		passwords = append(passwords, s.Password)
	}
	var leave func()
	for i, password := range passwords {
		for n := range maxSessionStreams {
			_, done, err := f.enter(nil, "u", "h", password)
			if err != nil {
				t.Fatalf("stream %d of session %d: %v", n, i, err)
			}
			leave = done
		}
		if _, _, err := f.enter(nil, "u", "h", password); !errors.Is(err, contents.ErrBusy) {
			t.Fatalf("one stream more of session %d: %v, want %v", i, err, contents.ErrBusy)
		}
	}
	leave()
	if _, _, err := f.enter(nil, "u", "h", passwords[mostSessions-1]); err != nil {
		t.Errorf("after one has ended: %v", err)
	}
	if a := f.sessions.activity(); a.Streams != maxStreams {
		t.Errorf("%d streams are counted, want %d", a.Streams, maxStreams)
	}
}

// A guess at a password never reaches Kopia, whose check of it is slow for everybody;
// one that is right does, with the private password and nobody's second word.
func TestFrontGuards(t *testing.T) {
	var reached atomic.Int32
	var seen atomic.Pointer[http.Header]
	f, _, session, send := startFront(t, func(_ http.ResponseWriter, r *http.Request) {
		reached.Add(1)
		seen.Store(&r.Header)
	})
	call := func(user, password string) string {
		t.Helper()
		resp := send(user, password)
		defer resp.Body.Close()
		return resp.Header.Get("Grpc-Status")
	}
	for _, guess := range [][2]string{{"u", "guess"}, {"u", ""}, {"controller", session.Password}, {"", session.Password}} {
		if status := call(guess[0], guess[1]); status != "16" {
			t.Errorf("user %q: status %q, want unauthenticated", guess[0], status)
		}
	}
	if n := reached.Load(); n != 0 {
		t.Errorf("%d guesses reached Kopia", n)
	}
	if f.sessions.denied != 4 {
		t.Errorf("%d denials counted, want 4", f.sessions.denied)
	}
	if status := call("u", session.Password); status != "" || reached.Load() != 1 {
		t.Fatalf("the right password: status %q, %d calls", status, reached.Load())
	}
	h := *seen.Load()
	if users := h["Kopia-Username"]; len(users) != 1 || users[0] != "u" || h.Get("Kopia-Password") != "private" {
		t.Errorf("Kopia is told %v", users)
	}
	reader, err := f.sessions.start(api.SessionRequest{ID: "2", Username: "u", Hostname: "h", ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if status := call("u", reader.Password); status != "7" || reached.Load() != 1 {
		t.Errorf("who may read contents only: status %q, want permission denied; %d calls", status, reached.Load())
	}
	f.sessions.end("1")
	if call("u", session.Password) != "16" || reached.Load() != 1 {
		t.Error("an ended session's password reaches Kopia")
	}
}
