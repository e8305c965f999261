// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"reflect"
	"runtime/debug"
	"sync"
	"time"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/compression"
	"github.com/kopia/kopia/repo/content"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/contents"
)

// streams answers those who move contents with our own protocol (agent/contents) instead
// of through Kopia, from a session of our own at the storage. What a user may do there,
// Kopia lets him do too: read a content whose id he knows, and write contents of snapshots.
// Who restores may only read, and only here.
type streams struct {
	front  *front
	kopia  *kopiaServer
	rep    repo.DirectRepository
	limits *contents.Limits
	large  chan struct{} // of the large contents that are read
	memory *memory
	log    *slog.Logger
}

const (
	// largeContent is one of which few are read at once: Kopia has each several times in
	// memory, as it was stored, decrypted and copied.
	largeContent  = 1 << 20
	parallelLarge = 2
)

func newStreams(f *front, k *kopiaServer, rep repo.DirectRepository, log *slog.Logger) *streams {
	// As many requests under way as Kopia allows.
	return &streams{front: f, kopia: k, rep: rep, limits: contents.NewLimits(maxConcurrency), large: make(chan struct{}, parallelLarge), memory: &memory{free: debug.FreeOSMemory}, log: log}
}

// serve is for http.Server.TLSNextProto: the handshake has chosen the protocol. A
// connection that ends is no error: the client closes it when it has done enough.
func (s *streams) serve(_ *http.Server, conn *tls.Conn, _ http.Handler) {
	login, err := contents.Accept(conn)
	if err != nil {
		_ = conn.Close()
		return
	}
	session, leave, err := s.front.enter(conn, login.Username, login.Hostname, login.Password)
	if err != nil {
		s.refuse(conn, err)
		return
	}
	defer leave()
	// What is to be read may have been written a moment ago, through Kopia.
	if err := s.refresh(session.ctx); err != nil {
		if session.ctx.Err() != nil {
			err = contents.ErrDenied // the session has ended meanwhile
		}
		s.refuse(conn, err)
		return
	}
	defer s.memory.use()()
	ctx, cancel := context.WithCancel(session.ctx)
	defer cancel()
	one := &stream{session: session, end: cancel, rep: s.rep, kopia: s.kopia, large: s.large}
	defer one.close()
	f := s.rep.ContentReader().ContentFormat()
	err = contents.Serve(ctx, conn, one, contents.Parameters{
		Hash: f.GetHashFunction(), HMACSecret: f.GetHmacSecret(), Splitter: s.rep.ObjectFormat().Splitter,
		Compression: s.rep.ContentReader().SupportsContentCompression(),
	}, s.limits, session.unread)
	s.log.Debug("a stream of contents ended", "user", login.Username, "error", err)
}

// refreshTimeout is how long the storage may take to tell what is new; the client, who
// waits for longer, hears why. Kopia would try for minutes.
const refreshTimeout = 20 * time.Second

func (s *streams) refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, refreshTimeout, fmt.Errorf("the storage did not answer within %s", refreshTimeout))
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.rep.Refresh(ctx) }() // Kopia may go on for a moment when ctx has ended
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("read the repository's index blobs: %w", err)
	}
	return nil
}

// memory is handed back when nobody is left who needs it: a server is idle for most of its
// time, and what a backup leaves is not what a restore needs. To do so stops everybody for a
// moment, so whoever opens and closes streams, one after the other, does not make it happen
// each time.
type memory struct {
	free func()

	mu    sync.Mutex // protects the following
	users int
	freed time.Time   // the last time
	later *time.Timer // frees it once more; nil: nothing is to be freed
}

// freePause is between two times that memory is handed back: short enough that the next
// operation does not find what the last one left, long against the moment that it takes.
const freePause = 5 * time.Second

// use says that somebody needs memory until done is called.
func (m *memory) use() (done func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.users++
	return m.done
}

func (m *memory) done() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.users--
	if m.users == 0 && m.later == nil {
		m.later = time.AfterFunc(max(0, freePause-time.Since(m.freed)), m.give)
	}
}

func (m *memory) give() {
	m.mu.Lock()
	idle := m.users == 0
	m.later = nil
	if idle {
		m.freed = time.Now()
	}
	m.mu.Unlock()
	if idle {
		m.free()
	}
}

func (s *streams) refuse(conn *tls.Conn, why error) {
	_ = contents.Refuse(conn, why)
	_ = conn.Close()
}

