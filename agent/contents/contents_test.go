// SPDX-License-Identifier: Apache-2.0

package contents

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kopia/kopia/repo/compression"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/object"
	"golang.org/x/crypto/blake2b"

	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// store is a repository of contents that say which they are.
type store struct {
	known map[content.ID][]byte // what else there is
	asked chan struct{}         // gets one for each read, if it is there
	hold  chan struct{}         // reads wait for it, if it is there
	full  error                 // that nothing can be written
	flush func()                // is called during a flush, if it is there
	given atomic.Int64          // bytes that were read

	mu               sync.Mutex // protects the following
	written, flushed int        // bytes
	none             bool       // that there is nothing of what is asked for
	questions        int        // whether there is a content
}

const missing, unlucky = 7, 8

func idOf(n int) content.ID {
	id, err := content.ParseID(fmt.Sprintf("%032x", n))
	if err != nil {
		panic(err)
	}
	return id
}

// contentOf is longer than what is sent at once, now and then.
func contentOf(id content.ID) []byte {
	n := 100
	if text := id.String(); text[len(text)-1] == 'f' {
		n = 300_000
	}
	return bytes.Repeat([]byte(id.String()), n/32+1)
}

func (s *store) Content(ctx context.Context, id content.ID) (int64, func() ([]byte, error), error) {
	return int64(len(s.dataOf(id))), func() ([]byte, error) { return s.get(ctx, id) }, nil
}

func (s *store) dataOf(id content.ID) []byte {
	if data, ok := s.known[id]; ok {
		return data
	}
	return contentOf(id)
}

