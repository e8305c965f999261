// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"net"
	"sync"
)

const (
	// mostConnections of one address: all operations of a pod have a fraction of it, and all
	// pods behind one address, where the network hides them, as many as may work at once.
	mostConnections = 128
	// mostConnectionsOfAll is of all addresses.
	mostConnectionsOfAll = 1024
)

// connections are a listener's that closes at once what is too many: each takes memory
// before anybody has said his password.
type connections struct {
	net.Listener

	mu   sync.Mutex // protects the following
	of   map[string]int
	open int
}

func newConnections(l net.Listener) *connections {
	return &connections{Listener: l, of: map[string]int{}}
}

// Accept waits for one that is not too many.
func (c *connections) Accept() (net.Conn, error) {
	for {
		conn, err := c.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := addressOf(conn)
		if c.enter(from) {
			return &countedConn{Conn: conn, leave: sync.OnceFunc(func() { c.leave(from) })}, nil
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

func (c *connections) enter(from string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open >= mostConnectionsOfAll || c.of[from] >= mostConnections {
		return false
	}
	c.open++
	c.of[from]++
	return true
}

func (c *connections) leave(from string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open--
	if c.of[from]--; c.of[from] == 0 {
		delete(c.of, from)
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
