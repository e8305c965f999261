// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/kopia/kopia/fs/localfs"
	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/compression"
	"github.com/kopia/kopia/snapshot"
	"github.com/kopia/kopia/snapshot/policy"
	"github.com/kopia/kopia/snapshot/upload"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

const (
	// checkpointInterval bounds what a killed snapshot has to send again.
	checkpointInterval = 5 * time.Minute
	// parallelUploads: two keep two cores busy; more costs memory.
	parallelUploads = 2
	// defaultCompression is the cheapest that still halves most databases.
	defaultCompression = "zstd-fastest"
	// namedPaths is how many paths an error lists.
	namedPaths = 10
	// lostAndFound is at the root of every ext4 volume, root's alone, and holds nothing of the application's.
	lostAndFound = "lost+found"
)

// compressions that Kopia can both write and read. It lists more than it can
// write: a name outside this list may end in an empty backup.
var compressions = []string{
	"none", "zstd-fastest", "zstd", "zstd-better-compression", "s2-default", "s2-better",
	"s2-parallel-4", "s2-parallel-8", "gzip", "gzip-best-speed", "gzip-best-compression",
	"pgzip", "pgzip-best-speed", "pgzip-best-compression",
}

func snapshotVolume(ctx context.Context, conn *connection, req api.StartRequest, env Env, p *progress) (*api.Result, error) {
	r := req.Snapshot
	source, err := resolveSource(env.VolumesDir, r.Volume, r.Path)
	if err != nil {
		return nil, err
	}
	pol, err := snapshotPolicy(*r, isLostAndFoundToSkip(source, r.Path))
	if err != nil {
		return nil, err
	}
	root, err := localfs.NewEntry(source)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", r.Path, err)
	}
	defer root.Close()

	si := snapshot.SourceInfo{UserName: conn.creds.Username, Host: conn.creds.Hostname, Path: r.SourcePath}
	started := env.Now()
	var man *snapshot.Manifest
	err = conn.write(ctx, "snapshot", func(n int64) { p.uploaded.Add(n) }, func(ctx context.Context, w repo.RepositoryWriter) error {
		previous, err := snapshot.FindPreviousManifests(ctx, w, si, nil)
		if err != nil {
			return fmt.Errorf("look for the previous snapshot: %w", err)
		}
		u := upload.NewUploader(w)
		u.Progress = p
		u.ParallelUploads = parallelUploads
		u.CheckpointInterval = checkpointInterval
		// Kopia looks at this, not at the context.
		stop := context.AfterFunc(ctx, u.Cancel)
		defer stop()

		tree := policy.BuildTree(map[string]*policy.Policy{".": pol}, policy.DefaultPolicy)
		if man, err = u.Upload(ctx, storable(root), tree, si, previous...); err != nil {
			return fmt.Errorf("upload: %w", err)
		}
		if err := verdict(ctx, man, *r, previous); err != nil {
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
	return &api.Result{Snapshot: describe(man, p, started, env.Now())}, nil
}

// resolveSource finds a path of a volume without following a link anywhere: what
// is backed up is what the path says, and it is inside the volume.
func resolveSource(volumesDir, volume, inside string) (string, error) {
	if volume == "" || strings.ContainsAny(volume, "/\x00") || volume == "." || volume == ".." {
		return "", &api.Problem{Code: api.CodeUnknownVolume, Title: fmt.Sprintf("open volume: %q is not a volume's name", volume)}
	}
	if !path.IsAbs(inside) || path.Clean(inside) != inside {
		return "", &api.Problem{Code: api.CodePathRefused, Title: fmt.Sprintf("open path: %q is not absolute and clean", inside)}
	}
	base := filepath.Join(volumesDir, volume)
	if _, err := os.Lstat(base); errors.Is(err, fs.ErrNotExist) {
		return "", &api.Problem{
			Code:  api.CodeUnknownVolume,
			Title: fmt.Sprintf("open volume: %q is not mirrored into this agent", volume),
			Hint:  "the pod's annotation kopia.kanister.io/status lists the volumes and why others were skipped",
		}
	}
	root, err := os.OpenRoot(base)
	if err != nil {
		return "", fmt.Errorf("open volume %s: %w", volume, err)
	}
	defer root.Close()
	walked := "."
	for _, name := range strings.Split(strings.Trim(inside, "/"), "/") {
		if name == "" {
			continue
		}
		walked = path.Join(walked, name)
		info, err := root.Lstat(walked)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return "", &api.Problem{Code: api.CodePathNotFound, Title: fmt.Sprintf("open path: /%s does not exist on volume %s", walked, volume)}
		case err != nil:
			return "", fmt.Errorf("open /%s of volume %s: %w", walked, volume, err)
		case info.Mode()&fs.ModeSymlink != 0:
			return "", &api.Problem{
				Code:  api.CodePathRefused,
				Title: fmt.Sprintf("open path: /%s of volume %s is a symbolic link", walked, volume),
				Hint:  "name the directory it points to",
			}
		}
	}
	return filepath.Join(base, filepath.FromSlash(inside)), nil
}

// isLostAndFoundToSkip says whether the source is a volume's root with root's own lost+found in it.
func isLostAndFoundToSkip(source, inside string) bool {
	if inside != "/" {
		return false
	}
	info, err := os.Lstat(filepath.Join(source, lostAndFound))
	if err != nil || !info.IsDir() {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && stat.Uid == 0
}

// snapshotPolicy is the whole policy: nothing is read from the repository or from
// the data, and nothing but lost+found is ever left out.
func snapshotPolicy(r api.SnapshotRequest, skipLostAndFound bool) (*policy.Policy, error) {
	name := r.Compression
	if name == "" {
		name = defaultCompression
	}
	if !slices.Contains(compressions, name) {
		return nil, &api.Problem{
			Code:  api.CodeBadRequest,
			Title: fmt.Sprintf("take snapshot: compression %q is not one of %s", name, strings.Join(compressions, ", ")),
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
	if skipLostAndFound {
		pol.FilesPolicy.IgnoreRules = []string{"/" + lostAndFound}
	}
	return pol, nil
}

// verdict says whether what Kopia uploaded is a backup. That Upload returned no
// error proves nothing.
func verdict(ctx context.Context, man *snapshot.Manifest, r api.SnapshotRequest, previous []*snapshot.Manifest) error {
	if ctx.Err() != nil || man.IncompleteReason == upload.IncompleteReasonCanceled {
		return &api.Problem{Code: api.CodeCancelled, Title: "take snapshot: cancelled; nothing was saved"}
	}
	if man.IncompleteReason != "" {
		return fmt.Errorf("take snapshot: incomplete: %s", man.IncompleteReason)
	}
	if man.RootEntry == nil {
		return errors.New("take snapshot: it has no root")
	}
	summary := man.RootEntry.DirSummary
	var failed []string
	if summary != nil {
		for _, e := range summary.FailedEntries {
			failed = append(failed, e.EntryPath+": "+e.Error)
		}
	}
	bad := int(man.Stats.ErrorCount)
	if summary != nil {
		bad = max(bad, summary.FatalErrorCount)
	}
	if !r.AllowUnreadable {
		bad += int(man.Stats.IgnoredErrorCount)
	}
	if bad > 0 {
		return &api.Problem{
			Code:    api.CodeUnreadable,
			Title:   fmt.Sprintf("take snapshot: %d entries could not be read by uid %d; nothing was saved", bad, os.Getuid()),
			Details: failed[:min(len(failed), namedPaths)],
			Hint:    "let the agent run as the owner: annotate the pod with kopia.kanister.io/run-as: \"<uid>\"",
		}
	}
	if files(man) == 0 && !r.AllowEmpty {
		for _, p := range previous {
			if p.IncompleteReason == "" && files(p) > 0 {
				return &api.Problem{
					Code:  api.CodeEmpty,
					Title: fmt.Sprintf("take snapshot: %s has no files, but had %d at the previous snapshot; nothing was saved", r.Path, files(p)),
				}
			}
		}
	}
	return nil
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

func describe(man *snapshot.Manifest, p *progress, started, ended time.Time) *api.SnapshotResult {
	root := man.RootEntry
	result := &api.SnapshotResult{
		ID: string(man.ID), RootObject: root.ObjectID.String(),
		Root: api.RootEntry{
			Name: root.Name, File: root.Type == snapshot.EntryTypeFile, Mode: uint32(root.Permissions),
			UID: root.UserID, GID: root.GroupID, ModTime: root.ModTime.ToTime().UTC(),
		},
		Files: files(man), Bytes: root.FileSize,
		NewBytes: p.uploaded.Load(), CachedFiles: p.cachedFiles.Load(),
		Start: started.UTC(), End: ended.UTC(),
	}
	if result.Root.File {
		result.Root.Size = root.FileSize
	}
	if s := root.DirSummary; s != nil {
		result.Dirs, result.Bytes = s.TotalDirCount, s.TotalFileSize
		for _, e := range s.FailedEntries {
			result.Unreadable = append(result.Unreadable, e.EntryPath)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	result.Excluded = append(result.Excluded, p.excluded...)
	return result
}
