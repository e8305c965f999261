// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"crypto/tls"
	"errors"
	"net/url"
	"time"

	"github.com/kopia/kopia/repo/object"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/contents"
)

// objects are read from a repository, through Kopia or through contents.
type objects interface {
	OpenObject(ctx context.Context, id object.ID) (object.Reader, error)
}

// connectToRead is connect for who only reads: where the server speaks our protocol, no
// session of Kopia is opened.
func connectToRead(ctx context.Context, creds *api.Credentials, scratch string) (*connection, error) {
	u, err := url.Parse(creds.URL)
	if err != nil {
		return nil, &connectError{err}
	}
	login := contents.Login{Username: creds.Username, Hostname: creds.Hostname, Password: creds.Password}
	for {
		conn, err := awaitServer(ctx, creds.URL, readProtocols...)
		if err != nil {
			return nil, &connectError{err}
		}
		stream, err := logIn(conn, login)
		switch {
		case errors.Is(err, errOtherProtocol):
			return connect(ctx, creds, scratch)
		case errors.Is(err, contents.ErrBusy):
			if err := pause(ctx, busyPause); err != nil {
				return nil, err
			}
			continue
		case err != nil:
			return nil, &connectError{err}
		}
		reader := contents.NewReader(stream, func(ctx context.Context) (*contents.Stream, error) {
			conn, err := dial(ctx, u.Host, readProtocols)
			if err != nil {
				return nil, &connectError{err}
			}
			stream, err := logIn(conn, login)
			if err != nil {
				return nil, &connectError{err}
			}
			return stream, nil
		}, hopeless)
		return &connection{objects: reader, end: reader.Close, creds: creds}, nil
	}
}

// readProtocols are ours, and Kopia's.
var readProtocols = []string{contents.Protocol, "h2"}

// busyPause is between two tries at a server that has too much to do.
const busyPause = time.Second

var errOtherProtocol = errors.New("the server does not speak " + contents.Protocol)

// logIn opens a stream if the server chose our protocol. The connection is the stream's.
func logIn(conn *tls.Conn, login contents.Login) (*contents.Stream, error) {
	if conn.ConnectionState().NegotiatedProtocol != contents.Protocol {
		_ = conn.Close()
		return nil, errOtherProtocol
	}
	return contents.Open(conn, login)
}

// hopeless says that the next try will not end otherwise.
func hopeless(err error) bool {
	return errors.Is(err, contents.ErrDenied) || errors.Is(err, errOtherProtocol) || errors.As(err, new(*tls.CertificateVerificationError))
}

// pause waits, unless ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
