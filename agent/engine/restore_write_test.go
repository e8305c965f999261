// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kopia/kopia/snapshot"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
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
