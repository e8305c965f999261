// SPDX-License-Identifier: Apache-2.0

package contents

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/kopia/kopia/repo/content"
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
		s := &Stream{conn: conn, r: r, requests: make(chan asked, 64), ended: make(chan struct{}), waiting: map[uint32]chan<- frame{}}
		if err := json.Unmarshal(answer.body, &s.Parameters); err != nil {
			return nil, fmt.Errorf("read the repository's parameters: %w", err)
		}
		return s, nil
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
	// Parameters of the repository.
	Parameters Parameters

	conn     net.Conn
	r        *bufio.Reader
	requests chan asked
	ended    chan struct{} // closed when err is set

	mu      sync.Mutex // protects the following
	waiting map[uint32]chan<- frame
	err     error
}

type asked struct {
	request
	answer chan<- frame
}

// brokenError says that a stream ended before it answered.
type brokenError struct{ err error }

func (e *brokenError) Error() string { return "connection to repository server: " + e.err.Error() }
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
	w := bufio.NewWriterSize(s.conn, 64<<10)
	for number := uint32(0); ; number++ {
		select {
		case <-s.ended:
			return
		case a := <-s.requests:
			s.mu.Lock()
			s.waiting[number] = a.answer
			s.mu.Unlock()
			err := writeRequest(w, a.request)
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

// ask sends a request, whose answer comes to the channel that it returns.
func (s *Stream) ask(ctx context.Context, r request) (<-chan frame, error) {
	answer := make(chan frame, 1)
	select {
	case s.requests <- asked{r, answer}:
		return answer, nil
	case <-s.ended:
		return nil, &brokenError{s.err}
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// await waits for the answer of a request.
func (s *Stream) await(ctx context.Context, answer <-chan frame) ([]byte, error) {
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

// call is a request and its answer.
func (s *Stream) call(ctx context.Context, r request) ([]byte, error) {
	answer, err := s.ask(ctx, r)
	if err != nil {
		return nil, err
	}
	return s.await(ctx, answer)
}
