// SPDX-License-Identifier: Apache-2.0

package openport

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// startHealth serves health checks until the test ends. Who asks for /readyz waits, and is
// counted.
func startHealth(t *testing.T, waiting *atomic.Int64) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(_ http.ResponseWriter, r *http.Request) {
		waiting.Add(1)
		defer waiting.Add(-1)
		<-r.Context().Done()
	})
	go func() { ended <- serveHealth(ctx, l, mux) }()
	t.Cleanup(func() {
		end()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// dialFrom connects as another address of loopback.
func dialFrom(t *testing.T, from, address string) net.Conn {
	t.Helper()
	conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// probe asks as the kubelet does.
func probe(t *testing.T, from, address string) error {
	t.Helper()
	conn := dialFrom(t, from, address)
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	fmt.Fprint(conn, "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s", resp.Status)
	}
	return nil
}

// Whoever says a header without end, on hundreds of connections, takes little memory, and the
// kubelet is answered meanwhile.
func TestHealthStrangers(t *testing.T) {
	address := startHealth(t, new(atomic.Int64))
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	header := "GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 900<<10)
	before := heap()
	for range 300 {
		conn := dialFrom(t, "127.0.0.1", address)
		_ = conn.SetWriteDeadline(time.Now().Add(time.Second)) // that much is sent, or is not taken
		_, _ = io.WriteString(conn, header)
	}
	if took := heap() - before; took > 20<<20 {
		t.Errorf("strangers take %d MiB", took>>20)
	}
	if err := probe(t, "127.0.0.2", address); err != nil {
		t.Errorf("the kubelet is not answered: %v", err)
	}
}

// Of one address a few are asked for at once, and another still gets in.
func TestHealthConnections(t *testing.T) {
	var waiting atomic.Int64
	address := startHealth(t, &waiting)
	var closed atomic.Int64
	for range 4 * mostAsking {
		conn := dialFrom(t, "127.0.0.1", address)
		fmt.Fprint(conn, "GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
		go func() {
			_, _ = conn.Read(make([]byte, 1))
			closed.Add(1)
		}()
	}
	testenv.Eventually(t, 30*time.Second, "what is too many is closed, and is not waited with", func() bool {
		return closed.Load() >= 3*mostAsking && waiting.Load() <= mostAsking
	})
	if err := probe(t, "127.0.0.2", address); err != nil {
		t.Errorf("another address is not answered: %v", err)
	}
}
