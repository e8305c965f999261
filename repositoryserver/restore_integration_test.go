// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repositoryserver_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"
	"golang.org/x/sys/unix"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// A restore over data that is there gives the backup, whatever is in its place, and
// touches nothing outside of its target.
func TestIntegrationRestoreOver(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	source := w.volume()
	tree := filepath.Join(source, "tree")
	w.must(os.Mkdir(tree, 0o755))
	testenv.MakeTree(w, tree)
	want := testenv.Tree(w, tree)
	s := w.serve()
	agent, _ := w.sidecar(source, nil)
	record := w.backup(s, agent, "op-1", "/tree")
	if got := record.Snapshot; len(got.Excluded) != 0 || got.Files != int64(files(want)) || got.LinkedNames != 3 || got.SpecialFiles != 3 || got.WithAttributes < 4 {
		t.Errorf("the snapshot says %+v, want all of %d files, 3 names of one, 3 special files and those with attributes", got, files(want))
	}

	target := w.volume()
	outside := filepath.Join(filepath.Dir(target), "outside")
	inTarget := func(name string) string { return filepath.Join(target, "over", name) }
	w.must(os.MkdirAll(filepath.Join(outside, "many"), 0o755))
	for _, name := range []string{"victim", "script.sh", "many/00"} {
		w.must(os.WriteFile(filepath.Join(outside, name), []byte("outside"), 0o600))
	}
	w.must(os.MkdirAll(inTarget("empty"), 0o755))                        // a file's place
	w.must(os.WriteFile(inTarget("empty/full"), nil, 0o644))             // not quite empty
	w.must(os.WriteFile(inTarget("empty-dir"), nil, 0o644))              // a directory's place
	w.must(os.Symlink("../../outside", inTarget("dir")))                 // a directory's place
	w.must(os.Symlink(filepath.Join(outside, "many"), inTarget("many"))) // the same, absolute
	w.must(os.Symlink("../../outside/victim", inTarget("plain.txt")))    // a file's place
	w.must(os.Symlink("stale", inTarget("link")))                        // a link's place
	// What looks right, with its size and time, but for its mode and owner.
	right, err := os.Stat(filepath.Join(tree, "locked"))
	w.must(err)
	content, err := os.ReadFile(filepath.Join(tree, "locked"))
	w.must(err)
	w.must(os.WriteFile(inTarget("locked"), content, 0o666))
	w.must(os.Chmod(inTarget("locked"), 0o666))
	if os.Getuid() == 0 {
		w.must(os.Chown(inTarget("locked"), 4711, 4711))
	}
	w.must(os.Chtimes(inTarget("locked"), right.ModTime(), right.ModTime()))
	w.must(os.MkdirAll(inTarget("extra/below"), 0o755))
	w.must(os.WriteFile(inTarget("extra/below/f"), nil, 0o644))
	w.must(os.WriteFile(inTarget(".kopia-restore-of-before-1"), nil, 0o644))
	w.must(os.WriteFile(filepath.Join(target, "beside"), []byte("beside"), 0o644))
	w.must(os.Symlink("over", filepath.Join(target, "detour")))
	untouched := testenv.Tree(w, outside)

	to, _ := w.sidecar(target, nil)
	restore := func(id string, r api.RestoreRequest) (*api.Result, error) {
		r.Volume = "data"
		defer func() { w.must(s.agent.EndSession(w.context(), id)) }()
		return to.Run(w.context(), api.StartRequest{ID: id, Kind: api.KindRestore, Credentials: w.toRestore(s, id), Restore: &r}, func(api.Progress) {})
	}
	// First without deleting what the backup does not have.
	extras := []string{"extra", "extra/below", "extra/below/f"}
	kept := testenv.Tree(w, filepath.Join(target, "over"))
	result, err := restore("op-1-kept", api.RestoreRequest{
		RootObject: record.Snapshot.RootObject, Root: record.Snapshot.Root, Path: "/over", Verify: api.VerifyAfter,
	})
	w.must(err)
	there, both := testenv.Tree(w, filepath.Join(target, "over")), maps.Clone(want)
	for _, name := range extras {
		both[name] = kept[name]
	}
	w.same(both, there)
	if result.Restore.Deleted != 0 {
		t.Errorf("%d extra entries deleted unasked", result.Restore.Deleted)
	}
	result, err = restore("op-2", api.RestoreRequest{
		RootObject: record.Snapshot.RootObject, Root: record.Snapshot.Root, Path: "/over", DeleteExtra: true,
	})
	w.must(err)
	w.same(want, testenv.Tree(w, filepath.Join(target, "over")))
	if result.Restore.Deleted != 1 {
		t.Errorf("%d extra entries deleted, want 1", result.Restore.Deleted)
	}
	if _, err := os.Stat(filepath.Join(target, "beside")); err != nil {
		t.Errorf("what lies beside the target: %v", err)
	}

	// A tree that no file system makes, of a client with a session of its own.
	rep := w.kopia(w.session(s, "odd", "pvc.odd"))
	for name, odd := range map[string]string{"up": "../up", "deep-up": "dir/../../up", "dots": "..", "absolute": "/up", "empty": ""} {
		var root object.ID
		w.must(write(w.context(), rep, func(ctx context.Context, rw repo.RepositoryWriter) (err error) {
			root, err = saveDirectory(ctx, rw, snapshot.DirEntry{Name: odd, Type: snapshot.EntryTypeFile, FileSize: 4, Permissions: 0o644})
			return err
		}))
		_, err := restore("odd-"+name, api.RestoreRequest{RootObject: root.String(), Root: api.RootEntry{Mode: 0o755}, Path: "/odd"})
		if code(err) != api.CodePathRefused {
			t.Errorf("the name %q: %v, want %s", odd, err, api.CodePathRefused)
		}
	}
	for i, path := range []string{"/detour", "/detour/x", "/..", "x", "", "/beside"} {
		_, err := restore(fmt.Sprintf("to-%d", i), api.RestoreRequest{RootObject: record.Snapshot.RootObject, Root: record.Snapshot.Root, Path: path})
		if code(err) != api.CodePathRefused {
			t.Errorf("restore to %q: %v, want %s", path, err, api.CodePathRefused)
		}
	}
	for _, c := range []struct {
		id, sub string
		want    api.Code
	}{{"sub-lost", "lost", api.CodePathNotFound}, {"sub-file", "plain.txt/x", api.CodePathNotFound}, {"sub-up", "../x", api.CodePathRefused}} {
		_, err := restore(c.id, api.RestoreRequest{RootObject: record.Snapshot.RootObject, Root: record.Snapshot.Root, SubPath: c.sub, Path: "/sub"})
		if code(err) != c.want {
			t.Errorf("restore of %q: %v, want %s", c.sub, err, c.want)
		}
	}
	if now := testenv.Tree(w, outside); !maps.Equal(untouched, now) {
		t.Errorf("what lies outside the volume changed:\n had %v\nhave %v", untouched, now)
	}
	if entries, err := os.ReadDir(filepath.Dir(target)); err != nil || len(entries) != 2 {
		t.Errorf("beside the volume: %v, %v, want nothing new", entries, err)
	}
	w.same(want, testenv.Tree(w, filepath.Join(target, "over")))
}

