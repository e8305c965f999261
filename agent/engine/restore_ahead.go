// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"io"
	"iter"
	"sync"

	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/kanister-kopia/kanister-kopia/agent/contents"
)

const (
	// askTogether files are asked for at once: their contents travel together, and most
	// of what a small file costs on the way is the way.
	askTogether = 32
	// askMost is the largest file that is asked for ahead, in bytes, and askLeast what
	// the smallest one counts as.
	askMost  = pieceBytes
	askLeast = 16 << 10
	// askRoom bounds the contents that were asked for and are not written yet, in bytes. Those
	// that are asked for together fit in.
	askRoom = askTogether * askMost
)

// asker is who can be asked for contents ahead; Kopia cannot.
type asker interface {
	Ask(context.Context, content.ID) (await func(context.Context) ([]byte, error))
	Pieces(context.Context, object.ID) pieces
}

// fileJob is a file that is to be written, by one of several writers.
type fileJob struct {
	folder *folder
	name   string
	entry  *snapshot.DirEntry
	extra  extra
	there  bool                                  // an earlier restore wrote it
	await  func(context.Context) ([]byte, error) // nil: it was not asked for
	room   int64                                 // of askRoom that it takes
}

// writers write the files that the walk finds.
type writers struct {
	jobs    chan fileJob
	ahead   asker // nil: nobody can be asked
	room    *semaphore.Weighted
	waiting []fileJob // the walk's: what is asked for with the next ones
}

// start lets writers write until finish or the first failure.
func (w *restorer) start(ctx context.Context, group *errgroup.Group) {
	w.jobs, w.room = make(chan fileJob), semaphore.NewWeighted(askRoom)
	for range w.parallel {
		group.Go(func() error {
			for j := range w.jobs {
				err := w.release(j.folder, w.file(ctx, j))
				w.room.Release(j.room)
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
}

// enqueue has a file written, soon. The walk alone calls it.
func (w *restorer) enqueue(ctx context.Context, j fileJob) error {
	j.folder.refs.Add(1)
	j.there = w.resume.has(j.folder, j.name, j.entry, j.extra)
	if !w.mayAsk(j) {
		return w.hand(ctx, j)
	}
	j.room = max(j.entry.FileSize, askLeast)
	w.waiting = append(w.waiting, j)
	if len(w.waiting) < askTogether {
		return nil
	}
	return w.askWaiting(ctx)
}

// mayAsk says whether a file is one small content that is needed for sure.
func (w *restorer) mayAsk(j fileJob) bool {
	if w.ahead == nil || j.there || j.extra.Inode != "" || j.entry.FileSize > askMost {
		return false
	}
	_, compressed, ok := j.entry.ObjectID.ContentID()
	return ok && !compressed
}

// askWaiting asks for those who wait to be asked for, and hands them to the writers.
func (w *restorer) askWaiting(ctx context.Context) error {
	waiting := w.waiting
	w.waiting = w.waiting[:0]
	var room int64
	for _, j := range waiting {
		room += j.room
	}
	err := w.room.Acquire(ctx, room)
	for i := range waiting {
		if err != nil {
			break
		}
		id, _, _ := waiting[i].entry.ObjectID.ContentID()
		waiting[i].await = w.ahead.Ask(ctx, id)
	}
	for _, j := range waiting {
		if err == nil {
			err = w.hand(ctx, j)
		} else {
			_ = w.release(j.folder, err)
		}
	}
	return err
}

// hand gives a file to the next writer that is free.
func (w *restorer) hand(ctx context.Context, j fileJob) error {
	select {
	case w.jobs <- j:
		return nil
	case <-ctx.Done(): // the writers may have ended
		return w.release(j.folder, context.Cause(ctx))
	}
}

// finish has the rest written, unless the walk failed, and lets the writers end.
func (w *restorer) finish(ctx context.Context, walkErr error) error {
	defer close(w.jobs)
	if walkErr == nil {
		return w.askWaiting(ctx)
	}
	for _, j := range w.waiting {
		_ = w.release(j.folder, walkErr)
	}
	return walkErr
}

// pieceBytes are written at once, or are a hole.
const pieceBytes = 128 << 10

var pieceBuffers = sync.Pool{New: func() any { return new([pieceBytes]byte) }}

// pieces of a file's content, in order, of any size. Each is valid until the next.
type pieces = iter.Seq2[[]byte, error]

// open begins to read a file's content, or takes what was asked for ahead.
func (w *restorer) open(ctx context.Context, j fileJob) (content pieces, done func(), err error) {
	if j.await != nil {
		data, err := j.await(ctx)
		return func(yield func([]byte, error) bool) { yield(data, nil) }, func() { contents.Reuse(data) }, err
	}
	if w.ahead != nil {
		return w.ahead.Pieces(ctx, j.entry.ObjectID), func() {}, nil
	}
	reader, err := w.rep.OpenObject(ctx, j.entry.ObjectID)
	if err != nil {
		return nil, nil, err
	}
	return piecesOf(reader), func() { _ = reader.Close() }, nil
}

func piecesOf(in io.Reader) pieces {
	return func(yield func([]byte, error) bool) {
		buffer := pieceBuffers.Get().(*[pieceBytes]byte)
		defer pieceBuffers.Put(buffer)
		for {
			n, err := io.ReadFull(in, buffer[:])
			if n > 0 && !yield(buffer[:n], nil) {
				return
			}
			switch err {
			case nil:
			case io.EOF, io.ErrUnexpectedEOF:
				return
			default:
				yield(nil, err)
				return
			}
		}
	}
}
