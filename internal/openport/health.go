// SPDX-License-Identifier: Apache-2.0

package openport

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"
)

const (
	// mostAsking of one address are connected: the kubelet has three probes, and who scrapes
	// metrics one connection or two.
	mostAsking = 8
	// mostAskingOfAll is of all addresses.
	mostAskingOfAll = 64
	// mostHeaders in bytes is several times what a kubelet or Prometheus says.
	mostHeaders = 4 << 10
	// askTimeout is longer than any answer takes: one that the kubelet waits for has 5 s.
	askTimeout = 10 * time.Second
)

// ServeHealth answers on a port that asks for no password, with what says nothing secret, until
// ctx ends: the error is nil then.
func ServeHealth(ctx context.Context, address string, h http.Handler) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("serve health: %w", err)
	}
	return serveHealth(ctx, l, h)
}

func serveHealth(ctx context.Context, l net.Listener, h http.Handler) error {
	server := &http.Server{
		Handler: h, MaxHeaderBytes: mostHeaders,
		ReadHeaderTimeout: askTimeout / 2, ReadTimeout: askTimeout, WriteTimeout: askTimeout, IdleTimeout: askTimeout,
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(NewListener(l, mostAsking, mostAskingOfAll)); ctx.Err() == nil {
		return fmt.Errorf("serve health: %w", err)
	}
	return nil
}
