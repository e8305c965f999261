// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// dial connects without a word, as whoever reaches the port can.
func dial(t *testing.T, address string) *tls.Conn {
	t.Helper()
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatalf("the server takes no connection: %v", err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// crowd connects from one address until it has all its connections, and as many once more: each
// is let in, and no more than these stay.
func crowd(t *testing.T, address string) {
	t.Helper()
	var closed atomic.Int64
	for range 2 * mostConnections {
		conn := dial(t, address)
		go func() {
			_, _ = io.Copy(io.Discard, conn)
			closed.Add(1)
		}()
	}
	testenv.Eventually(t, 30*time.Second, "those that are too many are closed", func() bool { return closed.Load() >= mostConnections })
}

// Whoever can reach the port and has no password takes little of the server's memory, and
// keeps nobody out who comes from elsewhere.
func TestFrontStrangers(t *testing.T) {
	_, address, _, _ := startFront(t, func(http.ResponseWriter, *http.Request) {})
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	for range 20 {
		conn := dial(t, address)
		go func() { _, _ = io.Copy(io.Discard, conn) }()
		says := http2.NewFramer(conn, conn)
		_, _ = io.WriteString(conn, http2.ClientPreface)
		_ = says.WriteSettings()
		for stream := range uint32(16) {
			// Small on the way, and large in memory.
			var block bytes.Buffer
			e := hpack.NewEncoder(&block)
			for _, h := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":path", kopiaService + "Session"}, {":authority", "x"}} {
				_ = e.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
			}
			for range 30_000 {
				_ = e.WriteField(hpack.HeaderField{Name: "a", Value: ""})
			}
			const frame = 16_000
			part := block.Next(frame)
			_ = says.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*stream + 1, BlockFragment: part, EndHeaders: block.Len() == 0})
			for block.Len() > 0 {
				part = block.Next(frame)
				_ = says.WriteContinuation(2*stream+1, block.Len() == 0, part)
			}
		}
	}
	if took := heap() - before; took > 50<<20 {
		t.Errorf("strangers take %d MiB", took>>20)
	}

	crowd(t, address)
	elsewhere := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	conn, err := tls.DialWithDialer(elsewhere, "tcp", address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Errorf("another address is kept out: %v", err)
	} else {
		conn.Close()
	}
}

// A crowd of strangers behind the same address ends no stream of somebody who has logged in,
// and keeps nobody from it.
func TestFrontKeepsWhoHasLoggedIn(t *testing.T) {
	const long = "after the crowd came"
	crowded := make(chan struct{})
	_, address, one, send := startFront(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		select {
		case <-crowded:
			_, _ = io.WriteString(w, message(text(17, long)))
		case <-r.Context().Done():
		}
	})
	resp := send("u", one.Password)
	defer resp.Body.Close()
	crowd(t, address)
	close(crowded)
	if said, err := io.ReadAll(resp.Body); !bytes.Contains(said, []byte(long)) || err != nil {
		t.Errorf("the stream ends with %q, %v", said, err)
	}
}
