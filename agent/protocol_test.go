// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/kanister-kopia/kanister-kopia/agent"
	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/client"
)

// peer is an agent made of the wire format alone, of some other version.
type peer struct {
	*httptest.Server
	info string // its answer to /v1/info

	mu    sync.Mutex
	heard []string // protocol and body of what it was asked
}

func newPeer(t *testing.T, info string) *peer {
	p := &peer{info: info}
	done, err := os.ReadFile("api/testdata/protocol-1/answers/operation-snapshot.json")
	if err != nil {
		t.Fatal(err)
	}
	// A newer agent may tell more.
	done = []byte(strings.Replace(string(done), "{", `{"mood":{"good":true},`, 1))
	p.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if r.URL.Path == "/v1/info" {
			fmt.Fprint(w, p.info)
			return
		}
		var info api.Info
		_ = json.Unmarshal([]byte(p.info), &info)
		if version, _ := strconv.Atoi(r.Header.Get(api.ProtocolHeader)); !info.Protocols().Has(version) {
			agent.WriteJSON(w, 0, nil, &api.Problem{Status: 400, Code: api.CodeProtocol, Title: "not spoken"})
			return
		}
		body, _ := io.ReadAll(r.Body)
		p.heard = append(p.heard, r.Header.Get(api.ProtocolHeader)+" "+string(body))
		_, _ = w.Write(done)
	}))
	p.EnableHTTP2 = true
	p.StartTLS()
	t.Cleanup(p.Close)
	return p
}

// said is what it was asked, protocol first.
func (p *peer) said() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.heard
}

func (p *peer) client(t *testing.T, speaks api.Protocols) *client.Client {
	c := client.New(client.Options{
		Dial: func(ctx context.Context) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", p.Listener.Addr().String())
		},
		Certificate: func() (*tls.Certificate, error) { return &tls.Certificate{}, nil },
		Pin:         agent.SPKIHash(p.Certificate()), Protocols: speaks,
	})
	t.Cleanup(c.Close)
	return c
}

func TestOtherVersions(t *testing.T) {
	for name, c := range map[string]struct {
		info   string
		speaks api.Protocols
		want   string // of the request
		text   string // of the refusal
	}{
		"today's":             {`{"protocol":2,"oldestProtocol":1}`, api.Spoken, "2", ""},
		"an older agent":      {`{"protocol":1}`, api.Protocols{Oldest: 1, Newest: 2}, "1", ""},
		"a newer agent":       {`{"protocol":3,"oldestProtocol":2,"more":[1]}`, api.Protocols{Oldest: 1, Newest: 2}, "2", ""},
		"one that is too old": {`{"protocol":1}`, api.Protocols{Oldest: 2, Newest: 3}, "", "restart its workload"},
		"one that is too new": {`{"protocol":3,"oldestProtocol":3}`, api.Protocols{Oldest: 1, Newest: 2}, "", "the controller is too old"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPeer(t, c.info)
			result, err := p.client(t, c.speaks).Run(t.Context(), request, func(api.Progress) {})
			if c.want == "" {
				var problem *api.Problem
				if !errors.As(err, &problem) || problem.Code != api.CodeProtocol || !strings.Contains(err.Error(), c.text) || len(p.said()) > 0 {
					t.Errorf("%v, want %q; asked %q", err, c.text, p.said())
				}
				return
			}
			if err != nil || result.Snapshot.ID != "6d2a" {
				t.Errorf("result %+v, %v", result, err)
			}
			version, body, _ := strings.Cut(strings.Join(p.said(), "\n"), " ")
			if version != c.want || !json.Valid([]byte(body)) || len(p.said()) != 1 {
				t.Errorf("asked %q, want one request of protocol %s", p.said(), c.want)
			}
		})
	}
}

// An agent that was replaced behind the same name is asked anew what it speaks.
func TestReplacedAgent(t *testing.T) {
	p := newPeer(t, `{"protocol":2,"oldestProtocol":1}`)
	c := p.client(t, api.Protocols{Oldest: 1, Newest: 2})
	for i, want := range []string{"2", "1"} {
		if _, err := c.Get(t.Context(), "op"); err != nil {
			t.Fatal(err)
		}
		if got := strings.TrimSpace(p.said()[i]); got != want {
			t.Errorf("asked in protocol %s, want %s", got, want)
		}
		p.mu.Lock()
		p.info = `{"protocol":1}`
		p.mu.Unlock()
	}
}

// A controller of the previous version is served, word for word; one of a version
// that is not known is told so, whatever it asks.
func TestServedVersions(t *testing.T) {
	r := serve(t)
	close(r.runner.steps)
	ask := func(method, path, protocol, body string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "https://agent/v1/"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if protocol != "" {
			req.Header.Set(api.ProtocolHeader, protocol)
		}
		resp, err := r.raw(t).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		answer, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(answer)
	}
	start, err := os.ReadFile(filepath.Join("api", "testdata", "protocol-1", "requests", "start-snapshot.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, protocol := range []string{"", "1", "2"} {
		if status, answer := ask("POST", "operations", protocol, string(start)); status != 200 || !strings.Contains(answer, `"id":"op-1"`) {
			t.Errorf("protocol %q: %d %s", protocol, status, answer)
		}
	}
	for _, protocol := range []string{"0", "3", "-1", "x"} {
		if status, answer := ask("POST", "operations", protocol, string(start)); status != 400 || !strings.Contains(answer, string(api.CodeProtocol)) {
			t.Errorf("protocol %q: %d %s, want it refused", protocol, status, answer)
		}
		if status, answer := ask("GET", "info", protocol, ""); status != 200 {
			t.Errorf("info in protocol %q: %d %s", protocol, status, answer)
		}
	}
	if status, answer := ask("POST", "operations", "1", strings.Replace(string(start), "{", `{"depth":1,`, 1)); status != 400 || !strings.Contains(answer, "depth") {
		t.Errorf("a field that is not known: %d %s, want it refused and named", status, answer)
	}
}
