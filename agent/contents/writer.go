// SPDX-License-Identifier: Apache-2.0

package contents

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/compression"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/format"
	"github.com/kopia/kopia/repo/hashing"
	"github.com/kopia/kopia/repo/object"
	"golang.org/x/sync/semaphore"
)

const (
	// window bounds the bytes that are on their way to the server.
	window = 12 << 20
	// askFirst is the size from which it is worth asking whether a content is there
	// already; Kopia's client does the same from 50,000 bytes.
	askFirst = 50_000
	// After missesInRow, as in a first backup, only one of askSeldom is asked for: an answer
	// comes behind the contents that are on their way.
	missesInRow = 4
	askSeldom   = 8
)

// Writer writes objects through one stream, and reads what it wrote. What was written is
// in the storage when Flush has returned without an error, and not sooner. A stream that
// breaks ends it: what was on its way may be lost.
type Writer struct {
	// writing is held for reading while a content is hashed and sent, for writing by a flush:
	// a checkpoint asks for one while files are read.
	writing sync.RWMutex

	stream   *Stream
	objects  *object.Manager
	contents interface {
		ContentInfo(context.Context, content.ID) (content.Info, error)
		GetContent(context.Context, content.ID) ([]byte, error)
		PrefetchContents(context.Context, []content.ID, string) []content.ID
		flush(context.Context) error
	}
}

// NewWriter takes over a stream, which ends with ctx. onUpload is told the bytes of each
// content that is sent.
func NewWriter(ctx context.Context, s *Stream, onUpload func(int64)) (*Writer, error) {
	hash, err := hashing.CreateHashFunc(s.Parameters)
	if err != nil {
		return nil, fmt.Errorf("hash as the repository does: %w", err)
	}
	context.AfterFunc(ctx, s.Close)
	w := &Writer{stream: s}
	c := newContentWriter(hash, s, &w.writing, onUpload)
	if w.objects, err = object.NewObjectManager(ctx, c, format.ObjectFormat{Splitter: s.Parameters.Splitter}, nil); err != nil {
		return nil, fmt.Errorf("split as the repository does: %w", err)
	}
	w.contents = c
	return w, nil
}

// Close ends the stream. What was not flushed is lost.
func (w *Writer) Close() { w.stream.Close() }

// Flush returns when all that was written before is in the storage, or with why it is not.
// What is written meanwhile waits.
func (w *Writer) Flush(ctx context.Context) error {
	w.writing.Lock()
	defer w.writing.Unlock()
	return w.contents.flush(ctx)
}

// NewObjectWriter, ConcatenateObjects, OpenObject, VerifyObject and ContentInfo are those of
// Kopia's repo.RepositoryWriter.
func (w *Writer) NewObjectWriter(ctx context.Context, o object.WriterOptions) object.Writer {
	if average, ok := averages[cmp.Or(o.Splitter, w.stream.Parameters.Splitter)]; ok && o.Prefix == "" {
		return newObjectWriter(ctx, w.objects, o, average)
	}
	return w.objects.NewWriter(ctx, o)
}

func (w *Writer) ConcatenateObjects(ctx context.Context, ids []object.ID, o repo.ConcatenateOptions) (object.ID, error) {
	return w.objects.Concatenate(ctx, ids, o.Compressor)
}

func (w *Writer) OpenObject(ctx context.Context, id object.ID) (object.Reader, error) {
	return object.Open(ctx, w.contents, id)
}

func (w *Writer) VerifyObject(ctx context.Context, id object.ID) ([]content.ID, error) {
	return object.VerifyObject(ctx, w.contents, id)
}

func (w *Writer) ContentInfo(ctx context.Context, id content.ID) (content.Info, error) {
	return w.contents.ContentInfo(ctx, id)
}

// gathered is what is called of Kopia's gather.Bytes.
type gathered interface {
	Length() int
	AppendToSlice([]byte) []byte
}

// contentWriter is Kopia's interface between objects and contents. B is Kopia's
// gather.Bytes, which cannot be named outside of Kopia: it is inferred.
type contentWriter[B gathered] struct {
	stream   *Stream
	hash     func(output []byte, data B) []byte
	onUpload func(int64)
	window   *semaphore.Weighted
	writing  *sync.RWMutex  // the Writer's
	pending  sync.WaitGroup // answers that are waited for

	mu   sync.Mutex                   // protects the following
	sent map[content.ID]chan struct{} // what is on its way; closed when it was answered
	err  error                        // of what was on its way

	misses   int // answers in a row that a content is not there
	unspoken int // contents since then that were not asked for
}

