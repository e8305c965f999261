// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/snapshot"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

// Kopia's collection walks all snapshots that there are, and ends at the first that it
// cannot walk. Every session may add snapshots of its own, and an agent is not trusted. So
// before it begins, what no record names is looked at: what is of no use to anybody goes.
// Ages and sources are the server's word (the manifests' times and labels), not the agents'.
const (
	// incompleteAge is when an unfinished snapshot goes that a later one of its source has
	// replaced: an operation that still runs makes one every few minutes and needs its last.
	incompleteAge = 24 * time.Hour
	// lastIncompleteAge is when the last one of a source goes.
	lastIncompleteAge = 7 * 24 * time.Hour
	// unrecordedAge is when a complete snapshot goes that has not become a backup. None is
	// recorded so late, so no record is written while this looks for one: a maintenance takes
	// half a day at most.
	unrecordedAge = api.RecordWithin + 24*time.Hour
)

// stored is a snapshot that the repository holds.
type stored struct {
	*manifest.EntryMetadata
	man *snapshot.Manifest // nil: what is stored is no snapshot
}

func (s stored) source() snapshot.SourceInfo {
	return snapshot.SourceInfo{
		UserName: s.Labels[snapshot.UsernameLabel], Host: s.Labels[snapshot.HostnameLabel], Path: s.Labels[snapshot.PathLabel],
	}
}

// root is its root object, empty if it has none.
func (s stored) root() string {
	if s.man == nil {
		return ""
	}
	return s.man.RootObjectID().String()
}

func (s stored) incomplete() bool { return s.man != nil && s.man.IncompleteReason != "" }

// namespaceUID is the host of all users that are let in, and of nobody who uses Kopia himself.
var namespaceUID = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// ours says that a session of ours wrote it. The snapshots of a repository that was there
// before are somebody else's.
func (s stored) ours() bool { return namespaceUID.MatchString(s.Labels[snapshot.HostnameLabel]) }

// listSnapshots returns all snapshots, those too that cannot be parsed.
func listSnapshots(ctx context.Context, rep repo.Repository) ([]stored, error) {
	entries, err := rep.FindManifests(ctx, map[string]string{manifest.TypeLabelKey: snapshot.ManifestType})
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	var found []stored
	for _, e := range entries {
		var raw json.RawMessage
		if _, err := rep.GetManifest(ctx, e.ID, &raw); errors.Is(err, manifest.ErrNotFound) {
			continue // deleted meanwhile
		} else if err != nil {
			return nil, fmt.Errorf("read snapshot %s: %w", e.ID, err)
		}
		s := stored{EntryMetadata: e, man: &snapshot.Manifest{}}
		if err := json.Unmarshal(raw, s.man); err != nil {
			s.man = nil
		} else {
			s.man.ID = e.ID
		}
		found = append(found, s)
	}
	return found, nil
}

// recorded is a record, and when the server wrote it.
type recorded struct {
	api.Record
	written time.Time
}

func (r recorded) String() string {
	from := cmp.Or(r.Pod, r.Claim, r.Volume)
	return fmt.Sprintf("backup %s (of %s in namespace %s)", r.BackupID, from, cmp.Or(r.Namespace, r.NamespaceUID))
}

// listRecords returns all records. One that cannot be read ends it: what it names may not go.
func listRecords(ctx context.Context, rep repo.Repository) ([]recorded, error) {
	entries, err := rep.FindManifests(ctx, map[string]string{manifest.TypeLabelKey: recordType})
	if err != nil {
		return nil, fmt.Errorf("list records: %w", err)
	}
	var found []recorded
	for _, e := range entries {
		r := recorded{written: e.ModTime}
		if _, err := rep.GetManifest(ctx, e.ID, &r.Record); errors.Is(err, manifest.ErrNotFound) {
			continue // deleted meanwhile
		} else if err != nil {
			return nil, fmt.Errorf("read record %s: %w", e.ID, err)
		}
		found = append(found, r)
	}
	return found, nil
}

// named are what records name: snapshots, and their roots, which a snapshot that was saved
// again has still.
type named map[string]bool

