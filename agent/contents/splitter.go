// SPDX-License-Identifier: Apache-2.0

package contents

import (
	"math/bits"

	"github.com/chmduquesne/rollinghash/buzhash32"
)

// windowSize is how many bytes decide on an end.
const windowSize = 64

// averages of the splitters that are done here, by Kopia's names of them.
var averages = map[string]int{
	"DYNAMIC-128K-BUZHASH": 128 << 10,
	"DYNAMIC-256K-BUZHASH": 256 << 10,
	"DYNAMIC-512K-BUZHASH": 512 << 10,
	"DYNAMIC-1M-BUZHASH":   1 << 20,
	"DYNAMIC-2M-BUZHASH":   2 << 20,
	"DYNAMIC-4M-BUZHASH":   4 << 20,
}

// byteHashes are those of Kopia's library, which decide where Kopia cuts.
var byteHashes = buzhash32.GenerateHashes(1)

// splitter cuts where Kopia's (repo/splitter/splitter_buzhash32.go) of the same average
// cuts: where the hash of the last 64 bytes has as many zeros as the average, between half
// and twice of it. Kopia's asks a library for each byte, which took most of the time of a
// large file's backup; this one is three times as fast.
type splitter struct {
	mask  uint32
	least int // bytes of a piece
	most  int

	count int              // bytes of the piece since the last end
	tail  [windowSize]byte // the last bytes, zeros at the beginning
}

// newSplitter takes an average, a power of two of at least 128.
func newSplitter(average int) *splitter {
	return &splitter{mask: uint32(average - 1), least: average / 2, most: 2 * average}
}

// next is how many bytes of p belong to the piece that ends in it, or -1 if none does. It
// goes on behind what it returned.
func (s *splitter) next(p []byte) int {
	take := min(len(p), s.most-s.count)
	skip := min(max(s.least-1-s.count, 0), take)
	end := s.scan(p, skip, take)
	if end < 0 && s.count+take == s.most {
		end = take
	}
	if end < 0 {
		s.count += len(p)
		s.remember(p)
		return -1
	}
	s.count = 0
	s.remember(p[:end])
	return end
}

// scan looks for an end behind each of the bytes [from, to) of p.
func (s *splitter) scan(p []byte, from, to int) int {
	if from == to {
		return -1
	}
	var leaving [windowSize]byte // those before from
	if n := copy(leaving[:], s.tail[min(from, windowSize):]); n < windowSize {
		copy(leaving[n:], p[from-(windowSize-n):from])
	}
	hash := &byteHashes
	var sum uint32
	for _, b := range leaving {
		sum = bits.RotateLeft32(sum, 1) ^ hash[b]
	}
	// The window is twice as long as the sum, so a byte that leaves has come round to its place.
	near := p[from:min(from+windowSize, to)]
	for i, b := range near {
		sum = bits.RotateLeft32(sum, 1) ^ (hash[leaving[i]] ^ hash[b])
		if sum&s.mask == 0 {
			return from + i + 1
		}
	}
	far := p[from+len(near) : to]
	left := p[from:][:len(far)]
	for i, b := range far {
		sum = bits.RotateLeft32(sum, 1) ^ (hash[left[i]] ^ hash[b])
		if sum&s.mask == 0 {
			return from + windowSize + i + 1
		}
	}
	return -1
}

func (s *splitter) remember(p []byte) {
	if n := len(p); n < windowSize {
		copy(s.tail[:], s.tail[n:])
		copy(s.tail[windowSize-n:], p)
		return
	}
	copy(s.tail[:], p[len(p)-windowSize:])
}
