// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repositoryserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/blob/filesystem"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

// Kopia compares its clock with the times of the storage's blobs. So a folder whose days
// go by at a test's word dates what is written to it by the same clock.
var clocks sync.Map // func() time.Time by the folder's path

func init() {
	blob.AddSupportedStorage("filesystem", filesystem.Options{}, func(ctx context.Context, o *filesystem.Options, isCreate bool) (blob.Storage, error) {
		st, err := filesystem.New(ctx, o, isCreate)
		if now, ok := clocks.Load(o.Path); ok && err == nil {
			return dated{st, now.(func() time.Time)}, nil
		}
		return st, err
	})
}

type dated struct {
	blob.Storage
	now func() time.Time
}

func (d dated) PutBlob(ctx context.Context, id blob.ID, data blob.Bytes, opts blob.PutOptions) error {
	opts.SetModTime = d.now()
	return d.Storage.PutBlob(ctx, id, data, opts)
}

// datedFolder is a folder whose clock is a test's, and the repository in it, open as a
// server has it.
type datedFolder struct {
	*folder
	clock *clocktesting.FakeClock
	rep   repo.DirectRepository
}

func newDatedFolder(t *testing.T) *datedFolder {
	t.Helper()
	f := &datedFolder{folder: newFolder(t, Format{}), clock: clocktesting.NewFakeClock(time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC))}
	f.now = f.clock.Now
	clocks.Store(f.Storage.Path, f.now)
	f.rep = f.open()
	f.must(seed(f.ctx, f.rep, f.now()))
	return f
}

// later lets time go by.
func (f *datedFolder) later(by time.Duration) {
	f.Helper()
	f.clock.Step(by)
	f.must(f.rep.Refresh(f.ctx))
}

// write writes in a session of its own; a second later: what is of the same time replaces nothing.
func (f *datedFolder) write(fn func(context.Context, repo.RepositoryWriter) error) {
	f.Helper()
	f.clock.Step(time.Second)
	f.must(repo.WriteSession(f.ctx, f.rep, repo.WriteSessionOptions{}, fn))
}

// put stores an object.
func put(ctx context.Context, w repo.RepositoryWriter, prefix content.IDPrefix, data []byte) (object.ID, error) {
	ow := w.NewObjectWriter(ctx, object.WriterOptions{Prefix: prefix})
	defer ow.Close()
	if _, err := ow.Write(data); err != nil {
		return object.EmptyID, err
	}
	return ow.Result()
}

// listed stores an object of such pieces.
func (f *datedFolder) listed(ctx context.Context, w repo.RepositoryWriter, pieces any) object.ID {
	f.Helper()
	raw, err := json.Marshal(map[string]any{"entries": pieces})
	f.must(err)
	id, err := put(ctx, w, "x", append([]byte(`{"stream":"kopia:indirect",`), raw[1:]...))
	f.must(err)
	id, err = object.ParseID("I" + id.String())
	f.must(err)
	return id
}

// save saves a snapshot of one file of a source.
func (f *datedFolder) save(host, path string, data []byte, why string) *snapshot.Manifest {
	f.Helper()
	var man *snapshot.Manifest
	f.write(func(ctx context.Context, w repo.RepositoryWriter) error {
		id, err := put(ctx, w, "", data)
		if err != nil {
			return err
		}
		man = f.manifest(host, path, &snapshot.DirEntry{Name: "f", Type: snapshot.EntryTypeFile, ObjectID: id, FileSize: int64(len(data))})
		man.IncompleteReason = why
		_, err = snapshot.SaveSnapshot(ctx, w, man)
		return err
	})
	return man
}

func (f *datedFolder) manifest(host, path string, root *snapshot.DirEntry) *snapshot.Manifest {
	at := fs.UTCTimestampFromTime(f.now())
	return &snapshot.Manifest{
		Source: snapshot.SourceInfo{UserName: "pvc.data", Host: host, Path: path}, StartTime: at, EndTime: at, RootEntry: root,
	}
}

