// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repositoryserver_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/repositoryserver"
)

// A storage that goes away fails the backup with a word about the storage, and one
// that comes back serves.
func TestIntegrationStorageGone(t *testing.T) {
	t.Parallel() // Kopia tries for long
	w := newWorld(t)
	source := w.volume()
	w.must(os.WriteFile(filepath.Join(source, "f"), []byte("x"), 0o600))
	s := w.serve()
	agent, _ := w.sidecar(source, nil)
	w.backup(s, agent, "op-1", "/")
	w.s3.Gateway.Kill()
	w.must(os.WriteFile(filepath.Join(source, "g"), []byte("y"), 0o600))
	_, err := agent.Run(w.context(), snapshotRequest("op-2", w.session(s, "op-2", "pvc.data"), "/"), func(api.Progress) {})
	if code(err) != api.CodeStorage {
		t.Errorf("error %v (%s), want %s", err, code(err), api.CodeStorage)
	} else {
		w.noSecrets("the error", []byte(err.Error()))
		for _, word := range []string{"index blobs", "the storage did not answer within", "look at the storage of the repository"} {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("error %q, want %q in it", err, word)
			}
		}
	}
	w.s3.Gateway = w.s3.Gateway.Again(w)
	w.backup(s, agent, "op-3", "/")
	if strings.Contains(s.Log(), "goroutine") {
		t.Errorf("the log holds a stack:\n%s", s.Log())
	}
}

// A folder is a storage too.
func TestIntegrationFolder(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.config.Storage = repositoryserver.StorageConfig{Type: "filesystem", Path: filepath.Join(w.TempDir(), "repository")}
	source := w.volume()
	w.must(os.WriteFile(filepath.Join(source, "f"), []byte("x"), 0o600))
	s := w.serve()
	agent, _ := w.sidecar(source, nil)
	record := w.backup(s, agent, "op-1", "/")
	folder, _ := w.restore(s, "op-2", record, "", "/there")
	if content, err := os.ReadFile(filepath.Join(folder, "f")); err != nil || string(content) != "x" {
		t.Errorf("restored %q, %v", content, err)
	}
}

// Operations of one user do not hinder each other.
func TestIntegrationConcurrent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	source := w.volume()
	s := w.serve()
	agent, _ := w.sidecar(source, nil)
	const n = 5
	errs := make([]error, n)
	results := make([]*api.Result, n)
	var all sync.WaitGroup
	for i := range n {
		path := fmt.Sprintf("/%d", i)
		w.must(os.Mkdir(filepath.Join(source, path), 0o755))
		w.must(os.WriteFile(filepath.Join(source, path, "f"), []byte(strings.Repeat(path, 100_000)), 0o600))
		id := fmt.Sprintf("op-%d", i)
		req := snapshotRequest(id, w.session(s, id, "pvc.data"), path)
		all.Go(func() {
			results[i], errs[i] = agent.Run(w.context(), req, func(api.Progress) {})
			errs[i] = errors.Join(errs[i], s.agent.EndSession(w.context(), id))
		})
	}
	all.Wait()
	w.must(errors.Join(errs...))
	for i, r := range results {
		if r.Snapshot.Files != 1 || r.Snapshot.Bytes != 200_000 {
			t.Errorf("backup %d: %+v", i, r.Snapshot)
		}
	}
}
