// SPDX-License-Identifier: Apache-2.0

package contents

import "testing"

// A buffer holds what it is asked for, is at most twice as large and is used again.
func TestBodies(t *testing.T) {
	var p bodyPool
	for _, length := range []int{0, 1, 1000, smallestBody, smallestBody + 1, 5000, 1<<20 - 1, 1 << 20, 1<<20 + 1, 5_000_000, MaxContent - 1, MaxContent} {
		b := p.get(length)
		if len(b) != length || cap(b) > max(smallestBody, 2*length) {
			t.Errorf("for %d bytes there is a buffer of %d in %d", length, len(b), cap(b))
		}
		pool, capacity := p.class(length)
		if capacity != cap(b) {
			t.Errorf("for %d bytes a capacity of %d was promised, it is %d", length, capacity, cap(b))
		}
		if again, _ := p.class(cap(b)); again != pool {
			t.Errorf("a buffer for %d bytes is not put where it was taken from", length)
		}
	}
	p.put(nil)
	p.put(make([]byte, 0, 1_000_003)) // somebody else's: of no use
	if b := p.get(1_000_003); len(b) != 1_000_003 {
		t.Errorf("%d bytes", len(b))
	}
}
