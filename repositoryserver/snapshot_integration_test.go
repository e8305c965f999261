// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repositoryserver_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// What is ignored is in no backup, whatever the previous one had; it is told, and its
// attributes and kind are not kept either. An empty rest is suspicious only if it was
// not asked for.
func TestIntegrationIgnored(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	source := w.volume()
	write := func(name string) {
		w.must(os.MkdirAll(filepath.Dir(filepath.Join(source, name)), 0o755))
		w.must(os.WriteFile(filepath.Join(source, name), []byte(name), 0o644))
	}
	for _, name := range []string{"a", "b.tmp", "keep.tmp", "cache/c", "sub/d", "sub/e.tmp"} {
		write(name)
	}
	w.must(syscall.Mkfifo(filepath.Join(source, "pipe.tmp"), 0o600))
	w.must(os.Link(filepath.Join(source, "a"), filepath.Join(source, "sub", "linked.tmp")))
	s := w.serve()
	agent, _ := w.sidecar(source, nil)
	run := func(id string, ignore ...string) (*api.SnapshotResult, error) {
		t.Helper()
		req := snapshotRequest(id, w.session(s, id, "pvc.data"), "/")
		req.Snapshot.Ignore = ignore
		result, err := agent.Run(w.context(), req, func(api.Progress) {})
		if err != nil {
			return nil, err
		}
		return result.Snapshot, nil
	}
	holds := func(id string, snapshot *api.SnapshotResult, want ...string) {
		t.Helper()
		folder, _ := w.restore(s, id, api.Record{Snapshot: *snapshot}, "", "/")
		var got []string
		for name, e := range testenv.Tree(t, folder) {
			if !e.Mode.IsDir() {
				got = append(got, name)
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, want) || snapshot.Files != int64(len(want)) {
			t.Errorf("%s holds %q and tells of %d files, want %q", id, got, snapshot.Files, want)
		}
	}

	some, err := run("some", "*.tmp", "!keep.tmp", "/cache/")
	w.must(err)
	holds("some-restored", some, "a", "keep.tmp", "sub/d")
	if want := []string{"/b.tmp", "/cache", "/pipe.tmp", "/sub/e.tmp", "/sub/linked.tmp"}; !slices.Equal(some.Ignored, want) || some.SpecialFiles != 0 {
		t.Errorf("ignored %q and %d special files kept, want %q and none", some.Ignored, some.SpecialFiles, want)
	}
	other, err := run("other", "/sub", "a", "pipe.tmp")
	w.must(err)
	holds("other-restored", other, "b.tmp", "cache/c", "keep.tmp")

	everything, err := run("everything", "*")
	if err != nil || everything.Files != 0 || len(everything.Ignored) != 6 {
		t.Errorf("everything is ignored: %+v, %v", everything, err)
	}
	again, err := run("again", "pipe.tmp", "sub/")
	w.must(err)
	holds("again-restored", again, "a", "b.tmp", "cache/c", "keep.tmp")
	w.must(os.RemoveAll(filepath.Join(source, "a")))
	w.must(os.RemoveAll(filepath.Join(source, "cache")))
	if _, err := run("suddenly", "*.tmp", "sub/"); code(err) != api.CodeEmpty {
		t.Errorf("what was there and is not ignored is gone: %v, want %s", err, api.CodeEmpty)
	}
	for _, bad := range []string{"a[", "", "../x"} {
		if _, err := run(fmt.Sprintf("bad-%x", bad), "fine", bad); code(err) != api.CodeBadRequest || !strings.Contains(err.Error(), fmt.Sprintf("%q", bad)) {
			t.Errorf("pattern %q: %v, want a refusal that names it", bad, err)
		}
	}
}

// A backup that was killed goes on from its last checkpoint: what was read by then is
// not sent again.
func TestIntegrationCheckpoint(t *testing.T) {
	t.Parallel()
	const count, size = 80, 1 << 20
	for victim, strike := range map[string]func(*trial){
		"the agent":             func(tr *trial) { tr.process.Kill(); tr.process = tr.process.Again(tr) },
		"the repository server": func(tr *trial) { tr.s.Kill(); tr.s.Process = tr.s.Again(tr) },
	} {
		t.Run(victim, func(t *testing.T) {
			t.Parallel()
			tr := &trial{world: newWorld(t), volumes: t.TempDir()}
			tr.must(os.Mkdir(tr.source(), 0o755))
			random, content := rand.NewChaCha8([32]byte{9}), make([]byte, size)
			for i := range count {
				_, _ = random.Read(content)
				tr.must(os.WriteFile(filepath.Join(tr.source(), fmt.Sprintf("noise-%02d", i)), content, 0o640))
			}
			tr.s = tr.serve()
			tr.agent, tr.process = tr.sidecar(tr.source(), nil, "-checkpoint-interval", "500ms")
			counter := tr.counter()
			saves := func() int {
				n, err := counter()
				tr.must(err)
				return n
			}
			req := tr.snapshot("killed")
			req.RateLimit = 4 * size
			_, err := tr.agent.Start(tr.context(), req)
			tr.must(err)
			var read int64
			awaitProgress := func(what string, enough func() bool) {
				testenv.Eventually(t, 3*time.Minute, what, func() bool {
					op, err := tr.agent.Get(tr.context(), req.ID)
					tr.must(err)
					if op.State.Done() {
						t.Fatalf("it ended before it was killed: %s", told(op))
					}
					read = op.Progress.Bytes
					return enough()
				})
			}
			awaitProgress("some of it is read", func() bool { return read >= count*size/8 })
			// The next checkpoint may have begun before, the one behind it has not.
			safe, saved := read, saves()
			awaitProgress("two more checkpoints", func() bool { return saves() >= saved+2 })
			strike(tr)
			if victim == "the repository server" {
				tr.ended(tr.agent, req.ID)
				tr.ready(tr.s)
			}

			record := tr.next()
			// Two files are read at once.
			if most := count*size - safe + 3*size; record.Snapshot.NewBytes > most {
				t.Errorf("%d bytes were sent again, want at most %d: %d of %d were read by the checkpoint", record.Snapshot.NewBytes, most, safe, count*size)
			}
			if record.Snapshot.Files != count || record.Snapshot.CachedFiles == 0 {
				t.Errorf("the next one has %d files of which %d were known, want %d and some", record.Snapshot.Files, record.Snapshot.CachedFiles, count)
			}
			folder, _ := tr.restore(tr.s, "restored", record, "", "/")
			tr.same(testenv.Tree(t, tr.source()), testenv.Tree(t, folder))

			// The next long one saves its checkpoints, too, with what is older beside them.
			for i := range count / 4 {
				_, _ = random.Read(content)
				tr.must(os.WriteFile(filepath.Join(tr.source(), fmt.Sprintf("noise-%02d", i)), content, 0o640))
			}
			saved = saves()
			again := tr.snapshot("again")
			again.RateLimit = 4 * size
			if _, err := tr.agent.Run(tr.context(), again, func(api.Progress) {}); err != nil {
				t.Errorf("a long one with older checkpoints: %v", err)
			}
			if n := saves(); n < saved+2 {
				t.Errorf("it saved %d snapshots, want a checkpoint and itself at least", n-saved)
			}
		})
	}
}