func namedBy(records []recorded) named {
	n := named{}
	for _, r := range records {
		n[r.Snapshot.ID] = true
		if r.Snapshot.RootObject != "" {
			n[r.Snapshot.RootObject] = true
		}
	}
	return n
}

func (n named) names(s stored) bool {
	return n.backup(s) || s.root() != "" && n[s.root()]
}

// backup says that a record names this very snapshot. One of the same root may be anything:
// whoever backs a file up may say next that it is a directory.
func (n named) backup(s stored) bool { return n[string(s.ID)] }

// doomed are snapshots that go, each for one reason.
type doomed struct{ incomplete, unrecorded, unusable []manifest.ID }

// sortOut says which snapshots go whatever they hold, and which go if they cannot be walked:
// what has the root of a backup goes at no age, but is looked at.
func sortOut(all []stored, n named, now time.Time) (gone doomed, doubtful []stored) {
	loose := slices.DeleteFunc(slices.Clone(all), func(s stored) bool { return !s.ours() || n.backup(s) })
	gone.incomplete = forgettable(slices.DeleteFunc(slices.Clone(loose), n.names), now)
	old := map[manifest.ID]bool{}
	for _, id := range gone.incomplete {
		old[id] = true
	}
	for _, s := range loose {
		switch {
		case old[s.ID]:
		case s.man == nil || s.man.RootEntry == nil:
			gone.unusable = append(gone.unusable, s.ID)
		case !s.incomplete() && !n.names(s) && now.Sub(s.ModTime) > unrecordedAge:
			gone.unrecorded = append(gone.unrecorded, s.ID)
		default:
			doubtful = append(doubtful, s)
		}
	}
	return gone, doubtful
}

// forgettable are the unfinished snapshots that nobody will go on from.
func forgettable(all []stored, now time.Time) (gone []manifest.ID) {
	incomplete := slices.DeleteFunc(slices.Clone(all), func(s stored) bool { return !s.incomplete() })
	slices.SortFunc(incomplete, func(a, b stored) int {
		return cmp.Or(b.ModTime.Compare(a.ModTime), cmp.Compare(a.ID, b.ID)) // newest first
	})
	seen := map[snapshot.SourceInfo]bool{}
	for _, s := range incomplete {
		least := incompleteAge
		if !seen[s.source()] {
			least = lastIncompleteAge
		}
		seen[s.source()] = true
		if now.Sub(s.ModTime) > least {
			gone = append(gone, s.ID)
		}
	}
	return gone
}

// useless are the snapshots that go of those that cannot be walked. The last one of a backup
// stays, which was saved again and is damaged: it is for its owner to give up.
func useless(all []stored, n named, broken map[manifest.ID]error) (gone []stored) {
	sound := map[string]bool{} // roots of others
	for _, s := range all {
		if broken[s.ID] == nil {
			sound[s.root()] = true
		}
	}
	for _, s := range all {
		if broken[s.ID] != nil && (!n.names(s) || sound[s.root()]) {
			gone = append(gone, s)
		}
	}
	return gone
}

// collectRounds are more than what is saved meanwhile by who does nothing else.
const collectRounds = 10

// collect removes the snapshots that are of no use to anybody, and counts them. What is left
// of ours is walked, backups too, and one that cannot be ends it: nothing that an agent can
// store ends Kopia's walk without a word of whose it is.
func collect(ctx context.Context, w *walker, now time.Time, log *slog.Logger, result *MaintenanceResult) error {
	for round := 1; ; round++ {
		if err := collectOnce(ctx, w, now, log, result); err != nil {
			return err
		}
		damaged, backups, err := findDamage(ctx, w, stored.ours)
		if err != nil {
			return err
		}
		// What is no backup was saved meanwhile.
		if backups == len(damaged) || round == collectRounds {
			return damagedError(damaged)
		}
	}
}

