// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/logging"
	"github.com/kopia/kopia/repo/maintenance"
	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/snapshot"
	"github.com/kopia/kopia/snapshot/snapshotfs"
	"github.com/kopia/kopia/snapshot/snapshotmaintenance"
)

// MaintainOptions of Maintain.
type MaintainOptions struct {
	Config   Config
	StateDir string
	// Full collects the space of deleted backups; else indexes are compacted.
	Full bool
	// VerifyPercent of the files of each source's latest snapshot are read.
	VerifyPercent float64
	Log           *slog.Logger
	Now           func() time.Time
}

// MaintenanceResult is what a maintenance did. It is small: it goes through the
// pod's termination message.
type MaintenanceResult struct {
	Seconds int64 `json:"seconds"`
	// IndexBlobs, Contents and StoredBytes afterwards.
	IndexBlobs  int64 `json:"indexBlobs"`
	Contents    int64 `json:"contents"`
	StoredBytes int64 `json:"storedBytes"`
	// Sources that have backups: each volume, or path of one, that is backed up by itself.
	Sources int64 `json:"sources"`
	// FreedBytes is by how much the storage shrank.
	FreedBytes int64 `json:"freedBytes"`
	// IncompleteCollected are unfinished snapshots that were removed.
	IncompleteCollected int64 `json:"incompleteCollected"`
	// VerifiedFiles of VerifiedSnapshots were read.
	VerifiedSnapshots int64 `json:"verifiedSnapshots"`
	VerifiedFiles     int64 `json:"verifiedFiles"`
}

// Maintain runs one maintenance of the repository, as its owner and with Kopia's full
// safety. The caller sees to it that no other one runs: Kopia's own lock is a file.
// The repository is never made.
func Maintain(ctx context.Context, o MaintainOptions) (result MaintenanceResult, err error) {
	defer func() { err = Options{Config: o.Config}.scrubbed(err) }()
	if o.Config.External != nil {
		return result, errors.New("maintain: an external server is maintained by whoever runs it")
	}
	start := o.Now()
	ctx = logging.WithLogger(ctx, kopiaLogs(o.Log, o.Config.secrets()))
	o.Config.AllowCreate = false
	_, rep, err := openRepository(ctx, o.Config, maintenanceUser, o.StateDir)
	if err != nil {
		return result, err
	}
	defer rep.Close(ctx)
	before, err := storedBytes(ctx, rep)
	if err != nil {
		return result, err
	}
	mode := maintenance.ModeQuick
	if o.Full {
		mode = maintenance.ModeFull
		if result.IncompleteCollected, err = collectIncomplete(ctx, rep, o.Now()); err != nil {
			return result, err
		}
	}
	o.Log.Info("maintenance begins", "mode", mode, "storedBytes", before)
	err = repo.DirectWriteSession(ctx, rep, repo.WriteSessionOptions{Purpose: "maintenance"}, func(ctx context.Context, w repo.DirectRepositoryWriter) error {
		return snapshotmaintenance.Run(ctx, w, mode, false, maintenance.SafetyFull)
	})
	if err != nil {
		return result, fmt.Errorf("%s maintenance: %w", mode, err)
	}
	if err := rep.Refresh(ctx); err != nil {
		return result, fmt.Errorf("read what maintenance left: %w", err)
	}
	if o.VerifyPercent > 0 {
		if err := verify(ctx, rep, o.VerifyPercent, &result); err != nil {
			return result, err
		}
	}
	if result.StoredBytes, err = storedBytes(ctx, rep); err != nil {
		return result, err
	}
	result.FreedBytes = max(0, before-result.StoredBytes)
	indexes, err := rep.IndexBlobs(ctx, false)
	if err != nil {
		return result, fmt.Errorf("count index blobs: %w", err)
	}
	result.IndexBlobs = int64(len(indexes))
	if err := rep.ContentReader().IterateContents(ctx, content.IterateOptions{}, func(content.Info) error {
		result.Contents++
		return nil
	}); err != nil {
		return result, fmt.Errorf("count contents: %w", err)
	}
	sources, err := userSources(ctx, rep)
	if err != nil {
		return result, err
	}
	result.Sources = int64(len(sources))
	result.Seconds = int64(o.Now().Sub(start).Seconds())
	o.Log.Info("maintenance is done", "mode", mode, "result", result)
	return result, nil
}

