// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"unicode/utf8"

	"github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/snapshot"
)

// saver is a write session that deletes nothing, and whose snapshots are small.
type saver struct {
	repo.RepositoryWriter
}

// ApplyRetentionPolicy makes it a repo.RemoteRetentionPolicy. After each checkpoint Kopia's
// uploader applies a retention that it takes for the repository's: at our server the backup
// would fail, since it may delete nothing, and at somebody else's, backups would go.
func (*saver) ApplyRetentionPolicy(context.Context, string, bool) ([]manifest.ID, error) {
	return nil, nil
}

// mostFailed are the entries that a snapshot says could not be read, as Kopia has it:
// its directories have as many, and the snapshot itself has all (Kopia v0.23).
const mostFailed = 10

// mostSaid bytes of each path and reason stay: a snapshot of a week saves a manifest every few
// minutes, and the server takes so many bytes of them in a session.
const mostSaid = 300

// PutManifest saves no more of what could not be read than Kopia says that it does. The
// operation's result has what there is to know.
func (s *saver) PutManifest(ctx context.Context, labels map[string]string, payload any) (manifest.ID, error) {
	if man, ok := payload.(*snapshot.Manifest); ok && man.RootEntry != nil && man.RootEntry.DirSummary != nil && len(man.RootEntry.DirSummary.FailedEntries) > 0 {
		short, root, summary := *man, *man.RootEntry, man.RootEntry.DirSummary.Clone()
		summary.FailedEntries = shortened(summary.FailedEntries)
		root.DirSummary, short.RootEntry = &summary, &root
		payload = &short
	}
	return s.RepositoryWriter.PutManifest(ctx, labels, payload)
}

// shortened are the first entries, with as much of each as stays.
func shortened(failed []*fs.EntryWithError) []*fs.EntryWithError {
	var short []*fs.EntryWithError
	for _, e := range failed[:min(len(failed), mostFailed)] {
		short = append(short, &fs.EntryWithError{EntryPath: cut(e.EntryPath), Error: cut(e.Error)})
	}
	return short
}

// cut is the end of a text that is too long, at a character's edge: there is what tells
// entries apart, and the reason.
func cut(text string) string {
	if len(text) <= mostSaid {
		return text
	}
	begin := len(text) - mostSaid
	for begin < len(text) && !utf8.RuneStart(text[begin]) {
		begin++
	}
	return "…" + text[begin:]
}
