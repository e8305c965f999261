// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

// A guess at a password never reaches Kopia, whose check of it is slow for everybody;
// one that is right does, with the private password and nobody's second word.
func TestFrontGuards(t *testing.T) {
	var reached atomic.Int32
	var seen atomic.Pointer[http.Header]
	kopia := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		reached.Add(1)
		seen.Store(&r.Header)
	}))
	kopia.EnableHTTP2 = true
	kopia.StartTLS()
	defer kopia.Close()
	open := newSessions(mostSessions, time.Now)
	session, err := open.start(api.SessionRequest{ID: "1", Username: "u", Hostname: "h"})
	if err != nil {
		t.Fatal(err)
	}
	f := newFront(open, &kopiaServer{address: kopia.Listener.Addr().String(), client: kopia.Client()}, nil,
		func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &kopia.TLS.Certificates[0], nil }, slog.New(slog.DiscardHandler))
	f.password = func(context.Context, string, string) (string, error) { return "private", nil }
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = f.serve(l) }()
	defer f.server.Close()
	roots := x509.NewCertPool()
	roots.AddCert(kopia.Certificate())
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}}
	defer client.CloseIdleConnections()
	call := func(user, password string) string {
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
	if open.denied != 4 {
		t.Errorf("%d denials counted, want 4", open.denied)
	}
	if status := call("u", session.Password); status != "" || reached.Load() != 1 {
		t.Fatalf("the right password: status %q, %d calls", status, reached.Load())
	}
	h := *seen.Load()
	if users := h["Kopia-Username"]; len(users) != 1 || users[0] != "u" || h.Get("Kopia-Password") != "private" {
		t.Errorf("Kopia is told %v", users)
	}
	open.end("1")
	if call("u", session.Password) != "16" || reached.Load() != 1 {
		t.Error("an ended session's password reaches Kopia")
	}
}
