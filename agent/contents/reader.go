// SPDX-License-Identifier: Apache-2.0

package contents

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"sync"
	"time"

	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/object"
)

const (
	// Patience is how long a server may be gone before a read fails; as long as Kopia's
	// own reads try.
	Patience = 2 * time.Minute
	// retryPause is between two tries.
	retryPause = 500 * time.Millisecond
	// MostBreaks of one read's streams: a server that ends each of them is no server.
	MostBreaks = 20
)

// Reader reads objects through one stream at a time, and opens another where it breaks:
// reading again changes nothing.
type Reader struct {
	// again opens a stream.
	again func(context.Context) (*Stream, error)
	// final says of an error of again that no further try will end otherwise.
	final func(error) bool

	mu     sync.Mutex // protects the following, and is held while a stream is opened
	stream *Stream
	err    error // that there will be no other
}

// NewReader takes over a stream. final says of an error of again that trying once more is no use.
func NewReader(first *Stream, again func(context.Context) (*Stream, error), final func(error) bool) *Reader {
	return &Reader{stream: first, again: again, final: final}
}

// Close ends the stream, and what waits for it.
func (r *Reader) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = net.ErrClosed
	r.stream.Close()
}

// OpenObject opens an object as Kopia's repo.Repository does.
func (r *Reader) OpenObject(ctx context.Context, id object.ID) (object.Reader, error) {
	return object.Open(ctx, r, id)
}

// GetContent reads one content. It waits for a server that is gone, for a while.
func (r *Reader) GetContent(ctx context.Context, id content.ID) ([]byte, error) {
	return r.Ask(ctx, id)(ctx)
}

// Ask asks for a content without waiting for it: await does, once, and for a server that is
// gone, for a while. Contents that are asked for together travel together. A content that
// nobody waits for takes memory until the stream ends.
func (r *Reader) Ask(ctx context.Context, id content.ID) (await func(context.Context) ([]byte, error)) {
	var answer <-chan frame
	q := request{kind: kindRead, id: id}
	stream, err := r.after(ctx, nil)
	if err == nil {
		answer, err = stream.ask(ctx, q)
	}
	return func(ctx context.Context) (data []byte, _ error) {
		if err == nil {
			data, err = stream.await(ctx, answer)
		}
		for breaks := 0; errors.As(err, new(*brokenError)) && breaks < MostBreaks; breaks++ {
			if stream, err = r.after(ctx, stream); err == nil {
				data, err = stream.call(ctx, q)
			}
		}
		return data, err
	}
}

// mostAhead is how many bytes of an object are asked for ahead of the piece that is needed,
// if that is more than the next piece: as many as an average one of the largest pieces, so
// that small ones do not wait for the way of each. What a snapshot says of their lengths
// need not be true, so they are counted, too.
const (
	mostAhead       = 4 << 20
	mostPiecesAhead = 8
)

// Pieces reads an object in order, and asks for what comes next meanwhile. A part that is
// there many times one after the other, as in a hole, is read once. A piece is valid until
// the next one, and is not to be changed.
func (r *Reader) Pieces(ctx context.Context, id object.ID) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		parts := []object.IndirectObjectEntry{{Object: id}}
		if index, indirect := id.IndexObjectID(); indirect {
			var err error
			if parts, err = object.LoadIndexObject(ctx, r, index); err != nil {
				yield(nil, fmt.Errorf("read the list of an object's contents: %w", err))
				return
			}
		}
		again := func(i int) bool { return i > 0 && parts[i].Object == parts[i-1].Object }
		var asked []func(context.Context) ([]byte, error) // of parts i and later that are not there again
		var ahead int64                                   // bytes of those after i
		var data []byte                                   // of part i
		for i, next := 0, 0; i < len(parts); i++ {
			for ; next < len(parts) && (next <= i+1 || next <= i+mostPiecesAhead && ahead+parts[next].Length <= mostAhead); next++ {
				if !again(next) {
					asked = append(asked, r.askPart(ctx, parts[next].Object))
				}
				if next > i {
					ahead += parts[next].Length
				}
			}
			if i+1 < next {
				ahead -= parts[i+1].Length
			}
			var err error
			if !again(i) {
				Reuse(data)
				data, err = asked[0](ctx)
				asked = asked[1:]
			}
			if !yield(data, err) || err != nil {
				return
			}
		}
		Reuse(data)
	}
}

// askPart asks for a part of an object, which is one content; others come only from
// repositories that Kopia made long ago, and Kopia reads them.
func (r *Reader) askPart(ctx context.Context, id object.ID) (await func(context.Context) ([]byte, error)) {
	if part, compressed, ok := id.ContentID(); ok && !compressed {
		return r.Ask(ctx, part)
	}
	return func(ctx context.Context) ([]byte, error) {
		o, err := r.OpenObject(ctx, id)
		if err != nil {
			return nil, err
		}
		defer o.Close()
		return io.ReadAll(o)
	}
}

// Reuse takes back the memory of a content that nobody needs any more.
func Reuse(data []byte) { bodies.put(data) }

// after is the stream in use, which is another than the one that broke.
func (r *Reader) after(ctx context.Context, broken *Stream) (*Stream, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return nil, r.err
	}
	if r.stream != broken {
		return r.stream, nil
	}
	bounded, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	ticker := time.NewTicker(retryPause)
	defer ticker.Stop()
	for {
		s, err := r.again(bounded)
		if err == nil {
			r.stream = s
			return s, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if bounded.Err() != nil || r.final(err) {
			r.err = err
			return nil, err
		}
		select {
		case <-bounded.Done():
		case <-ticker.C:
		}
	}
}

// ContentInfo is asked by Kopia to verify an object without reading it, which this does not do.
func (r *Reader) ContentInfo(context.Context, content.ID) (content.Info, error) {
	return content.Info{}, errors.New("the contents of a stream are read, not described")
}

// PrefetchContents is Kopia's hint to fill a cache; there is none.
func (r *Reader) PrefetchContents(context.Context, []content.ID, string) []content.ID { return nil }
