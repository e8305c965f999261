// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	kopiafs "github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/snapshot"
	"golang.org/x/sys/unix"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// A target that was just restored is as its backup; whatever is changed in it is
// told, by its path, and nothing else is.
func TestRestoreVerify(t *testing.T) {
	at := time.Date(2024, 2, 29, 12, 34, 56, 123456789, time.UTC)
	uid, gid := uint32(os.Getuid()), uint32(os.Getgid())
	entry := func(name string, kind snapshot.EntryType, n int, size int64) *snapshot.DirEntry {
		e := entryOf(name, kind, n, size)
		e.UserID, e.GroupID, e.ModTime = uid, gid, kopiafs.UTCTimestampFromTime(at)
		if kind == snapshot.EntryTypeDirectory {
			e.Permissions = 0o755
		}
		return e
	}
	kept := extras{Entries: []extra{
		{Name: "one", Inode: "7", Xattrs: []xattr{{Name: "user.kept", Value: []byte("v")}}}, {Name: "two", Inode: "7", Xattrs: []xattr{{Name: "user.kept", Value: []byte("v")}}},
		{Name: "pipe", Special: &special{Kind: "fifo", Mode: 0o640, UID: uid, GID: gid, ModTime: at}},
	}}
	raw, err := kept.encode()
	must(t, err)
	backup := func() *stored {
		return &stored{objects: map[string][]byte{
			storedID(1): manifestOf(
				entry("d", snapshot.EntryTypeDirectory, 2, 0), entry("f", snapshot.EntryTypeFile, 9, 4), entry("link", snapshot.EntryTypeSymlink, 8, 1),
				entry("one", snapshot.EntryTypeFile, 9, 4), entry("two", snapshot.EntryTypeFile, 9, 4), entry(extrasName, snapshot.EntryTypeFile, 3, 0),
			),
			storedID(2): manifestOf(entry("below", snapshot.EntryTypeFile, 9, 4)), storedID(3): raw,
			storedID(8): []byte("f"), storedID(9): []byte("four"),
		}}
	}
	root := api.RootEntry{Mode: 0o755, UID: uid, GID: gid, ModTime: at}
	for name, c := range map[string]struct {
		change func(in func(string) string) error
		want   []string // the paths that differ
		extra  bool     // what the backup does not have is to be gone
	}{
		"nothing": {change: func(func(string) string) error { return nil }, extra: true},
		"content": {change: func(in func(string) string) error {
			return keepTime(in("f"), at, func(f string) error { return os.WriteFile(f, []byte("FOUR"), 0) })
		}, want: []string{"f"}},
		"size": {change: func(in func(string) string) error {
			return keepTime(in("f"), at, func(f string) error { return os.Truncate(f, 3) })
		}, want: []string{"f"}},
		"mode":            {change: func(in func(string) string) error { return os.Chmod(in("d/below"), 0o600) }, want: []string{"d/below"}},
		"a folder's mode": {change: func(in func(string) string) error { return os.Chmod(in("d"), 0o700) }, want: []string{"d"}},
		"time":            {change: func(in func(string) string) error { return os.Chtimes(in("f"), at, at.Add(1)) }, want: []string{"f"}},
		"a link":          {change: func(in func(string) string) error { return relink(in("link"), "elsewhere", at) }, want: []string{"link"}},
		"an attribute":    {change: func(in func(string) string) error { return unix.Setxattr(in("f"), "user.new", []byte("x"), 0) }, want: []string{"f"}},
		"no attribute":    {change: func(in func(string) string) error { return unix.Removexattr(in("one"), "user.kept") }, want: []string{"one", "two"}},
		"its kind":        {change: func(in func(string) string) error { return errors.Join(os.Remove(in("f")), os.Mkdir(in("f"), 0o644)) }, want: []string{".", "f"}},
		"missing":         {change: func(in func(string) string) error { return os.RemoveAll(in("d")) }, want: []string{".", "d"}},
		"a pipe":          {change: func(in func(string) string) error { return os.Remove(in("pipe")) }, want: []string{".", "pipe"}},
		"extra":           {change: func(in func(string) string) error { return os.WriteFile(in("new"), nil, 0o600) }, want: []string{".", "new"}, extra: true},
		"extra, and may":  {change: func(in func(string) string) error { return os.WriteFile(in("new"), nil, 0o600) }, want: []string{"."}},
		"names of one now": {change: func(in func(string) string) error {
			return errors.Join(os.Remove(in("d/below")), os.Link(in("f"), in("d/below")))
		}, want: []string{"d", "d/below", "f"}},
	} {
		t.Run(name, func(t *testing.T) {
			a, s := newArena(t), backup()
			must(t, a.restore(t, s, api.RestoreRequest{Root: root, DeleteExtra: true, Verify: api.VerifyAfter}))
			in := func(name string) string { return filepath.Join(a.base, "volumes", "data", "target", name) }
			if err := c.change(in); errors.Is(err, unix.ENOTSUP) {
				testenv.Skip(t, "this file system keeps no attributes")
			} else {
				must(t, err)
			}
			before := fmt.Sprint(a.outside(t))
			err := a.restore(t, s, api.RestoreRequest{Root: root, DeleteExtra: c.extra, Verify: api.VerifyOnly})
			if fmt.Sprint(a.outside(t)) != before {
				t.Error("it changes what it compares")
			}
			var got []string
			var p *api.Problem
			switch {
			case errors.As(err, &p) && p.Code == api.CodeDiffers:
				for _, line := range p.Details {
					path, _, _ := strings.Cut(strings.TrimPrefix(line, "/target"), ":")
					got = append(got, strings.TrimPrefix(path, "/"))
				}
			case err != nil:
				t.Fatal(err)
			}
			for i, path := range got {
				if path == "" {
					got[i] = "."
				}
			}
			slices.Sort(got)
			if got = slices.Compact(got); !slices.Equal(got, c.want) {
				t.Errorf("%q differ, want %q: %v", got, c.want, err)
			}
		})
	}
	t.Run("no target", func(t *testing.T) {
		a := newArena(t)
		must(t, os.RemoveAll(filepath.Join(a.base, "volumes", "data", "target")))
		if err := a.restore(t, backup(), api.RestoreRequest{Root: root, Verify: api.VerifyOnly}); code(err) != api.CodePathNotFound {
			t.Errorf("error %v, want %s", err, api.CodePathNotFound)
		}
	})
	if err := newArena(t).restore(t, backup(), api.RestoreRequest{Root: root, Verify: "later"}); code(err) != api.CodeBadRequest {
		t.Errorf("an unknown way: %v, want %s", err, api.CodeBadRequest)
	}
}

