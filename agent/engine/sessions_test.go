// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/content"
	"golang.org/x/sync/errgroup"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/contents"
)

// breakingServer begins sessions that each answer a number of reads, after a second, and then break.
type breakingServer struct {
	repo.Repository
	answers int64
	goneFor time.Duration // since the first session broke
	silent  chan struct{} // nil: it answers; else it does when this is closed, whatever the context says
	began   atomic.Int64
	closed  atomic.Int64
	backAt  atomic.Pointer[time.Time]
}

func (s *breakingServer) NewWriter(ctx context.Context, _ repo.WriteSessionOptions) (context.Context, repo.RepositoryWriter, error) {
	if at := s.backAt.Load(); at != nil && time.Now().Before(*at) {
		return nil, nil, fmt.Errorf("connection refused: %w", io.EOF)
	}
	if s.silent != nil {
		<-s.silent
	}
	s.began.Add(1)
	session := &breakingSession{server: s}
	session.left.Store(s.answers)
	return ctx, session, nil
}

func (s *breakingServer) Close(context.Context) error { return nil }

type breakingSession struct {
	repo.RepositoryWriter
	server *breakingServer
	left   atomic.Int64
}

func (s *breakingSession) GetContent(ctx context.Context, id content.ID) ([]byte, error) {
	time.Sleep(time.Second)
	if s.left.Add(-1) < 0 {
		back := time.Now().Add(s.server.goneFor)
		s.server.backAt.CompareAndSwap(nil, &back)
		return nil, fmt.Errorf("stream broken: %w", io.EOF)
	}
	return []byte(id.String()), nil
}

func (s *breakingSession) Close(context.Context) error {
	s.server.closed.Add(1)
	return nil
}

// Those who were in a session when it broke go on together in one other, which is waited
// for; what fails for good is not taken for the end of what is read.
func TestSharedRepository(t *testing.T) {
	id, err := content.ParseID("0123456789abcdef")
	must(t, err)
	for name, c := range map[string]struct {
		answers  int64
		goneFor  time.Duration
		sessions int64
		fails    bool
	}{
		"never breaks":         {answers: 80, sessions: 1},
		"breaks":               {answers: 20, sessions: 4},
		"is back in a minute":  {answers: 40, goneFor: time.Minute, sessions: 2},
		"does not come back":   {answers: 40, goneFor: time.Hour, sessions: 1, fails: true},
		"breaks at every read": {answers: 0, sessions: contents.MostBreaks + 1, fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := &breakingServer{answers: c.answers, goneFor: c.goneFor}
				r := newSharedRepository(server)
				group := &errgroup.Group{}
				for range 8 {
					group.Go(func() error {
						for range 10 {
							if got, err := r.GetContent(t.Context(), id); err != nil || string(got) != id.String() {
								return fmt.Errorf("read %q: %w", got, err)
							}
						}
						return nil
					})
				}
				began := time.Now()
				err := group.Wait()
				code := api.Code("")
				if err != nil {
					code, _ = classify(t.Context(), err, "https://server")
				}
				switch {
				case !c.fails && err != nil:
					t.Error(err)
				case c.fails && (errors.Is(err, io.EOF) || code != api.CodeServerUnreachable):
					t.Errorf("failed with %v, code %q", err, code)
				case time.Since(began) > contents.Patience+time.Minute:
					t.Errorf("it took %s", time.Since(began))
				}
				if n := server.began.Load(); n != c.sessions {
					t.Errorf("%d sessions, want %d", n, c.sessions)
				}
				must(t, r.Close(t.Context()))
				if n := server.closed.Load(); n != c.sessions {
					t.Errorf("%d sessions closed of %d", n, c.sessions)
				}
			})
		})
	}
}

// A server that is not there at the first read was there a moment ago, and Kopia has tried: nobody waits for it.
func TestSharedRepositoryBegins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		later := time.Now().Add(time.Minute)
		server := &breakingServer{answers: 1}
		server.backAt.Store(&later)
		began := time.Now()
		_, err := newSharedRepository(server).GetContent(t.Context(), content.ID{})
		if err == nil || !strings.Contains(err.Error(), "connection refused") || time.Since(began) > 0 {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
	})
}

// Whoever is cancelled does not wait for a server that is gone, nor for one that says nothing.
func TestSharedRepositoryCancelled(t *testing.T) {
	for name, server := range map[string]func(silent chan struct{}) *breakingServer{
		"gone":   func(chan struct{}) *breakingServer { return &breakingServer{goneFor: time.Hour} },
		"silent": func(silent chan struct{}) *breakingServer { return &breakingServer{silent: silent} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				silent := make(chan struct{})
				defer close(silent)
				r := newSharedRepository(server(silent))
				enough := errors.New("enough")
				ctx, cancel := context.WithCancelCause(t.Context())
				time.AfterFunc(10*time.Second, func() { cancel(enough) })
				began := time.Now()
				_, err := r.GetContent(ctx, content.ID{})
				if !errors.Is(err, enough) || time.Since(began) > 11*time.Second {
					t.Errorf("after %s: %v", time.Since(began), err)
				}
				must(t, r.Close(context.Background()))
			})
		})
	}
}
