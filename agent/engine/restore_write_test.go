// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	kopiafs "github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/snapshot"
	"golang.org/x/sys/unix"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// A restore that works moves its progress, also while it writes no file, and says when it
// only waits for the volume's storage: else it would be taken for one that hangs.
func TestRestoreShowsThatItWorks(t *testing.T) {
	directory := func(name string) *snapshot.DirEntry {
		return entryOf(name, snapshot.EntryTypeDirectory, 2, 0)
	}
	kept := entryOf(extrasName, snapshot.EntryTypeFile, 3, 0)
	for name, c := range map[string]struct {
		root        []*snapshot.DirEntry
		kept        string
		deleteExtra bool
		want        int64 // entries, the target among them
	}{
		"nothing":                 {want: 1},
		"a link":                  {root: []*snapshot.DirEntry{entryOf("l", snapshot.EntryTypeSymlink, 8, 0)}, want: 2},
		"a directory":             {root: []*snapshot.DirEntry{directory("d")}, want: 3},
		"one that is there":       {root: []*snapshot.DirEntry{directory("dir")}, want: 3},
		"a pipe":                  {root: []*snapshot.DirEntry{kept}, kept: `{"version":1,"entries":[{"name":"p","special":{"kind":"fifo","mode":"644"}}]}`, want: 2},
		"a file over a directory": {root: []*snapshot.DirEntry{entryOf("dir", snapshot.EntryTypeFile, 9, 4)}, want: 3}, // and what is in it
		"what is extra":           {deleteExtra: true, want: 9},
	} {
		t.Run(name, func(t *testing.T) {
			a := newArena(t)
			s := &stored{objects: map[string][]byte{
				storedID(1): manifestOf(c.root...), storedID(2): manifestOf(), storedID(3): []byte(c.kept), storedID(8): []byte("to"), storedID(9): []byte("four"),
			}}
			var said []api.Progress
			p := newProgress(time.Now, func(now api.Progress) { said = append(said, now) })
			_, err := restoreVolume(t.Context(), &connection{rep: s, objects: s}, api.StartRequest{Kind: api.KindRestore, Restore: &api.RestoreRequest{
				RootObject: storedID(1), Volume: "data", Path: "/target", DeleteExtra: c.deleteExtra,
			}}, Env{VolumesDir: filepath.Join(a.base, "volumes"), Now: time.Now}, p, newThrottle(t.Context(), 0))
			must(t, err)
			if got := p.snapshot(); got.Entries != c.want || got.Syncing {
				t.Errorf("progress %+v, want %d entries", got, c.want)
			}
			if len(said) != 1 || !said[0].Syncing {
				t.Errorf("said %+v, want that it waits for the storage", said)
			}
		})
	}
}

// What is opened and linked to while a restore runs is what was there when it was looked
// at, not what took its place.
func TestRestoreKeepsToWhatItSaw(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"into", "elsewhere"} {
		must(t, os.Mkdir(in(name), 0o755))
	}
	for _, name := range []string{"first", "secret"} {
		must(t, os.WriteFile(in(name), []byte(name), 0o600))
	}
	must(t, os.Symlink("elsewhere", in("link")))
	volume, err := os.OpenRoot(dir)
	must(t, err)
	defer volume.Close()

	if at, err := step(volume, "link"); err == nil {
		at.Close()
		t.Error("a link in the place of a directory is followed")
	}
	root, err := step(volume, "into")
	must(t, err)
	f, err := newFolder(root, "into", nil)
	must(t, err)
	defer func() { must(t, f.release(nil, func(*folder) error { return nil })) }()

	w := &restorer{volume: volume}
	info, err := volume.Lstat("first")
	must(t, err)
	first := &link{info: info, path: "first"}
	// The folder has another name by now, and somebody else's directory its own.
	must(t, os.Rename(in("into"), in("moved")))
	must(t, os.Mkdir(in("into"), 0o755))
	must(t, w.link(first, f, "second"))
	if got, err := os.Lstat(in("moved/second")); err != nil || !os.SameFile(info, got) {
		t.Errorf("the second name: %v, %v, want it in the directory that was opened", got, err)
	}
	for name, replace := range map[string]func() error{
		"another file":   func() error { return os.Rename(in("secret"), in("first")) },
		"a link to one":  func() error { return os.Symlink("elsewhere", in("first")) },
		"nothing at all": func() error { return nil },
	} {
		must(t, os.RemoveAll(in("first")))
		must(t, replace())
		if err := w.link(first, f, "third"); err == nil {
			t.Errorf("%s in the first one's place is linked to", name)
		}
		if _, err := os.Lstat(in("moved/third")); err == nil {
			t.Errorf("%s in the first one's place has another name now", name)
		}
	}
}

// What an earlier try wrote is taken over as it was written, and not once anything about
// it was changed.
func TestResumeHas(t *testing.T) {
	at := time.Date(2024, 2, 29, 12, 34, 56, 123456789, time.UTC)
	for name, c := range map[string]struct {
		change func(file string) error
		want   bool
	}{
		"nothing":                   {func(string) error { return nil }, true},
		"its content":               {func(f string) error { return os.WriteFile(f, []byte("FOUR"), 0) }, false},
		"its size":                  {func(f string) error { return keepTime(f, at, func(f string) error { return os.Truncate(f, 3) }) }, false},
		"its mode":                  {func(f string) error { return os.Chmod(f, 0o600) }, false},
		"an attribute":              {func(f string) error { return unix.Lsetxattr(f, "user.x", []byte("y"), 0) }, false},
		"the value of an attribute": {func(f string) error { return unix.Lsetxattr(f, "user.kept", []byte("w"), 0) }, false},
		"one attribute less":        {func(f string) error { return unix.Lremovexattr(f, "user.kept") }, false},
		"an ACL": {func(f string) error {
			return unix.Lsetxattr(f, accessACL, testenv.ACL(6, 4, 4, 0, 1234, 4), 0)
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "f")
			must(t, os.WriteFile(file, []byte("four"), 0o640))
			must(t, os.Chmod(file, 0o640))
			if err := unix.Lsetxattr(file, "user.kept", []byte("v"), 0); errors.Is(err, unix.ENOTSUP) {
				testenv.Skip(t, "this file system keeps no attributes")
			} else {
				must(t, err)
			}
			must(t, os.Chtimes(file, at, at))
			e := &snapshot.DirEntry{
				FileSize: 4, Permissions: 0o640, UserID: uint32(os.Getuid()), GroupID: uint32(os.Getgid()), ModTime: kopiafs.UTCTimestampFromTime(at),
			}
			x := extra{Xattrs: []xattr{{Name: "user.kept", Value: []byte("v")}}}
			must(t, c.change(file))
			root, err := os.OpenRoot(dir)
			must(t, err)
			f, err := newFolder(root, ".", nil)
			must(t, err)
			defer func() { must(t, f.release(nil, func(*folder) error { return nil })) }()
			if got := (resume{since: at}).has(f, "f", e, x); got != c.want {
				t.Errorf("after a change of %s it is taken over: %t, want %t", name, got, c.want)
			}
			for _, since := range []time.Time{{}, time.Now().Add(time.Hour)} {
				if (resume{since: since}).has(f, "f", e, x) {
					t.Errorf("without a mark, or with a later one, it is taken over: %s", since)
				}
			}
		})
	}
}
