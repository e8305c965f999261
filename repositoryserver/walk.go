// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/format"
	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"
	"golang.org/x/sync/errgroup"
)

// walker finds out whether Kopia's collection can walk snapshots: whether all directories
// can be read, and all contents of the files are there. What is no honest client's is
// refused before Kopia takes it for one.
type walker struct {
	rep  repo.DirectRepository
	good map[object.ID]bool // directories with all that is below them
}

const (
	// walkParallel directories are read at the same time.
	walkParallel = 8
	// mostJSON is far more than any one directory or index takes, and fits into memory.
	mostJSON = 256 << 20
	// mostPieces of all files of a snapshot are counted: 64 TiB of pieces of 1 MiB. A few
	// contents can be made to look like more than anybody lives to walk.
	mostPieces = 64 << 20
	// mostDepth is of indexes of indexes.
	mostDepth = 16
)

func newWalker(rep repo.DirectRepository) *walker {
	return &walker{rep: rep, good: map[object.ID]bool{}}
}

// problem is what is wrong with a snapshot, nil if nothing is. The error is of the way to it.
func (w *walker) problem(ctx context.Context, s stored) (problem, err error) {
	switch {
	case s.man == nil:
		return nil, nil // Kopia skips it
	case s.man.RootEntry == nil:
		return errors.New("it has no root"), nil
	}
	problem = w.walk(ctx, s.man.RootEntry)
	if problem == nil {
		return nil, nil
	}
	// A storage that does not answer says nothing about a snapshot.
	if err := w.rep.BlobReader().GetBlob(ctx, format.KopiaRepositoryBlobID, 0, -1, &discard{}); err != nil {
		return nil, fmt.Errorf("%w, and then %w", problem, err)
	}
	return problem, nil
}

func (w *walker) walk(ctx context.Context, root *snapshot.DirEntry) error {
	t := &tree{walker: w, seen: map[object.ID]bool{}}
	for level := []*snapshot.DirEntry{root}; len(level) > 0; {
		var mu sync.Mutex // protects the following
		var next []*snapshot.DirEntry
		group, ctx := errgroup.WithContext(ctx)
		group.SetLimit(walkParallel)
		for _, e := range level {
			if t.known(e) {
				continue
			}
			group.Go(func() error {
				below, err := t.entry(ctx, e)
				mu.Lock()
				defer mu.Unlock()
				next = append(next, below...)
				return err
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
		level = next
	}
	for id := range t.seen {
		w.good[id] = true
	}
	return nil
}

// tree is the walk of one snapshot.
type tree struct {
	*walker
	seen   map[object.ID]bool // directories of it
	pieces atomic.Int64
}

// known says that a directory needs no look, or no second one.
func (t *tree) known(e *snapshot.DirEntry) bool {
	if e.Type != snapshot.EntryTypeDirectory {
		return false
	}
	if t.good[e.ObjectID] || t.seen[e.ObjectID] {
		return true
	}
	t.seen[e.ObjectID] = true
	return false
}

// entry looks at an entry and returns the directories in it.
func (t *tree) entry(ctx context.Context, e *snapshot.DirEntry) ([]*snapshot.DirEntry, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := t.object(ctx, e.ObjectID, 0); err != nil {
		return nil, fmt.Errorf("%.200q: %w", e.Name, err)
	}
	if e.Type != snapshot.EntryTypeDirectory {
		return nil, nil
	}
	entries, err := t.directory(ctx, e.ObjectID)
	if err != nil {
		return nil, fmt.Errorf("directory %.200q: %w", e.Name, err)
	}
	var below []*snapshot.DirEntry
	for _, child := range entries {
		if child.Type == snapshot.EntryTypeDirectory {
			below = append(below, child)
		} else if _, err := t.entry(ctx, child); err != nil {
			return nil, err
		}
	}
	return below, nil
}

func (t *tree) directory(ctx context.Context, id object.ID) ([]*snapshot.DirEntry, error) {
	var dir snapshot.DirManifest
	if err := t.json(ctx, id, &dir); err != nil {
		return nil, err
	}
	if dir.StreamType != "kopia:directory" {
		return nil, fmt.Errorf("it is %.200q", dir.StreamType)
	}
	if slices.Contains(dir.Entries, nil) {
		return nil, errors.New("an entry of it is null") // which ends Kopia
	}
	return dir.Entries, nil
}

// json reads an object into memory, if it has room there.
func (t *tree) json(ctx context.Context, id object.ID, into any) error {
	r, err := t.rep.OpenObject(ctx, id)
	if err != nil {
		return err
	}
	defer r.Close()
	if r.Length() > mostJSON {
		return fmt.Errorf("object %s has %d bytes", id, r.Length())
	}
	return json.NewDecoder(r).Decode(into)
}

// object looks for all contents of an object.
func (t *tree) object(ctx context.Context, id object.ID, depth int) error {
	if t.pieces.Add(1) > mostPieces || depth > mostDepth {
		return errors.New("it has more pieces than any backup")
	}
	if index, ok := id.IndexObjectID(); ok {
		if err := t.object(ctx, index, depth+1); err != nil {
			return err
		}
		var pieces struct {
			Entries []object.IndirectObjectEntry `json:"entries"`
		}
		if err := t.json(ctx, index, &pieces); err != nil {
			return err
		}
		for _, p := range pieces.Entries {
			if err := t.object(ctx, p.Object, depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	content, compressed, ok := id.ContentID()
	switch {
	case !ok:
		return fmt.Errorf("%q is no object", id)
	case compressed:
		// No client of this format makes one, and how much comes out of it cannot be known.
		return fmt.Errorf("object %s is compressed by itself", id)
	}
	if _, err := t.rep.ContentReader().ContentInfo(ctx, content); err != nil {
		return fmt.Errorf("content %s: %w", content, err)
	}
	return nil
}
