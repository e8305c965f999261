// SPDX-License-Identifier: Apache-2.0

// Package openport serves ports that anybody may reach: whoever has no password takes
// little, and keeps out nobody who comes from elsewhere.
package openport

import (
	"crypto/tls"
	"net"
	"slices"
	"sync"
)

// Listener bounds how many connections are open at once: each takes memory before anybody has
// said his password. What is too many takes the place of a stranger, and is closed at once only
// where there is none.
type Listener struct {
	net.Listener
	mostOfOne, mostOfAll int

	mu   sync.Mutex         // protects the following
	of   map[string][]*conn // by address, the oldest first
	open int                // of all addresses
	cut  int                // whose place another has, until the server has let go of them
}

// NewListener has so many connections of one address open at once, and so many of all.
func NewListener(l net.Listener, mostOfOne, mostOfAll int) *Listener {
	return &Listener{Listener: l, mostOfOne: mostOfOne, mostOfAll: mostOfAll, of: map[string][]*conn{}}
}

// Accept waits for a connection that there is a place for.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		accepted, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &conn{Conn: accepted, from: addressOf(accepted), listener: l}
		instead, ok := l.enter(c)
		if !ok {
			_ = accepted.Close()
			continue
		}
		if instead != nil {
			_ = instead.Conn.Close()
		}
		return c, nil
	}
}

func addressOf(conn net.Conn) string {
	host, _, err := net.SplitHostPort(conn.RemoteAddr().String())
	if err != nil {
		return conn.RemoteAddr().String()
	}
	return host
}

// enter finds a place for a connection; instead is whose it was, and is to be closed.
func (l *Listener) enter(c *conn) (instead *conn, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	address := c.from
	switch {
	case len(l.of[c.from]) >= l.mostOfOne:
	case l.open >= l.mostOfAll:
		address = l.crowd()
	default:
		l.add(c)
		return nil, true
	}
	i := slices.IndexFunc(l.of[address], isStranger)
	// Who comes faster than the server lets go has no more than twice the places.
	if i < 0 || l.cut >= l.mostOfAll {
		return nil, false
	}
	instead = l.of[address][i]
	l.remove(instead)
	instead.cut = true
	l.cut++
	l.add(c)
	return instead, true
}

// crowd is the address that has the most strangers. They give way: whoever fills all places
// from a few addresses closes his own connections, and none of somebody who is about to log in.
// The lock is held.
func (l *Listener) crowd() (address string) {
	most := 0
	for from, conns := range l.of {
		n := 0
		for _, c := range conns {
			if isStranger(c) {
				n++
			}
		}
		if n > most {
			address, most = from, n
		}
	}
	return address
}

// add and remove need the lock.
func (l *Listener) add(c *conn) {
	l.of[c.from] = append(l.of[c.from], c)
	l.open++
}

func (l *Listener) remove(c *conn) {
	rest := slices.DeleteFunc(l.of[c.from], func(o *conn) bool { return o == c })
	if l.of[c.from] = rest; len(rest) == 0 {
		delete(l.of, c.from)
	}
	l.open--
}

func (l *Listener) leave(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case c.left:
	case c.cut:
		l.cut--
	default:
		l.remove(c)
	}
	c.left = true
}

// Known says that somebody on a connection of a Listener's, or on the TLS of one, has shown a
// valid password: it keeps its place. Of another connection it says nothing.
func Known(c net.Conn) {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if c, ok := c.(*conn); ok {
		c.listener.mu.Lock()
		defer c.listener.mu.Unlock()
		c.known = true
	}
}

// conn leaves when it is closed.
type conn struct {
	net.Conn
	from     string
	listener *Listener // whose lock protects the following

	known bool
	cut   bool // another has its place
	left  bool
}

func isStranger(c *conn) bool { return !c.known }

func (c *conn) Close() error {
	defer c.listener.leave(c)
	return c.Conn.Close()
}
