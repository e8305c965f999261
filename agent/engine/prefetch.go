// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"fmt"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"
	"golang.org/x/sync/errgroup"
)

const (
	// smallFile is a file that is asked for together with others. Kopia packs many of
	// them into one object of the storage, and asks the storage for each alone.
	smallFile = 1 << 20
	// A batch ends at any of these: enough for the server to see that it needs most of
	// a pack, little enough for its cache and for the open folders of the agent.
	batchFiles   = 4000
	batchBytes   = 48 << 20
	batchFolders = 200
)

// batch collects small files, so that the server can fetch what they are packed in
// before they are read one by one.
type batch struct {
	ids     []object.ID
	writes  []func() error
	bytes   int64
	last    *folder
	folders int
}

// add puts a file into the batch and says whether it is to be started.
func (b *batch) add(f *folder, e *snapshot.DirEntry, write func() error) (full bool) {
	b.ids, b.writes, b.bytes = append(b.ids, e.ObjectID), append(b.writes, write), b.bytes+e.FileSize
	if f != b.last {
		b.last, b.folders = f, b.folders+1
	}
	return len(b.ids) >= batchFiles || b.bytes >= batchBytes || b.folders >= batchFolders
}

// start lets the server fetch the batch and then writes its files beside each other.
func (b *batch) start(ctx context.Context, rep repo.Repository, group *errgroup.Group) error {
	if len(b.ids) > 1 {
		// What cannot be fetched now is told when it is read.
		if _, err := rep.PrefetchObjects(ctx, b.ids, ""); err != nil && ctx.Err() != nil {
			return fmt.Errorf("fetch small files: %w", ctx.Err())
		}
	}
	for _, write := range b.writes {
		group.Go(write)
	}
	*b = batch{}
	return nil
}
