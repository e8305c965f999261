// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	kopiafs "github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/blob/filesystem"
	"github.com/kopia/kopia/snapshot"
	"github.com/kopia/kopia/snapshot/policy"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

// aRepository makes a repository in a folder, and opens it by any clock.
func aRepository(t *testing.T) (open func(now func() time.Time) repo.Repository) {
	t.Helper()
	const password = "secret"
	dir, config := t.TempDir(), filepath.Join(t.TempDir(), "repository.config")
	st, err := filesystem.New(t.Context(), &filesystem.Options{Path: dir}, true)
	must(t, err)
	must(t, repo.Initialize(t.Context(), st, &repo.NewRepositoryOptions{}, password))
	must(t, repo.Connect(t.Context(), config, st, password, &repo.ConnectOptions{}))
	return func(now func() time.Time) repo.Repository {
		rep, err := repo.Open(t.Context(), config, password, &repo.Options{TimeNowFunc: now})
		must(t, err)
		t.Cleanup(func() { must(t, rep.Close(context.Background())) })
		return rep
	}
}

// meanwhile is a directory with which something happens after it was listed, before
// what it holds is read.
type meanwhile struct {
	kopiafs.Directory
	listed func(entries []kopiafs.Entry)
}

func (d meanwhile) Iterate(ctx context.Context) (kopiafs.DirectoryIterator, error) {
	entries, err := kopiafs.GetAllEntries(ctx, d.Directory)
	d.listed(entries)
	return kopiafs.StaticIterator(entries, err), nil
}

// opened is one that something happens with when it is open, before it is listed.
type opened struct {
	kopiafs.Directory
	now func()
}

func (d opened) Iterate(ctx context.Context) (kopiafs.DirectoryIterator, error) {
	i, err := d.Directory.Iterate(ctx)
	d.now()
	return i, err
}

// What vanishes under the reader is counted and fails nothing, what is written to is
// named; beside as many of either, one entry that is there and cannot be read fails all.
func TestSnapshotOfWhatMoves(t *testing.T) {
	for name, c := range map[string]struct {
		readable, allowed bool
		want              api.Code
	}{
		"all of it can be read": {readable: true},
		"but for one":           {want: api.CodeUnreadable},
		"but for one, allowed":  {allowed: true},
	} {
		t.Run(name, func(t *testing.T) {
			dir, s := testVolume(t)
			in := func(name string) string { return filepath.Join(dir, name) }
			for _, name := range []string{"file", "kept", "other", "rewritten"} {
				must(t, os.WriteFile(in(name), []byte(name), 0o644))
			}
			must(t, os.Symlink("kept", in("link")))
			for _, name := range []string{"closed", "open", "replaced"} {
				must(t, os.Mkdir(in(name), 0o755))
				must(t, os.WriteFile(in(name+"/below"), []byte(name), 0o644))
			}
			root, err := s.entry("/")
			must(t, err)
			source := meanwhile{root.(kopiafs.Directory), func(entries []kopiafs.Entry) {
				for i, e := range entries {
					switch e.Name() {
					case "open":
						entries[i] = opened{e.(kopiafs.Directory), func() { must(t, os.RemoveAll(in("open"))) }}
					case "replaced":
						entries[i] = meanwhile{e.(kopiafs.Directory), func([]kopiafs.Entry) {
							must(t, os.RemoveAll(in("replaced")))
							must(t, os.WriteFile(in("replaced"), nil, 0o644))
						}}
					}
				}
				for _, name := range []string{"file", "link", "closed"} {
					must(t, os.RemoveAll(in(name)))
				}
				if !c.readable {
					must(t, os.Remove(in("other")))
					must(t, syscall.Mkfifo(in("other"), 0o644))
				}
				must(t, os.WriteFile(in("rewritten"), []byte("written anew"), 0o644))
			}}

			r := api.SnapshotRequest{Path: "/", AllowUnreadable: c.allowed}
			pol, err := snapshotPolicy(r)
			must(t, err)
			// As a large file: it is opened once a part, and counts once.
			part := policy.OptionalInt64(2)
			pol.UploadPolicy.ParallelUploadAboveSize = &part
			p := newProgress(time.Now, func(api.Progress) {})
			var man *snapshot.Manifest
			must(t, repo.WriteSession(t.Context(), aRepository(t)(time.Now), repo.WriteSessionOptions{}, func(ctx context.Context, w repo.RepositoryWriter) (err error) {
				u := newUploader(w, r, Env{}, p)
				tree := policy.BuildTree(map[string]*policy.Policy{".": pol}, policy.DefaultPolicy)
				man, err = u.Upload(ctx, source, tree, snapshot.SourceInfo{UserName: "u", Host: "h", Path: "/"})
				return err
			}))
			err = verdict(t.Context(), man, r, p)
			if code(err) != c.want || (err != nil) != (c.want != "") {
				t.Fatalf("verdict %v, want code %q", err, c.want)
			}
			if err != nil {
				if !strings.Contains(err.Error(), "1 entries") || !strings.Contains(err.Error(), "other") {
					t.Errorf("verdict %q, want one entry, and its name", err)
				}
				return
			}
			result := describe(man, p, s, time.Now(), time.Now())
			// The file, the link, both directories, and what was below the replaced one.
			if result.Vanished != 5 || !slices.Equal(result.Changed, []string{"/rewritten"}) {
				t.Errorf("%d vanished and %q changed, want 5 and the one that was rewritten", result.Vanished, result.Changed)
			}
			var unreadable []string
			files := int64(3)
			if !c.readable {
				unreadable, files = []string{"other"}, 2
			}
			if !slices.Equal(result.Unreadable, unreadable) || result.Files != files {
				t.Errorf("%d files, unreadable %q, want %d and %q", result.Files, result.Unreadable, files, unreadable)
			}
		})
	}
}