func (s *store) get(ctx context.Context, id content.ID) ([]byte, error) {
	s.given.Add(int64(len(s.dataOf(id))))
	if s.asked != nil {
		s.asked <- struct{}{}
	}
	if s.hold != nil {
		select {
		case <-s.hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	switch id {
	case idOf(missing):
		return nil, content.ErrContentNotFound
	case idOf(unlucky):
		return nil, errors.New("the blob is not there")
	}
	return s.dataOf(id), nil
}

func (s *store) HasContent(ctx context.Context, id content.ID) error {
	s.mu.Lock()
	s.questions++
	none := s.none
	s.mu.Unlock()
	if none {
		return content.ErrContentNotFound
	}
	_, err := s.get(ctx, id)
	return err
}

// parameters are those of a repository whose contents have Kopia's usual hash.
var parameters = Parameters{Hash: "BLAKE2B-256-128", HMACSecret: []byte("secret"), Splitter: "FIXED-1M", Compression: true}

// WriteContent hashes as Kopia does (BLAKE2b with a key, the first half of it).
func (s *store) WriteContent(_ context.Context, data []byte, prefix content.IDPrefix, _ compression.HeaderID) (content.ID, error) {
	if s.full != nil {
		return content.EmptyID, s.full
	}
	h, err := blake2b.New256(parameters.HMACSecret)
	if err != nil {
		return content.EmptyID, err
	}
	h.Write(data)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.written += len(data)
	return content.IDFromHash(prefix, h.Sum(nil)[:16])
}

func (s *store) AwaitFlush(context.Context) error { return nil }

func (s *store) Flush(context.Context) error {
	if s.flush != nil {
		s.flush()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flushed = s.written
	return nil
}

// server is one that lets a password in.
type server struct {
	*store
	net.Listener
	limits *Limits
	ctx    context.Context
	// parameters of its repository.
	parameters Parameters
	ends       atomic.Int64 // streams that it has ended
	held       atomic.Int64 // of these, those with room for answers that nobody gave back
	wg         sync.WaitGroup

	mu      sync.Mutex
	refusal error
	conns   []net.Conn
}

func serve(t *testing.T, s *store) *server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	v := &server{store: s, Listener: l, limits: NewLimits(3), ctx: t.Context(), parameters: parameters}
	v.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			v.wg.Go(func() { v.answer(conn) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		v.cut()
		v.wg.Wait()
		if n := len(v.limits.requests); n > 0 {
			t.Errorf("%d requests are under way of nobody", n)
		}
		if n := v.held.Load(); n > 0 || !v.limits.room.TryAcquire(2*MaxContent) {
			t.Errorf("room is taken by nobody, of answers by %d", n)
		}
	})
	return v
}

func (v *server) answer(conn net.Conn) {
	l, err := Accept(conn)
	v.mu.Lock()
	refusal := v.refusal
	v.conns = append(v.conns, conn)
	v.mu.Unlock()
	if err == nil && refusal == nil && l.Password != "right" {
		refusal = ErrDenied
	}
	if err != nil || refusal != nil {
		_ = Refuse(conn, refusal)
		_ = conn.Close()
		return
	}
	unread := NewUnread()
	_ = Serve(v.ctx, conn, v.store, v.parameters, v.limits, unread)
	if !unread.room.TryAcquire(mostUnread) {
		v.held.Add(1)
	}
	v.ends.Add(1)
}

// cut ends all connections, and says how the next login ends.
func (v *server) cut() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, c := range v.conns {
		c.Close()
	}
	v.conns = nil
}

func (v *server) refuse(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.refusal = err
}

func (v *server) open(password string) (*Stream, error) {
	conn, err := net.Dial("tcp", v.Addr().String())
	if err != nil {
		return nil, err
	}
	return Open(conn, Login{Username: "u", Hostname: "h", Password: password})
}

func (v *server) reader(t *testing.T) *Reader {
	t.Helper()
	first, err := v.open("right")
	must(t, err)
	r := NewReader(first, func(context.Context) (*Stream, error) { return v.open("right") },
		func(err error) bool { return errors.Is(err, ErrDenied) })
	t.Cleanup(r.Close)
	return r
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// readAll reads n contents from many places at once and compares them.
func readAll(t *testing.T, r *Reader, n int, meanwhile func(i int)) {
	t.Helper()
	var wg sync.WaitGroup
	for worker := range 16 {
		wg.Go(func() {
			for i := worker + 1000; i < n+1000; i += 16 {
				meanwhile(i)
				got, err := r.GetContent(t.Context(), idOf(i))
				if err != nil || !bytes.Equal(got, contentOf(idOf(i))) {
					t.Errorf("content %d: %d bytes, %v", i, len(got), err)
				}
			}
		})
	}
	wg.Wait()
}

// Each reader gets what it asked for, whoever else asks meanwhile; what is not there and
// what cannot be read is told as that, and disturbs nobody.
func TestContents(t *testing.T) {
	v := serve(t, &store{})
	r := v.reader(t)
	readAll(t, r, 2000, func(i int) {
		if i%100 != 0 {
			return
		}
		if _, err := r.GetContent(t.Context(), idOf(missing)); !errors.Is(err, content.ErrContentNotFound) {
			t.Errorf("a content that is not there: %v", err)
		}
		if _, err := r.GetContent(t.Context(), idOf(unlucky)); err == nil || err.Error() != "the blob is not there" {
			t.Errorf("a content that cannot be read: %v", err)
		}
	})
}

// A stream that breaks is opened again, and what was not answered is asked again.
func TestContentsBrokenStream(t *testing.T) {
	v := serve(t, &store{})
	readAll(t, v.reader(t), 600, func(i int) {
		if i%200 == 0 {
			v.cut()
		}
	})
	testenv.Eventually(t, time.Minute, "a stream was cut", func() bool { return v.ends.Load() > 0 })
}

// An object of many contents is read in order, also while its stream breaks; the buffers
// that are used again hold nothing of an earlier piece.
func TestContentsPieces(t *testing.T) {
	var parts []content.ID
	for i := range 40 {
		parts = append(parts, idOf(1000+i*5)) // some are large
	}
	known, list, want := objectOf(t, parts)
	v := serve(t, &store{known: known})
	r := v.reader(t)
	read := func(of string) (got []byte, err error) {
		id, err := object.ParseID(of)
		must(t, err)
		pieces := 0
		for piece, err := range r.Pieces(t.Context(), id) {
			if err != nil {
				return got, err
			}
			got = append(got, piece...)
			if pieces++; pieces%15 == 0 {
				v.cut()
			}
		}
		return got, nil
	}
	for range 2 {
		if got, err := read("I" + list.String()); err != nil || !bytes.Equal(got, want) {
			t.Errorf("an object of many: %d bytes of %d, %v", len(got), len(want), err)
		}
	}
	if got, err := read(idOf(1015).String()); err != nil || !bytes.Equal(got, contentOf(idOf(1015))) {
		t.Errorf("an object of one: %d bytes, %v", len(got), err)
	}
	if _, err := read(idOf(missing).String()); !errors.Is(err, content.ErrContentNotFound) {
		t.Errorf("an object that is not there: %v", err)
	}
	if _, err := read("I" + idOf(1).String()); err == nil {
		t.Error("an object whose list is none was read")
	}
}

// objectOf is an object of many contents: the list of them, its id, and what is read of it.
func objectOf(t *testing.T, parts []content.ID) (known map[content.ID][]byte, list content.ID, want []byte) {
	t.Helper()
	index := []byte(`{"stream":"kopia:indirect","entries":[`)
	for _, id := range parts {
		index = fmt.Appendf(index, `{"s":%d,"l":%d,"o":"%s"},`, len(want), len(contentOf(id)), id)
		want = append(want, contentOf(id)...)
	}
	list, err := content.ParseID("xaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")
	must(t, err)
	return map[content.ID][]byte{list: append(bytes.TrimSuffix(index, []byte(",")), "]}"...)}, list, want
}

// The pieces of a hole are one content: it is asked for once for all that follow each other.
func TestContentsPiecesOfHole(t *testing.T) {
	data, hole := idOf(1000), idOf(0xf) // which is large
	parts := []content.ID{hole, hole, hole, data}
	for range 100 {
		parts = append(parts, hole)
	}
	parts = append(parts, data, data)
	known, list, want := objectOf(t, parts)
	asked := make(chan struct{}, len(parts)+1)
	id, err := object.ParseID("I" + list.String())
	must(t, err)
	var got []byte
	for piece, err := range serve(t, &store{known: known, asked: asked}).reader(t).Pieces(t.Context(), id) {
		must(t, err)
		got = append(got, piece...)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d, or others", len(got), len(want))
	}
	if n := len(asked); n != 5 {
		t.Errorf("asked %d times, want for the list and for each change of content", n)
	}
}

// A login that is refused says why; one that was let in before ends with its answer to
// the next.
func TestContentsRefused(t *testing.T) {
	v := serve(t, &store{})
	if _, err := v.open("wrong"); !errors.Is(err, ErrDenied) {
		t.Errorf("a wrong password: %v", err)
	}
	r := v.reader(t)
	v.refuse(ErrDenied)
	v.cut()
	for range 2 {
		if _, err := r.GetContent(t.Context(), idOf(1)); !errors.Is(err, ErrDenied) {
			t.Errorf("after the session's end: %v", err)
		}
	}
	for _, why := range []error{ErrBusy, errors.New("the index blobs are gone")} {
		v.refuse(why)
		if _, err := v.open("right"); err == nil || errors.Unwrap(err).Error() != why.Error() {
			t.Errorf("refused with %v, want %v", err, why)
		}
	}
}

// Whoever waits for an answer stops waiting when his time is over, and when the reader is closed.
func TestContentsWaitEnds(t *testing.T) {
	v := serve(t, &store{hold: make(chan struct{}), asked: make(chan struct{}, 2)})
	r := v.reader(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	ended := make(chan error, 2)
	go func() { _, err := r.GetContent(ctx, idOf(1)); ended <- err }()
	<-v.asked
	cancel(enough)
	if err := <-ended; !errors.Is(err, enough) {
		t.Errorf("a cancelled read: %v", err)
	}
	go func() { _, err := r.GetContent(t.Context(), idOf(2)); ended <- err }()
	<-v.asked
	r.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("a read of a closed reader: %v", err)
	}
}

// A client that asks and does not read keeps nobody else waiting.
func TestContentsClientThatDoesNotRead(t *testing.T) {
	v := serve(t, &store{})
	conn, err := net.Dial("tcp", v.Addr().String())
	must(t, err)
	w := bufio.NewWriter(conn)
	must(t, writeLogin(w, Login{Password: "right"}))
	for range 200 {
		must(t, writeRequest(w, request{kind: kindRead, id: idOf(15)}))
	}
	must(t, w.Flush())
	readAll(t, v.reader(t), 50, func(int) {})
	conn.Close()
}

// writer is of a stream of its own.
func (v *server) writer(t *testing.T, uploaded func(int64)) *Writer {
	t.Helper()
	stream, err := v.open("right")
	must(t, err)
	w, err := NewWriter(t.Context(), stream, uploaded)
	must(t, err)
	t.Cleanup(w.Close)
	return w
}

// put writes an object of n bytes that no other has.
func put(w *Writer, ctx context.Context, number, n int) error {
	o := w.NewObjectWriter(ctx, object.WriterOptions{})
	defer o.Close()
	if _, err := o.Write(bytes.Repeat(fmt.Appendf(nil, "%09d ", number), n/10)); err != nil {
		return err
	}
	_, err := o.Result()
	return err
}

// All that was written has arrived when it was flushed, once.
func TestContentsWritten(t *testing.T) {
	v := serve(t, &store{})
	var told atomic.Int64
	w := v.writer(t, func(n int64) { told.Add(n) })
	want := 0
	var wg sync.WaitGroup
	for i := range 4 {
		want += 500*1000 + 40_000
		wg.Go(func() {
			for j := range 500 {
				if err := put(w, t.Context(), i*1000+j, 1000); err != nil {
					t.Error(err)
				}
			}
			if err := put(w, t.Context(), i*1000+999, 40_000); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	must(t, w.Flush(t.Context()))
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.written != want || v.flushed != want || told.Load() != int64(want) {
		t.Errorf("%d bytes were written, %d of them flushed, %d told; want %d", v.written, v.flushed, told.Load(), want)
	}
}

// A flush and the writing of contents are apart, also that of a piece that is sent while
// the next one is read.
func TestContentsFlushedAlone(t *testing.T) {
	s := &store{none: true}
	v := serve(t, s)
	v.parameters.Splitter = "DYNAMIC-128K-BUZHASH"
	var w *Writer
	var flushes, sent atomic.Int64
	s.flush = func() {
		flushes.Add(1)
		if w.writing.TryRLock() {
			w.writing.RUnlock()
			t.Error("a content may be sent during a flush")
		}
	}
	w = v.writer(t, func(int64) {
		sent.Add(1)
		if w.writing.TryLock() {
			w.writing.Unlock()
			t.Error("a flush may begin while a content is sent")
		}
	})
	o := w.NewObjectWriter(t.Context(), object.WriterOptions{})
	defer o.Close()
	var checkpoint sync.WaitGroup
	for data := noise(6, 4<<20); len(data) > 0; data = data[64<<10:] {
		_, err := o.Write(data[:64<<10])
		must(t, err)
		if len(data)%(1<<20) == 0 {
			checkpoint.Go(func() {
				if err := w.Flush(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
	}
	checkpoint.Wait()
	_, err := o.Result()
	must(t, err)
	if flushes.Load() != 4 || sent.Load() < 10 {
		t.Errorf("%d flushes and %d contents, want 4 and many", flushes.Load(), sent.Load())
	}
}

// What cannot be stored fails the flush, at the latest, and so does a stream that broke:
// nothing that may be lost is taken for stored.
func TestContentsNotWritten(t *testing.T) {
	full := errors.New("no space left in the bucket")
	v := serve(t, &store{full: full})
	w := v.writer(t, func(int64) {})
	_ = put(w, t.Context(), 1, 1000)
	if err := w.Flush(t.Context()); err == nil || !strings.Contains(err.Error(), full.Error()) {
		t.Errorf("flush of what was not stored: %v", err)
	}
	if err := put(w, t.Context(), 2, 1000); err == nil || !strings.Contains(err.Error(), full.Error()) {
		t.Errorf("a write after that: %v", err)
	}

	v = serve(t, &store{})
	w = v.writer(t, func(int64) {})
	must(t, put(w, t.Context(), 1, 1000))
	v.cut()
	if err := w.Flush(t.Context()); err == nil {
		t.Error("a flush succeeded on a stream that was cut")
	}

	ctx, cancel := context.WithCancel(t.Context())
	stream, err := v.open("right")
	must(t, err)
	w, err = NewWriter(ctx, stream, func(int64) {})
	must(t, err)
	cancel()
	<-stream.ended
	if err := w.Flush(t.Context()); err == nil {
		t.Error("a flush succeeded after the operation's end")
	}
}

// A first backup hardly asks for what is never there; one that finds something asks for all.
func TestContentsAsked(t *testing.T) {
	v := serve(t, &store{none: true})
	w := v.writer(t, func(int64) {})
	writes := func(first, n int) (questions int) {
		t.Helper()
		v.mu.Lock()
		before := v.questions
		v.mu.Unlock()
		for i := range n {
			must(t, put(w, t.Context(), first+i, askFirst))
		}
		v.mu.Lock()
		defer v.mu.Unlock()
		return v.questions - before
	}
	if n := writes(1000, missesInRow); n != missesInRow {
		t.Errorf("%d questions before anything is known of %d contents", n, missesInRow)
	}
	if n := writes(2000, 3*askSeldom); n != 3 {
		t.Errorf("%d questions for %d contents of which none is there", n, 3*askSeldom)
	}
	v.mu.Lock()
	v.none = false
	v.mu.Unlock()
	if n := writes(3000, askSeldom+10); n != 1+10 {
		t.Errorf("%d questions for %d contents that are there", n, askSeldom+10)
	}
	must(t, w.Flush(t.Context()))
}

// Contents of manifests, and of kinds that no snapshot has, are not written.
func TestContentsPrefixes(t *testing.T) {
	v := serve(t, &store{})
	for prefix, allowed := range map[content.IDPrefix]bool{"": true, "k": true, "x": true, "m": false, "q": false, "mm": false} {
		stream, err := v.open("right")
		must(t, err)
		_, err = stream.call(t.Context(), request{kind: kindWrite, prefix: prefix, data: []byte("data")})
		if allowed != (err == nil) {
			t.Errorf("prefix %q: %v", prefix, err)
		}
		stream.Close()
	}
}

// A client that announces a content and does not send it takes no room that others need.
func TestContentsRoom(t *testing.T) {
	v := serve(t, &store{})
	for range 3 { // more than there is room for
		stream, err := v.open("right")
		must(t, err)
		defer stream.Close()
		_, err = stream.conn.Write(append([]byte{byte(kindWrite), 0, 0, 0, 0, 0}, 2, 0, 0, 0)) // MaxContent
		must(t, err)
	}
	readAll(t, v.reader(t), 50, func(int) {}) // reads need none
}

// A client that writes and does not take the answers takes no room that others need, either.
func TestContentsRoomOfUnreadAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, conn := net.Pipe()
		limits := NewLimits(3)
		ended := make(chan error, 1)
		go func() { ended <- Serve(t.Context(), conn, &store{}, parameters, limits, NewUnread()) }()
		_, err := readFrame(bufio.NewReader(client))
		must(t, err)
		sent := make(chan int, 1)
		go func() {
			w := bufio.NewWriter(client)
			n := 0
			for writeRequest(w, request{kind: kindWrite, data: make([]byte, 1<<20)}) == nil {
				n++
			}
			sent <- n
		}()
		synctest.Wait() // it can send no more
		if !limits.room.TryAcquire(2 * MaxContent) {
			t.Error("room is taken by who does not take his answers")
		} else {
			limits.room.Release(2 * MaxContent)
		}
		client.Close()
		if n := <-sent; n < parallel {
			t.Errorf("%d contents were sent, want one for each worker", n)
		}
		<-ended
	})
}

// What a session leaves lying of its answers takes little memory, however many streams it
// has, and no turn that another session needs. Of larger contents one lies at a time, and no
// longer than a minute: it is others' room.
func TestContentsUnread(t *testing.T) {
	const length, larger = 3 << 20, MaxContent - 5
	for name, c := range map[string]struct {
		lengths     map[int]int // of contents, by the number
		asked       []int       // by each of four streams
		most, least int         // bytes that lie about
		room        bool        // of all, is taken
	}{
		"small":  {map[int]int{1: length}, []int{1, 1, 1, 1}, mostUnread, mostUnread - length + 1, false},
		"larger": {map[int]int{1: larger}, []int{1, 1}, larger, larger, true},
		"mixed":  {map[int]int{1: length, 2: larger}, []int{1, 2, 1}, larger, length, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &store{known: map[content.ID][]byte{idOf(9): make([]byte, larger)}}
				for id, length := range c.lengths {
					s.known[idOf(id)] = make([]byte, length)
				}
				limits, unread := NewLimits(3), NewUnread()
				var streams sync.WaitGroup
				open := func(unread *Unread) net.Conn {
					client, conn := net.Pipe()
					streams.Go(func() { _ = Serve(t.Context(), conn, s, parameters, limits, unread) })
					_, err := readFrame(bufio.NewReader(client))
					must(t, err)
					return client
				}
				ask := func(client net.Conn, ids ...int) {
					w := bufio.NewWriter(client)
					for _, id := range ids {
						must(t, writeRequest(w, request{kind: kindRead, id: idOf(id)}))
					}
					must(t, w.Flush())
				}
				var stalled []net.Conn
				for range 4 {
					stalled = append(stalled, open(unread))
					ask(stalled[len(stalled)-1], c.asked...)
				}
				synctest.Wait()
				if given := int(s.given.Load()); given > c.most || given < c.least {
					t.Errorf("%d bytes lie about, want %d to %d", given, c.least, c.most)
				}
				other := open(NewUnread())
				for range 2 {
					ask(other, 9)
					f, err := readFrame(bufio.NewReader(other))
					if err != nil || len(f.body) != larger {
						t.Errorf("another session: %d bytes, %v", len(f.body), err)
					}
				}
				if c.room {
					synctest.Wait()
					if limits.room.TryAcquire(2 * MaxContent) {
						t.Error("a larger content takes no room of all")
					}
					before := s.given.Load()
					time.Sleep(roomTimeout + time.Second) // of the fake clock
					synctest.Wait()
					if s.given.Load() == before {
						t.Error("a larger content lies about for more than a minute")
					}
				}
				for _, c := range append(stalled, other) {
					c.Close()
				}
				streams.Wait()
				if !unread.room.TryAcquire(mostUnread) || !limits.room.TryAcquire(2*MaxContent) {
					t.Error("room is taken by a session without streams")
				}
			})
		})
	}
}

func FuzzProtocol(f *testing.F) {
	requests := []request{
		{kind: kindRead, id: idOf(3)}, {kind: kindHas, id: idOf(4)}, {kind: kindFlush},
		{kind: kindWrite, prefix: "k", compression: 0x1100, data: []byte("data")},
	}
	for _, r := range requests {
		var b bytes.Buffer
		w := bufio.NewWriter(&b)
		must(f, writeRequest(w, r))
		must(f, w.Flush())
		f.Add(b.Bytes())
	}
	var b bytes.Buffer
	w := bufio.NewWriter(&b)
	must(f, writeLogin(w, Login{Username: "u", Hostname: "h", Password: "p"}))
	must(f, writeFrame(w, frame{number: 1, verdict: failed, body: []byte("why")}))
	must(f, w.Flush())
	f.Add(b.Bytes())
	f.Add([]byte{0xff, 0xff})
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, _ = readLogin(bytes.NewReader(raw))
		if r, length, err := readRequest(bufio.NewReader(bytes.NewReader(raw))); err == nil {
			if length > MaxContent {
				t.Errorf("a content of %d bytes is taken", length)
			}
			var b bytes.Buffer
			w := bufio.NewWriter(&b)
			r.data = make([]byte, length)
			must(t, writeRequest(w, r))
			must(t, w.Flush())
			again, n, err := readRequest(bufio.NewReader(&b))
			if err != nil || n != length || again.kind != r.kind || again.id != r.id || again.prefix != r.prefix || again.compression != r.compression {
				t.Errorf("%+v is written as %+v, %v", r, again, err)
			}
		}
		if len(raw) > 8 && raw[5] != 0 {
			return // a body that is announced and not there would only cost memory
		}
		if got, err := readFrame(bufio.NewReader(bytes.NewReader(raw))); err == nil && len(got.body) > len(raw) {
			t.Errorf("a body of %d bytes out of %d", len(got.body), len(raw))
		}
	})
}
