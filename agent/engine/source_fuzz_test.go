// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	kopiafs "github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/snapshot"
)

// An entry of any mode can be recorded, also of none.
func TestSpecialOfAnyMode(t *testing.T) {
	for _, mode := range []os.FileMode{0, 0o600, os.ModeSetuid | 0o777} {
		x := extras{Entries: []extra{{Name: "pipe", Special: &special{Kind: "fifo", Mode: snapshot.Permissions(mode)}}}}
		raw, err := x.encode()
		must(t, err)
		var back extras
		must(t, readJSON(strings.NewReader(string(raw)), maxExtras, &back))
		if got := back.Entries[0].Special.Mode; got != snapshot.Permissions(mode) {
			t.Errorf("mode %v comes back as %v", mode, got)
		}
	}
}

// FuzzSourceEntry: no path, and no name in a directory, leads out of the volume.
func FuzzSourceEntry(f *testing.F) {
	for _, seed := range [][2]string{
		{"/", "f"}, {"/dir", "../f"}, {"/dir/f", ""}, {"/out", "f"}, {"/out/f", "f"}, {"/absolute", "f"}, {"/dir/../../outside/f", "out"},
		{"//f", ".."}, {"/./f", "."}, {"../outside/f", "out/f"}, {"/dir/loop/loop", "loop"}, {"/f\x00", "f\x00"}, {"", escaped + "..%2Ff"},
		{"/pipe", "pipe"}, {"/" + strings.Repeat("dir/", 300), extrasName}, {"/\xff", escaped + "%2e%2e"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, path, name string) {
		dir, s := testVolume(t)
		must(t, os.Mkdir(filepath.Join(dir, "dir"), 0o755))
		for _, file := range []string{"f", "dir/f", "dir/\xff"} {
			must(t, os.WriteFile(filepath.Join(dir, file), []byte("inside"), 0o644))
		}
		for link, to := range map[string]string{
			"out": "../../outside", "file": "../../outside/f", "absolute": filepath.Join(filepath.Dir(filepath.Dir(dir)), "outside"), "dir/loop": "../dir", "in": "dir",
		} {
			must(t, os.Symlink(to, filepath.Join(dir, link)))
		}
		inside := func(e kopiafs.Entry) {
			file, ok := e.(kopiafs.File)
			if !ok {
				return
			}
			r, err := file.Open(t.Context())
			if err != nil {
				return
			}
			content, err := io.ReadAll(r)
			must(t, errors.Join(err, r.Close()))
			if string(content) != "inside" {
				t.Errorf("%q, %q read %q", path, name, content)
			}
		}
		e, err := s.entry(path)
		if (e == nil) != (err != nil) {
			t.Fatalf("entry %v, %v", e, err)
		}
		if err != nil {
			if code(err) == "" && !errors.Is(err, os.ErrInvalid) && !strings.Contains(err.Error(), "name too long") && !strings.Contains(err.Error(), "invalid argument") {
				t.Errorf("%q: %v has no code", path, err)
			}
			return
		}
		inside(e)
		if d, ok := e.(kopiafs.Directory); ok {
			if child, err := d.Child(t.Context(), name); err == nil {
				inside(child)
			}
			for _, below := range list(t, e) {
				inside(below)
			}
		}
	})
}
