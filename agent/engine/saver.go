// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"

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

// PutManifest saves no more of what could not be read than Kopia says that it does. The
// operation's result has what there is to know.
func (s *saver) PutManifest(ctx context.Context, labels map[string]string, payload any) (manifest.ID, error) {
	if man, ok := payload.(*snapshot.Manifest); ok && man.RootEntry != nil && man.RootEntry.DirSummary != nil && len(man.RootEntry.DirSummary.FailedEntries) > mostFailed {
		short, root, summary := *man, *man.RootEntry, man.RootEntry.DirSummary.Clone()
		summary.FailedEntries = summary.FailedEntries[:mostFailed]
		root.DirSummary, short.RootEntry = &summary, &root
		payload = &short
	}
	return s.RepositoryWriter.PutManifest(ctx, labels, payload)
}