// record makes a snapshot a backup, and returns the record's id.
func (f *datedFolder) record(id string, man *snapshot.Manifest) (record manifest.ID) {
	f.Helper()
	f.write(func(ctx context.Context, w repo.RepositoryWriter) (err error) {
		record, err = w.PutManifest(ctx, map[string]string{"type": recordType, "id": id}, api.Record{
			BackupID: id, Namespace: "shop", Pod: "db-0",
			Snapshot: api.SnapshotResult{ID: string(man.ID), RootObject: man.RootObjectID().String()},
		})
		return err
	})
	return record
}

// maintain runs one as its pod does, an hour later.
func (f *datedFolder) maintain(full bool) (MaintenanceResult, error) {
	f.Helper()
	f.later(time.Hour)
	defer f.later(time.Hour)
	percent := 0.0
	if full {
		percent = 100
	}
	return Maintain(f.ctx, MaintainOptions{
		Config: f.Config, StateDir: f.TempDir(), Full: full, VerifyPercent: percent, Log: slog.New(slog.DiscardHandler), Now: f.now,
	})
}

// there says whether a snapshot is there, and what it was made of too.
func (f *datedFolder) there(man *snapshot.Manifest, data []byte) bool {
	f.Helper()
	if _, err := snapshot.LoadSnapshot(f.ctx, f.rep, man.ID); errors.Is(err, snapshot.ErrSnapshotNotFound) {
		return false
	} else if err != nil {
		f.Fatal(err)
	}
	r, err := f.rep.OpenObject(f.ctx, man.RootObjectID())
	f.must(err)
	defer r.Close()
	if raw, err := io.ReadAll(r); err != nil || !bytes.Equal(raw, data) {
		f.Errorf("%d bytes of %q came back, want %d: %v", len(raw), man.Source.Path, len(data), err)
	}
	return true
}

func noise(seed byte, size int) []byte {
	data := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(data)
	return data
}

// The space of a deleted backup, and of one that never became one, is given back some days
// later, and all others are as they were.
func TestIntegrationMaintainFreesSpace(t *testing.T) {
	t.Parallel()
	f := newDatedFolder(t)
	// Kopia fills packs of 20 MiB. What is in one that it takes for full comes back when nobody
	// needs any of it; smaller ones are put together first, with what is deleted.
	const pack = 20 << 20
	kept, deleted, forgotten := noise(1, 1<<20), noise(2, pack+1<<20), noise(3, pack+1<<20)
	backup, gone := f.save(namespace, "/kept", kept, ""), f.save(namespace, "/deleted", deleted, "")
	f.record("kept", backup)
	record := f.record("deleted", gone)
	unrecorded := f.save(namespace, "/forgotten", forgotten, "")
	f.later(2 * day)
	f.write(func(ctx context.Context, w repo.RepositoryWriter) error {
		return errors.Join(w.DeleteManifest(ctx, gone.ID), w.DeleteManifest(ctx, record))
	})
	began, err := storedBytes(f.ctx, f.rep)
	f.must(err)
	left, freed, runs := began, int64(0), 0
	for ; began-left < 2*pack && runs < 8; runs++ {
		result, err := f.maintain(true)
		f.must(err)
		t.Logf("%s: %d bytes were given back, %d are left of %d", f.now(), result.FreedBytes, result.StoredBytes, began)
		left, freed = result.StoredBytes, max(freed, result.FreedBytes)
		if result.VerifiedSnapshots != 1 || result.VerifiedFiles != 1 {
			t.Errorf("run %d: verified %+v", runs, result)
		}
		if !f.there(backup, kept) {
			t.Fatal("the backup is gone")
		}
		f.later(23 * time.Hour)
	}
	if stored, err := storedBytes(f.ctx, f.rep); err != nil || stored != left || began-left < 2*pack || left < int64(len(kept)) || freed < pack {
		t.Errorf("after %d runs %d bytes are left of %d (%v), and at most %d were given back; want two packs gone", runs, stored, began, err, freed)
	}
	for _, man := range []*snapshot.Manifest{gone, unrecorded} {
		if _, err := f.rep.VerifyObject(f.ctx, man.RootObjectID()); err == nil {
			t.Errorf("%q is there still", man.Source.Path)
		}
	}
}

