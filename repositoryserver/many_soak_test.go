// SPDX-License-Identifier: Apache-2.0

//go:build integration && soak

package repositoryserver_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

func TestIntegrationSoakManyEntries(t *testing.T) { manyEntries(t, 100_000) }

// A file of 100 GiB with three pieces of data is not read but hashed, and one of 2 GiB
// comes back with its holes.
func TestIntegrationSoakSparseFile(t *testing.T) {
	w := newWorld(t)
	source := w.volume()
	s := w.serve()
	agent, _ := w.sidecar(source, nil)
	places := func(size int64) []int64 { return []int64{0, size / 3, size - 7} }
	var last api.Record
	for i, size := range []int64{100 << 30, 2 << 30} {
		f, err := os.Create(filepath.Join(source, "sparse"))
		w.must(err)
		for _, at := range places(size) {
			_, err := f.WriteAt([]byte("a piece"), at)
			w.must(err)
		}
		w.must(f.Close())
		id := fmt.Sprintf("op-%d", i)
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Hour)
		defer cancel()
		began := time.Now()
		result, err := agent.Run(ctx, snapshotRequest(id, w.session(s, id, "pvc.data"), "/"), func(api.Progress) {})
		w.must(err)
		t.Logf("%d GiB: %s, %d bytes sent", size>>30, time.Since(began), result.Snapshot.NewBytes)
		if result.Snapshot.Bytes != size || result.Snapshot.NewBytes > 100<<20 {
			t.Errorf("%+v, want %d bytes, almost none of them sent", result.Snapshot, size)
		}
		last.Snapshot = *result.Snapshot
	}
	folder, _ := w.restore(s, "restore", last, "", "/")
	size := last.Snapshot.Bytes
	back, err := os.Open(filepath.Join(folder, "sparse"))
	w.must(err)
	defer back.Close()
	for _, at := range places(size) {
		got := make([]byte, 7)
		if _, err := back.ReadAt(got, at); err != nil || string(got) != "a piece" {
			t.Errorf("at %d: %q, %v", at, got, err)
		}
	}
	if stat := sys(w, filepath.Join(folder, "sparse")); stat.Size != size || stat.Blocks*512 > 100<<20 {
		t.Errorf("it has %d bytes and takes %d", stat.Size, stat.Blocks*512)
	}
}
