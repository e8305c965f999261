// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"encoding/json"
	"net/http"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	agentclient "github.com/kanister-kopia/kanister-kopia/agent/client"
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
	mux.HandleFunc("POST /v1/operations", func(w http.ResponseWriter, r *http.Request) {
		tenant = r.Header.Get(api.TenantHeader)
		_ = json.NewEncoder(w).Encode(api.Operation{State: api.StateSucceeded, Result: &api.Result{Records: []api.Record{{BackupID: "x"}}}})
	})
	r := openAt(t, mux)
	r.tenant.NamespaceUID = "ns-uid"
	if record, err := r.Find(t.Context(), "find", api.FindRequest{BackupID: "x"}); err != nil || record.BackupID != "x" {
		t.Fatalf("%+v, %v", record, err)
	}
	if tenant != "ns-uid" {
		t.Errorf("it is asked for %q", tenant)
	}
}