// A full maintenance collects what nobody can have a use for, keeps what anybody may, and
// keeps what somebody may be about to use: a content that no backup names yet.
func TestIntegrationMaintainKeeps(t *testing.T) {
	t.Parallel()
	f := newDatedFolder(t)
	backup := f.save(namespace, "/backup", []byte("backup"), "")
	f.record("backup", backup)
	nobodys := f.save(namespace, "/nobodys", []byte("nobody's"), "")
	theirs := f.save("laptop", "/theirs", []byte("theirs"), "")
	cut := f.save(namespace, "/cut", []byte("cut"), "checkpoint")
	f.later(8 * day)
	young := f.save(namespace, "/young", []byte("young"), "")
	goesOn := f.save(namespace, "/on", []byte("goes on"), "checkpoint")
	const text = "of a backup that still runs"
	var unnamed object.ID
	f.write(func(ctx context.Context, w repo.RepositoryWriter) (err error) {
		unnamed, err = put(ctx, w, "", []byte(text))
		return err
	})

	result, err := f.maintain(true)
	f.must(err)
	if result.IncompleteCollected != 1 || result.UnrecordedCollected != 1 || result.UnusableCollected != 0 || result.VerifiedSnapshots != 1 {
		t.Errorf("%+v, want one incomplete and one unrecorded snapshot collected, and one backup verified", result)
	}
	for _, c := range []struct {
		man  *snapshot.Manifest
		data string
		want bool
	}{
		{backup, "backup", true}, {young, "young", true}, {goesOn, "goes on", true}, {theirs, "theirs", true}, {nobodys, "", false}, {cut, "", false},
	} {
		if f.there(c.man, []byte(c.data)) != c.want {
			t.Errorf("%s: want it there: %t", c.man.Source.Path, c.want)
		}
	}
	// It becomes a backup at the last moment.
	all, err := listSnapshots(f.ctx, f.rep)
	f.must(err)
	f.record("young", young)
	if err := remove(f.ctx, f.rep, all, doomed{unusable: []manifest.ID{young.ID}}, &result); err != nil || result.UnusableCollected != 0 || !f.there(young, []byte("young")) {
		t.Errorf("what has just become a backup: %v, %+v", err, result)
	}
	for what, id := range map[string]object.ID{"backup": backup.RootObjectID(), text: unnamed} {
		// What is marked is dropped by one of the next runs.
		contents, err := f.rep.VerifyObject(f.ctx, id)
		f.must(err)
		for _, id := range contents {
			if info, err := f.rep.ContentReader().ContentInfo(f.ctx, id); err != nil || info.Deleted {
				t.Errorf("content of %q: %v, marked for deletion: %t", what, err, info.Deleted)
			}
		}
	}
}

