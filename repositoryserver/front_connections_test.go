// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"runtime"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Whoever can reach the port and has no password takes little of the server's memory, and
// keeps nobody out who comes from elsewhere.
func TestFrontStrangers(t *testing.T) {
	_, address, _, _ := startFront(t, func(http.ResponseWriter, *http.Request) {})
	dial := func() *tls.Conn {
		t.Helper()
		conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		if err != nil {
			return nil
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	for range 20 {
		conn := dial()
		if conn == nil {
			t.Fatal("the server takes no connection")
		}
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

	open := 0
	for range 2 * mostConnections {
		conn := dial()
		if conn == nil {
			continue
		}
		open++
	}
	if open > mostConnections {
		t.Errorf("%d connections of one address are open, want %d at most", open, mostConnections)
	}
	elsewhere := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	conn, err := tls.DialWithDialer(elsewhere, "tcp", address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Errorf("another address is kept out: %v", err)
	} else {
		conn.Close()
	}
}
