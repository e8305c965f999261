// SPDX-License-Identifier: Apache-2.0

//go:build integration && soak

package repositoryserver_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

func TestIntegrationSoakManyEntries(t *testing.T) { manyEntries(t, 100_000) }

// A file of 100 GiB with three pieces of data takes minutes, not the hour of reading it,
// and comes back with its holes.
func TestIntegrationSoakSparseFile(t *testing.T) {
	const size = 100 << 30
	w := newWorld(t)
	source := w.volume()
	file := filepath.Join(source, "sparse")
	f, err := os.Create(file)
	w.must(err)
	for _, at := range []int64{0, size / 3, size - 7} {
		_, err := f.WriteAt([]byte("a piece"), at)
		w.must(err)
	}
	w.must(f.Close())
	s := w.serve()
	agent, _ := w.sidecar(source, nil)
	run := func(agent interface {
		Run(ctx context.Context, req api.StartRequest, progress func(api.Progress)) (*api.Result, error)
	}, req api.StartRequest) *api.Result {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
		defer cancel()
		began := time.Now()
		result, err := agent.Run(ctx, req, func(api.Progress) {})
		w.must(err)
		t.Logf("%s: %s", req.ID, time.Since(began))
		return result
	}
	first := run(agent, snapshotRequest("first", w.session(s, "first", "pvc.data"), "/")).Snapshot
	if first.Bytes != size || first.NewBytes > 100<<20 {
		t.Errorf("first: %+v", first)
	}
	target := w.volume()
	to, _ := w.sidecar(target, nil)
	run(to, api.StartRequest{ID: "restore", Kind: api.KindRestore, Credentials: w.session(s, "restore", "restore"), Restore: &api.RestoreRequest{
		RootObject: first.RootObject, Root: first.Root, Volume: "data", Path: "/",
	}})
	back, err := os.Open(filepath.Join(target, "sparse"))
	w.must(err)
	defer back.Close()
	for _, at := range []int64{0, size / 3, size - 7} {
		got := make([]byte, 7)
		if _, err := back.ReadAt(got, at); err != nil || string(got) != "a piece" {
			t.Errorf("at %d: %q, %v", at, got, err)
		}
	}
	if stat := sys(w, filepath.Join(target, "sparse")); stat.Size != size || stat.Blocks*512 > 100<<20 {
		t.Errorf("it has %d bytes and takes %d", stat.Size, stat.Blocks*512)
	}
}
