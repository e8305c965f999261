// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"net"
	"syscall"
	"testing"
	"time"
)

// A server that begins to listen a little later is waited for.
func TestAwaitServer(t *testing.T) {
	probe, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := probe.Addr().String()
	if err := probe.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*settlePause)
	defer cancel()
	if err := awaitServer(ctx, "https://"+address); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody listens: error %v", err)
	}

	time.AfterFunc(2*settlePause, func() {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(func() { l.Close() })
	})
	if err := awaitServer(context.Background(), "https://"+address); err != nil {
		t.Errorf("a server that comes later: %v", err)
	}
}
