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
	front *front
	reads chan struct{} // as many under way as Kopia allows
	rep   repo.DirectRepository
	log   *slog.Logger
}

func newReader(f *front, rep repo.DirectRepository, log *slog.Logger) *reader {
	return &reader{front: f, reads: make(chan struct{}, maxConcurrency), rep: rep, log: log}
}

// serve is for http.Server.TLSNextProto: the handshake has chosen the protocol. A
// connection that ends is no error: the client closes it when it has read enough.
func (r *reader) serve(_ *http.Server, conn *tls.Conn, _ http.Handler) {
	login, err := contents.Accept(conn)
	if err != nil {
		_ = conn.Close()
		return
	}
	session, leave, err := r.front.enter(login.Username, login.Hostname, login.Password)
	if err != nil {
		r.refuse(conn, err)
		return
	}
	defer leave()
	defer r.front.sessions.stream(session)()
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
