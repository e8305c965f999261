// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/logging"
	"github.com/kopia/kopia/repo/maintenance"
	"github.com/kopia/kopia/snapshot"
	"github.com/kopia/kopia/snapshot/snapshotfs"
	"github.com/kopia/kopia/snapshot/snapshotmaintenance"
	"golang.org/x/sync/errgroup"
)

// MaintainOptions of Maintain.
type MaintainOptions struct {
	Config   Config
	StateDir string
	// Full collects the space of deleted backups; else indexes are compacted.
	Full bool
	// VerifyPercent of the files of each source's latest backup are read.
	VerifyPercent float64
	Log           *slog.Logger
	// Now is Kopia's clock, too.
	Now func() time.Time
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
	// IncompleteCollected are unfinished snapshots that were removed, UnrecordedCollected
	// complete ones that have not become backups, UnusableCollected those that cannot be walked.
	IncompleteCollected int64 `json:"incompleteCollected"`
	UnrecordedCollected int64 `json:"unrecordedCollected"`
	UnusableCollected   int64 `json:"unusableCollected"`
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
	_, rep, err := openRepository(ctx, o.Config, maintenanceUser, o.StateDir, o.Now)
	if err != nil {
		return result, err
	}
	defer rep.Close(ctx)
	if err := checkOwner(ctx, rep, o.Config); err != nil {
		return result, fmt.Errorf("maintain: %w", err)
	}
	before, err := storedBytes(ctx, rep)
	if err != nil {
		return result, err
	}
	mode := maintenance.ModeQuick
	if o.Full {
		mode = maintenance.ModeFull
		err = collect(ctx, newWalker(rep), start, o.Log, &result)
	}
	if err == nil {
		o.Log.Info("maintenance begins", "mode", mode, "storedBytes", before)
		err = repo.DirectWriteSession(ctx, rep, repo.WriteSessionOptions{Purpose: "maintenance"}, func(ctx context.Context, w repo.DirectRepositoryWriter) error {
			return snapshotmaintenance.Run(ctx, w, mode, false, maintenance.SafetyFull)
		})
		if err != nil && o.Full {
			err = blame(ctx, rep, err)
		}
	}
	if err != nil && o.Full {
		// Kopia extends the locks after its collection only.
		if lockErr := extendLocks(ctx, rep); lockErr != nil {
			err = fmt.Errorf("%w; and %w", err, lockErr)
		}
	}
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

// extendParallel is how many locks are extended at the same time.
const extendParallel = 8

// extendLocks extends the object locks, if there are any: what stops the collection must
// not let them end.
func extendLocks(ctx context.Context, rep repo.DirectRepository) error {
	c, err := rep.FormatManager().BlobCfgBlob(ctx)
	if err != nil {
		return fmt.Errorf("extend object locks: read format: %w", err)
	}
	if !c.IsRetentionEnabled() {
		return nil
	}
	err = repo.DirectWriteSession(ctx, rep, repo.WriteSessionOptions{Purpose: "extend locks"}, func(ctx context.Context, w repo.DirectRepositoryWriter) error {
		group, ctx := errgroup.WithContext(ctx)
		group.SetLimit(extendParallel)
		for _, prefix := range repo.GetLockingStoragePrefixes() {
			if err := w.BlobStorage().ListBlobs(ctx, prefix, func(b blob.Metadata) error {
				group.Go(func() error {
					return w.BlobStorage().ExtendBlobRetention(ctx, b.BlobID, blob.ExtendOptions{RetentionMode: c.RetentionMode, RetentionPeriod: c.RetentionPeriod})
				})
				return ctx.Err()
			}); err != nil {
				return errors.Join(err, group.Wait())
			}
		}
		return group.Wait()
	})
	if err != nil {
		return fmt.Errorf("extend object locks: %w", err)
	}
	return nil
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

// verify reads a share of the files of each source's latest backup, and all directories
// of it. What is a backup is for the records to say.
func verify(ctx context.Context, rep repo.Repository, percent float64, result *MaintenanceResult) error {
	records, err := listRecords(ctx, rep)
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	all, err := listSnapshots(ctx, rep)
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	var damaged []string
	for _, b := range latest(records, all) {
		v := snapshotfs.NewVerifier(ctx, rep, snapshotfs.VerifierOptions{
			VerifyFilesPercent: percent, Parallelism: 2, FileQueueLength: 1000, MaxErrors: 1,
		})
		res, err := v.InParallel(ctx, func(tw *snapshotfs.TreeWalker) error {
			root, err := snapshotfs.SnapshotRoot(rep, b.man)
			if err != nil {
				return err
			}
			return tw.Process(ctx, root, "")
		})
		result.VerifiedFiles += int64(res.Stats.ReadFileCount)
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("verify: %w", ctx.Err())
		case err == nil:
			result.VerifiedSnapshots++
			continue
		}
		damaged = append(damaged, fmt.Sprintf("%s: %s", b.recorded, cmp.Or(strings.Join(res.ErrorStrings, "; "), err.Error())))
		if len(damaged) == mostNamed {
			break
		}
	}
	if err := damagedError(damaged); err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	return nil
}

// backup is a record with the snapshot that it names.
type backup struct {
	recorded
	stored
}

// latest are the backups that were recorded last, one of each source.
func latest(records []recorded, all []stored) []backup {
	snapshots := map[string]stored{}
	for _, s := range all {
		if s.man != nil {
			snapshots[string(s.ID)] = s
		}
	}
	last := map[snapshot.SourceInfo]backup{}
	for _, r := range records {
		s, ok := snapshots[r.Snapshot.ID]
		if !ok {
			continue // a deletion that was cut; the next try goes on from the record
		}
		if old, ok := last[s.source()]; !ok || r.written.After(old.written) {
			last[s.source()] = backup{r, s}
		}
	}
	return slices.SortedFunc(maps.Values(last), func(a, b backup) int { return cmp.Compare(a.BackupID, b.BackupID) })
}

// userSources are the sources of all users, but for the server's own.
func userSources(ctx context.Context, rep repo.Repository) ([]snapshot.SourceInfo, error) {
	sources, err := snapshot.ListSources(ctx, rep)
	if err != nil {
		return nil, fmt.Errorf("list sources: %w", err)
	}
	return slices.DeleteFunc(sources, func(s snapshot.SourceInfo) bool { return s.Host == systemHost }), nil
}