// Who saves more than anybody can look at loses what no record names, in his own namespace,
// and is told by name where records name it. Others lose nothing.
func TestIntegrationMaintainEffort(t *testing.T) {
	t.Parallel()
	f := newDatedFolder(t)
	other := "0" + namespace[1:]
	data := noise(1, 100)
	listed := func(ctx context.Context, w repo.RepositoryWriter, seed byte, pieces int) *snapshot.DirEntry {
		piece, err := put(ctx, w, "", data)
		f.must(err)
		var entries []object.IndirectObjectEntry
		for i := range pieces {
			entries = append(entries, object.IndirectObjectEntry{Start: int64(i * len(data)), Length: int64(len(data)), Object: piece})
		}
		last, err := put(ctx, w, "", noise(seed, 10))
		f.must(err)
		entries = append(entries, object.IndirectObjectEntry{Start: int64(pieces * len(data)), Length: 10, Object: last})
		return &snapshot.DirEntry{Name: "f", Type: snapshot.EntryTypeFile, ObjectID: f.listed(ctx, w, entries)}
	}
	saved := func(host, path string, seed byte, pieces int) (man *snapshot.Manifest) {
		f.write(func(ctx context.Context, w repo.RepositoryWriter) error {
			man = f.manifest(host, path, listed(ctx, w, seed, pieces))
			_, err := snapshot.SaveSnapshot(ctx, w, man)
			return err
		})
		return man
	}
	const pieces = 1000
	most := effort{backups: 3*pieces + 900, loose: 2*pieces + 900}
	run := func() (result MaintenanceResult, err error) {
		f.must(f.rep.Refresh(f.ctx))
		w := newWalker(f.rep)
		w.most = most
		err = collect(f.ctx, w, f.now(), slog.New(slog.DiscardHandler), &result)
		return result, err
	}
	f.record("own", saved(namespace, "/own", 10, pieces))
	f.record("others", saved(other, "/others", 11, 2*pieces))
	for i := range 5 {
		saved(namespace, "/running-"+string(rune('a'+i)), byte(20+i), pieces)
	}
	saved(other, "/running", 30, 2*pieces)
	if result, err := run(); err != nil || result.UnusableCollected != 3 {
		t.Errorf("with snapshots of more effort than a namespace has: %+v, %v, want 3 collected", result, err)
	}
	left := func() (own, others int) {
		all, err := listSnapshots(f.ctx, f.rep)
		f.must(err)
		for _, s := range all {
			switch s.source().Host {
			case namespace:
				own++
			case other:
				others++
			}
		}
		return own, others
	}
	if own, others := left(); own != 3 || others != 2 {
		t.Errorf("%d snapshots of the namespace are left and %d of the other, want 3 and 2", own, others)
	}
	for i := range 3 {
		f.record(fmt.Sprint("more-", i), saved(namespace, "/more", byte(40+i), pieces))
	}
	if _, err := run(); err == nil || !strings.Contains(err.Error(), "backup more-") || !strings.Contains(err.Error(), "take longer") || strings.Contains(err.Error(), "others") {
		t.Errorf("with backups of more effort than a namespace has: %v, want one by its name", err)
	}
	if _, others := left(); others != 2 {
		t.Errorf("%d snapshots of the other namespace are left, want 2", others)
	}
}

// What is saved while a maintenance looks is in nobody's way, either.
func TestIntegrationMaintainMeanwhile(t *testing.T) {
	t.Parallel()
	f := newDatedFolder(t)
	f.record("good", f.save(namespace, "/good", noise(1, 100), ""))
	plant := func() {
		f.write(func(ctx context.Context, w repo.RepositoryWriter) error {
			_, err := snapshot.SaveSnapshot(ctx, w, f.manifest(namespace, "/broken", &snapshot.DirEntry{Name: "f", Type: snapshot.EntryTypeFile}))
			return err
		})
		f.clock.Step(time.Second)
	}
	plant()
	const meanwhile = 4
	planted := 0
	log := slog.New(slog.NewTextHandler(writerFunc(func(p []byte) (int, error) { // tells of one that goes
		if planted < meanwhile {
			planted++
			plant()
		}
		return len(p), nil
	}), nil))
	var result MaintenanceResult
	f.must(collect(f.ctx, newWalker(f.rep), f.now(), log, &result))
	left, err := listSnapshots(f.ctx, f.rep)
	f.must(err)
	if planted != meanwhile || result.UnusableCollected != meanwhile+1 || len(left) != 2 { // the good one and the canary
		t.Errorf("%d were saved meanwhile, %d collected, %d are left", planted, result.UnusableCollected, len(left))
	}
}

type writerFunc func([]byte) (int, error)

func (w writerFunc) Write(p []byte) (int, error) { return w(p) }

