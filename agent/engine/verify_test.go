// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

// recordedBackup is a repository with one backup, whose tree begins with the object 1.
type recordedBackup struct {
	*stored
	record []byte
}

func (r *recordedBackup) FindManifests(context.Context, map[string]string) ([]*manifest.EntryMetadata, error) {
	return []*manifest.EntryMetadata{{ID: "record"}}, nil
}

func (r *recordedBackup) GetManifest(_ context.Context, id manifest.ID, into any) (*manifest.EntryMetadata, error) {
	raw := r.record
	if id != "record" {
		var err error
		if raw, err = json.Marshal(snapshot.Manifest{RootEntry: entryOf("", snapshot.EntryTypeDirectory, 1, 0)}); err != nil {
			return nil, err
		}
	}
	return &manifest.EntryMetadata{ID: id}, json.Unmarshal(raw, into)
}

func (r *recordedBackup) VerifyObject(_ context.Context, id object.ID) ([]content.ID, error) {
	contentID, _, ok := id.ContentID()
	if _, known := r.objects[id.String()]; !known || !ok {
		return nil, object.ErrObjectNotFound
	}
	return []content.ID{contentID}, nil
}

func (r *recordedBackup) ContentInfo(_ context.Context, id content.ID) (content.Info, error) {
	return content.Info{ContentID: id, PackedLength: 1, OriginalLength: 4}, nil
}

// look verifies the backup and measures it in all modes, and says so if that does not end.
func (r *recordedBackup) look(t *testing.T) (*api.VerifyResult, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn := &connection{rep: r, objects: r, creds: &api.Credentials{URL: "https://server"}}
	p := newProgress(time.Now, func(api.Progress) {})
	result, err := verifyBackups(ctx, conn, api.VerifyRequest{Percent: 100}, p, newThrottle(ctx, 0))
	for _, mode := range api.StatsModes {
		r.opens.Store(0)
		_, _ = statsOf(ctx, conn, api.StatsRequest{BackupID: "b", Mode: mode}, p)
	}
	if ctx.Err() != nil {
		t.Errorf("it takes too long: %v", ctx.Err())
	}
	if err != nil {
		return nil, err
	}
	return result.Verify, nil
}

func recordOf() []byte {
	raw, err := json.Marshal(api.Record{BackupID: "b", AbsolutePath: "/data", Snapshot: api.SnapshotResult{ID: "s", RootObject: storedID(1)}})
	if err != nil {
		panic(err)
	}
	return raw
}

// What is wrong with one entry is told of that entry, and the others are still looked at.
func TestVerifyGoesOn(t *testing.T) {
	f := func(name string, n int, size int64) *snapshot.DirEntry {
		return entryOf(name, snapshot.EntryTypeFile, n, size)
	}
	d := func(name string, n int) *snapshot.DirEntry {
		return entryOf(name, snapshot.EntryTypeDirectory, n, 0)
	}
	r := &recordedBackup{record: recordOf(), stored: &stored{objects: map[string][]byte{
		storedID(1): manifestOf(f("good", 9, 4), f("lost", 7, 4), f("short", 9, 5), f("..", 9, 4), d("empty", 2), d("torn", 3), d("gone", 6), d("d", 4), entryOf("odd", "z", 9, 4)),
		storedID(2): nil, storedID(3): []byte(`{"stream":"kopia:directory","entries":[{`),
		storedID(4): manifestOf(f("good", 9, 4), f("good", 9, 4), f("lost", 7, 4)), storedID(9): []byte("four"),
	}}}
	got, err := r.look(t)
	must(t, err)
	if got.Files != 1 || got.ProblemCount != 9 {
		t.Errorf("%+v, want one good file and 9 problems", got)
	}
	for _, path := range []string{"/data/lost", "/data/short", "/data", "/data/empty", "/data/torn", "/data/gone", "/data/d", "/data/d/lost", "/data/odd"} {
		if !slices.ContainsFunc(got.Problems, func(p string) bool { return strings.HasPrefix(p, "backup b: "+path+": ") }) {
			t.Errorf("%s is not among the problems: %q", path, got.Problems)
		}
	}
}

// FuzzVerify: whatever a record, a directory and its extras hold, looking at it ends.
func FuzzVerify(f *testing.F) {
	good := manifestOf(entryOf("f", snapshot.EntryTypeFile, 9, 4), entryOf("d", snapshot.EntryTypeDirectory, 2, 0), entryOf("l", snapshot.EntryTypeSymlink, 8, 0))
	kept := manifestOf(entryOf("f", snapshot.EntryTypeFile, 9, 4), entryOf(extrasName, snapshot.EntryTypeFile, 3, 0))
	f.Add(recordOf(), good, kept, []byte(`{"version":1,"entries":[{"name":"f","inode":"1"}]}`))
	f.Add([]byte(`{"backupID":"b","snapshot":{"rootObject":"`+storedID(2)+`","root":{"file":true,"size":-1}}}`), good, kept, []byte(`{"version":1}`))
	f.Add([]byte(`{}`), manifestOf(entryOf("d", snapshot.EntryTypeDirectory, 1, 0)), []byte("null"), []byte("{}"))
	f.Add(recordOf(), manifestOf(entryOf("d", snapshot.EntryTypeDirectory, 2, 0), entryOf("e", snapshot.EntryTypeDirectory, 2, 0)), manifestOf(entryOf("d", snapshot.EntryTypeDirectory, 1, 0)), []byte{})
	f.Fuzz(func(t *testing.T, record, root, below, kept []byte) {
		r := &recordedBackup{record: record, stored: &stored{objects: map[string][]byte{
			storedID(1): root, storedID(2): below, storedID(3): kept, storedID(8): []byte("f"), storedID(9): []byte("four"),
		}}}
		if got, err := r.look(t); err == nil && got.ProblemCount < int64(len(got.Problems)) {
			t.Errorf("more problems told than counted: %+v", got)
		}
	})
}
