// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	kopiafs "github.com/kopia/kopia/fs"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// testVolume makes volumes/data and opens it; what lies beside it must never be read.
func testVolume(t *testing.T) (dir string, s *source) {
	t.Helper()
	base := t.TempDir()
	dir = filepath.Join(base, "volumes", "data")
	must(t, os.MkdirAll(dir, 0o755))
	must(t, os.MkdirAll(filepath.Join(base, "outside"), 0o755))
	must(t, os.WriteFile(filepath.Join(base, "outside", "f"), []byte("outside"), 0o600))
	volume, err := openVolume(filepath.Join(base, "volumes"), "data")
	must(t, err)
	t.Cleanup(func() { volume.Close() })
	return dir, newSource(volume, newThrottle(t.Context(), 0))
}

func code(err error) api.Code {
	var p *api.Problem
	if errors.As(err, &p) {
		return p.Code
	}
	return ""
}

func TestOpenVolume(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "data"), 0o755))
	for name, want := range map[string]api.Code{
		"data": "", "other": api.CodeUnknownVolume, "": api.CodeUnknownVolume, ".": api.CodeUnknownVolume,
		"..": api.CodeUnknownVolume, "data/x": api.CodeUnknownVolume, "../" + filepath.Base(dir): api.CodeUnknownVolume,
	} {
		volume, err := openVolume(dir, name)
		if code(err) != want || (err == nil) != (want == "") {
			t.Errorf("volume %q: %v, want code %q", name, err, want)
		}
		if err == nil {
			volume.Close()
		}
	}
}

func TestSourcePaths(t *testing.T) {
	dir, s := testVolume(t)
	must(t, os.MkdirAll(filepath.Join(dir, "a", "b"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "a", "f"), nil, 0o644))
	must(t, os.Symlink("a", filepath.Join(dir, "in")))
	must(t, os.Symlink("../../outside", filepath.Join(dir, "out")))
	must(t, syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o644))
	for path, want := range map[string]api.Code{
		"/": "", "/a": "", "/a/b": "", "/a/f": "",
		"/lost": api.CodePathNotFound, "/a/f/x": api.CodePathNotFound,
		"": api.CodePathRefused, "a": api.CodePathRefused, "/a/": api.CodePathRefused, "/a/../a": api.CodePathRefused,
		"/..": api.CodePathRefused, "../outside": api.CodePathRefused, "/in": api.CodePathRefused, "/in/b": api.CodePathRefused,
		"/out": api.CodePathRefused, "/out/f": api.CodePathRefused, "/pipe": api.CodePathRefused,
	} {
		if _, err := s.entry(path); code(err) != want || (err == nil) != (want == "") {
			t.Errorf("path %q: %v, want code %q", path, err, want)
		}
	}
}

// list reads a directory as Kopia does.
func list(t *testing.T, d kopiafs.Entry) map[string]kopiafs.Entry {
	t.Helper()
	entries, err := kopiafs.GetAllEntries(t.Context(), d.(kopiafs.Directory))
	must(t, err)
	out := map[string]kopiafs.Entry{}
	for _, e := range entries {
		out[e.Name()] = e
	}
	return out
}

