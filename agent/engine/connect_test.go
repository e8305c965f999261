// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http/httptest"
	"syscall"
	"testing"
	"time"
)

// A server that begins to listen a little later is waited for; one that is not
// trusted is not.
func TestAwaitServer(t *testing.T) {
	probe, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	address := probe.Addr().String()
	must(t, probe.Close())
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