func collectOnce(ctx context.Context, w *walker, now time.Time, log *slog.Logger, result *MaintenanceResult) error {
	records, err := listRecords(ctx, w.rep)
	if err != nil {
		return err
	}
	all, err := listSnapshots(ctx, w.rep)
	if err != nil {
		return err
	}
	n := namedBy(records)
	gone, doubtful := sortOut(all, n, now)
	// Backups first: what they have in common with others costs those nothing.
	for _, s := range all {
		if !s.ours() || !n.backup(s) {
			continue
		}
		if _, err := w.problem(ctx, s, n); err != nil {
			return fmt.Errorf("look at snapshot %s: %w", s.ID, err)
		}
	}
	broken := map[manifest.ID]error{}
	for _, s := range doubtful {
		problem, err := w.problem(ctx, s, n)
		if err != nil {
			return fmt.Errorf("look at snapshot %s: %w", s.ID, err)
		}
		if problem != nil {
			broken[s.ID] = problem
		}
	}
	for _, s := range useless(all, n, broken) {
		log.Warn("a snapshot that is no backup cannot be used, and goes", "snapshot", s.ID, "source", s.source().String(), "problem", broken[s.ID].Error())
		gone.unusable = append(gone.unusable, s.ID)
	}
	return remove(ctx, w.rep, all, gone, result)
}

// remove removes what goes, but for what has become a backup meanwhile.
func remove(ctx context.Context, rep repo.DirectRepository, all []stored, gone doomed, result *MaintenanceResult) error {
	if err := rep.Refresh(ctx); err != nil {
		return fmt.Errorf("read records: %w", err)
	}
	records, err := listRecords(ctx, rep)
	if err != nil {
		return err
	}
	n := namedBy(records)
	byID := map[manifest.ID]stored{}
	for _, s := range all {
		byID[s.ID] = s
	}
	return repo.WriteSession(ctx, rep, repo.WriteSessionOptions{Purpose: "collect snapshots"}, func(ctx context.Context, w repo.RepositoryWriter) error {
		for _, kind := range []struct {
			ids    []manifest.ID
			spared func(stored) bool
			count  *int64
		}{
			{gone.incomplete, n.names, &result.IncompleteCollected}, {gone.unrecorded, n.names, &result.UnrecordedCollected},
			{gone.unusable, n.backup, &result.UnusableCollected},
		} {
			for _, id := range kind.ids {
				if kind.spared(byID[id]) {
					continue
				}
				if err := w.DeleteManifest(ctx, id); err != nil {
					return fmt.Errorf("remove snapshot %s: %w", id, err)
				}
				*kind.count++
			}
		}
		return nil
	})
}

// mostNamed are named of what is damaged.
const mostNamed = 3

// findDamage names some of the snapshots that cannot be walked, and counts those of them that
// records name.
func findDamage(ctx context.Context, w *walker, of func(stored) bool) (damaged []string, backups int, err error) {
	records, err := listRecords(ctx, w.rep)
	if err != nil {
		return nil, 0, err
	}
	all, err := listSnapshots(ctx, w.rep)
	if err != nil {
		return nil, 0, err
	}
	n, called := namedBy(records), map[string]string{}
	for _, r := range records {
		called[r.Snapshot.ID] = r.String()
	}
	for _, s := range all {
		if !of(s) {
			continue
		}
		problem, err := w.problem(ctx, s, n)
		if err != nil {
			return nil, 0, fmt.Errorf("look at snapshot %s: %w", s.ID, err)
		}
		if problem == nil {
			continue
		}
		if n.names(s) {
			backups++
		}
		damaged = append(damaged, fmt.Sprintf("%s: %v", cmp.Or(called[string(s.ID)], fmt.Sprintf("snapshot %s of %s", s.ID, s.source())), problem))
		if len(damaged) == mostNamed {
			break
		}
	}
	return damaged, backups, nil
}

// blame says which snapshots are why Kopia's collection failed.
func blame(ctx context.Context, rep repo.DirectRepository, cause error) error {
	damaged, _, err := findDamage(ctx, newWalker(rep), func(stored) bool { return true })
	switch {
	case err != nil:
		return errors.Join(cause, err)
	case len(damaged) == 0:
		return cause
	}
	return fmt.Errorf("%w (%w)", damagedError(damaged), cause)
}

// damagedError says what is damaged and what can be done, nil if nothing is.
func damagedError(damaged []string) error {
	if len(damaged) == 0 {
		return nil
	}
	return fmt.Errorf("the repository is damaged: restore the bucket to an earlier state if it keeps versions, or delete what is damaged and back up again: %s",
		strings.Join(damaged, "; "))
}