// A restore that was cut short goes on where it was: what it had completed is not
// fetched again, what was changed since is, and the result is exact.
func TestIntegrationRestoreResumes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	source := w.volume()
	random := rand.NewChaCha8([32]byte{3})
	const count, size = 12, 3 << 20
	content := make([]byte, size)
	for i := range count {
		_, _ = random.Read(content)
		w.must(os.WriteFile(filepath.Join(source, fmt.Sprintf("large-%02d", i)), content, 0o640))
	}
	testenv.MakeTree(w, source)
	want := testenv.Tree(w, source)
	s := w.serve()
	agent, _ := w.sidecar(source, nil)
	record := w.backup(s, agent, "op-1", "/")

	target := w.volume()
	to, process := w.sidecar(target, nil)
	restore := func(id string, limit int64) (*api.Result, error) {
		return to.Run(w.context(), api.StartRequest{ID: id, Kind: api.KindRestore, Credentials: w.toRestore(s, id), RateLimit: limit, Restore: &api.RestoreRequest{
			RootObject: record.Snapshot.RootObject, Root: record.Snapshot.Root, Volume: "data", Path: "/", Parallel: 1,
		}}, func(api.Progress) {})
	}
	completed := func() (names []string) {
		found, err := filepath.Glob(filepath.Join(target, "large-*"))
		w.must(err)
		return found
	}
	request := make(chan error, 1)
	// At this limit all of it would take longer than the test waits for some of it.
	go func() { _, err := restore("cut-short", size); request <- err }()
	testenv.Eventually(w, 3*time.Minute, "some files are complete", func() bool { return len(completed()) >= 5 })
	for _, pid := range children(w, process.Cmd.Process.Pid) {
		w.must(syscall.Kill(pid, syscall.SIGKILL))
	}
	if err := <-request; err == nil {
		t.Fatal("the restore was over before it could be killed")
	}
	there := completed()
	w.must(os.WriteFile(there[0], []byte("written by somebody else"), 0o640))
	w.must(os.Chmod(there[1], 0o600))
	// What leaves size, time, mode and owner alone.
	w.must(unix.Lsetxattr(there[2], "user.x", []byte("not of the backup"), 0))
	w.must(unix.Lsetxattr(there[3], "system.posix_acl_access", testenv.ACL(6, 4, 4, 0, 1234, 4), 0))

	result, err := restore("again", 0)
	w.must(err)
	if got, most := result.Restore.Resumed, int64(len(want)); got < 1 || got >= most {
		t.Errorf("%d files were taken over, want at least one, and not all", got)
	}
	w.same(want, testenv.Tree(w, target))
	// A restore that was completed leaves no mark: the next one trusts nothing.
	result, err = restore("anew", 0)
	w.must(err)
	if result.Restore.Resumed != 0 {
		t.Errorf("%d files were taken over from a completed restore, want none", result.Restore.Resumed)
	}
	w.same(want, testenv.Tree(w, target))
}