func storedBytes(ctx context.Context, rep repo.DirectRepository) (total int64, err error) {
	err = rep.BlobReader().ListBlobs(ctx, "", func(b blob.Metadata) error {
		total += b.Length
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("list the storage: %w", err)
	}
	return total, nil
}

// Unfinished snapshots are what an operation that was cut leaves, for the next of its
// source to go on from. Agents may not delete them.
const (
	// incompleteAge is when one goes that a later one of its source has replaced: an
	// operation that still runs makes one every few minutes and needs its last.
	incompleteAge = 24 * time.Hour
	// lastIncompleteAge is when the last one of a source goes.
	lastIncompleteAge = 7 * 24 * time.Hour
)

// collectIncomplete removes unfinished snapshots that nobody will go on from. Ages and
// sources are the server's word (the manifests' times and labels), not the agents'.
func collectIncomplete(ctx context.Context, rep repo.Repository, now time.Time) (int64, error) {
	entries, err := rep.FindManifests(ctx, map[string]string{manifest.TypeLabelKey: snapshot.ManifestType})
	if err != nil {
		return 0, fmt.Errorf("list snapshots: %w", err)
	}
	var incomplete []*manifest.EntryMetadata
	for _, e := range entries {
		var m snapshot.Manifest
		if _, err := rep.GetManifest(ctx, e.ID, &m); err != nil {
			return 0, fmt.Errorf("read snapshot %s: %w", e.ID, err)
		}
		if m.IncompleteReason != "" {
			incomplete = append(incomplete, e)
		}
	}
	gone := forgettable(incomplete, now)
	if len(gone) == 0 {
		return 0, nil
	}
	err = repo.WriteSession(ctx, rep, repo.WriteSessionOptions{Purpose: "incomplete snapshots"}, func(ctx context.Context, w repo.RepositoryWriter) error {
		for _, id := range gone {
			if err := w.DeleteManifest(ctx, id); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("remove incomplete snapshots: %w", err)
	}
	return int64(len(gone)), nil
}

// forgettable are the unfinished snapshots that go.
func forgettable(incomplete []*manifest.EntryMetadata, now time.Time) (gone []manifest.ID) {
	slices.SortFunc(incomplete, func(a, b *manifest.EntryMetadata) int {
		return cmp.Or(b.ModTime.Compare(a.ModTime), cmp.Compare(a.ID, b.ID)) // newest first
	})
	seen := map[string]bool{}
	for _, e := range incomplete {
		source := strings.Join([]string{e.Labels[snapshot.UsernameLabel], e.Labels[snapshot.HostnameLabel], e.Labels[snapshot.PathLabel]}, "\x00")
		least := incompleteAge
		if !seen[source] {
			least = lastIncompleteAge
		}
		seen[source] = true
		if now.Sub(e.ModTime) > least {
			gone = append(gone, e.ID)
		}
	}
	return gone
}

// mostVerifyErrors are named before a verification gives up.
const mostVerifyErrors = 3

// verify reads a share of the files of each source's latest snapshot, and all
// directories of it.
func verify(ctx context.Context, rep repo.Repository, percent float64, result *MaintenanceResult) error {
	sources, err := userSources(ctx, rep)
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	v := snapshotfs.NewVerifier(ctx, rep, snapshotfs.VerifierOptions{
		VerifyFilesPercent: percent, Parallelism: 2, FileQueueLength: 1000, MaxErrors: mostVerifyErrors,
	})
	res, err := v.InParallel(ctx, func(tw *snapshotfs.TreeWalker) error {
		for _, source := range sources {
			man, err := latest(ctx, rep, source)
			if err != nil {
				return err
			}
			if man == nil {
				continue
			}
			root, err := snapshotfs.SnapshotRoot(rep, man)
			if err != nil {
				return fmt.Errorf("open snapshot %s: %w", man.ID, err)
			}
			if err := tw.Process(ctx, root, source.String()); err != nil {
				return err
			}
			result.VerifiedSnapshots++
		}
		return nil
	})
	result.VerifiedFiles = int64(res.Stats.ReadFileCount)
	if err != nil || res.ErrorCount > 0 {
		return fmt.Errorf("verify: the repository is damaged: restore the bucket to an earlier state if it keeps versions, and back up again: %s (%w)",
			strings.Join(res.ErrorStrings, "; "), cmp.Or(err, errors.New("see the log")))
	}
	return nil
}

// userSources are the sources of all users, but for the server's own.
func userSources(ctx context.Context, rep repo.Repository) ([]snapshot.SourceInfo, error) {
	sources, err := snapshot.ListSources(ctx, rep)
	if err != nil {
		return nil, fmt.Errorf("list sources: %w", err)
	}
	return slices.DeleteFunc(sources, func(s snapshot.SourceInfo) bool { return s.Host == systemHost }), nil
}

// latest is the newest complete snapshot of a source, nil if there is none.
func latest(ctx context.Context, rep repo.Repository, source snapshot.SourceInfo) (*snapshot.Manifest, error) {
	all, err := snapshot.ListSnapshots(ctx, rep, source)
	if err != nil {
		return nil, fmt.Errorf("list snapshots of %s: %w", source, err)
	}
	var newest *snapshot.Manifest
	for _, m := range all {
		if m.IncompleteReason == "" && (newest == nil || m.StartTime.After(newest.StartTime)) {
			newest = m
		}
	}
	return newest, nil
}
