// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kanister-kopia/kanister-kopia/agent"
	"github.com/kanister-kopia/kanister-kopia/agent/api"
	agentclient "github.com/kanister-kopia/kanister-kopia/agent/client"
	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
)

// finder counts how often a way was found.
type finder struct{ found int }

func (f *finder) Connect(context.Context, string, string, string) (*agentclient.Client, error) {
	f.found++
	return agentclient.New(agentclient.Options{}), nil
}

// The way to a server's agent is found once, until its pod is another or somebody was told
// that it leads there no more. An old complaint costs nobody a way that was found since.
func TestWaysAreKept(t *testing.T) {
	f := &finder{}
	m := &Manager{Agents: f}
	reach := func(uid types.UID, want int) *agentclient.Client {
		t.Helper()
		agent, err := m.reach(t.Context(), "id", &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: uid}})
		if err != nil {
			t.Fatal(err)
		}
		if f.found != want {
			t.Errorf("found %d times, want %d", f.found, want)
		}
		return agent
	}
	first := reach("one", 1)
	if reach("one", 1) != first {
		t.Error("another client, and the same pod")
	}
	second := reach("two", 2)
	m.forget("id", first)
	reach("two", 2)
	m.forget("id", second)
	reach("two", 3)
	m.forget("id", nil)
	reach("two", 4)
}

// A server's own agent is told of which namespace an operation is: it shares its places
// among them.
func TestOperationsAreOfTheirNamespace(t *testing.T) {
	tenant := ""
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/info", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(api.Info{Protocol: api.ProtocolVersion, OldestProtocol: api.OldestProtocol})
	})
	mux.HandleFunc("POST /v1/operations", func(w http.ResponseWriter, r *http.Request) {
		tenant = r.Header.Get(api.TenantHeader)
		_ = json.NewEncoder(w).Encode(api.Operation{State: api.StateSucceeded, Result: &api.Result{Records: []api.Record{{BackupID: "x"}}}})
	})
	server := httptest.NewTLSServer(mux)
	defer server.Close()
	c := agentclient.New(agentclient.Options{
		Dial: func(ctx context.Context) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", server.Listener.Addr().String())
		},
		Certificate: func() (*tls.Certificate, error) { return &tls.Certificate{}, nil },
		Pin:         agent.SPKIHash(server.Certificate()),
	})
	defer c.Close()
	r := &Repository{agent: c, rs: &kopiav1alpha1.RepositoryServer{}, tenant: kopiav1alpha1.Tenant{NamespaceUID: "ns-uid"}}
	if record, err := r.Find(t.Context(), "find", api.FindRequest{BackupID: "x"}); err != nil || record.BackupID != "x" {
		t.Fatalf("%+v, %v", record, err)
	}
	if tenant != "ns-uid" {
		t.Errorf("it is asked for %q", tenant)
	}
}
