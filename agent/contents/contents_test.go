// SPDX-License-Identifier: Apache-2.0

package contents

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/kopia/kopia/repo/content"
)

// store is a repository of contents that say which they are.
type store struct {
	asked chan struct{} // gets one for each read, if it is there
	hold  chan struct{} // reads wait for it, if it is there
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

func (s *store) GetContent(ctx context.Context, id content.ID) ([]byte, error) {
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
	return contentOf(id), nil
}

// server is one that lets a password in.
type server struct {
	*store
	net.Listener
	slots chan struct{}
	ctx   context.Context
	ends  atomic.Int64 // streams that it has ended
	wg    sync.WaitGroup

	mu      sync.Mutex
	refusal error
	conns   []net.Conn
}

func serve(t *testing.T, s *store) *server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	v := &server{store: s, Listener: l, slots: make(chan struct{}, 3), ctx: t.Context()}
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
		if len(v.slots) > 0 {
			t.Errorf("%d slots are held by nobody", len(v.slots))
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
	_ = Serve(v.ctx, conn, v.store, v.slots)
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

func must(t *testing.T, err error) {
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
	if v.ends.Load() == 0 {
		t.Error("no stream was cut")
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
		must(t, writeID(w, idOf(15)))
	}
	must(t, w.Flush())
	readAll(t, v.reader(t), 50, func(int) {})
	conn.Close()
}

func FuzzProtocol(f *testing.F) {
	var b bytes.Buffer
	w := bufio.NewWriter(&b)
	_ = writeLogin(w, Login{Username: "u", Hostname: "h", Password: "p"})
	_ = writeID(w, idOf(3))
	_ = writeFrame(w, frame{number: 1, verdict: failed, body: []byte("why")})
	_ = w.Flush()
	f.Add(b.Bytes())
	f.Add([]byte{0xff, 0xff})
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, _ = readLogin(bytes.NewReader(raw))
		if id, err := readID(bufio.NewReader(bytes.NewReader(raw))); err == nil {
			var b bytes.Buffer
			w := bufio.NewWriter(&b)
			must(t, writeID(w, id))
			must(t, w.Flush())
			if again, err := readID(bufio.NewReader(&b)); err != nil || again != id {
				t.Errorf("%v is written as %v, %v", id, again, err)
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
