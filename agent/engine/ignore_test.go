// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	kopiafs "github.com/kopia/kopia/fs"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

// What is ignored is not shown, has no extras and is not counted; what is kept beside
// it is no entry that a pattern could fit.
func TestSourceIgnores(t *testing.T) {
	dir, s := testVolume(t)
	top := filepath.Join(dir, "app")
	must(t, os.MkdirAll(filepath.Join(top, "cache", "deep"), 0o755))
	must(t, os.MkdirAll(filepath.Join(top, "sub", "cache"), 0o755))
	for _, name := range []string{"a", "b.tmp", "keep.tmp", "sub/c.tmp", "sub/d", "cache/deep/e", "sub/cache/f", "sub/\xff.tmp"} {
		must(t, os.WriteFile(filepath.Join(top, name), []byte("12345"), 0o644))
	}
	must(t, syscall.Mkfifo(filepath.Join(top, "pipe.tmp"), 0o644))
	must(t, syscall.Mkfifo(filepath.Join(top, "pipe"), 0o644))
	must(t, os.Link(filepath.Join(top, "sub", "d"), filepath.Join(top, "sub", "linked.tmp")))
	must(t, os.WriteFile(filepath.Join(dir, "cache"), []byte("beside what is backed up"), 0o644))
	must(t, s.only("/app", []string{"*.tmp", "!keep.tmp", "/cache/", ".*"}))

	root, err := s.entry("/app")
	must(t, err)
	entries := list(t, root)
	if got, want := slices.Sorted(maps.Keys(entries)), []string{extrasName, "a", "keep.tmp", "sub"}; !slices.Equal(got, want) {
		t.Errorf("shown %q, want %q", got, want)
	}
	below := list(t, entries["sub"])
	if got, want := slices.Sorted(maps.Keys(below)), []string{extrasName, "cache", "d"}; !slices.Equal(got, want) {
		t.Errorf("shown in sub %q, want %q", got, want)
	}
	for name, e := range map[string]kopiafs.Entry{"the root's": entries[extrasName], "sub's": below[extrasName]} {
		if kept := string(e.(*extrasFile).content); strings.Contains(kept, ".tmp") || !strings.Contains(kept, `"pipe"`) && !strings.Contains(kept, `"d"`) {
			t.Errorf("%s extras keep %s", name, kept)
		}
	}
	if _, err := root.(kopiafs.Directory).Child(t.Context(), "b.tmp"); err == nil {
		t.Error("an ignored entry is found by its name")
	}
	want := []string{"/app/b.tmp", "/app/cache", "/app/pipe.tmp", "/app/sub/c.tmp", "/app/sub/linked.tmp", "/app/sub/\xff.tmp"}
	if got := s.ignored.names(); !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
	if files, size := s.estimate(context.Background()); files != 4 || size != 20 {
		t.Errorf("estimated %d files of %d bytes, want 4 of 20", files, size)
	}
	err = s.only("/", []string{"fine", "a["})
	if code(err) != api.CodeBadRequest || !strings.Contains(err.Error(), `"a["`) {
		t.Errorf("a malformed pattern: %v, want a refusal that names it", err)
	}
}
