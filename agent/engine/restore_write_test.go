// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"os"
	"path/filepath"
	"testing"
)

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
