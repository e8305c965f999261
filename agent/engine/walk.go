// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"cmp"
	"context"
	"crypto/sha256"
	"path"
	"sync"

	"github.com/kopia/kopia/snapshot"
)

// walk visits the entries of a stored tree, a directory before what is below it, with
// their paths in the backup. Its names are those on the volume, and checked. below
// says whether to go into a directory. The file of a directory's extras is visited
// under its stored name, which no file of a volume has.
func walk(ctx context.Context, rep objects, e *snapshot.DirEntry, where string, x extra,
	visit func(where string, e *snapshot.DirEntry, x extra) (below bool, err error),
) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	below, err := visit(where, e, x)
	if err != nil || !below || e.Type != snapshot.EntryTypeDirectory {
		return err
	}
	entries, kept, err := readEntries(ctx, rep, e)
	if err != nil {
		return err
	}
	if kept.stored != nil {
		if _, err := visit(path.Join(where, extrasName), kept.stored, extra{}); err != nil {
			return err
		}
	}
	extra := kept.byName()
	for _, child := range entries {
		name, err := decodeName(child.Name)
		if err != nil {
			return err
		}
		if err := walk(ctx, rep, child, path.Join(where, name), extra[child.Name], visit); err != nil {
			return err
		}
	}
	return nil
}

// maxDistinct bounds a set: 4 Mi members take about 160 MiB.
const maxDistinct = 4 << 20

// set remembers which strings were seen, by a digest of each.
type set struct {
	most int // members, if it is not maxDistinct

	mu   sync.Mutex // protects the following
	seen map[[16]byte]struct{}
}

// add says whether a string is new. A full set takes no more, and says so.
func (s *set) add(text string) (isNew, full bool) {
	sum := sha256.Sum256([]byte(text))
	key := [16]byte(sum[:])
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.seen[key]; known {
		return false, false
	}
	if len(s.seen) >= cmp.Or(s.most, maxDistinct) {
		return true, true
	}
	if s.seen == nil {
		s.seen = map[[16]byte]struct{}{}
	}
	s.seen[key] = struct{}{}
	return true, false
}

// has says whether a string was added.
func (s *set) has(text string) bool {
	sum := sha256.Sum256([]byte(text))
	s.mu.Lock()
	defer s.mu.Unlock()
	_, known := s.seen[[16]byte(sum[:])]
	return known
}
