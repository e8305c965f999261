// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"maps"
	"sync"
	"sync/atomic"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/format"
	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"
	"golang.org/x/sync/errgroup"

	"github.com/kanister-kopia/kanister-kopia/agent/contents"
)

// walker finds out whether Kopia's collection can walk snapshots: whether all directories
// can be read, and all contents of the files are there. Kopia's readers trust what is
// stored, and some of what an agent can store ends the process that reads it. So what no
// honest client makes is refused before Kopia takes it for one.
type walker struct {
	rep   repo.DirectRepository
	good  idSet               // directories with all that is below them
	lists idSet               // of pieces, with all of them
	bad   map[object.ID]error // roots
	most  effort
	left  map[account]*atomic.Int64
}

// effort bounds the walks of all snapshots of one account, in steps of a few microseconds: a
// piece that is looked up is one, and a list that is read listSteps.
type effort struct {
	backups int64 // of what records name
	loose   int64 // of what none does
}

// account is of the snapshots of one host, which is a namespace, and no client's to choose.
type account struct {
	host    string
	backups bool
}

const (
	// walkParallel directories are read at the same time.
	walkParallel = 8
	// mostListing is far more than the list of any one directory or object takes.
	mostListing = 1 << 30
	// mostEntry is far more than one entry of a list takes: a directory names in its own what
	// could not be read in it.
	mostEntry = 16 << 20
	// mostPieces of all files of a snapshot are counted, 64 TiB of pieces of 1 MiB, and one
	// for each listedPiece bytes of lists. A few contents can be made to look like more than
	// anybody lives to walk.
	mostPieces  = 64 << 20
	listedPiece = 1 << 10
	listSteps   = 32
	// mostDepth is of lists of lists.
	mostDepth = 16
)

// mostEffort is some two hours for the backups of a namespace, and a quarter of an hour for
// what its running operations have saved: a few contents, saved as many snapshots, would else
// keep a maintenance until its time is over, which then could not say why.
var mostEffort = effort{backups: 32 * mostPieces, loose: 4 * mostPieces}

const (
	directoryStream = "kopia:directory"
	indirectStream  = "kopia:indirect"
)

// idSet has a number of each member: a repository has millions of directories. Nobody can
// make two of one number without the seed.
type idSet map[uint64]struct{}

var idSeed = maphash.MakeSeed()

// add says whether an id is new.
func (s idSet) add(id object.ID) bool {
	n := maphash.Comparable(idSeed, id)
	_, known := s[n]
	s[n] = struct{}{}
	return !known
}

func (s idSet) has(id object.ID) bool {
	_, known := s[maphash.Comparable(idSeed, id)]
	return known
}

func newWalker(rep repo.DirectRepository) *walker {
	return &walker{rep: rep, good: idSet{}, lists: idSet{}, bad: map[object.ID]error{}, most: mostEffort, left: map[account]*atomic.Int64{}}
}

// leftOf is what is left of the effort for a snapshot.
func (w *walker) leftOf(s stored, n named) *atomic.Int64 {
	a := account{s.source().Host, n.names(s) || !s.ours()}
	if w.left[a] == nil {
		w.left[a] = &atomic.Int64{}
		w.left[a].Store(w.most.loose)
		if a.backups {
			w.left[a].Store(w.most.backups)
		}
	}
	return w.left[a]
}

// problem is what is wrong with a snapshot, nil if nothing is. The error is of the way to it.
func (w *walker) problem(ctx context.Context, s stored, n named) (problem, err error) {
	switch {
	case s.man == nil:
		return nil, nil // Kopia skips it
	case s.man.RootEntry == nil:
		return errors.New("it has no root"), nil
	}
	root := s.man.RootEntry
	directory := root.Type == snapshot.EntryTypeDirectory
	if problem = w.bad[root.ObjectID]; problem != nil && directory {
		return problem, nil // of many snapshots with one root, one is walked
	}
	problem = w.walk(ctx, root, w.leftOf(s, n))
	switch {
	case problem == nil:
		return nil, nil
	case errors.Is(problem, errTooMany): // which is not of its root
		return problem, nil
	}
	// A storage that does not answer says nothing about a snapshot.
	if err := w.rep.BlobReader().GetBlob(ctx, format.KopiaRepositoryBlobID, 0, -1, &discard{}); err != nil {
		return nil, fmt.Errorf("%w, and then %w", problem, err)
	}
	if directory {
		w.bad[root.ObjectID] = problem
	}
	return problem, nil
}

