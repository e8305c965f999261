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
	"github.com/kanister-kopia/kanister-kopia/internal/pause"
)

// objects are read from a repository, through Kopia or through contents.
type objects interface {
	OpenObject(ctx context.Context, id object.ID) (object.Reader, error)
}

// connectToRead is connect for who only reads: where the server speaks our protocol, no
// session of Kopia is opened.
func connectToRead(ctx context.Context, creds *api.Credentials, scratch string) (*connection, error) {
	stream, again, err := openStream(ctx, creds)
	if errors.Is(err, errOtherProtocol) {
		return connectForReaders(ctx, creds, scratch)
	} else if err != nil {
		return nil, err
	}
	reader := contents.NewReader(stream, again, hopeless)
	return &connection{objects: reader, end: reader.Close, creds: creds}, nil
}

// connectToWrite is connect for who writes contents: where the server speaks our protocol,
// Kopia has the manifests alone.
func connectToWrite(ctx context.Context, creds *api.Credentials, scratch string) (*connection, error) {
	stream, _, err := openStream(ctx, creds)
	if errors.Is(err, errOtherProtocol) {
		return connect(ctx, creds, scratch)
	} else if err != nil {
		return nil, err
	}
	c, err := openKopia(ctx, creds, scratch)
	if err != nil {
		stream.Close()
		return nil, err
	}
	c.end = stream.Close
	c.stream = stream
	return c, nil
}

// openStream waits for the server and logs in, and says how to do it again, for once.
// errOtherProtocol: the server does not speak ours.
func openStream(ctx context.Context, creds *api.Credentials) (*contents.Stream, func(context.Context) (*contents.Stream, error), error) {
	u, err := url.Parse(creds.URL)
	if err != nil {
		return nil, nil, &connectError{err}
	}
	login := contents.Login{Username: creds.Username, Hostname: creds.Hostname, Password: creds.Password}
	enter := func(conn *tls.Conn, err error) (*contents.Stream, error) {
		var stream *contents.Stream
		if err == nil {
			stream, err = logIn(conn, login)
		}
		if err != nil {
			return nil, &connectError{err}
		}
		return stream, nil
	}
	for {
		stream, err := enter(awaitServer(ctx, creds.URL, streamProtocols...))
		if !errors.Is(err, contents.ErrBusy) {
			return stream, func(ctx context.Context) (*contents.Stream, error) {
				return enter(dial(ctx, u.Host, streamProtocols))
			}, err
		}
		if err := pause.For(ctx, busyPause); err != nil {
			return nil, nil, err
		}
	}
}

// streamProtocols are ours, and Kopia's.
var streamProtocols = []string{contents.Protocol, "h2"}

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
