// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repositoryserver

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/compression"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/logging"
	"github.com/kopia/kopia/repo/object"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/contents"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// Who moves contents with our own protocol needs a session's password too, sees what was
// written a moment ago by another and what he wrote himself, and is cut when the session ends.
func TestIntegrationContents(t *testing.T) {
	t.Parallel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	quiet := slog.New(slog.DiscardHandler)
	ctx := logging.WithLogger(t.Context(), kopiaLogs(quiet, nil))
	dir := t.TempDir()
	state := filepath.Join(dir, "state")
	must(StateFolders(state))
	config := Config{
		RepositoryID: "reader", Password: "reader", AllowCreate: true, Format: Format{}.withDefaults(),
		Storage: StorageConfig{Type: "filesystem", Path: filepath.Join(dir, "storage")},
	}
	connection, err := prepare(ctx, config, serverUser, state, time.Now)
	must(err)
	rep, err := openDirect(ctx, connection, config.Password, time.Now)
	must(err)
	defer rep.Close(ctx)
	written := func(text string) (id object.ID) {
		t.Helper()
		other, err := openDirect(ctx, connection, config.Password, time.Now)
		must(err)
		defer other.Close(ctx)
		must(repo.WriteSession(ctx, other, repo.WriteSessionOptions{}, func(ctx context.Context, w repo.RepositoryWriter) error {
			id, err = writeObject(ctx, w, text)
			return err
		}))
		return id
	}

	sessions := newSessions(mostSessions, time.Now)
	session, err := sessions.start(api.SessionRequest{ID: "1", Username: "u", Hostname: "h"})
	must(err)
	reader, err := sessions.start(api.SessionRequest{ID: "2", Username: "u", Hostname: "h", ReadOnly: true})
	must(err)
	certificates := httptest.NewUnstartedServer(nil)
	certificates.StartTLS()
	certificates.Close()
	f := newFront(sessions, &kopiaServer{client: http.DefaultClient}, rep, func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &certificates.TLS.Certificates[0], nil }, func() {}, quiet)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	go func() { _ = f.serve(l) }()
	defer f.server.Close()
	roots := x509.NewCertPool()
	roots.AddCert(certificates.Certificate())
	open := func(user, password string) (*contents.Stream, error) {
		conn, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{RootCAs: roots, NextProtos: []string{contents.Protocol}})
		must(err)
		return contents.Open(conn, contents.Login{Username: user, Hostname: "h", Password: password})
	}
	enter := func(user, password string) (*contents.Reader, error) {
		stream, err := open(user, password)
		if err != nil {
			return nil, err
		}
		r := contents.NewReader(stream, func(context.Context) (*contents.Stream, error) { return nil, io.EOF }, func(error) bool { return true })
		t.Cleanup(r.Close)
		return r, nil
	}
	reads := func(r *contents.Reader, id object.ID) (string, error) {
		o, err := r.OpenObject(ctx, id)
		if err != nil {
			return "", err
		}
		defer o.Close()
		raw, err := io.ReadAll(o)
		return string(raw), err
	}

	for _, guess := range [][2]string{{"u", "guess"}, {"u", ""}, {"other", session.Password}, {"", session.Password}} {
		if _, err := enter(guess[0], guess[1]); !errors.Is(err, contents.ErrDenied) {
			t.Errorf("user %q: %v, want to be denied", guess[0], err)
		}
	}
	if sessions.denied != 4 {
		t.Errorf("%d denials counted, want 4", sessions.denied)
	}
	const text = "of a moment ago"
	id := written(text)
	r, err := enter("u", session.Password)
	must(err)
	if got, err := reads(r, id); got != text || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	crowd(t, l.Addr().String())
	if got, err := reads(r, id); got != text || err != nil {
		t.Errorf("when strangers have come: read %q, %v", got, err)
	}
	stream, err := open("u", session.Password)
	must(err)
	w, err := contents.NewWriter(ctx, stream, func(int64) {})
	must(err)
	defer w.Close()
	put := func(text string, compression compression.Name) (object.ID, error) {
		o := w.NewObjectWriter(ctx, object.WriterOptions{Compressor: compression})
		defer o.Close()
		if _, err := o.Write([]byte(text)); err != nil {
			return object.EmptyID, err
		}
		return o.Result()
	}
	const own = "of this stream, not flushed"
	mine, err := put(own, "zstd-fastest")
	must(err)
	if o, err := w.OpenObject(ctx, mine); err != nil {
		t.Errorf("what the stream wrote: %v", err)
	} else if raw, err := io.ReadAll(o); string(raw) != own || err != nil {
		t.Errorf("what the stream wrote: %q, %v", raw, err)
	}
	if _, err := w.VerifyObject(ctx, mine); err != nil {
		t.Errorf("whether the stream wrote it: %v", err)
	}
	if got, err := reads(r, mine); err == nil {
		t.Errorf("another stream reads what was not flushed: %q", got)
	}
	if _, err := w.VerifyObject(ctx, object.DirectObjectID(missingContent)); !errors.Is(err, content.ErrContentNotFound) && !errors.Is(err, object.ErrObjectNotFound) {
		t.Errorf("whether there is what nobody wrote: %v", err)
	}
	t.Run("who may read only", func(t *testing.T) {
		r, err := enter("u", reader.Password)
		must(err)
		defer r.Close()
		if got, err := reads(r, id); got != text || err != nil {
			t.Errorf("read %q, %v", got, err)
		}
		for what, do := range map[string]func(*contents.Writer) error{
			"write": func(w *contents.Writer) error {
				o := w.NewObjectWriter(ctx, object.WriterOptions{})
				defer o.Close()
				_, werr := o.Write([]byte("from a restore"))
				_, rerr := o.Result()
				return errors.Join(werr, rerr, w.Flush(ctx))
			},
			"flush": func(w *contents.Writer) error { return w.Flush(ctx) },
		} {
			stream, err := open("u", reader.Password)
			must(err)
			w, err := contents.NewWriter(ctx, stream, func(int64) {})
			must(err)
			if err := do(w); err == nil || !strings.Contains(err.Error(), "access denied") {
				t.Errorf("%s: %v, want it denied", what, err)
			}
			w.Close()
		}
	})
	testenv.Eventually(t, time.Minute, "two streams are counted", func() bool { return sessions.activity().Streams == 2 })
	sessions.end("1")
	if got, err := reads(r, id); !errors.Is(err, io.EOF) {
		t.Errorf("after the session's end: %q, %v", got, err)
	}
	if err := w.Flush(ctx); err == nil {
		t.Error("a flush succeeded after the session's end")
	}
	if _, err := enter("u", session.Password); !errors.Is(err, contents.ErrDenied) {
		t.Errorf("a password after its session: %v", err)
	}
}

var missingContent = func() content.ID {
	id, err := content.ParseID("0123456789abcdef0123456789abcdef")
	if err != nil {
		panic(err)
	}
	return id
}()
