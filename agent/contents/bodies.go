// SPDX-License-Identifier: Apache-2.0

package contents

import (
	"math/bits"
	"sync"
)

// bodies are buffers of contents, used again. There are thousands of small ones, and to
// make a large one anew, to clear it and to collect it takes longer than to encrypt it.
var bodies bodyPool

// bodyPool has buffers by their capacities, the powers of two: finer ones would be used
// again too seldom.
type bodyPool [bits.UintSize]sync.Pool

// smallestBody is the capacity of those that hold less.
const smallestBody = 1 << 10

// class is that of the buffers that hold a length, and their capacity.
func (p *bodyPool) class(length int) (pool *sync.Pool, capacity int) {
	power := bits.Len(uint(max(length, smallestBody) - 1))
	return &p[power], 1 << power
}

// get is a buffer of a length, with anything in it.
func (p *bodyPool) get(length int) []byte {
	pool, capacity := p.class(length)
	if b, ok := pool.Get().(*[]byte); ok {
		return (*b)[:length]
	}
	return make([]byte, length, capacity)
}

// put takes back a buffer that nobody uses any more, whoever made it.
func (p *bodyPool) put(b []byte) {
	if pool, capacity := p.class(cap(b)); capacity == cap(b) {
		pool.Put(&b)
	}
}
