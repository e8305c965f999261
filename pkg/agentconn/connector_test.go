// SPDX-License-Identifier: Apache-2.0

package agentconn

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/kanister-kopia/kanister-kopia/agent"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// identityLine is what an agent with a key logs.
func identityLine(pin string) string {
	raw, _ := json.Marshal(map[string]string{"msg": agent.IdentityMessage, agent.IdentityAttribute: pin})
	return string(raw) + "\n"
}

// Connect reaches the agent whose key is in the log, waits for one that is only
// starting, and says at once what no waiting helps against.
func TestConnect(t *testing.T) {
	info := `{"protocol":1}`
	other := strings.Repeat("ab", 32)
	for name, c := range map[string]struct {
		info string
		// logs is what is read when the agent was met so often.
		logs  func(pin string, try, met int64) (int, string)
		tries int64
		want  []string // of the error; none: it connects
	}{
		"at once": {info, func(pin string, _, _ int64) (int, string) { return 200, identityLine(pin) }, 1, nil},
		"still starting": {info, func(pin string, try, _ int64) (int, string) {
			return 200, strings.Repeat(identityLine(pin), int(try/3))
		}, 3, nil},
		"restarted with a new key": {info, func(pin string, try, _ int64) (int, string) {
			if try < 3 {
				return 200, identityLine(other)
			}
			return 200, identityLine(other) + identityLine(pin)
		}, 3, nil},
		"log rotated": {info, func(pin string, _, met int64) (int, string) {
			return 200, strings.Repeat(identityLine(pin), int(met))
		}, 2, nil},
		"of an unknown version": {`{"protocol":9,"oldestProtocol":8}`, func(pin string, _, _ int64) (int, string) { return 200, identityLine(pin) }, 1,
			[]string{"container agent of pod shop/db-0", "the agent speaks protocols 8 to 9", "restart the workload"}},
		"no right to look": {info, func(string, int64, int64) (int, string) {
			return 403, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403,"message":"no"}`
		}, 1, []string{"pod shop/db-0", "bind ClusterRole kanister-kopia-namespace"}},
	} {
		t.Run(name, func(t *testing.T) {
			var asked, met atomic.Int64
			peer := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				asked.Add(1)
				fmt.Fprint(w, c.info)
			}))
			peer.EnableHTTP2 = true
			peer.Config.ErrorLog = log.New(io.Discard, "", 0)
			peer.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { met.Add(1); return nil, nil }}
			peer.StartTLS()
			defer peer.Close()
			tries := atomic.Int64{}
			dialing := make(chan struct{})
			begin := sync.OnceFunc(func() { close(dialing) })
			apiServer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/api/v1/namespaces/shop/pods/db-0/log" || r.URL.Query().Get("container") != "agent" {
					t.Errorf("asked for %s", r.URL)
				}
				// The way is opened while the log is read.
				select {
				case <-dialing:
				case <-time.After(time.Minute):
					t.Error("nothing is dialled while the log is read")
				}
				status, text := c.logs(agent.SPKIHash(peer.Certificate()), tries.Add(1), met.Load())
				if status != 200 {
					w.Header().Set("Content-Type", "application/json")
				}
				w.WriteHeader(status)
				fmt.Fprint(w, text)
			}))
			defer apiServer.Close()
			connector, err := New(&rest.Config{Host: apiServer.URL}, func() (*tls.Certificate, error) { return &tls.Certificate{}, nil })
			if err != nil {
				t.Fatal(err)
			}
			connector.dial = func(ctx context.Context, namespace, pod string) (net.Conn, error) {
				begin()
				if namespace != "shop" || pod != "db-0" {
					t.Errorf("dials %s/%s", namespace, pod)
				}
				return (&net.Dialer{}).DialContext(ctx, "tcp", peer.Listener.Addr().String())
			}
			got, err := connector.Connect(t.Context(), "shop", "db-0", "agent")
			if err == nil {
				defer got.Close()
			}
			if (err == nil) != (c.want == nil) {
				t.Fatalf("%v, want %q", err, c.want)
			}
			for _, text := range c.want {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("%v, want %q", err, text)
				}
			}
			if n := tries.Load(); n != c.tries {
				t.Errorf("%d looks at the log, want %d", n, c.tries)
			}
			if n := asked.Load(); n > 1 || err == nil && n != 1 {
				t.Errorf("the agent is asked %d times, want once, when its key is known", n)
			}
		})
	}
}

// A renewed certificate is shown without a restart; while its files are being replaced
// the last good one is.
func TestCertificateIsRenewed(t *testing.T) {
	dir := t.TempDir()
	if _, err := NewCertificateDir(dir); err == nil {
		t.Error("no certificate is no error")
	}
	ca := testenv.NewCA(t)
	leaf := testenv.Leaf{DNS: []string{"controller"}, Usage: x509.ExtKeyUsageClientAuth}
	ca.IssueTo(t, dir, leaf)
	certificates, err := NewCertificateDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	shown := func() string {
		t.Helper()
		got, err := certificates.Certificate()
		if err != nil {
			t.Fatal(err)
		}
		return got.Leaf.SerialNumber.String()
	}
	first := shown()
	if again := shown(); again != first {
		t.Error("another certificate, and none was written")
	}
	for what, write := range map[string]func(string) error{
		"nonsense":      func(file string) error { return os.WriteFile(file, []byte("nonsense"), 0o600) },
		"nothing":       os.Remove,
		"another's key": func(file string) error { _, key := ca.Issue(t, leaf); return os.WriteFile(file, key, 0o600) },
	} {
		if err := write(filepath.Join(dir, "tls.key")); err != nil {
			t.Fatal(err)
		}
		if now := shown(); now != first {
			t.Errorf("%s: another certificate", what)
		}
	}
	ca.IssueTo(t, dir, leaf)
	later := time.Now().Add(time.Second) // files of one moment may be of one size
	if err := os.Chtimes(filepath.Join(dir, "tls.crt"), later, later); err != nil {
		t.Fatal(err)
	}
	if now := shown(); now == first {
		t.Error("the renewed certificate is not shown")
	}
}
