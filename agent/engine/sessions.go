// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/repo/object"
	"golang.org/x/sync/semaphore"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/contents"
	"github.com/kanister-kopia/kanister-kopia/internal/pause"
)

// sharedRepository is a repository behind Kopia's own protocol, for several readers at once.
// Kopia begins a broken session anew, too, but each reader that was in it ends what is there
// by then: the new one, or one in which another sends at that moment, which gRPC forbids
// (grpcRepositoryClient.killInnerSession). So the reads go through a session of a writer,
// which Kopia leaves alone, and it is replaced once.
type sharedRepository struct {
	repo.Repository

	turn    *semaphore.Weighted // of one; protects the following, and is held while a session begins
	session kopiaSession
	err     error // that there will be no other
}

// kopiaSession is a session of Kopia's protocol. When it breaks, every read in it fails with
// io.EOF (Kopia's errorFromSessionResponse).
type kopiaSession interface {
	repo.RepositoryWriter
	GetContent(context.Context, content.ID) ([]byte, error)
}

// newSharedRepository takes over a repository.
func newSharedRepository(rep repo.Repository) *sharedRepository {
	return &sharedRepository{Repository: rep, turn: semaphore.NewWeighted(1)}
}

// connectForReaders is connect for who reads several things at once.
func connectForReaders(ctx context.Context, creds *api.Credentials, scratch string) (*connection, error) {
	c, err := connect(ctx, creds, scratch)
	if err != nil {
		return nil, err
	}
	shared := newSharedRepository(c.rep)
	c.rep, c.objects = shared, shared
	return c, nil
}

// inSession reads in a session, and in another where it breaks: reading again changes nothing.
func inSession[T any](ctx context.Context, r *sharedRepository, read func(kopiaSession) (T, error)) (T, error) {
	var broken kopiaSession
	for breaks := 0; ; breaks++ {
		var got T
		s, err := r.after(ctx, broken)
		if err != nil {
			return got, err
		}
		if got, err = read(s); !errors.Is(err, io.EOF) {
			return got, err
		}
		if breaks == contents.MostBreaks {
			return got, brokenSession(err)
		}
		broken = s
	}
}

// brokenSession is an error that nobody takes for the end of what he reads.
func brokenSession(err error) error {
	return fmt.Errorf("the session broke: server unavailable: %v", err)
}

// after is the session in use, which is another than the one that broke.
func (r *sharedRepository) after(ctx context.Context, broken kopiaSession) (kopiaSession, error) {
	if err := r.turn.Acquire(ctx, 1); err != nil {
		return nil, context.Cause(ctx)
	}
	defer r.turn.Release(1)
	if r.err != nil {
		return nil, r.err
	}
	if r.session != nil && r.session != broken {
		return r.session, nil
	}
	if r.session != nil {
		_ = r.session.Close(ctx) // it only read: nothing is lost
		r.session = nil
	}
	bounded, cancel := context.WithTimeout(ctx, contents.Patience)
	defer cancel()
	for {
		s, err := r.begin(bounded)
		if err == nil {
			r.session = s
			return s, nil
		}
		if broken != nil && pause.For(bounded, settlePause) == nil {
			continue
		}
		if ctx.Err() == nil {
			r.err = brokenSession(err)
		}
		return nil, cmp.Or(context.Cause(ctx), r.err)
	}
}

// begin begins a session.
func (r *sharedRepository) begin(ctx context.Context) (kopiaSession, error) {
	w, _, err := leave(ctx, func() (repo.RepositoryWriter, error) {
		_, w, err := r.NewWriter(ctx, repo.WriteSessionOptions{Purpose: "read"})
		return w, err
	})
	if err != nil {
		return nil, err
	}
	return w.(kopiaSession), nil
}

// Close ends the session, and then the connection.
func (r *sharedRepository) Close(ctx context.Context) error {
	if err := r.turn.Acquire(ctx, 1); err != nil {
		return context.Cause(ctx)
	}
	defer r.turn.Release(1)
	if r.session != nil {
		_ = r.session.Close(ctx)
	}
	r.session, r.err = nil, net.ErrClosed
	return r.Repository.Close(ctx)
}

// GetContent reads one content. It waits for a server that is gone, for a while, as all reads do.
func (r *sharedRepository) GetContent(ctx context.Context, id content.ID) ([]byte, error) {
	return inSession(ctx, r, func(s kopiaSession) ([]byte, error) { return s.GetContent(ctx, id) })
}

// ContentInfo says what a repository's index knows of a content.
func (r *sharedRepository) ContentInfo(ctx context.Context, id content.ID) (content.Info, error) {
	return inSession(ctx, r, func(s kopiaSession) (content.Info, error) { return s.ContentInfo(ctx, id) })
}

// PrefetchContents is Kopia's hint to fill a cache; there is none.
func (r *sharedRepository) PrefetchContents(context.Context, []content.ID, string) []content.ID {
	return nil
}

// OpenObject, VerifyObject, GetManifest and FindManifests are those of Kopia's repo.Repository.
func (r *sharedRepository) OpenObject(ctx context.Context, id object.ID) (object.Reader, error) {
	return object.Open(ctx, r, id)
}

func (r *sharedRepository) VerifyObject(ctx context.Context, id object.ID) ([]content.ID, error) {
	return object.VerifyObject(ctx, r, id)
}

func (r *sharedRepository) GetManifest(ctx context.Context, id manifest.ID, data any) (*manifest.EntryMetadata, error) {
	return inSession(ctx, r, func(s kopiaSession) (*manifest.EntryMetadata, error) { return s.GetManifest(ctx, id, data) })
}

func (r *sharedRepository) FindManifests(ctx context.Context, labels map[string]string) ([]*manifest.EntryMetadata, error) {
	return inSession(ctx, r, func(s kopiaSession) ([]*manifest.EntryMetadata, error) { return s.FindManifests(ctx, labels) })
}