// errReadOnly is the answer to all else that a read-only session asks for.
var errReadOnly = errors.New("access denied: the operation restores: it may read contents, and nothing else")

// stream is the repository as one stream sees it: with what it wrote and did not flush yet.
type stream struct {
	session *session
	end     context.CancelFunc
	rep     repo.DirectRepository
	kopia   *kopiaServer
	large   chan struct{}

	mu     sync.Mutex // protects the following
	writer repo.DirectRepositoryWriter
	dirty  bool // it was written to since the last flush
}

// reader sees the storage and what the stream wrote.
func (s *stream) reader() content.Reader {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writer != nil {
		return s.writer.ContentReader()
	}
	return s.rep.ContentReader()
}

func (s *stream) Content(ctx context.Context, id content.ID) (length int64, read func() ([]byte, error), err error) {
	r := s.reader()
	info, err := r.ContentInfo(ctx, id)
	if err != nil {
		return 0, nil, err
	}
	return int64(info.OriginalLength), func() ([]byte, error) {
		if info.OriginalLength >= largeContent {
			select {
			case s.large <- struct{}{}:
				defer func() { <-s.large }()
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}
		return r.GetContent(ctx, id)
	}, nil
}

func (s *stream) HasContent(ctx context.Context, id content.ID) error {
	info, err := s.reader().ContentInfo(ctx, id)
	if err == nil && info.Deleted {
		// A write brings it back.
		return content.ErrContentNotFound
	}
	return err
}

func (s *stream) WriteContent(ctx context.Context, data []byte, prefix content.IDPrefix, comp compression.HeaderID) (content.ID, error) {
	switch {
	case s.session.readOnly:
		return content.EmptyID, errReadOnly
	case !compressions[comp]:
		return content.EmptyID, fmt.Errorf("access denied: compression %#x is not an operation's to choose", uint32(comp))
	}
	w, err := s.toWrite(ctx)
	if err != nil {
		return content.EmptyID, err
	}
	return writeContent(ctx, w.ContentManager().WriteContent, data, prefix, comp)
}

// toWrite begins a write session with the stream's first write. Another stream of the session
// that writes ends: an operation has one, and begins another when that one broke. Each has a
// pack of every kind in memory.
func (s *stream) toWrite(ctx context.Context) (repo.DirectRepositoryWriter, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writer == nil {
		_, w, err := s.rep.NewDirectWriter(ctx, repo.WriteSessionOptions{Purpose: "contents"})
		if err != nil {
			return nil, fmt.Errorf("begin write session: %w", err)
		}
		s.writer = w
		if before := s.session.writer.Swap(s); before != nil {
			before.end()
		}
	}
	s.dirty = true // so a flush finds a writer
	return s.writer, nil
}

// AwaitFlush waits while the session has flushed too often.
func (s *stream) AwaitFlush(ctx context.Context) error { return s.session.flushes.Wait(ctx) }

// Flush brings what was written to the storage, and to Kopia's server, which reads the
// index for itself: whoever is told of a backup may look at it through Kopia.
func (s *stream) Flush(ctx context.Context) error {
	if s.session.readOnly {
		return errReadOnly
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.dirty {
		return nil
	}
	if err := s.writer.ContentManager().Flush(ctx); err != nil {
		return err
	}
	if err := s.kopia.controlCall(ctx, http.MethodPost, "refresh"); err != nil {
		return fmt.Errorf("show what was written to others: %w", err)
	}
	s.dirty = false
	return nil
}

// close gives up what was not flushed.
func (s *stream) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writer != nil {
		s.session.writer.CompareAndSwap(s, nil)
		_ = s.writer.Close(context.Background())
	}
}

// compressions are those that an operation may ask for.
var compressions = func() map[compression.HeaderID]bool {
	known := map[compression.HeaderID]bool{0: true} // none
	for _, name := range api.Compressions {
		if c := compression.ByName[compression.Name(name)]; c != nil {
			known[c.HeaderID()] = true
		}
	}
	return known
}()

// writeContent calls write with data as Kopia's gather.Bytes, a type that cannot be named
// outside of Kopia: B is inferred to be it, and its one exported field is set.
func writeContent[B any](ctx context.Context, write func(context.Context, B, content.IDPrefix, compression.HeaderID) (content.ID, error),
	data []byte, prefix content.IDPrefix, comp compression.HeaderID,
) (content.ID, error) {
	var b B
	reflect.ValueOf(&b).Elem().FieldByName("Slices").Set(reflect.ValueOf([][]byte{data}))
	return write(ctx, b, prefix, comp)
}
