// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/kopia/kopia/repo"

	"github.com/kanister-kopia/kanister-kopia/agent/contents"
)

// reader answers those who read with our own protocol (agent/contents) instead of
// through Kopia: from a session of our own at the storage, which only reads. What a user
// may do there, Kopia lets him do too: read a content whose id he knows.
type reader struct {
	sessions *sessions
	streams  chan struct{} // of all clients together, Kopia's too
	reads    chan struct{}
	rep      repo.DirectRepository
	log      *slog.Logger
}

// mostReads are under way, each with its content in memory; as many as Kopia allows.
const mostReads = maxConcurrency

func newReader(s *sessions, streams chan struct{}, rep repo.DirectRepository, log *slog.Logger) *reader {
	return &reader{sessions: s, streams: streams, reads: make(chan struct{}, mostReads), rep: rep, log: log}
}

// serve is for http.Server.TLSNextProto: the handshake has chosen the protocol. A
// connection that ends is no error: the client closes it when it has read enough.
func (r *reader) serve(server *http.Server, conn *tls.Conn, _ http.Handler) {
	login, err := contents.Accept(conn)
	if err != nil {
		_ = conn.Close()
		return
	}
	session, ok := r.sessions.authenticate(login.Username, login.Hostname, login.Password)
	if !ok {
		r.refuse(conn, contents.ErrDenied)
		return
	}
	select {
	case r.streams <- struct{}{}:
		defer func() { <-r.streams }()
	default:
		r.refuse(conn, contents.ErrBusy)
		return
	}
	defer r.sessions.stream(session)()
	// What is to be restored may have been written a moment ago, through Kopia.
	if err := r.rep.Refresh(session.ctx); err != nil {
		r.refuse(conn, fmt.Errorf("read the repository's index blobs: %w", err))
		return
	}
	err = contents.Serve(session.ctx, conn, r.rep.ContentReader(), r.reads)
	r.log.Debug("a stream of contents ended", "user", login.Username, "error", err)
}

func (r *reader) refuse(conn *tls.Conn, why error) {
	_ = contents.Refuse(conn, why)
	_ = conn.Close()
}