func (w *walker) walk(ctx context.Context, root *snapshot.DirEntry, left *atomic.Int64) error {
	t := &tree{walker: w, effort: left, seen: idSet{}, looked: idSet{}}
	if err := t.entry(ctx, root); err != nil {
		return err
	}
	for len(t.next) > 0 {
		level := t.next
		t.next = nil
		group, ctx := errgroup.WithContext(ctx)
		group.SetLimit(walkParallel)
		for _, id := range level {
			group.Go(func() error {
				if err := t.directory(ctx, id); err != nil {
					return fmt.Errorf("directory %s: %w", id, err)
				}
				return nil
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
	}
	maps.Copy(w.good, t.seen)
	maps.Copy(w.lists, t.looked)
	return nil
}

// tree is the walk of one snapshot.
type tree struct {
	*walker
	pieces atomic.Int64
	effort *atomic.Int64 // that is left for it and others

	mu     sync.Mutex  // protects the following
	seen   idSet       // directories of it
	looked idSet       // lists of pieces of it
	next   []object.ID // directories that are still to be read
}

// entry looks at an entry. A directory is read later.
func (t *tree) entry(ctx context.Context, e *snapshot.DirEntry) error {
	if err := honest(e); err != nil {
		return fmt.Errorf("%.200q: %w", e.Name, err)
	}
	if e.Type == snapshot.EntryTypeDirectory && !t.later(e.ObjectID) {
		return nil
	}
	if err := t.object(ctx, e.ObjectID, 0); err != nil {
		return fmt.Errorf("%.200q: %w", e.Name, err)
	}
	return nil
}

// honest says that an entry is of a kind that there is, and what it names, too. Kopia's
// collection looks at an object once: it does not go into a directory that it has met as a
// file, and what is in it goes.
func honest(e *snapshot.DirEntry) error {
	switch e.Type {
	case snapshot.EntryTypeDirectory:
		if !contents.IsDirectory(e.ObjectID) {
			return fmt.Errorf("%s is no directory", e.ObjectID)
		}
	case snapshot.EntryTypeFile, snapshot.EntryTypeSymlink:
		if contents.IsDirectory(e.ObjectID) {
			return fmt.Errorf("%s is a directory", e.ObjectID)
		}
	default:
		return fmt.Errorf("it is of unknown kind %.200q", e.Type)
	}
	return nil
}

// later says whether a directory needs a look, and has it read.
func (t *tree) later(id object.ID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.good.has(id) || !t.seen.add(id) {
		return false
	}
	t.next = append(t.next, id)
	return true
}

// listNew says whether a list needs a look. A directory may have one, and its id.
func (t *tree) listNew(id object.ID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.lists.has(id) && t.looked.add(id)
}

func (t *tree) directory(ctx context.Context, id object.ID) error {
	return t.list(ctx, id, directoryStream, func(d *json.Decoder) error {
		var child *snapshot.DirEntry
		if err := d.Decode(&child); err != nil {
			return err
		}
		if child == nil {
			return errors.New("an entry of it is null")
		}
		return t.entry(ctx, child)
	})
}

// list reads the entries of a directory or of an object's pieces, one by one. They stand
// where Kopia writes them: what can be read in two ways, somebody reads in the other.
func (t *tree) list(ctx context.Context, id object.ID, stream string, entry func(*json.Decoder) error) error {
	if err := t.steps(listSteps); err != nil {
		return err
	}
	r, err := t.rep.OpenObject(ctx, id)
	if err != nil {
		return err
	}
	defer r.Close()
	if r.Length() > mostListing {
		return fmt.Errorf("object %s has %d bytes", id, r.Length())
	}
	rest := &bounded{r: r, left: mostEntry, count: t.count}
	d := json.NewDecoder(rest)
	expect := func(all ...json.Token) error {
		for _, want := range all {
			got, err := d.Token()
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			if err != nil {
				return err
			}
			if got != want {
				return fmt.Errorf("it has %.200v instead of %v", got, want)
			}
		}
		return nil
	}
	if err := expect(json.Delim('{'), "stream", stream, "entries"); err != nil {
		return err
	}
	switch begin, err := d.Token(); {
	case err != nil:
		return err
	case begin == json.Delim('['):
		for d.More() {
			if err := ctx.Err(); err != nil {
				return err
			}
			rest.left = mostEntry
			if err := entry(d); err != nil {
				return err
			}
		}
		if err := expect(json.Delim(']')); err != nil {
			return err
		}
	case begin != nil: // as Kopia writes those of an empty directory
		return fmt.Errorf("its entries are %.200v", begin)
	}
	rest.left = mostEntry
	if d.More() {
		var summary json.RawMessage
		if err := errors.Join(expect("summary"), d.Decode(&summary)); err != nil {
			return err
		}
	}
	return expect(json.Delim('}'))
}

// bounded reads until so much is read of one entry, or of all lists together.
type bounded struct {
	r     io.Reader
	left  int
	count func(int64) error
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("an entry of it has more than %d bytes", mostEntry)
	}
	n, err := b.r.Read(p)
	b.left -= n
	if err := b.count(int64(n) / listedPiece); err != nil {
		return n, err
	}
	return n, err
}

var (
	errTooLong = errors.New("it has more pieces than any backup")
	errTooMany = errors.New("the snapshots of its namespace take longer to look at, all together, than any namespace's")
)

// count counts pieces.
func (t *tree) count(pieces int64) error {
	if t.pieces.Add(pieces) > mostPieces {
		return errTooLong
	}
	return t.steps(pieces)
}

func (t *tree) steps(n int64) error {
	if t.effort.Add(-n) < 0 {
		return errTooMany
	}
	return nil
}

// object looks for all contents of an object.
func (t *tree) object(ctx context.Context, id object.ID, depth int) error {
	index, listed := id.IndexObjectID()
	if !listed {
		_, err := t.piece(ctx, id)
		return err
	}
	if depth > mostDepth {
		return errors.New("its pieces are listed in lists of lists")
	}
	if !t.listNew(id) {
		return nil
	}
	if err := t.object(ctx, index, depth+1); err != nil {
		return err
	}
	var end, pieces int64
	err := t.list(ctx, index, indirectStream, func(d *json.Decoder) error {
		var p object.IndirectObjectEntry
		if err := d.Decode(&p); err != nil {
			return err
		}
		length, err := t.piece(ctx, p.Object)
		if err != nil {
			return err
		}
		if p.Start != end || p.Length != length {
			return fmt.Errorf("piece %s has %d bytes at %d, and is said to have %d at %d", p.Object, length, end, p.Length, p.Start)
		}
		end += length
		pieces++
		return nil
	})
	if err == nil && pieces == 0 {
		err = errors.New("it has no pieces")
	}
	if err != nil {
		return fmt.Errorf("pieces %s: %w", index, err)
	}
	return nil
}

// piece looks for an object that is one content, and returns its length in bytes.
func (t *tree) piece(ctx context.Context, id object.ID) (int64, error) {
	if err := t.count(1); err != nil {
		return 0, err
	}
	content, compressed, ok := id.ContentID()
	switch {
	case !ok:
		return 0, fmt.Errorf("%.200q is no object", id)
	case compressed:
		// No client of this format makes one, and how much comes out of it cannot be known.
		return 0, fmt.Errorf("object %s is compressed by itself", id)
	}
	info, err := t.rep.ContentReader().ContentInfo(ctx, content)
	if err != nil {
		return 0, fmt.Errorf("content %s: %w", content, err)
	}
	return int64(info.OriginalLength), nil
}
