// SPDX-License-Identifier: Apache-2.0

package openport

import (
	"io"
	"net"
	"testing"
	"time"
)

// ends of one connection.
type ends struct{ client, server net.Conn }

// startListener returns what connects from an address, and waits until that is accepted, or
// closed: server is nil then.
func startListener(t *testing.T, mostOfOne, mostOfAll int) (connect func(from string) ends) {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { inner.Close() })
	l := NewListener(inner, mostOfOne, mostOfAll)
	accepted := make(chan net.Conn)
	go func() {
		defer close(accepted)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			select {
			case accepted <- conn:
			case <-t.Context().Done():
				return
			}
		}
	}()
	return func(from string) ends {
		t.Helper()
		e := ends{client: dialFrom(t, from, inner.Addr().String())}
		refused := make(chan struct{})
		go func() {
			defer close(refused)
			_, _ = e.client.Read(make([]byte, 1))
		}()
		select {
		case e.server = <-accepted:
			_, _ = e.server.Write([]byte{0}) // lets go of the read above
			<-refused
		case <-refused:
		}
		return e
	}
}

// lives tells whether what one end says arrives at the other.
func (e ends) lives(t *testing.T) bool {
	t.Helper()
	_, _ = e.server.Write([]byte{0})
	_ = e.client.SetReadDeadline(time.Now().Add(30 * time.Second))
	_, err := io.ReadFull(e.client, make([]byte, 1))
	return err == nil
}

// Who comes to an address that has all its connections takes the place of its oldest stranger,
// and of nobody who has logged in.
func TestListenerOneAddress(t *testing.T) {
	connect := startListener(t, 3, 100)
	known, oldest, other := connect("127.0.0.1"), connect("127.0.0.1"), connect("127.0.0.1")
	elsewhere := connect("127.0.0.2")
	Known(known.server)
	newcomer := connect("127.0.0.1")
	if newcomer.server == nil {
		t.Fatal("the newcomer is refused")
	}
	if oldest.lives(t) {
		t.Error("the oldest stranger keeps his place")
	}
	for who, e := range map[string]ends{"known": known, "other": other, "elsewhere": elsewhere, "newcomer": newcomer} {
		if !e.lives(t) {
			t.Errorf("%s is closed", who)
		}
	}
	Known(other.server)
	Known(newcomer.server)
	if connect("127.0.0.1").server != nil {
		t.Error("one more than all places, which have logged in")
	}
	if connect("127.0.0.2").server == nil {
		t.Error("another address is refused")
	}
	known.server.Close()
	known.server.Close()
	if connect("127.0.0.1").server == nil {
		t.Error("refused though one has left")
	}
}

// Where a few addresses fill all places, their strangers give way, and not an earlier one of
// an address that has less.
func TestListenerAllAddresses(t *testing.T) {
	connect := startListener(t, 4, 8)
	quiet, known := connect("127.0.0.9"), connect("127.0.0.1")
	Known(known.server)
	var crowd, all []ends
	for range 2 {
		all = append(all, connect("127.0.0.1"))
	}
	for range 4 {
		crowd = append(crowd, connect("127.0.0.2"))
	}
	newcomer := connect("127.0.0.3")
	if newcomer.server == nil {
		t.Fatal("the newcomer is refused")
	}
	if crowd[0].lives(t) {
		t.Error("the oldest stranger of the address that has the most keeps his place")
	}
	for _, e := range append(append(all, crowd[1:]...), quiet, known, newcomer) {
		if !e.lives(t) {
			t.Errorf("%s is closed", e.client.LocalAddr())
		}
		Known(e.server)
	}
	if connect("127.0.0.4").server != nil {
		t.Error("one more than all places, which have logged in")
	}
}

// A stranger whose place was taken has memory until the server lets go of him: there are not
// more of them than places.
func TestListenerLetsGo(t *testing.T) {
	connect := startListener(t, 2, 2)
	var accepted []ends
	for range 4 {
		e := connect("127.0.0.1")
		if e.server == nil {
			t.Fatal("refused")
		}
		accepted = append(accepted, e)
	}
	if connect("127.0.0.1").server != nil {
		t.Error("more than twice the places, which the server has all")
	}
	accepted[0].server.Close()
	if connect("127.0.0.1").server == nil {
		t.Error("refused though the server let go of one")
	}
}
