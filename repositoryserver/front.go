// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/kopia/kopia/repo"
	"golang.org/x/sync/semaphore"

	"github.com/kanister-kopia/kanister-kopia/agent/contents"
	"github.com/kanister-kopia/kanister-kopia/internal/openport"
)

// front is what listens on the pod network. It ends TLS, checks the password of
// each stream against the sessions in force, and passes the stream on to Kopia
// with the user's private password; contents move without Kopia's server:
// contents.go. Whoever has no session never reaches Kopia:
// not its slow password hash, its control API or its metrics. When a session ends,
// its streams are cut.
type front struct {
	sessions *sessions
	// expect is told that a snapshot is being written: its record follows.
	expect   func()
	password func(ctx context.Context, user, host string) (string, error)
	proxy    *httputil.ReverseProxy
	slots    chan struct{}
	server   *http.Server
}

const (
	// maxSessionStreams bounds a session's streams. An operation has three at most: its
	// contents, Kopia's session, and that of its one write session, which Kopia keeps for as
	// long as the connection. The others are for those that broke without a word: it takes
	// minutes until they are known to be gone, and what comes back meanwhile is not refused.
	maxSessionStreams = 16
	// mostTalks of them are with Kopia, which has all manifests of the repository in memory for
	// each.
	mostTalks = 6
	// maxStreams bounds all clients together: as many as the sessions in use may have.
	maxStreams = mostSessions * maxSessionStreams
	// mostConnections of one address: all operations of a pod have a fraction of it, and all
	// pods behind one address, where the network hides them, as many as may work at once.
	mostConnections = 128
	// mostConnectionsOfAll is of all addresses.
	mostConnectionsOfAll = 1024
)

// Status codes of gRPC.
const (
	grpcPermissionDenied  = 7
	grpcResourceExhausted = 8
	grpcUnavailable       = 14
	grpcUnauthenticated   = 16
)

// kopiaService is the only thing of Kopia's that passes.
const kopiaService = "/kopia_repository.KopiaRepository/"

func newFront(s *sessions, k *kopiaServer, rep repo.DirectRepository, certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error), expect func(), log *slog.Logger) *front {
	target := &url.URL{Scheme: "https", Host: k.address}
	f := &front{sessions: s, expect: expect, password: k.password, slots: make(chan struct{}, maxStreams)}
	quiet := slog.NewLogLogger(log.Handler(), slog.LevelDebug)
	f.proxy = &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport:     k.client.Transport,
		FlushInterval: -1, // each message at once
		BufferPool:    &buffers{},
		ModifyResponse: func(resp *http.Response) error {
			talk := resp.Request.Context().Value(talkKey{}).(talk)
			session := talk.session
			resp.Body = newAnswers(resp.Body, &session.untaken, talk.unanswered, func() {
				log.Warn("a session ends whose client does not take Kopia's answers", "session", session.ID, "user", session.Username+"@"+session.Hostname)
				f.sessions.end(session.ID)
			})
			return nil
		},
		ErrorLog: quiet,
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			refuse(w, r, grpcUnavailable, "repository server: "+err.Error())
		},
	}
	f.server = &http.Server{
		Handler: f,
		TLSConfig: &tls.Config{
			MinVersion: tls.VersionTLS13, GetCertificate: certificate, NextProtos: []string{contents.Protocol, "h2"},
		},
		Protocols: http2Only(),
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){
			contents.Protocol: newStreams(f, k, rep, log).serve,
		},
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		ReadHeaderTimeout: 10 * time.Second,
		// Whoever has no password takes none of the memory that operations need.
		MaxHeaderBytes: 16 << 10,
		// net/http also keeps what it has of a connection that was cut for as long.
		IdleTimeout: time.Minute,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: 16, // of one connection
			// A client that is gone without a word is found out; one that stands still for a
			// while, on a starved node or a paused one, is not.
			SendPingTimeout: 30 * time.Second, PingTimeout: time.Minute,
			// What is said here is small: contents go another way.
			MaxReceiveBufferPerConnection: 256 << 10, MaxReceiveBufferPerStream: 128 << 10,
		},
		ErrorLog: quiet,
	}
	return f
}

// talk is one stream with Kopia.
type talk struct {
	session    *session
	unanswered *unanswered
}

// talkKey is of a call's talk in its context.
type talkKey struct{}

// connKey is of a call's connection in its context.
type connKey struct{}