// Who may not set an owner restores all the rest, and says so.
func TestIntegrationRestoreUnprivileged(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		testenv.Skip(t, "needs root, to give a file to somebody else")
	}
	w := newWorld(t)
	source := w.volume()
	w.must(os.WriteFile(filepath.Join(source, "mine"), []byte("m"), 0o640))
	w.must(os.Mkdir(filepath.Join(source, "dir"), 0o750))
	w.must(os.WriteFile(filepath.Join(source, "dir", "theirs"), []byte("t"), 0o600))
	w.must(os.Chmod(filepath.Join(source, "dir", "theirs"), os.ModeSetuid|0o755))
	for _, name := range []string{".", "mine", "dir"} {
		w.must(os.Lchown(filepath.Join(source, name), 65532, 65532))
	}
	want := testenv.Tree(w, source)
	s := w.serve()
	agent, _ := w.sidecar(source, nil)
	record := w.backup(s, agent, "op-1", "/")

	target := w.volume()
	w.must(os.Lchown(target, 65532, 65532))
	w.reachable(target)
	to, _ := w.sidecar(target, asNobody)
	result, err := to.Run(w.context(), api.StartRequest{ID: "op-2", Kind: api.KindRestore, Credentials: w.toRestore(s, "op-2"), Restore: &api.RestoreRequest{
		RootObject: record.Snapshot.RootObject, Root: record.Snapshot.Root, Volume: "data", Path: "/",
	}}, func(api.Progress) {})
	w.must(err)
	if got := result.Restore.NotKept; len(got) != 2 || !strings.Contains(got[0], "owner of 1 entries") || !strings.Contains(got[1], "mode of 1 entries") ||
		!strings.Contains(got[0], "/dir/theirs") || !strings.Contains(got[1], "/dir/theirs") {
		t.Errorf("not kept: %q, want owner and mode of one file", got)
	}
	theirs := want["dir/theirs"]
	theirs.UID, theirs.GID, theirs.Mode = 65532, 65532, 0o755 // nobody's rights are lent
	want["dir/theirs"] = theirs
	w.same(want, testenv.Tree(w, target))
}

// saveDirectory stores a directory with one entry, whose content is four bytes.
func saveDirectory(ctx context.Context, w repo.RepositoryWriter, e snapshot.DirEntry) (object.ID, error) {
	var err error
	if e.ObjectID, err = store(ctx, w, "", []byte("evil")); err != nil {
		return object.EmptyID, err
	}
	raw, err := json.Marshal(snapshot.DirManifest{StreamType: "kopia:directory", Entries: []*snapshot.DirEntry{&e}})
	if err != nil {
		return object.EmptyID, err
	}
	return store(ctx, w, "k", raw)
}
