// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// A server that begins to listen a little later is waited for; one that is not
// trusted is not.
func TestAwaitServer(t *testing.T) {
	address := fmt.Sprintf("127.0.0.1:%d", testenv.Port(t))
	ctx, cancel := context.WithTimeout(t.Context(), 10*settlePause)
	defer cancel()
	if _, err := awaitServer(ctx, "https://"+address); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody listens: error %v", err)
	}

	server := httptest.NewUnstartedServer(nil)
	listening := make(chan error, 1)
	timer := time.AfterFunc(2*settlePause, func() {
		l, err := net.Listen("tcp", address)
		if err == nil {
			server.Listener.Close()
			server.Listener = l
			server.StartTLS()
		}
		listening <- err
	})
	defer timer.Stop()
	var untrusted *tls.CertificateVerificationError
	if _, err := awaitServer(t.Context(), "https://"+address); !errors.As(err, &untrusted) {
		t.Errorf("a server that comes later, of nobody's CA: %v", err)
	}
	must(t, <-listening)
	server.Close()
}

// A Service that has just got another server may lead to nobody, in whatever way, before it
// leads there. Who answered otherwise is not asked again.
func TestSettle(t *testing.T) {
	wrong := errors.New("this is not the server")
	refused, lost := fmt.Errorf("dial: %w", syscall.ECONNREFUSED), fmt.Errorf("dial: %w", os.ErrDeadlineExceeded)
	for name, c := range map[string]struct {
		errs  []error // of one dial after the other; then the server answers
		want  error
		calls int
	}{
		"at once":           {nil, nil, 1},
		"refused":           {[]error{refused, refused}, nil, 3},
		"no answer":         {[]error{lost, lost}, nil, 3},
		"no route":          {[]error{fmt.Errorf("dial: %w", syscall.EHOSTUNREACH), fmt.Errorf("dial: %w", syscall.ENETUNREACH)}, nil, 3},
		"no name":           {[]error{&net.DNSError{IsNotFound: true}}, nil, 2},
		"somebody else":     {[]error{refused, wrong, refused}, wrong, 2},
		"never":             {slices.Repeat([]error{lost}, 100), lost, 7},
		"refused, then not": {append([]error{refused}, slices.Repeat([]error{lost}, 100)...), refused, 8},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				calls := 0
				conn, err := settle(t.Context(), func(ctx context.Context) (*tls.Conn, error) {
					calls++
					if calls > len(c.errs) {
						return &tls.Conn{}, nil
					}
					err := c.errs[calls-1]
					if err == lost {
						select {
						case <-time.After(attemptTimeout):
						case <-ctx.Done():
						}
					}
					return nil, err
				})
				if err != c.want || (conn == nil) != (c.want != nil) || calls != c.calls {
					t.Errorf("%d tries, error %v, want %d and %v", calls, err, c.calls, c.want)
				}
			})
		})
	}
}
