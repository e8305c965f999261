// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/kopia/kopia/repo/content/index"
	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

const (
	day       = 24 * time.Hour
	namespace = "5f0c3a52-9b7e-4a63-8a52-1d7f2f1c0a01"
)

// aged is a snapshot of a source of a namespace.
func aged(id, user string, age time.Duration, man *snapshot.Manifest) stored {
	return stored{&manifest.EntryMetadata{
		ID: manifest.ID(id), ModTime: newClock().now.Add(-age),
		Labels: map[string]string{"username": user, "hostname": namespace, "path": "/"},
	}, man}
}

// withRoot is what is stored of a complete snapshot.
func withRoot(t *testing.T, root string) *snapshot.Manifest {
	t.Helper()
	id, err := index.ParseID(root)
	if err != nil {
		t.Fatal(err)
	}
	return &snapshot.Manifest{RootEntry: &snapshot.DirEntry{ObjectID: object.DirectObjectID(id)}}
}

// The last unfinished snapshot of a source is what its next backup goes on from, and
// what protects one that still runs.
func TestForgettable(t *testing.T) {
	now := newClock().now
	entry := func(id, user string, age time.Duration) stored {
		return aged(id, user, age, &snapshot.Manifest{IncompleteReason: "checkpoint"})
	}
	got := forgettable([]stored{
		entry("replaced", "a", 30*time.Hour), entry("last", "a", 25*time.Hour), entry("old", "a", 200*time.Hour),
		entry("given-up", "b", 8*day),
		entry("running", "c", 5*time.Minute), entry("before-it", "c", 15*time.Minute), entry("yesterday's", "c", 25*time.Hour),
		entry("week", "d", 6*day), aged("complete", "d", 30*day, &snapshot.Manifest{}),
	}, now)
	slices.Sort(got)
	if want := []manifest.ID{"given-up", "old", "replaced", "yesterday's"}; !slices.Equal(got, want) {
		t.Errorf("%v are removed, want %v", got, want)
	}
}

// What a record names stays, whatever its age and whatever it looks like, and so does what
// no session of ours wrote. What has the root of a backup stays at any age if it can be walked. Of the rest, what nobody can use goes at once, and what has not
// become a backup when it cannot become one any more.
func TestSortOut(t *testing.T) {
	const root, other = "k00000000000000000000000000000001", "k00000000000000000000000000000002"
	stranger := func(s stored) stored {
		s.Labels["hostname"] = "laptop"
		return s
	}
	checkpoint := withRoot(t, other)
	checkpoint.IncompleteReason = "checkpoint"
	checkpointOfBackup := withRoot(t, root)
	checkpointOfBackup.IncompleteReason = "checkpoint"
	records := []recorded{
		{Record: api.Record{Snapshot: api.SnapshotResult{ID: "backup", RootObject: root}}},
		{Record: api.Record{Snapshot: api.SnapshotResult{ID: "broken-backup"}}},
	}
	gone, doubtful := sortOut([]stored{
		aged("backup", "a", 400*day, withRoot(t, root)),
		aged("saved-again", "a", 400*day, withRoot(t, root)),
		aged("unfinished", "a", 400*day, checkpointOfBackup),
		aged("broken-backup", "a", 400*day, nil),
		stranger(aged("theirs", "root", 400*day, withRoot(t, other))),
		stranger(aged("theirs-broken", "root", day, nil)),
		aged("just-saved", "a", time.Minute, withRoot(t, other)),
		aged("weekend", "b", 4*day-time.Minute, withRoot(t, other)),
		aged("nobody's", "b", 4*day+time.Minute, withRoot(t, other)),
		aged("no-snapshot", "c", time.Minute, nil),
		aged("no-root", "c", time.Minute, &snapshot.Manifest{}),
		aged("running", "d", time.Minute, checkpoint),
		aged("given-up", "e", 8*day, checkpoint),
	}, namedBy(records), newClock().now)
	ids := func(of []stored) (ids []manifest.ID) {
		for _, s := range of {
			ids = append(ids, s.ID)
		}
		return ids
	}
	for what, c := range map[string]struct{ got, want []manifest.ID }{
		"unrecorded": {gone.unrecorded, []manifest.ID{"nobody's"}},
		"unusable":   {gone.unusable, []manifest.ID{"no-snapshot", "no-root"}},
		"incomplete": {gone.incomplete, []manifest.ID{"given-up"}},
		"doubtful":   {ids(doubtful), []manifest.ID{"saved-again", "unfinished", "just-saved", "weekend", "running"}},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%s: %v, want %v", what, c.got, c.want)
		}
	}
	if unrecordedAge <= api.RecordWithin+day/2 {
		t.Errorf("what is %s old is collected, and may be recorded within %s: one maintenance takes up to half a day", unrecordedAge, api.RecordWithin)
	}
}

// Of what cannot be walked, all goes but for the last snapshot of a backup: to give that up
// is not maintenance's to decide.
func TestUseless(t *testing.T) {
	const root, again, other = "k00000000000000000000000000000001", "k00000000000000000000000000000002", "k00000000000000000000000000000003"
	n := namedBy([]recorded{
		{Record: api.Record{Snapshot: api.SnapshotResult{ID: "backup", RootObject: root}}},
		{Record: api.Record{Snapshot: api.SnapshotResult{ID: "was-saved-again", RootObject: again}}},
	})
	all := []stored{
		aged("backup", "a", 0, withRoot(t, root)), aged("planted", "a", 0, withRoot(t, root)), aged("too", "a", 0, withRoot(t, root)),
		aged("damaged", "a", 0, withRoot(t, again)), aged("nobody's", "a", 0, withRoot(t, other)), aged("sound", "a", 0, withRoot(t, other)), aged("no-snapshot", "a", 0, nil),
	}
	problem := errors.New("it cannot be walked")
	broken := map[manifest.ID]error{"planted": problem, "too": problem, "damaged": problem, "nobody's": problem}
	var ids []manifest.ID
	for _, s := range useless(all, n, broken) {
		ids = append(ids, s.ID)
	}
	if want := []manifest.ID{"planted", "too", "nobody's"}; !slices.Equal(ids, want) {
		t.Errorf("%v go, want %v", ids, want)
	}
	// Beside a sound one it is no backup's last.
	all = append(all, aged("sound-again", "a", 0, withRoot(t, again)))
	if gone := useless(all, n, broken); len(gone) != 4 {
		t.Errorf("%d go beside a sound one, want 4", len(gone))
	}
}

// The latest backup of a source is what was recorded last, whatever snapshots say of their
// time and whatever is beside them.
func TestLatest(t *testing.T) {
	noon := newClock().now
	record := func(id, snapshot string, age time.Duration) recorded {
		return recorded{api.Record{BackupID: id, Snapshot: api.SnapshotResult{ID: snapshot}}, noon.Add(-age)}
	}
	got := latest([]recorded{
		record("new", "s2", day), record("old", "s1", 2*day), record("other", "s3", 9*day), record("half-deleted", "s9", 0), record("no-snapshot", "s5", 0),
	}, []stored{
		aged("s1", "a", 0, &snapshot.Manifest{}), aged("s2", "a", 9*day, &snapshot.Manifest{}), aged("s3", "b", 0, &snapshot.Manifest{}),
		aged("planted", "a", -day, &snapshot.Manifest{}), aged("s5", "c", 0, nil),
	})
	var ids []string
	for _, b := range got {
		ids = append(ids, b.BackupID)
	}
	if want := []string{"new", "other"}; !slices.Equal(ids, want) {
		t.Errorf("%v are verified, want %v", ids, want)
	}
}
