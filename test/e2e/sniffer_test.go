// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	"golang.org/x/sys/unix"
)

// sniffer reads every packet in the network namespace of the kind node, where all
// traffic between pods passes.
type sniffer struct {
	stop chan struct{}
	done chan error

	mu    sync.Mutex // protects the following
	seen  map[string]bool
	bytes map[uint16]int64 // by TCP port, both directions
	tails map[[12]byte][]byte
}

// What is looked for, across the packets of one direction of a connection.
var marks = []string{"plaintext-row-marker", "kube-probe/"}

// sniff starts one, or returns nil where that is not possible: it takes root and
// the node on this very machine.
func sniff(ctx context.Context) *sniffer {
	if os.Getuid() != 0 {
		return nil
	}
	namespace, err := cluster.NodeNetwork(ctx)
	if err != nil {
		GinkgoWriter.Println("no look at the wire:", err)
		return nil
	}
	s := &sniffer{
		stop: make(chan struct{}), done: make(chan error, 1),
		seen: map[string]bool{}, bytes: map[uint16]int64{}, tails: map[[12]byte][]byte{},
	}
	ready := make(chan error, 1)
	go func() {
		defer close(s.done)
		// The thread is in another network: it is not given back.
		runtime.LockOSThread()
		fd, err := openPackets(namespace)
		ready <- err
		if err != nil {
			return
		}
		defer unix.Close(fd)
		s.done <- s.read(fd)
	}()
	if err := <-ready; err != nil {
		GinkgoWriter.Println("no look at the wire:", err)
		return nil
	}
	return s
}

func openPackets(namespace string) (int, error) {
	ns, err := os.Open(namespace)
	if err != nil {
		return 0, err
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return 0, fmt.Errorf("enter the node's network: %w", err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, int(htons(unix.ETH_P_ALL)))
	if err != nil {
		return 0, fmt.Errorf("open packet socket: %w", err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
	wait := unix.NsecToTimeval(int64(200 * time.Millisecond))
	return fd, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait)
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

func (s *sniffer) read(fd int) error {
	packet := make([]byte, 128<<10)
	for {
		select {
		case <-s.stop:
			return nil
		default:
		}
		n, _, err := unix.Recvfrom(fd, packet, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read packets: %w", err)
		}
		s.packet(packet[:n])
	}
}

// packet looks at one IPv4 TCP packet.
func (s *sniffer) packet(p []byte) {
	if len(p) < 20 || p[0]>>4 != 4 || p[9] != unix.IPPROTO_TCP {
		return
	}
	if p[12] == 127 {
		// The node's own loopback, where the kubelet hands on what `kubectl exec` types.
		return
	}
	header := int(p[0]&15) * 4
	if total := int(binary.BigEndian.Uint16(p[2:])); total > 0 && total < len(p) {
		p = p[:total]
	}
	if len(p) < header+20 {
		return
	}
	tcp := p[header:]
	from, to := binary.BigEndian.Uint16(tcp), binary.BigEndian.Uint16(tcp[2:])
	offset := int(tcp[12]>>4) * 4
	if offset > len(tcp) || len(tcp) == offset {
		return
	}
	payload := tcp[offset:]
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bytes[from] += int64(len(payload))
	s.bytes[to] += int64(len(payload))
	var flow [12]byte
	copy(flow[:], p[12:20])
	copy(flow[8:], tcp[:4])
	// A mark may lie across two packets.
	text := append(s.tails[flow], payload...)
	for _, m := range marks {
		if bytes.Contains(text, []byte(m)) {
			s.seen[m] = true
		}
	}
	s.tails[flow] = bytes.Clone(text[max(0, len(text)-32):])
}

// Stop ends it.
func (s *sniffer) Stop() error {
	close(s.stop)
	return <-s.done
}

// Seen says whether one of the marks went over the wire.
func (s *sniffer) Seen(mark string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen[mark]
}

// BytesOn counts what went from or to a port; a packet that passes several
// interfaces counts as often.
func (s *sniffer) BytesOn(port uint16) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes[port]
}
