// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"errors"
	"net"
	"sync"
	"testing"
)

// Proxy is a network between two programs that can be cut: what is under way is
// held, who connects is accepted, and nothing passes until it heals.
type Proxy struct {
	// Address is where the proxy listens.
	Address string
	// Upstream is where it passes connections on to.
	Upstream string
	wg       sync.WaitGroup

	mu     sync.Mutex // protects the following
	cond   *sync.Cond
	conns  map[net.Conn]bool
	cut    bool
	closed bool
	left   [2]int64    // bytes that may pass, of each direction; below zero: no limit
	due    func() bool // asked before answers; nil: nobody is
	first  int64       // bytes that the upstream gets before
	full   chan struct{}
}

// StartProxy passes connections on to an address of loopback until the test ends.
func StartProxy(t testing.TB, upstream string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	p := &Proxy{Address: l.Addr().String(), Upstream: upstream, conns: map[net.Conn]bool{}, left: [2]int64{-1, -1}}
	p.cond = sync.NewCond(&p.mu)
	p.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.serve(conn) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.mu.Lock()
		p.closed = true
		for c := range p.conns {
			c.Close()
		}
		p.cond.Broadcast()
		p.mu.Unlock()
		p.wg.Wait()
	})
	return p
}

// Cut lets nothing pass any more.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = true
}

// CutAfter cuts when n more bytes have passed in one direction; then the channel is closed.
func (p *Proxy) CutAfter(n int64) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left, p.full = [2]int64{n, n}, make(chan struct{})
	return p.full
}

// CutWhen cuts before an answer passes, once n bytes have passed to the upstream and it is
// time; then the channel is closed. It is asked for each answer, perhaps of several
// connections at once, and after the test's end.
func (p *Proxy) CutWhen(n int64, due func() bool) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.first, p.due, p.full = n, due, make(chan struct{})
	return p.full
}

// Heal lets pass what was held, and all that comes.
func (p *Proxy) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut, p.left, p.due = false, [2]int64{-1, -1}, nil
	p.cond.Broadcast()
}

// Break ends all connections; new ones are accepted.
func (p *Proxy) Break() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}

var errProxyClosed = errors.New("proxy closed")

// answers is the direction from the upstream.
const answers = 1

// pass waits until n bytes may pass in a direction.
func (p *Proxy) pass(direction int, n int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if direction == answers && n > 0 && p.first <= 0 && p.due != nil {
		due := p.due
		p.mu.Unlock() // it may take long
		now := due()
		p.mu.Lock()
		if now && p.due != nil {
			p.cut, p.due = true, nil
			close(p.full)
		}
	}
	for p.cut && !p.closed {
		p.cond.Wait()
	}
	if p.closed {
		return errProxyClosed
	}
	if direction != answers {
		p.first -= n
	}
	if left := &p.left[direction]; *left >= 0 && n > 0 {
		if *left -= n; *left <= 0 {
			p.cut, p.left = true, [2]int64{-1, -1}
			close(p.full)
		}
	}
	return nil
}

// keep closes a connection when the proxy ends.
func (p *Proxy) keep(c net.Conn) (forget func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns[c] = true
	if p.closed {
		c.Close()
	}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.conns, c)
		c.Close()
	}
}

func (p *Proxy) serve(client net.Conn) {
	defer p.keep(client)()
	if p.pass(0, 0) != nil {
		return
	}
	server, err := net.Dial("tcp", p.Upstream)
	if err != nil {
		return
	}
	defer p.keep(server)()
	var both sync.WaitGroup
	for direction, way := range [2][2]net.Conn{{client, server}, {server, client}} {
		both.Go(func() {
			buffer := make([]byte, 4<<10)
			for {
				n, err := way[0].Read(buffer)
				// Also the end of a connection is news that has to pass.
				if p.pass(direction, int64(n)) != nil {
					return
				}
				_, writeErr := way[1].Write(buffer[:n])
				if err != nil || writeErr != nil {
					client.Close()
					server.Close()
					return
				}
			}
		})
	}
	both.Wait()
}