func TestSourceShowsWhatHasContent(t *testing.T) {
	dir, s := testVolume(t)
	for _, name := range []string{"plain", "x.kopia-entry", "\xff", ".kopiaignore"} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(name), 0o640))
	}
	must(t, os.MkdirAll(filepath.Join(dir, "sub", lostAndFound), 0o755))
	must(t, os.Mkdir(filepath.Join(dir, "dir.kopia-entry"), 0o755))
	must(t, os.Symlink("/nowhere", filepath.Join(dir, "link")))
	must(t, syscall.Mkfifo(filepath.Join(dir, "sub", "pipe"), 0o644))
	socket, err := net.Listen("unix", filepath.Join(dir, "socket"))
	must(t, err)
	defer socket.Close()
	var excluded []string
	if os.Getuid() == 0 {
		must(t, os.Mkdir(filepath.Join(dir, lostAndFound), 0o700))
		excluded = []string{"/" + lostAndFound}
	}
	root, err := s.entry("/")
	must(t, err)
	entries := list(t, root)
	want := []string{extrasName, ".kopiaignore", encodeName("\xff"), "dir.kopia-entry", "link", "plain", "sub", "x.kopia-entry"}
	slices.Sort(want)
	if got := slices.Sorted(maps.Keys(entries)); !slices.Equal(got, want) {
		t.Fatalf("entries %q, want %q", got, want)
	}
	if got := slices.Collect(maps.Keys(list(t, entries["sub"]))); !slices.Equal(slices.Sorted(slices.Values(got)), []string{extrasName, lostAndFound}) {
		t.Errorf("sub has %q", got)
	}
	file := entries["x.kopia-entry"].(kopiafs.File)
	reader, err := file.Open(t.Context())
	must(t, err)
	content, err := io.ReadAll(reader)
	must(t, errors.Join(err, reader.Close()))
	if string(content) != "x.kopia-entry" || file.Size() != 13 || file.Mode() != 0o640 {
		t.Errorf("file reads %q, size %d, mode %v", content, file.Size(), file.Mode())
	}
	if target, err := entries["link"].(kopiafs.Symlink).Readlink(t.Context()); err != nil || target != "/nowhere" {
		t.Errorf("link to %q, %v", target, err)
	}
	child, err := root.(kopiafs.Directory).Child(t.Context(), encodeName("\xff"))
	if err != nil || child.Size() != 1 {
		t.Errorf("child by its stored name: %v, %v", child, err)
	}
	if _, err := root.(kopiafs.Directory).Child(t.Context(), "lost"); !errors.Is(err, kopiafs.ErrEntryNotFound) {
		t.Errorf("child that is not there: %v", err)
	}
	if got := firstOf(s.excluded); !slices.Equal(got, excluded) {
		t.Errorf("left out %q, want %q", got, excluded)
	}
}

// What an application changes while its volume is read does not lead out of it.
func TestSourceStaysInTheVolume(t *testing.T) {
	dir, s := testVolume(t)
	sub, file := filepath.Join(dir, "sub"), filepath.Join(dir, "f")
	must(t, os.Mkdir(sub, 0o755))
	must(t, os.WriteFile(filepath.Join(sub, "f"), []byte("inside"), 0o644))
	must(t, os.WriteFile(file, []byte("inside"), 0o644))
	root, err := s.entry("/")
	must(t, err)
	entries := list(t, root)
	below := list(t, entries["sub"])

	must(t, os.RemoveAll(sub))
	must(t, os.Symlink("../../outside", sub))
	must(t, os.Remove(file))
	must(t, syscall.Mkfifo(file, 0o644))
	for name, open := range map[string]func(context.Context) error{
		"a directory that became a link": func(ctx context.Context) error {
			i, err := entries["sub"].(kopiafs.Directory).Iterate(ctx)
			if err == nil {
				i.Close()
			}
			return err
		},
		"a file below it": func(ctx context.Context) error {
			r, err := below["f"].(kopiafs.File).Open(ctx)
			if err == nil {
				r.Close()
			}
			return err
		},
		"a file that became a pipe": func(ctx context.Context) error {
			r, err := entries["f"].(kopiafs.File).Open(ctx)
			if err == nil {
				r.Close()
			}
			return err
		},
	} {
		if err := open(t.Context()); err == nil {
			t.Errorf("%s is read", name)
		}
	}
}

func TestFirstOfIsShort(t *testing.T) {
	var all []string
	for i := range 25 {
		all = append(all, strings.Repeat("x", i+1))
	}
	if got := firstOf(all); len(got) != namedPaths+1 || got[namedPaths] != "and 15 more" {
		t.Errorf("first ones %q", got)
	}
}
