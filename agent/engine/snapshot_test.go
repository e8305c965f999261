// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	kopiafs "github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"
	"github.com/kopia/kopia/snapshot/upload"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/operation"
)

// An upload that returned no error is a backup only if nothing speaks against it.
func TestVerdict(t *testing.T) {
	directory := func(files int64, failed ...*kopiafs.EntryWithError) *snapshot.DirEntry {
		return &snapshot.DirEntry{Type: snapshot.EntryTypeDirectory, DirSummary: &kopiafs.DirectorySummary{
			TotalFileCount: files, FatalErrorCount: len(failed), FailedEntries: failed,
		}}
	}
	broken := &kopiafs.EntryWithError{EntryPath: "dir/f", Error: "permission denied"}
	full := []*snapshot.Manifest{{RootEntry: &snapshot.DirEntry{Type: snapshot.EntryTypeFile}}}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx      context.Context
		man      snapshot.Manifest
		req      api.SnapshotRequest
		previous []*snapshot.Manifest
		src      *source
		vanished int64
		gaveUp   bool
		fails    bool
		want     api.Code
		text     string
	}{
		"good":                  {man: snapshot.Manifest{RootEntry: directory(3)}, previous: full},
		"a file":                {man: snapshot.Manifest{RootEntry: &snapshot.DirEntry{Type: snapshot.EntryTypeFile}}, previous: full},
		"empty, and never full": {man: snapshot.Manifest{RootEntry: directory(0)}},
		"empty, and was full":   {man: snapshot.Manifest{RootEntry: directory(0)}, previous: full, fails: true, want: api.CodeEmpty, text: "had up to 1"},
		"only attributes, and was full": {
			man: snapshot.Manifest{RootEntry: directory(2)}, previous: full, fails: true, want: api.CodeEmpty,
			src: &source{recorded: recorded{files: 2}},
		},
		"empty, and may be": {man: snapshot.Manifest{RootEntry: directory(0)}, previous: full, req: api.SnapshotRequest{AllowEmpty: true}},
		"empty after a checkpoint": {
			man: snapshot.Manifest{RootEntry: directory(0)}, previous: []*snapshot.Manifest{{RootEntry: full[0].RootEntry, IncompleteReason: "checkpoint"}},
		},
		"context ended": {ctx: cancelled, man: snapshot.Manifest{RootEntry: directory(3)}, fails: true, want: api.CodeCancelled},
		"ended by Kopia": {
			man:   snapshot.Manifest{RootEntry: directory(3), IncompleteReason: upload.IncompleteReasonCanceled},
			fails: true, text: "could not be saved",
		},
		"given up for what cannot be read": {
			man: snapshot.Manifest{RootEntry: directory(3, broken), IncompleteReason: upload.IncompleteReasonCanceled}, gaveUp: true,
			fails: true, want: api.CodeUnreadable, text: "at least 1 entries",
		},
		"given up, and cancelled": {
			ctx: cancelled, man: snapshot.Manifest{RootEntry: directory(3, broken), IncompleteReason: upload.IncompleteReasonCanceled}, gaveUp: true,
			fails: true, want: api.CodeCancelled,
		},
		"incomplete": {man: snapshot.Manifest{RootEntry: directory(3), IncompleteReason: "limit"}, fails: true, text: "limit"},
		"no root":    {man: snapshot.Manifest{}, fails: true, text: "no root"},
		"failed":     {man: snapshot.Manifest{RootEntry: directory(3, broken)}, fails: true, want: api.CodeUnreadable, text: "dir/f: permission denied"},
		"gone meanwhile": {
			man: snapshot.Manifest{RootEntry: directory(3, broken), Stats: snapshot.Stats{ErrorCount: 1}}, vanished: 1,
		},
		"gone meanwhile, and one failed": {
			man: snapshot.Manifest{RootEntry: directory(3, broken), Stats: snapshot.Stats{ErrorCount: 2}}, vanished: 1,
			fails: true, want: api.CodeUnreadable, text: "1 entries",
		},
		"only stats":  {man: snapshot.Manifest{RootEntry: directory(3), Stats: snapshot.Stats{ErrorCount: 2}}, fails: true, want: api.CodeUnreadable, text: "2 entries"},
		"ignored":     {man: snapshot.Manifest{RootEntry: directory(3), Stats: snapshot.Stats{IgnoredErrorCount: 1}}, fails: true, want: api.CodeUnreadable},
		"ignored, ok": {man: snapshot.Manifest{RootEntry: directory(3), Stats: snapshot.Stats{IgnoredErrorCount: 1}}, req: api.SnapshotRequest{AllowUnreadable: true}},
	} {
		t.Run(name, func(t *testing.T) {
			if c.ctx == nil {
				c.ctx = t.Context()
			}
			if c.src == nil {
				c.src = &source{}
			}
			c.req.Path = "/"
			p := newProgress(time.Now, func(api.Progress) {})
			p.vanished.Store(c.vanished)
			p.gaveUp.Store(c.gaveUp)
			if c.man.RootEntry != nil && c.man.RootEntry.DirSummary != nil {
				for _, e := range c.man.RootEntry.DirSummary.FailedEntries {
					p.Error(e.EntryPath, errors.New(e.Error), false)
				}
			}
			err := verdict(c.ctx, &c.man, c.req, p)
			if err == nil {
				err = notSuddenlyEmpty(c.ctx, nil, &c.man, c.req, c.src, c.previous)
			}
			switch {
			case (err != nil) != c.fails || code(err) != c.want:
				t.Errorf("verdict %v, want failure %t with code %q", err, c.fails, c.want)
			case err != nil && !strings.Contains(err.Error(), c.text):
				t.Errorf("verdict %q, want %q in it", err, c.text)
			}
		})
	}
}

