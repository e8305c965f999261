// SPDX-License-Identifier: Apache-2.0

package contents

import (
	"math/bits"
	"sync"
)

// bodies are buffers of contents, used again. There are thousands of small ones, and to
// make a large one anew, to clear it and to collect it takes longer than to encrypt it.
var bodies bodyPool

// bodyPool has buffers by the power of two that is their capacity.
type bodyPool [bits.UintSize]sync.Pool

// smallestBody is the capacity of those that hold less.
const smallestBody = 1 << 10

// get is a buffer of a length, with anything in it.
func (p *bodyPool) get(length int) []byte {
	class := bits.Len(uint(max(length, smallestBody) - 1))
	if b, ok := p[class].Get().(*[]byte); ok {
		return (*b)[:length]
	}
	return make([]byte, length, 1<<class)
}

// put takes back a buffer that nobody uses any more, whoever made it.
func (p *bodyPool) put(b []byte) {
	if c := uint(cap(b)); c >= smallestBody && c&(c-1) == 0 {
		p[bits.Len(c)-1].Put(&b)
	}
}
