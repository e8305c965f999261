// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	kopiafs "github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/compression"
	"github.com/kopia/kopia/snapshot"
	"github.com/kopia/kopia/snapshot/policy"
	"github.com/kopia/kopia/snapshot/upload"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/device"
	"github.com/kanister-kopia/kanister-kopia/agent/operation"
	"github.com/kanister-kopia/kanister-kopia/pkg/ignore"
)

const (
	// parallelUploads: two keep two cores busy; more costs memory.
	parallelUploads = 2
	// defaultCompression is the cheapest that still halves most databases.
	defaultCompression = "zstd-fastest"
)

func snapshotVolume(ctx context.Context, conn *connection, req api.StartRequest, env Env, p *progress, limit *throttle) (*api.Result, error) {
	r := req.Snapshot
	raw, err := findDevice(env.DevicesDir, r.Volume)
	if err != nil {
		return nil, err
	}
	var src *source
	var root kopiafs.Entry
	var xattrs []xattr
	if raw != "" {
		src, root, err = deviceRoot(raw, *r, env.Now(), limit)
	} else {
		var volume *os.Root
		if volume, err = openVolume(env.VolumesDir, r.Volume); err != nil {
			return nil, err
		}
		defer volume.Close()
		src, root, xattrs, err = volumeRoot(ctx, volume, *r, limit)
	}
	if err != nil {
		return nil, err
	}
	pol, err := snapshotPolicy(*r)
	if err != nil {
		return nil, err
	}

	si := snapshot.SourceInfo{UserName: conn.creds.Username, Host: conn.creds.Hostname, Path: r.SourcePath}
	started := env.Now()
	var man *snapshot.Manifest
	err = conn.write(ctx, "snapshot", func(n int64) { p.uploaded.Add(n) }, func(ctx context.Context, w repo.RepositoryWriter) error {
		previous, err := snapshot.FindPreviousManifests(ctx, w, si, nil)
		if err != nil {
			return fmt.Errorf("look for the previous snapshot: %w", err)
		}
		stopEstimate := estimate(ctx, src, root, previous, p)
		defer stopEstimate()
		u := newUploader(w, *r, env, p)
		// Kopia looks at this, not at the context.
		stop := context.AfterFunc(ctx, u.Cancel)
		defer stop()

		tree := policy.BuildTree(map[string]*policy.Policy{".": pol}, policy.DefaultPolicy)
		if man, err = u.Upload(ctx, root, tree, si, previous...); err != nil && ctx.Err() == nil {
			return fmt.Errorf("upload: %w", err)
		}
		if err := verdict(ctx, man, *r, p); err != nil {
			return err
		}
		if err := notSuddenlyEmpty(ctx, w, man, *r, src, previous); err != nil {
			return err
		}
		// Remote write errors are told here and nowhere else.
		if err := w.Flush(ctx); err != nil {
			return fmt.Errorf("flush data: %w", err)
		}
		if len(r.Labels) > 0 {
			man.Tags = map[string]string{}
			for k, v := range r.Labels {
				man.Tags["tag:"+k] = v
			}
		}
		if _, err := snapshot.SaveSnapshot(ctx, w, man); err != nil {
			return fmt.Errorf("save snapshot: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	result := describe(man, p, src, started, env.Now())
	result.Root.Device = raw != ""
	for _, x := range xattrs {
		result.Root.Xattrs = append(result.Root.Xattrs, api.Xattr(x))
	}
	return &api.Result{Snapshot: result}, nil
}

func newUploader(w repo.RepositoryWriter, r api.SnapshotRequest, env Env, p *progress) *upload.Uploader {
	u := upload.NewUploader(w)
	u.Progress = p
	u.ParallelUploads = parallelUploads
	u.CheckpointInterval = cmp.Or(env.CheckpointInterval, operation.DefaultCheckpointInterval)
	if !r.AllowUnreadable {
		p.enough = u.Cancel // it has failed: the rest of a large volume need not be read for that
	}
	return u
}

// volumeRoot finds what is to be read of a volume.
func volumeRoot(ctx context.Context, volume *os.Root, r api.SnapshotRequest, limit *throttle) (*source, kopiafs.Entry, []xattr, error) {
	src := newSource(volume, limit)
	if err := src.only(r.Path, r.Ignore); err != nil {
		return nil, nil, nil, err
	}
	root, err := src.entry(r.Path)
	if err != nil {
		return nil, nil, nil, err
	}
	// Of what cannot be read at its very root, Kopia tells no name.
	if err := readable(ctx, root); err != nil {
		return nil, nil, nil, fmt.Errorf("open %s: %w", r.Path, err)
	}
	xattrs, err := rootXattrs(volume, r.Path, root)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("open %s: %w", r.Path, err)
	}
	return src, root, xattrs, nil
}

// deviceRoot finds what is to be read of a device: all of it, whatever is ignored.
func deviceRoot(where string, r api.SnapshotRequest, now time.Time, limit *throttle) (*source, kopiafs.Entry, error) {
	if r.Path != "/" {
		return nil, nil, &api.Problem{
			Code:  api.CodePathRefused,
			Title: fmt.Sprintf("take snapshot: volume %s is a block device and has no %s", r.Volume, r.Path),
			Hint:  "a device is backed up as a whole: its path is /",
		}
	}
	opened, size, err := device.Open(where, os.O_RDONLY)
	if err != nil {
		return nil, nil, err
	}
	src := &source{limit: limit, root: "."}
	return src, newSourceDevice(src, r.Volume, where, size, now), opened.Close()
}

// rootXattrs reads the attributes of a file that is backed up alone: it has no
// directory to keep them.
func rootXattrs(volume *os.Root, inside string, root kopiafs.Entry) ([]xattr, error) {
	if root.IsDir() {
		return nil, nil
	}
	dir, err := volume.Open(path.Join(".", path.Dir(inside)))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return readXattrs(unopened(dir.Fd(), path.Base(inside)))
}

// estimate tells the size of the whole: a file's, what the previous snapshot had, or
// what a walk beside the upload counts.
func estimate(ctx context.Context, src *source, root kopiafs.Entry, previous []*snapshot.Manifest, p *progress) (stop func()) {
	if !root.IsDir() {
		p.EstimatedDataSize(1, root.Size())
		return func() {}
	}
	for _, man := range previous {
		if man.IncompleteReason == "" && man.RootEntry != nil && man.RootEntry.DirSummary != nil {
			p.EstimatedDataSize(man.RootEntry.DirSummary.TotalFileCount, man.RootEntry.DirSummary.TotalFileSize)
			return func() {}
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		if files, size := src.estimate(ctx); ctx.Err() == nil {
			p.EstimatedDataSize(files, size)
		}
	})
	return func() { cancel(); wg.Wait() }
}

// snapshotPolicy is the whole policy: nothing is read from the repository or from
// the data, and no rule of Kopia's leaves anything out: what is ignored, the source
// does not show, nor keep extras of.
func snapshotPolicy(r api.SnapshotRequest) (*policy.Policy, error) {
	name := r.Compression
	if name == "" {
		name = defaultCompression
	}
	if !slices.Contains(api.Compressions, name) {
		return nil, &api.Problem{
			Code:  api.CodeBadRequest,
			Title: fmt.Sprintf("take snapshot: compression %q is not one of %s", name, strings.Join(api.Compressions, ", ")),
		}
	}
	no := policy.NewOptionalBool(false)
	unreadable := policy.NewOptionalBool(policy.OptionalBool(r.AllowUnreadable))
	parallel := policy.OptionalInt(parallelUploads)
	pol := &policy.Policy{
		FilesPolicy: policy.FilesPolicy{
			NoParentIgnoreRules: true, NoParentDotIgnoreFiles: true,
			IgnoreCacheDirectories: no, OneFileSystem: no,
		},
		ErrorHandlingPolicy: policy.ErrorHandlingPolicy{
			IgnoreFileErrors: unreadable, IgnoreDirectoryErrors: unreadable,
			IgnoreUnknownTypes: policy.NewOptionalBool(true),
		},
		CompressionPolicy: policy.CompressionPolicy{CompressorName: compression.Name(name)},
		UploadPolicy:      policy.UploadPolicy{MaxParallelFileReads: &parallel},
	}
	return pol, nil
}

// errCheckpoint is when Kopia itself ends an upload, and says why in its log alone.
var errCheckpoint = errors.New("take snapshot: what was read so far could not be saved")

// verdict says whether what Kopia uploaded is a backup. That Upload returned no
// error proves nothing.
func verdict(ctx context.Context, man *snapshot.Manifest, r api.SnapshotRequest, p *progress) error {
	if ctx.Err() != nil {
		return &api.Problem{Code: api.CodeCancelled, Title: "take snapshot: cancelled; nothing was saved"}
	}
	gaveUp := p.gaveUp.Load()
	switch {
	case gaveUp: // told below
	case man.IncompleteReason == upload.IncompleteReasonCanceled:
		return errCheckpoint
	case man.IncompleteReason != "":
		return fmt.Errorf("take snapshot: incomplete: %s", man.IncompleteReason)
	}
	if man.RootEntry == nil {
		return errors.New("take snapshot: it has no root")
	}
	// Kopia counts each error either as fatal or as ignored; one of a file that is
	// gone is neither.
	bad := int(man.Stats.ErrorCount)
	if summary := man.RootEntry.DirSummary; summary != nil {
		bad = max(bad, summary.FatalErrorCount)
	}
	if !r.AllowUnreadable {
		bad += int(man.Stats.IgnoredErrorCount)
		bad -= int(p.vanished.Load())
	}
	if bad > 0 || gaveUp {
		title := "take snapshot: %d entries could not be read by uid %d; nothing was saved"
		if gaveUp {
			title = "take snapshot: at least %d entries cannot be read by uid %d; it was given up, and nothing was saved"
		}
		return &api.Problem{
			Code:    api.CodeUnreadable,
			Title:   fmt.Sprintf(title, bad, os.Getuid()),
			Details: p.failed.names(),
			Hint:    "let the agent run as the owner: annotate the pod with kopia.kanister.io/run-as: \"<uid>\"",
		}
	}
	return nil
}

// notSuddenlyEmpty refuses a snapshot without files where the previous one had some:
// most likely the data is not mounted.
func notSuddenlyEmpty(ctx context.Context, rep repo.Repository, man *snapshot.Manifest, r api.SnapshotRequest, src *source, previous []*snapshot.Manifest) error {
	if r.AllowEmpty || files(man)-src.recorded.files > 0 {
		return nil
	}
	for _, p := range previous {
		if p.IncompleteReason != "" || files(p) == 0 {
			continue
		}
		had, err := hasFile(ctx, rep, p.RootEntry, "", src.rules)
		if err != nil {
			return fmt.Errorf("look at the previous snapshot: %w", err)
		}
		if had {
			return &api.Problem{
				Code:  api.CodeEmpty,
				Title: fmt.Sprintf("take snapshot: %s has no files, but had up to %d at the previous snapshot; nothing was saved", r.Path, files(p)),
			}
		}
	}
	return nil
}

// hasFile looks for the first file of a stored tree that was a file on the volume, and
// that the rules leave in: where is the entry's path from the tree's root, "" for it.
func hasFile(ctx context.Context, rep repo.Repository, e *snapshot.DirEntry, where string, rules ignore.Rules) (bool, error) {
	isDir := e.Type == snapshot.EntryTypeDirectory
	switch {
	case where != "" && rules.Ignored(where, isDir):
		return false, nil
	case e.Type == snapshot.EntryTypeFile:
		return e.Name != extrasName, nil
	case !isDir, e.DirSummary != nil && e.DirSummary.TotalFileCount == 0:
		return false, nil
	}
	entries, err := readDirectory(ctx, rep, e)
	if err != nil {
		return false, err
	}
	for _, below := range entries {
		name, err := decodeName(below.Name)
		if err != nil {
			continue // the extras'
		}
		if had, err := hasFile(ctx, rep, below, path.Join(where, name), rules); had || err != nil {
			return had, err
		}
	}
	return false, nil
}

func files(man *snapshot.Manifest) int64 {
	switch {
	case man.RootEntry == nil:
		return 0
	case man.RootEntry.DirSummary != nil:
		return man.RootEntry.DirSummary.TotalFileCount
	case man.RootEntry.Type == snapshot.EntryTypeFile:
		return 1
	default:
		return 0
	}
}

func describe(man *snapshot.Manifest, p *progress, src *source, started, ended time.Time) *api.SnapshotResult {
	root := man.RootEntry
	result := &api.SnapshotResult{
		ID: string(man.ID), RootObject: root.ObjectID.String(),
		Root: api.RootEntry{
			Name: root.Name, File: root.Type == snapshot.EntryTypeFile, Mode: uint32(root.Permissions),
			UID: root.UserID, GID: root.GroupID, ModTime: root.ModTime.ToTime().UTC(),
		},
		Files: files(man) - src.recorded.files, Bytes: root.FileSize,
		NewBytes: p.uploaded.Load(), CachedFiles: p.cachedFiles.Load(), Excluded: firstOf(src.excluded), Ignored: src.ignored.names(),
		Unreadable: p.unreadable.names(),
		Vanished:   src.vanished + p.vanished.Load(), Changed: firstOf(src.changed),
		LinkedNames: src.recorded.linked, SpecialFiles: src.recorded.special, WithAttributes: src.recorded.attributed,
		Start: started.UTC(), End: ended.UTC(),
	}
	if result.Root.File {
		result.Root.Size = root.FileSize
	}
	if s := root.DirSummary; s != nil {
		result.Dirs, result.Bytes = s.TotalDirCount, s.TotalFileSize-src.recorded.bytes
	}
	return result
}
