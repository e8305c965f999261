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
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kopia/kopia/repo/compression"
	"github.com/kopia/kopia/repo/content"
	"golang.org/x/sync/semaphore"
)

// Repository is what a stream reads from and writes to. Its calls come beside each other.
// content.ErrContentNotFound reaches the client as such.
type Repository interface {
	// Content looks for a content, and returns its length in bytes and what reads it.
	Content(ctx context.Context, id content.ID) (length int64, read func() ([]byte, error), err error)
	// HasContent returns nil if there is one.
	HasContent(ctx context.Context, id content.ID) error
	// WriteContent may keep nothing of data.
	WriteContent(ctx context.Context, data []byte, prefix content.IDPrefix, comp compression.HeaderID) (content.ID, error)
	// AwaitFlush waits until a flush may have a turn.
	AwaitFlush(ctx context.Context) error
	Flush(ctx context.Context) error
}

// Limits bound all streams together.
type Limits struct {
	// requests are under way at once.
	requests chan struct{}
	// room in bytes is what contents that are written may take while they are in memory, and
	// those that are read and are larger than mostUnread.
	room *semaphore.Weighted
}

// NewLimits lets so many requests be under way at once. Contents that are written, and the
// largest of those that are read, take at most twice MaxContent of memory.
func NewLimits(requests int) *Limits {
	return &Limits{make(chan struct{}, requests), semaphore.NewWeighted(2 * MaxContent)}
}

// Unread is what the streams of one session leave lying of their answers. Who takes none has
// mostUnread bytes of the server's memory, or one larger content in the room of all.
type Unread struct{ room *semaphore.Weighted }

// NewUnread is for one session.
func NewUnread() *Unread { return &Unread{semaphore.NewWeighted(mostUnread)} }

// mostUnread is several contents of the default splitter.
const mostUnread = 8 << 20

const (
	// parallel requests of one stream are under way.
	parallel = 4
	// answerTimeout is how long a client may leave an answer lying.
	answerTimeout = 2 * time.Minute
	// roomTimeout is how long a client may take to send a content, or to take one that is
	// larger than mostUnread: it has others' room.
	roomTimeout = time.Minute
)

// Accept reads a stream's login.
func Accept(conn net.Conn) (Login, error) {
	defer deadline(conn)()
	l, err := readLogin(conn)
	if err != nil {
		return l, fmt.Errorf("read login: %w", err)
	}
	return l, nil
}

// Refuse answers a login that is not let in; ErrDenied and ErrBusy reach the client as
// such. The caller closes the connection.
func Refuse(conn net.Conn, why error) error {
	v := failed
	switch {
	case errors.Is(why, ErrDenied):
		v = denied
	case errors.Is(why, ErrBusy):
		v = busy
	}
	return answerLogin(conn, frame{verdict: v, body: text(why)})
}

func answerLogin(conn net.Conn, f frame) error {
	defer deadline(conn)()
	w := bufio.NewWriter(conn)
	if err := writeFrame(w, f); err != nil {
		return err
	}
	return w.Flush()
}

func text(err error) []byte {
	t := err.Error()
	return []byte(t[:min(len(t), maxText)])
}

// Serve lets a login in and answers the stream's requests until ctx or the connection
// ends, and closes it. A stream that does not take its answers waits with a few of them,
// and keeps none of another session waiting.
func Serve(ctx context.Context, conn net.Conn, rep Repository, p Parameters, limits *Limits, unread *Unread) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	defer conn.Close()
	hello, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := answerLogin(conn, frame{body: hello}); err != nil {
		return err
	}
	s := &served{conn: conn, rep: rep, limits: limits, unread: unread, requests: make(chan numbered), busy: make(chan struct{}, parallel), answers: make(chan answered), cancel: cancel}
	var workers, writer sync.WaitGroup
	defer writer.Wait()
	defer close(s.answers)
	defer workers.Wait()
	defer close(s.requests)
	defer cancel() // before the workers are waited for
	writer.Go(s.write)
	for range parallel {
		workers.Go(func() { s.work(ctx) })
	}
	return s.read(ctx)
}

// served is a stream that was let in: read takes its requests, as many as parallel work on
// them, and write answers them in the order in which they are done.
type served struct {
	conn     net.Conn
	rep      Repository
	limits   *Limits
	unread   *Unread
	requests chan numbered
	busy     chan struct{} // of the workers, each with a request until its answer is handed on
	answers  chan answered
	open     atomic.Int64 // requests that were read and whose answer is not written yet
	ready    atomic.Int64 // of these, with an answer
	cancel   context.CancelFunc
}

type numbered struct {
	request
	number uint32
}

// answered is an answer that is to be written.
type answered struct {
	frame
	to      kind
	written func() // gives its room back
}