// Names of one inode that differ were listed before and after it became another file:
// each comes back as it was listed, and those that are alike are one file again.
func TestRestoreOfAnInodeUsedAgain(t *testing.T) {
	at := time.Date(2024, 2, 29, 12, 34, 56, 0, time.UTC)
	entry := func(name string, n int, size int64, at time.Time) *snapshot.DirEntry {
		e := entryOf(name, snapshot.EntryTypeFile, n, size)
		e.UserID, e.GroupID, e.ModTime = uint32(os.Getuid()), uint32(os.Getgid()), kopiafs.UTCTimestampFromTime(at)
		return e
	}
	kept, names := extras{}, []string{"a", "b", "c", "d", "e"}
	for _, name := range names {
		kept.Entries = append(kept.Entries, extra{Name: name, Inode: "7"})
	}
	raw, err := kept.encode()
	must(t, err)
	s := &stored{objects: map[string][]byte{
		storedID(1): manifestOf(
			entry("a", 9, 4, at), entry("b", 9, 4, at), entry("c", 8, 4, at), entry("d", 8, 4, at), entry("e", 8, 4, at.Add(1)),
			entry(extrasName, 3, 0, at),
		),
		storedID(3): raw, storedID(8): []byte("FOUR"), storedID(9): []byte("four"),
	}}
	a := newArena(t)
	root := api.RootEntry{Mode: 0o755, UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), ModTime: at}
	must(t, a.restore(t, s, api.RestoreRequest{Root: root, DeleteExtra: true, Verify: api.VerifyAfter}))
	want := map[string]string{"a": "four", "b": "four", "c": "FOUR", "d": "FOUR", "e": "FOUR"}
	of := map[string]os.FileInfo{}
	for _, name := range names {
		file := filepath.Join(a.base, "volumes", "data", "target", name)
		content, err := os.ReadFile(file)
		must(t, err)
		if string(content) != want[name] {
			t.Errorf("%s holds %q, want %q", name, content, want[name])
		}
		of[name], err = os.Stat(file)
		must(t, err)
	}
	for pair, want := range map[[2]string]bool{{"a", "b"}: true, {"c", "d"}: true, {"a", "c"}: false, {"c", "e"}: false} {
		if got := os.SameFile(of[pair[0]], of[pair[1]]); got != want {
			t.Errorf("%s and %s are one file: %v, want %v", pair[0], pair[1], got, want)
		}
	}
}

// More paths than are remembered may each lack what some do.
func TestNotKeptOfMany(t *testing.T) {
	n := notKept{all: &set{most: 2}}
	for _, path := range []string{"one", "two"} {
		n.add("owner", path)
	}
	if !n.has("owner", "two") || n.has("owner", "three") {
		t.Error("it does not know which two")
	}
	n.add("owner", "three")
	if !n.has("owner", "three") || n.has("mode", "three") {
		t.Error("the third one is taken for one that was kept, or was told of another kind")
	}
}

// keepTime changes a file and leaves its time as it was.
func keepTime(file string, at time.Time, change func(string) error) error {
	return errors.Join(change(file), os.Chtimes(file, at, at))
}

// relink lets a link lead elsewhere, with its time as it was.
func relink(link, to string, at time.Time) error {
	spec, err := unix.TimeToTimespec(at)
	next := link + ".next"
	return errors.Join(err, os.Symlink(to, next), unix.UtimesNanoAt(unix.AT_FDCWD, next, []unix.Timespec{spec, spec}, unix.AT_SYMLINK_NOFOLLOW),
		os.Rename(next, link), os.Chtimes(filepath.Dir(link), at, at))
}