func http2Only() *http.Protocols {
	p := &http.Protocols{}
	p.SetHTTP2(true)
	return p
}

// serve serves until the server is shut down.
func (f *front) serve(l net.Listener) error {
	return fmt.Errorf("serve repository: %w", f.server.ServeTLS(openport.NewListener(l, mostConnections, mostConnectionsOfAll), "", ""))
}

// enter finds the session of a password and counts its stream, which has a slot, until leave.
// From then on conn, where it was said, keeps its place. The error is contents.ErrDenied or
// contents.ErrBusy, whichever protocol is spoken.
func (f *front) enter(conn net.Conn, user, host, password string) (one *session, leave func(), err error) {
	one, ok := f.sessions.authenticate(user, host, password)
	if !ok {
		return nil, nil, contents.ErrDenied
	}
	openport.Known(conn)
	done, ok := f.sessions.stream(one)
	if !ok {
		return nil, nil, contents.ErrBusy
	}
	select {
	case f.slots <- struct{}{}:
		return one, func() { <-f.slots; done() }, nil
	default:
		done()
		return nil, nil, contents.ErrBusy
	}
}

func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor != 2 || r.Method != http.MethodPost || !strings.HasPrefix(r.URL.Path, kopiaService) {
		http.NotFound(w, r)
		return
	}
	user, host := r.Header.Get("Kopia-Username"), r.Header.Get("Kopia-Hostname")
	conn, _ := r.Context().Value(connKey{}).(net.Conn)
	session, leave, err := f.enter(conn, user, host, r.Header.Get("Kopia-Password"))
	switch {
	case errors.Is(err, contents.ErrDenied):
		refuse(w, r, grpcUnauthenticated, err.Error())
		return
	case err != nil:
		refuse(w, r, grpcResourceExhausted, err.Error())
		return
	}
	defer leave()
	if session.readOnly {
		refuse(w, r, grpcPermissionDenied, errReadOnly.Error())
		return
	}
	if !session.talks.TryAcquire(1) {
		refuse(w, r, grpcResourceExhausted, contents.ErrBusy.Error())
		return
	}
	defer session.talks.Release(1)
	private, err := f.password(r.Context(), user, host)
	if err != nil {
		refuse(w, r, grpcUnavailable, err.Error())
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	go f.expect()
	cut := make(chan struct{})
	stop := context.AfterFunc(session.ctx, func() {
		defer close(cut)
		cancel()
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now()) // a client that reads no more
	})
	defer func() {
		if !stop() {
			<-cut // w is this call's only
		}
	}()
	with := talk{session, &unanswered{room: session.unanswered}}
	defer with.unanswered.end()
	r = r.WithContext(context.WithValue(ctx, talkKey{}, with))
	r.Body, r.ContentLength = newRequests(ctx, r.Body, session, with.unanswered), -1
	// Exactly these: a second value of a header would be another user's word.
	r.Header["Kopia-Username"], r.Header["Kopia-Hostname"], r.Header["Kopia-Password"] = []string{user}, []string{host}, []string{private}
	f.proxy.ServeHTTP(w, r)
}

// refuseTimeout and refuseLimit bound what is read of a call that is refused.
const (
	refuseTimeout = 5 * time.Second
	refuseLimit   = 64 << 10
)

// refusals are waited for by so many at once: whoever has no password says all that he likes.
var refusals = semaphore.NewWeighted(256)

// refuse answers a gRPC call with an error, without a body. It waits for the first
// message: a client that is answered while it still sends sees a broken stream and
// never reads why.
func refuse(w http.ResponseWriter, r *http.Request, code int, message string) {
	if err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(refuseTimeout)); err == nil && refusals.TryAcquire(1) {
		defer refusals.Release(1)
		header := make([]byte, 5)
		if _, err := io.ReadFull(r.Body, header); err == nil {
			_, _ = io.CopyN(io.Discard, r.Body, min(refuseLimit, int64(binary.BigEndian.Uint32(header[1:]))))
		}
	}
	h := w.Header()
	h.Set("Content-Type", "application/grpc")
	h.Set("Grpc-Status", strconv.Itoa(code))
	h.Set("Grpc-Message", url.PathEscape(message))
	w.WriteHeader(http.StatusOK)
}

// buffers are reused: a stream copies through one.
type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, 64<<10)
}

func (b *buffers) Put(p []byte) { b.pool.Put(&p) }
