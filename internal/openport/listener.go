// SPDX-License-Identifier: Apache-2.0

// Package openport serves ports that anybody may reach: whoever has no password takes
// little, and keeps out nobody who comes from elsewhere.
package openport

import (
	"net"
	"sync"
)

// Listener closes at once what is too many: each connection takes memory before anybody has
// said his password.
type Listener struct {
	net.Listener
	mostOfOne, mostOfAll int

	mu   sync.Mutex // protects the following
	of   map[string]int
	open int
}

// NewListener has so many connections of one address open at once, and so many of all.
func NewListener(l net.Listener, mostOfOne, mostOfAll int) *Listener {
	return &Listener{Listener: l, mostOfOne: mostOfOne, mostOfAll: mostOfAll, of: map[string]int{}}
}

// Accept waits for one that is not too many.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := addressOf(conn)
		if l.enter(from) {
			return &countedConn{Conn: conn, leave: sync.OnceFunc(func() { l.leave(from) })}, nil
		}
		_ = conn.Close()
	}
}

func addressOf(conn net.Conn) string {
	host, _, err := net.SplitHostPort(conn.RemoteAddr().String())
	if err != nil {
		return conn.RemoteAddr().String()
	}
	return host
}

func (l *Listener) enter(from string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open >= l.mostOfAll || l.of[from] >= l.mostOfOne {
		return false
	}
	l.open++
	l.of[from]++
	return true
}

func (l *Listener) leave(from string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.of[from]--; l.of[from] == 0 {
		delete(l.of, from)
	}
}

// countedConn leaves when it is closed.
type countedConn struct {
	net.Conn
	leave func()
}

func (c *countedConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
