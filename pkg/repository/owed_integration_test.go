// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repository_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
	"github.com/kanister-kopia/kanister-kopia/pkg/repository"
)

// A server that is out of reach when an operation ends is told when it answers: from then on
// the password is refused.
func TestIntegrationSessionOwed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.make("shop")
	ctx := t.Context()
	open := func() (*repository.Repository, error) { return w.manager.Open(ctx, w.ref("shop")) }
	first := w.open(w.reconciler(), open)
	defer first.Close()

	w.use("control") // its way to the server is the one that breaks
	w.stall = testenv.StartProxy(t, fmt.Sprintf("127.0.0.1:%d", w.port))
	repo, err := open()
	w.must(err)
	defer repo.Close()
	credentials, err := repo.Session(ctx, "op-1", "pvc.data", repo.Tenant().NamespaceUID, "/")
	w.must(err)
	credentials.URL = fmt.Sprintf("https://127.0.0.1:%d", w.listen)
	volume := w.volume()
	testenv.MakeTree(w, volume)
	agent := w.agent(volume)
	snapshot := func(id string) error {
		_, err := agent.Run(ctx, api.StartRequest{ID: id, Kind: api.KindSnapshot, Credentials: credentials, Snapshot: &api.SnapshotRequest{
			Volume: filepath.Base(volume), Path: "/", SourcePath: "/",
		}}, func(api.Progress) {})
		return err
	}
	w.must(snapshot("before"))
	w.stall.Cut()
	if err := repo.EndSession(ctx, "op-1"); err == nil {
		t.Fatal("the server was told: nothing is tested")
	}
	w.must(snapshot("meanwhile"))
	w.stall = nil

	server, err := w.Connect(ctx, "", w.pod.Name, "")
	w.must(err)
	defer server.Close()
	r := w.reconciler()
	testenv.Eventually(t, 3*time.Minute, "the session has ended", func() bool {
		w.looks(r)
		a, err := server.Activity(ctx)
		return err == nil && a.Sessions == 0
	})
	if err := snapshot("after"); err == nil || !strings.Contains(err.Error(), "access denied") {
		t.Errorf("with the password of a session that has ended: %v", err)
	}
}