// A snapshot that cannot be walked, whatever is wrong with it, is in nobody's way if it is no
// backup. A backup stops the collection, by its name, and not the compaction of indexes.
func TestIntegrationMaintainDamage(t *testing.T) {
	t.Parallel()
	f := newDatedFolder(t)
	// A file, as somebody's backup may have it.
	const listing = `{"stream":"kopia:directory","entries":[null]}`
	const size = int64(len(listing))
	good := f.save(namespace, "/good", []byte(listing), "")
	f.record("good", good)
	missing, err := object.ParseID("k" + strings.Repeat("0", 32))
	f.must(err)
	as := func(kind string, man *snapshot.Manifest) object.ID {
		id, err := object.ParseID(kind + man.RootObjectID().String())
		f.must(err)
		return id
	}
	directory := func(w repo.RepositoryWriter, ctx context.Context, raw string) *snapshot.DirEntry {
		id, err := put(ctx, w, "k", []byte(raw))
		f.must(err)
		return &snapshot.DirEntry{Name: "d", Type: snapshot.EntryTypeDirectory, ObjectID: id}
	}
	entry := func(e any) string {
		raw, err := json.Marshal(e)
		f.must(err)
		return `{"stream":"kopia:directory","entries":[` + string(raw) + `],"summary":null}`
	}
	listed := func(w repo.RepositoryWriter, ctx context.Context, kind string, pieces ...any) *snapshot.DirEntry {
		return &snapshot.DirEntry{Name: "o", Type: snapshot.EntryType(kind), ObjectID: f.listed(ctx, w, pieces)}
	}
	// listless is a directory whose pieces are none.
	listless := func(w repo.RepositoryWriter, ctx context.Context) *snapshot.DirEntry {
		id, err := put(ctx, w, "k", []byte(`{"stream":"kopia:indirect","entries":[]}`))
		f.must(err)
		id, err = object.ParseID("I" + id.String())
		f.must(err)
		return &snapshot.DirEntry{Name: "d", Type: snapshot.EntryTypeDirectory, ObjectID: id}
	}
	piece := func(man *snapshot.Manifest, start, length int64) map[string]any {
		return map[string]any{"s": start, "l": length, "o": man.RootObjectID()}
	}
	planted := 0
	f.write(func(ctx context.Context, w repo.RepositoryWriter) error {
		shared := directory(w, ctx, entry(snapshot.DirEntry{Name: "shared", Type: snapshot.EntryTypeFile, ObjectID: good.RootObjectID()}))
		unlisted := listless(w, ctx)
		nothing, err := put(ctx, w, "", nil)
		f.must(err)
		none := map[string]any{"o": nothing}
		whole := directory(w, ctx, entry(snapshot.DirEntry{Name: "f", Type: snapshot.EntryTypeFile, ObjectID: good.RootObjectID()}))
		for path, root := range map[string]*snapshot.DirEntry{
			"/no-root":      nil,
			"/no-object":    {Name: "f", Type: snapshot.EntryTypeFile},
			"/missing":      {Name: "d", Type: snapshot.EntryTypeDirectory, ObjectID: missing},
			"/no-directory": directory(w, ctx, `{"stream":"other"}`),
			"/noise":        directory(w, ctx, "noise"),
			"/null":         directory(w, ctx, entry(nil)),
			"/no-file":      directory(w, ctx, entry(snapshot.DirEntry{Name: "f", Type: snapshot.EntryTypeFile, ObjectID: missing})),
			"/deeper":       directory(w, ctx, entry(directory(w, ctx, entry(nil)))),
			"/by-itself":    {Name: "f", Type: snapshot.EntryTypeFile, ObjectID: as("Z", good)},
			"/no-index":     {Name: "f", Type: snapshot.EntryTypeFile, ObjectID: as("I", good)},
			"/no-pieces":    listed(w, ctx, "d"),
			"/no-listing":   unlisted,
			"/less":         listed(w, ctx, "d", piece(good, 0, -1)),
			"/more":         listed(w, ctx, "f", map[string]any{"l": int64(1) << 60, "o": as("I", good)}),
			"/masked":       {Name: "f", Type: snapshot.EntryTypeFile, ObjectID: shared.ObjectID},
			"/unknown":      {Name: "f", Type: "x", ObjectID: good.RootObjectID()},
			"/gap":          listed(w, ctx, "f", piece(good, 0, size), piece(good, size+1, size)),
			"/twice":        directory(w, ctx, `{"stream":"kopia:directory","entries":[],"summary":null,"entries":[null]}`),
			"/long":         directory(w, ctx, entry(snapshot.DirEntry{Name: strings.Repeat("n", 2*mostEntry), Type: snapshot.EntryTypeFile, ObjectID: good.RootObjectID()})),
			// A backup that was saved again, and one that is said to be what it is not.
			"/good":       good.RootEntry,
			"/file-is-no": {Name: "d", Type: snapshot.EntryTypeDirectory, ObjectID: good.RootObjectID()},
			"/whole":      whole,
			"/pieces":     listed(w, ctx, "f", piece(good, 0, size), piece(good, size, size)),
			"/truncated":  listed(w, ctx, "f", none, none),
			"/empty":      directory(w, ctx, `{"stream":"kopia:directory","entries":null,"summary":null}`),
		} {
			man := f.manifest(namespace, path, root)
			if _, err := snapshot.SaveSnapshot(ctx, w, man); err != nil {
				return err
			}
			if !slices.Contains([]string{"/whole", "/good", "/pieces", "/empty", "/truncated"}, path) {
				planted++
			}
		}
		for _, payload := range []any{nil, "text", []int{1}, map[string]int{"startTime": 1}} {
			if _, err := w.PutManifest(ctx, map[string]string{"type": "snapshot", "username": "pvc.data", "hostname": namespace, "path": "/payload"}, payload); err != nil {
				return err
			}
			planted++
		}
		return nil
	})
	// Most of them would end Kopia, which says nothing; masked would have it remove what other
	// backups have in that directory.
	for what, root := range map[string]func(context.Context, repo.RepositoryWriter) *snapshot.DirEntry{
		"lost": func(ctx context.Context, w repo.RepositoryWriter) *snapshot.DirEntry {
			return directory(w, ctx, entry(snapshot.DirEntry{Name: "lost", Type: snapshot.EntryTypeFile, ObjectID: missing}))
		},
		"null": func(ctx context.Context, w repo.RepositoryWriter) *snapshot.DirEntry {
			return directory(w, ctx, entry(directory(w, ctx, entry(nil))))
		},
		"no pieces": func(ctx context.Context, w repo.RepositoryWriter) *snapshot.DirEntry { return listless(w, ctx) },
		"less": func(ctx context.Context, w repo.RepositoryWriter) *snapshot.DirEntry {
			return listed(w, ctx, "f", piece(good, 0, -1))
		},
	} {
		var broken *snapshot.Manifest
		f.write(func(ctx context.Context, w repo.RepositoryWriter) error {
			broken = f.manifest(namespace, "/broken", root(ctx, w))
			_, err := snapshot.SaveSnapshot(ctx, w, broken)
			return err
		})
		record := f.record("broken", broken)
		if _, err := f.maintain(true); err == nil || !strings.Contains(err.Error(), "backup broken (of db-0 in namespace shop)") || !strings.Contains(err.Error(), "delete") || strings.Contains(err.Error(), "backup good") {
			t.Errorf("with a backup that is damaged (%s): %v, want its name and what to do", what, err)
		}
		if what == "lost" {
			if _, err := f.maintain(false); err != nil {
				t.Errorf("the indexes of a repository with a damaged backup: %v", err)
			}
		}
		f.write(func(ctx context.Context, w repo.RepositoryWriter) error {
			return errors.Join(w.DeleteManifest(ctx, broken.ID), w.DeleteManifest(ctx, record))
		})
	}
	if result, err := f.maintain(true); err != nil || result.UnusableCollected != 0 || result.VerifiedSnapshots != 1 {
		t.Errorf("without it: %+v, %v", result, err)
	}
	left, err := listSnapshots(f.ctx, f.rep)
	f.must(err)
	if len(left) != 7 { // the canary, the good one, the same saved again, the whole one, of pieces, of empty ones, and empty
		var sources []string
		for _, s := range left {
			sources = append(sources, s.source().String())
		}
		t.Errorf("%d snapshots are left of %d planted and 7: %v", len(left), planted, sources)
	}
}