func newContentWriter[B gathered](hash func([]byte, B) []byte, s *Stream, writing *sync.RWMutex, onUpload func(int64)) *contentWriter[B] {
	return &contentWriter[B]{
		stream: s, hash: hash, onUpload: onUpload, writing: writing,
		window: semaphore.NewWeighted(window), sent: map[content.ID]chan struct{}{},
	}
}

func (w *contentWriter[B]) SupportsContentCompression() bool { return w.stream.Parameters.Compression }

// WriteContent sends a content, unless it is known to be there. That it arrived is told by flush.
func (w *contentWriter[B]) WriteContent(ctx context.Context, data B, prefix content.IDPrefix, comp compression.HeaderID) (content.ID, error) {
	w.writing.RLock()
	defer w.writing.RUnlock()
	sum := make([]byte, 0, hashing.MaxHashSize)
	id, err := content.IDFromHash(prefix, w.hash(sum, data))
	if err != nil {
		return content.EmptyID, fmt.Errorf("hash a content: %w", err)
	}
	size := int64(data.Length())
	if size >= askFirst && w.asks() {
		_, err := w.ContentInfo(ctx, id)
		w.heard(err == nil)
		switch {
		case err == nil:
			return id, nil
		case !errors.Is(err, content.ErrContentNotFound):
			return content.EmptyID, err
		}
	}
	weight := min(size, window)
	if err := w.window.Acquire(ctx, weight); err != nil {
		return content.EmptyID, context.Cause(ctx)
	}
	done, err := w.begin(id)
	if done == nil {
		w.window.Release(weight)
		return id, err
	}
	body := data.AppendToSlice(bodies.get(data.Length())[:0])
	answer, err := w.stream.ask(ctx, request{kind: kindWrite, prefix: prefix, compression: comp, data: body})
	if err != nil {
		done(err)
		w.window.Release(weight)
		return content.EmptyID, err
	}
	w.onUpload(size)
	w.pending.Go(func() {
		defer w.window.Release(weight)
		// The stream ends with the operation.
		stored, err := w.stream.await(context.WithoutCancel(ctx), answer)
		if err == nil && string(stored) != id.String() {
			err = fmt.Errorf("the server stored %.80q for %s", stored, id)
		}
		if err == nil {
			bodies.put(body) // sent, as it was answered
			bodies.put(stored)
		}
		done(err)
	})
	return id, nil
}

// asks says whether it is worth asking whether a content is there before it is sent.
func (w *contentWriter[B]) asks() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.misses < missesInRow {
		return true
	}
	w.unspoken++
	return w.unspoken%askSeldom == 0
}

func (w *contentWriter[B]) heard(there bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.misses++; there {
		w.misses, w.unspoken = 0, 0
	}
}

// begin says that a content is on its way until done. No done: it is already, or err, which
// is that of an earlier one.
func (w *contentWriter[B]) begin(id content.ID) (done func(error), err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sent[id] != nil || w.err != nil {
		return nil, w.err
	}
	answered := make(chan struct{})
	w.sent[id] = answered
	return func(err error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.sent, id)
		close(answered)
		if err != nil && w.err == nil {
			w.err = fmt.Errorf("write to repository: %w", err)
		}
	}, nil
}

// arrived waits for a content that is on its way.
func (w *contentWriter[B]) arrived(ctx context.Context, id content.ID) error {
	w.mu.Lock()
	answered := w.sent[id]
	w.mu.Unlock()
	if answered == nil {
		return nil
	}
	select {
	case <-answered:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (w *contentWriter[B]) failure() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

func (w *contentWriter[B]) flush(ctx context.Context) error {
	w.pending.Wait()
	if err := w.failure(); err != nil {
		return err
	}
	if _, err := w.stream.call(ctx, request{kind: kindFlush}); err != nil {
		return fmt.Errorf("flush repository: %w", err)
	}
	return nil
}

// ContentInfo says that there is a content, and nothing else about it.
func (w *contentWriter[B]) ContentInfo(ctx context.Context, id content.ID) (content.Info, error) {
	if err := w.arrived(ctx, id); err != nil {
		return content.Info{}, err
	}
	if _, err := w.stream.call(ctx, request{kind: kindHas, id: id}); err != nil {
		return content.Info{}, err
	}
	return content.Info{ContentID: id}, nil
}

func (w *contentWriter[B]) GetContent(ctx context.Context, id content.ID) ([]byte, error) {
	if err := w.arrived(ctx, id); err != nil {
		return nil, err
	}
	return w.stream.call(ctx, request{kind: kindRead, id: id})
}

// PrefetchContents is Kopia's hint to fill a cache; there is none.
func (w *contentWriter[B]) PrefetchContents(context.Context, []content.ID, string) []content.ID {
	return nil
}
