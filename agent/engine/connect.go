// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/content"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/contents"
)

// openTimeout bounds Kopia's own retries, which know no end.
const openTimeout = 45 * time.Second

// settleTimeout is how long a server may not be reached: it is ready, but a new Service
// takes a moment to reach every node and the cluster's DNS, and until then its address may
// lead to nobody, or to where the last server was. So no try takes longer than
// attemptTimeout.
const (
	settleTimeout  = 20 * time.Second
	settlePause    = 100 * time.Millisecond
	attemptTimeout = 3 * time.Second
)

// awaitServer waits until somebody listens at the server's address, and shows a
// certificate that is trusted: Kopia would try a wrong one again and again.
// It returns a connection with the first of the protocols that the server speaks.
func awaitServer(ctx context.Context, server string, protocols ...string) (*tls.Conn, error) {
	u, err := url.Parse(server)
	if err != nil {
		return nil, fmt.Errorf("server address %q: %w", server, err)
	}
	return settle(ctx, func(ctx context.Context) (*tls.Conn, error) { return dial(ctx, u.Host, protocols) })
}

// settle dials until somebody is there.
func settle(ctx context.Context, dial func(context.Context) (*tls.Conn, error)) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	ticker := time.NewTicker(settlePause)
	defer ticker.Stop()
	var last error
	for {
		conn, err := dial(ctx)
		if err == nil {
			return conn, nil
		}
		timedOut, later := unreached(err)
		if !later {
			return nil, err
		}
		if last == nil || !timedOut { // what it said before tells more than that it said nothing
			last = err
		}
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
		if ctx.Err() != nil {
			return nil, last
		}
	}
}

// unreached says of a dial's error whether another try may end otherwise.
func unreached(err error) (timedOut, later bool) {
	var timeout net.Error
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return false, true
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return false, true
	case errors.As(err, &timeout) && timeout.Timeout():
		return true, true
	}
	return false, false
}

// dial may take attemptTimeout to reach somebody, and as long as ctx to hear who that is: a
// server that has much to do is slow to answer.
func dial(ctx context.Context, address string, protocols []string) (*tls.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	raw, err := (&net.Dialer{Timeout: attemptTimeout}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: protocols, ServerName: host})
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, err
	}
	return conn, nil
}

// connection is one open repository, through its server.
type connection struct {
	// rep is nil where the connection only reads.
	rep repo.Repository
	// objects are what the repository holds.
	objects objects
	scratch string
	creds   *api.Credentials
	// foreign keeps records where a user of somebody else's server may: foreign.go.
	foreign bool
	// stream is what contents are written through, and nil where they go through Kopia.
	stream *contents.Stream
	// end closes what is not Kopia's.
	end func()
}

// connect opens the repository as the user of creds. Trust is the process's CA
// root (SSL_CERT_FILE, set by the parent), with the host name checked; Kopia's
// pinning of certificates is never used. There is no cache: it would cost more
// memory than the operation.
func connect(ctx context.Context, creds *api.Credentials, scratch string) (*connection, error) {
	conn, err := awaitServer(ctx, creds.URL)
	if err != nil {
		return nil, &connectError{err}
	}
	_ = conn.Close() // it was there, and trusted: what becomes of it, others find out
	return openKopia(ctx, creds, scratch)
}

// openKopia opens the repository at a server that was there, and trusted.
func openKopia(ctx context.Context, creds *api.Credentials, scratch string) (*connection, error) {
	dir, err := os.MkdirTemp(scratch, "kopia-")
	if err != nil {
		return nil, api.OwnFolder("connect to repository server: make scratch folder", err)
	}
	c := &connection{scratch: dir, creds: creds}
	config, err := json.Marshal(repo.LocalConfig{
		APIServer:     &repo.APIServerInfo{BaseURL: creds.URL},
		Caching:       &content.CachingOptions{},
		ClientOptions: repo.ClientOptions{Hostname: creds.Hostname, Username: creds.Username},
	})
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "repository.config")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		c.close()
		return nil, api.OwnFolder("connect to repository server: write connection", err)
	}
	openCtx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	rep, answered, err := leave(openCtx, func() (repo.Repository, error) {
		return repo.Open(openCtx, file, creds.Password, &repo.Options{
			DisableRepositoryLog: true,
			OnFatalError:         func(error) {},
		})
	})
	switch {
	case err == nil:
		c.rep, c.objects = rep, rep
		return c, nil
	case answered:
		err = &connectError{err}
	case ctx.Err() != nil:
		err = ctx.Err()
	default:
		err = &connectError{fmt.Errorf("no answer within %s", openTimeout)}
	}
	c.close()
	return nil, err
}

// leave asks Kopia for something, and leaves it when ctx ends: Kopia may block whatever the
// context says, and the process ends with the operation. The error is ctx's cause then.
func leave[T any](ctx context.Context, ask func() (T, error)) (got T, answered bool, err error) {
	done := make(chan struct{})
	var answer T
	var failure error
	go func() {
		defer close(done)
		answer, failure = ask()
	}()
	select {
	case <-done:
		return answer, true, failure
	case <-ctx.Done():
		return got, false, context.Cause(ctx)
	}
}

// connectError says that the server was not reached or did not let us in.
type connectError struct{ err error }

func (e *connectError) Error() string { return "connect to repository server: " + e.err.Error() }
func (e *connectError) Unwrap() error { return e.err }

func (c *connection) close() {
	if c.end != nil {
		c.end()
	}
	if c.rep != nil {
		_ = c.rep.Close(context.Background()) // a reader's close loses nothing
	}
	_ = os.RemoveAll(c.scratch) // nothing, if there is none
}

// write runs one write session: fn, then a flush, which is where Kopia tells of
// remote write errors, then close.
func (c *connection) write(ctx context.Context, purpose string, onUpload func(int64), fn func(context.Context, repo.RepositoryWriter) error) error {
	ctx, session, err := c.rep.NewWriter(ctx, repo.WriteSessionOptions{Purpose: purpose, OnUpload: onUpload})
	if err != nil {
		return fmt.Errorf("begin write session: %w", err)
	}
	defer func() { _ = session.Close(ctx) }() // a second close after success; the only one after failure
	var w repo.RepositoryWriter = &calmWriter{RepositoryWriter: session}
	if c.stream != nil {
		if w, err = newStreamWriter(ctx, session, c.stream, onUpload); err != nil {
			return fmt.Errorf("begin write session: %w", err)
		}
	}
	w = &saver{w}
	if err := fn(ctx, w); err != nil {
		return err
	}
	if err := w.Flush(ctx); err != nil {
		return fmt.Errorf("flush write session: %w", err)
	}
	return nil
}
