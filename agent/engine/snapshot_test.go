// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	kopiafs "github.com/kopia/kopia/fs"
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