func (s *served) read(ctx context.Context) error {
	r := bufio.NewReaderSize(s.conn, 64<<10)
	for number := uint32(0); ; number++ {
		q, length, err := readRequest(r)
		if err != nil {
			return err
		}
		s.open.Add(1)
		// A worker comes before room: while all of them wait for a client that takes no answers,
		// its next content takes none from others.
		select {
		case s.busy <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		if length > 0 {
			if q.data, err = s.body(ctx, r, length); err != nil {
				return err
			}
		}
		s.requests <- numbered{q, number} // one of them takes it
	}
}

// body reads a content that is to be written. Whoever gets it gives the room back.
func (s *served) body(ctx context.Context, r *bufio.Reader, length int) ([]byte, error) {
	if err := s.limits.room.Acquire(ctx, int64(length)); err != nil {
		return nil, err
	}
	data := bodies.get(length)
	if r.Buffered() < length {
		_ = s.conn.SetReadDeadline(time.Now().Add(roomTimeout))
		defer func() { _ = s.conn.SetReadDeadline(time.Time{}) }()
	}
	if _, err := io.ReadFull(r, data); err != nil {
		s.limits.room.Release(int64(length))
		return nil, err
	}
	return data, nil
}

func (s *served) work(ctx context.Context) {
	for q := range s.requests {
		if a, err := s.answer(ctx, q); err == nil {
			s.ready.Add(1)
			s.answers <- a
		} // else nobody waits for it
		<-s.busy
	}
}

// answer does what is asked for when there is room for the answer, and when its turn has
// come. The error is that ctx has ended.
func (s *served) answer(ctx context.Context, q numbered) (a answered, err error) {
	defer s.giveBack(q.data) // the client may leave the answer lying
	a = answered{frame: frame{number: q.number}, to: q.kind, written: func() {}}
	do := func() ([]byte, error) { return s.do(ctx, q.request) }
	switch q.kind {
	case kindFlush:
		if err := s.rep.AwaitFlush(ctx); err != nil {
			return a, err
		}
	case kindRead:
		length, read, err := s.rep.Content(ctx, q.id)
		if err != nil {
			a.verdict, a.body = verdictOf(err)
			return a, ctx.Err()
		}
		do = read
		// Before its turn: who waits for his client keeps nobody else waiting.
		if a.written, err = s.toLie(ctx, length); err != nil {
			return a, err
		}
	}
	select {
	case s.limits.requests <- struct{}{}:
		defer func() { <-s.limits.requests }()
	case <-ctx.Done():
		a.written()
		return a, ctx.Err()
	}
	if a.body, err = do(); err != nil {
		if ctx.Err() != nil { // it would be told as its own failure
			a.written()
			return a, ctx.Err()
		}
		a.verdict, a.body = verdictOf(err)
	}
	if written := a.written; len(a.body) > mostUnread {
		tooLong := time.AfterFunc(roomTimeout, s.cancel)
		a.written = func() {
			tooLong.Stop()
			written()
		}
	}
	return a, nil
}

// toLie waits for the room in which an answer of a length lies until it is written.
func (s *served) toLie(ctx context.Context, length int64) (written func(), err error) {
	// A session has one of the largest at a time, whoever else waits for that room.
	own := min(length, mostUnread)
	if err := s.unread.room.Acquire(ctx, own); err != nil {
		return nil, err
	}
	if length <= mostUnread {
		return func() { s.unread.room.Release(own) }, nil
	}
	length = min(length, MaxContent)
	if err := s.limits.room.Acquire(ctx, length); err != nil {
		s.unread.room.Release(own)
		return nil, err
	}
	return func() {
		s.limits.room.Release(length)
		s.unread.room.Release(own)
	}, nil
}

// giveBack takes a content back that was written, and its room.
func (s *served) giveBack(data []byte) {
	s.limits.room.Release(int64(len(data)))
	bodies.put(data)
}

// do does what is not a read.
func (s *served) do(ctx context.Context, q request) ([]byte, error) {
	switch q.kind {
	case kindHas:
		return nil, s.rep.HasContent(ctx, q.id)
	case kindWrite:
		if !slices.Contains(writePrefixes, q.prefix) {
			return nil, fmt.Errorf("access denied: contents of prefix %q are not an operation's to write", q.prefix)
		}
		id, err := s.rep.WriteContent(ctx, q.data, q.prefix, q.compression)
		return []byte(id.String()), err
	default: // kindFlush
		return nil, s.rep.Flush(ctx)
	}
}

// verdictOf is the answer that says why there is none.
func verdictOf(err error) (verdict, []byte) {
	if errors.Is(err, content.ErrContentNotFound) {
		return notFound, nil
	}
	return failed, text(err)
}

// write writes to the end, whatever happens: workers wait for it.
//
// Contents go together: as many as fill the buffer, or all when there is nothing left to
// answer. Who asks for many small ones at once would otherwise pay two system calls for
// each. Other answers are short and let the client go on, so they go at once.
func (s *served) write() {
	w := bufio.NewWriterSize(s.conn, 64<<10)
	var err error
	for a := range s.answers {
		if err != nil {
			a.written()
			continue
		}
		_ = s.conn.SetWriteDeadline(time.Now().Add(answerTimeout))
		err = writeFrame(w, a.frame)
		a.written()
		ready, open := s.ready.Add(-1), s.open.Add(-1)
		if err == nil && (open == 0 || a.to != kindRead && ready == 0) {
			err = w.Flush()
		}
		if err != nil {
			s.cancel()
		}
	}
}
