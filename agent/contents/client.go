// SPDX-License-Identifier: Apache-2.0

package contents

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/object"
)

const (
	// patience is how long a server may be gone before a read fails; as long as Kopia's
	// own reads try.
	patience = 2 * time.Minute
	// retryPause is between two tries.
	retryPause = 500 * time.Millisecond
	// mostBreaks of one read's streams: a server that ends each of them is no server.
	mostBreaks = 20
)

// Open logs in on a connection that speaks Protocol. The connection is the stream's.
func Open(conn net.Conn, l Login) (*Stream, error) {
	s, err := open(conn, l)
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("log in at repository server: %w", err)
	}
	go s.write()
	go s.read()
	return s, nil
}

func open(conn net.Conn, l Login) (*Stream, error) {
	defer deadline(conn)()
	w := bufio.NewWriter(conn)
	if err := writeLogin(w, l); err != nil {
		return nil, err
	}
	if err := w.Flush(); err != nil {
		return nil, err
	}
	r := bufio.NewReaderSize(conn, 64<<10)
	answer, err := readFrame(r)
	if err != nil {
		return nil, err
	}
	switch answer.verdict {
	case good:
		return &Stream{conn: conn, r: r, requests: make(chan request, 64), ended: make(chan struct{}), waiting: map[uint32]chan<- frame{}}, nil
	case denied:
		return nil, ErrDenied
	case busy:
		return nil, ErrBusy
	default:
		return nil, errors.New(string(answer.body))
	}
}

// Stream is one connection that was let in.
type Stream struct {
	conn     net.Conn
	r        *bufio.Reader
	requests chan request
	ended    chan struct{} // closed when err is set

	mu      sync.Mutex // protects the following
	waiting map[uint32]chan<- frame
	err     error
}

type request struct {
	id     content.ID
	answer chan<- frame
}

// brokenError says that a stream ended before it answered.
type brokenError struct{ err error }

func (e *brokenError) Error() string { return "read from repository server: " + e.err.Error() }
func (e *brokenError) Unwrap() error { return e.err }

// Close ends the stream, and what waits for it.
func (s *Stream) Close() { s.end(net.ErrClosed) }

func (s *Stream) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
		close(s.ended)
		_ = s.conn.Close()
	}
}

// write sends requests; those that are there at the same time go together. It ends with the stream.
func (s *Stream) write() {
	w := bufio.NewWriter(s.conn)
	for number := uint32(0); ; number++ {
		select {
		case <-s.ended:
			return
		case r := <-s.requests:
			s.mu.Lock()
			s.waiting[number] = r.answer
			s.mu.Unlock()
			err := writeID(w, r.id)
			if err == nil && len(s.requests) == 0 {
				err = w.Flush()
			}
			if err != nil {
				s.end(err)
				return
			}
		}
	}
}

// read hands answers to who waits for them. It ends with the stream.
func (s *Stream) read() {
	for {
		f, err := readFrame(s.r)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			s.end(err)
			return
		}
		s.mu.Lock()
		answer, ok := s.waiting[f.number]
		delete(s.waiting, f.number)
		s.mu.Unlock()
		if !ok {
			s.end(fmt.Errorf("an answer to question %d, which nobody asked", f.number))
			return
		}
		answer <- f // has room
	}
}

// get asks for one content.
func (s *Stream) get(ctx context.Context, id content.ID) ([]byte, error) {
	answer := make(chan frame, 1)
	select {
	case s.requests <- request{id, answer}:
	case <-s.ended:
		return nil, &brokenError{s.err}
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	select {
	case f := <-answer:
		switch f.verdict {
		case good:
			return f.body, nil
		case notFound:
			return nil, content.ErrContentNotFound
		default:
			return nil, errors.New(string(f.body))
		}
	case <-s.ended:
		return nil, &brokenError{s.err}
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

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
	s, err := r.after(ctx, nil)
	for breaks := 0; err == nil; breaks++ {
		var data []byte
		data, err = s.get(ctx, id)
		if broken := (*brokenError)(nil); !errors.As(err, &broken) || breaks == mostBreaks {
			return data, err
		}
		s, err = r.after(ctx, s)
	}
	return nil, err
}

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
	bounded, cancel := context.WithTimeout(ctx, patience)
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
