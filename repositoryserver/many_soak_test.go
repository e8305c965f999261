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

// Files of 100 and of 2 GiB with three pieces of data are neither read nor hashed whole, and come
// back with their pieces and their holes.
func TestIntegrationSoakSparseFile(t *testing.T) {
	w := newWorld(t)
	w.plain = true // its times are told
	source := w.volume()
	s := w.serve()
	agent, _ := w.sidecar(source, nil)
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Hour)
	defer cancel()
	for _, size := range []int64{100 << 30, 2 << 30} {
		places := []int64{0, size / 3, size - 7}
		f, err := os.Create(filepath.Join(source, "sparse"))
		w.must(err)
		for _, at := range places {
			_, err := f.WriteAt([]byte("a piece"), at)
			w.must(err)
		}
		w.must(f.Close())
		id := fmt.Sprintf("of-%d", size)
		began := time.Now()
		result, err := agent.Run(ctx, snapshotRequest(id, w.session(s, id, "pvc.data"), "/"), func(api.Progress) {})
		w.must(err)
		snapshot := result.Snapshot
		t.Logf("%d GiB: %s, %d bytes sent", size>>30, time.Since(began), snapshot.NewBytes)
		if snapshot.Bytes != size || snapshot.NewBytes > 100<<20 {
			t.Errorf("%+v, want %d bytes, almost none of them sent", snapshot, size)
		}

		target := w.volume()
		to, _ := w.sidecar(target, nil)
		began = time.Now()
		_, err = to.Run(ctx, api.StartRequest{ID: id + "-restore", Kind: api.KindRestore, Credentials: w.session(s, id+"-restore", "restore"), Restore: &api.RestoreRequest{
			RootObject: snapshot.RootObject, Root: snapshot.Root, Volume: "data", Path: "/",
		}}, func(api.Progress) {})
		w.must(err)
		t.Logf("%d GiB: restored in %s", size>>30, time.Since(began))
		back, err := os.Open(filepath.Join(target, "sparse"))
		w.must(err)
		defer back.Close()
		for _, at := range places {
			got := make([]byte, 7)
			if _, err := back.ReadAt(got, at); err != nil || string(got) != "a piece" {
				t.Errorf("of %d GiB at %d: %q, %v", size>>30, at, got, err)
			}
		}
		if stat := sys(w, back.Name()); stat.Size != size || stat.Blocks*512 > 100<<20 {
			t.Errorf("it has %d bytes and takes %d, want %d, and almost none of them", stat.Size, stat.Blocks*512, size)
		}
	}
}