// inRepository is a connection to a repository of its own. onRead is called when a
// snapshot reads there what the previous one had.
func inRepository(t *testing.T, onRead func()) *connection {
	t.Helper()
	rep := watched{aRepository(t)(time.Now), onRead}
	return &connection{rep: rep, objects: rep, creds: &api.Credentials{Username: "u", Hostname: "h"}}
}

type watched struct {
	repo.Repository
	onRead func()
}

func (w watched) NewWriter(ctx context.Context, o repo.WriteSessionOptions) (context.Context, repo.RepositoryWriter, error) {
	ctx, writer, err := w.Repository.NewWriter(ctx, o)
	return ctx, watchedWriter{writer, w.onRead}, err
}

type watchedWriter struct {
	repo.RepositoryWriter
	onRead func()
}

func (w watchedWriter) OpenObject(ctx context.Context, id object.ID) (object.Reader, error) {
	w.onRead()
	return w.RepositoryWriter.OpenObject(ctx, id)
}

// snapshots takes one of volumes/data below base, and returns what it counted too.
func snapshots(ctx context.Context, conn *connection, base string, r api.SnapshotRequest) (*progress, *api.Result, error) {
	p := newProgress(time.Now, func(api.Progress) {})
	r.Volume, r.Path, r.SourcePath = "data", "/", "/"
	result, err := snapshotVolume(ctx, conn, api.StartRequest{Kind: api.KindSnapshot, Snapshot: &r},
		Env{VolumesDir: filepath.Join(base, "volumes"), Now: time.Now}, p, newThrottle(ctx, 0))
	return p, result, err
}

// Also a snapshot that reads nothing, since nothing has changed, ends when it is cancelled.
func TestSnapshotCancelledWhereNothingIsRead(t *testing.T) {
	const dirs, files = 100, 50
	base := t.TempDir()
	for d := range dirs {
		dir := filepath.Join(base, "volumes", "data", fmt.Sprint(d))
		must(t, os.MkdirAll(dir, 0o755))
		for f := range files {
			must(t, os.WriteFile(filepath.Join(dir, fmt.Sprint(f)), nil, 0o644))
		}
	}
	onRead := func() {}
	conn := inRepository(t, func() { onRead() })
	_, first, err := snapshots(t.Context(), conn, base, api.SnapshotRequest{})
	must(t, err)
	if first.Snapshot.Files != dirs*files {
		t.Fatalf("the first one has %d files, want %d", first.Snapshot.Files, dirs*files)
	}
	ctx, cancel := context.WithCancel(t.Context())
	onRead = cancel // it has begun
	p, _, err := snapshots(ctx, conn, base, api.SnapshotRequest{})
	if code(err) != api.CodeCancelled {
		t.Errorf("error %v, want %s", err, api.CodeCancelled)
	}
	if seen := p.files.Load(); seen > dirs*files/2 {
		t.Errorf("%d of %d files were looked at after it was cancelled", seen, dirs*files)
	}
}

func TestSnapshotPolicy(t *testing.T) {
	for name, want := range map[string]string{"": defaultCompression, "none": "none", "zstd": "zstd"} {
		pol, err := snapshotPolicy(api.SnapshotRequest{Compression: name})
		if err != nil || string(pol.CompressionPolicy.CompressorName) != want {
			t.Errorf("compression %q: %v, want %s", name, err, want)
		}
	}
	// What is read at once is said, not left to the number of the node's processors.
	if pol, err := snapshotPolicy(api.SnapshotRequest{}); err != nil || pol.UploadPolicy.MaxParallelFileReads == nil || *pol.UploadPolicy.MaxParallelFileReads != parallelUploads {
		t.Errorf("policy %+v, %v: want %d files read at once", pol, err, parallelUploads)
	}
	for _, name := range []string{"lz4", "ZSTD", "made-up"} {
		if _, err := snapshotPolicy(api.SnapshotRequest{Compression: name}); code(err) != api.CodeBadRequest {
			t.Errorf("compression %q: %v, want a refusal", name, err)
		}
	}
}

// An agent does not link Kopia, and still refuses an interval that Kopia does not take.
func TestMaxCheckpointInterval(t *testing.T) {
	if operation.MaxCheckpointInterval != upload.DefaultCheckpointInterval {
		t.Errorf("%s is not Kopia's %s", operation.MaxCheckpointInterval, upload.DefaultCheckpointInterval)
	}
}