// A snapshot that cannot be one any more is given up when an error has its paths; where
// what cannot be read may be left out, all of it is read.
func TestSnapshotGivesUp(t *testing.T) {
	const bad, good = 5 * namedPaths, 200
	rep := aRepository(t)(time.Now)
	for name, allowed := range map[string]bool{"must be readable": false, "may be left out": true} {
		t.Run(name, func(t *testing.T) {
			dir, s := testVolume(t)
			for i := range bad + good {
				must(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("%03d", i)), []byte("x"), 0o644))
			}
			root, err := s.entry("/")
			must(t, err)
			source := meanwhile{root.(kopiafs.Directory), func(entries []kopiafs.Entry) {
				for _, e := range entries[:bad] {
					file := filepath.Join(dir, e.Name())
					must(t, os.Remove(file))
					must(t, syscall.Mkfifo(file, 0o644))
				}
			}}
			r := api.SnapshotRequest{Path: "/", AllowUnreadable: allowed}
			pol, err := snapshotPolicy(r)
			must(t, err)
			p := newProgress(time.Now, func(api.Progress) {})
			var man *snapshot.Manifest
			must(t, repo.WriteSession(t.Context(), rep, repo.WriteSessionOptions{}, func(ctx context.Context, w repo.RepositoryWriter) (err error) {
				man, err = newUploader(w, r, Env{}, p).Upload(ctx, source, policy.BuildTree(map[string]*policy.Policy{".": pol}, policy.DefaultPolicy),
					snapshot.SourceInfo{UserName: "u", Host: "h", Path: "/"})
				return err
			}))
			err = verdict(t.Context(), man, r, p)
			switch {
			case allowed && (err != nil || p.unreadable.count != bad || p.bytes.Load() != good):
				t.Errorf("verdict %v, %d files read and %d not, want %d and %d", err, p.bytes.Load(), p.unreadable.count, good, bad)
			case allowed:
			case code(err) != api.CodeUnreadable || !strings.Contains(err.Error(), "at least 1") || !strings.Contains(err.Error(), "given up"):
				t.Errorf("verdict %v, want that it was given up for what cannot be read", err)
			case p.failed.count < namedPaths || p.failed.count > namedPaths+parallelUploads || p.bytes.Load() > 0:
				t.Errorf("%d entries were found unreadable and %d files were read, want the first %d, and no more", p.failed.count, p.bytes.Load(), namedPaths)
			}
		})
	}
}

// What is gone when the list of its directory comes to it is counted too.
func TestSourceCountsWhatWasListedAndIsGone(t *testing.T) {
	dir, s := testVolume(t)
	for _, name := range []string{"a", "b", "c", "d"} {
		must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o644))
	}
	root, err := s.entry("/")
	must(t, err)
	i, err := root.(kopiafs.Directory).Iterate(t.Context())
	must(t, err)
	defer i.Close()
	var names []string
	for {
		e, err := i.Next(t.Context())
		must(t, err)
		if e == nil {
			break
		}
		if names = append(names, e.Name()); len(names) == 1 {
			must(t, os.Remove(filepath.Join(dir, "b")))
			must(t, os.Remove(filepath.Join(dir, "c")))
		}
	}
	if !slices.Equal(names, []string{"a", "d"}) || s.vanished != 2 {
		t.Errorf("entries %q and %d vanished, want a, d and two", names, s.vanished)
	}
}
