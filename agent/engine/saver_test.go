// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/snapshot"
)

// savedTo keeps the manifest that it is given.
type savedTo struct {
	repo.RepositoryWriter
	man *snapshot.Manifest
}

func (k *savedTo) PutManifest(_ context.Context, _ map[string]string, payload any) (manifest.ID, error) {
	k.man = payload.(*snapshot.Manifest)
	return "id", nil
}

// A snapshot of which much could not be read is saved as small as any other, and the one that
// the operation tells of is as it was.
func TestSaverKeepsSnapshotsSmall(t *testing.T) {
	var failed []*fs.EntryWithError
	for i := range 100 {
		path := strings.Repeat("ü/", 1000) + fmt.Sprint(i)
		failed = append(failed, &fs.EntryWithError{EntryPath: path, Error: "open " + path + ": permission denied"})
	}
	failed[0] = &fs.EntryWithError{EntryPath: "a", Error: "permission denied"}
	man := &snapshot.Manifest{RootEntry: &snapshot.DirEntry{DirSummary: &fs.DirectorySummary{TotalFileCount: 7, FailedEntries: failed}}}
	var to savedTo
	if _, err := (&saver{&to}).PutManifest(t.Context(), nil, man); err != nil {
		t.Fatal(err)
	}
	saved := to.man.RootEntry.DirSummary
	raw, err := json.Marshal(to.man)
	if err != nil || len(raw) > 10<<10 || saved.TotalFileCount != 7 || len(saved.FailedEntries) != 10 {
		t.Errorf("%d bytes, %d entries, %d files, %v", len(raw), len(saved.FailedEntries), saved.TotalFileCount, err)
	}
	if e := saved.FailedEntries[0]; *e != *failed[0] {
		t.Errorf("a short entry is %+v, want %+v", e, failed[0])
	}
	if e := saved.FailedEntries[9]; !strings.HasSuffix(e.EntryPath, "/9") || !strings.HasSuffix(e.Error, "/9: permission denied") || !utf8.ValidString(e.EntryPath) {
		t.Errorf("a long one is %+v", e)
	}
	if len(man.RootEntry.DirSummary.FailedEntries) != 100 || len(failed[9].EntryPath) < 2000 {
		t.Error("the snapshot itself was shortened")
	}
}
