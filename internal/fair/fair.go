// SPDX-License-Identifier: Apache-2.0

// Package fair says whose turn it is: of those who have the fewest places, and then of those
// whose last turn is the longest ago. Who asks for a hundred keeps nobody else's one waiting.
package fair

import (
	"maps"
	"slices"
)

// Turns are those that there were. The zero value is before the first. Not for concurrent use.
type Turns struct {
	n    int
	last map[string]int // by key; what is never forgotten is few: the tenants of one server
}

// Took says that somebody with this key has taken a turn.
func (t *Turns) Took(key string) {
	if t.last == nil {
		t.last = map[string]int{}
	}
	t.n++
	t.last[key] = t.n
}

// Next is the index of whose turn it is among those who wait, -1 if nobody does. Waiting are
// their keys, in the order in which they came; active is how many places each key has.
func (t *Turns) Next(waiting []string, active map[string]int) int {
	next := -1
	for i, key := range waiting {
		if next < 0 || active[key] < active[waiting[next]] ||
			active[key] == active[waiting[next]] && t.last[key] < t.last[waiting[next]] {
			next = i
		}
	}
	return next
}

// Ahead is how many of those who wait have their turn before waiting[i], if nobody gives a
// place back meanwhile.
func (t *Turns) Ahead(waiting []string, active map[string]int, i int) int {
	then, left, active := Turns{t.n, maps.Clone(t.last)}, slices.Clone(waiting), maps.Clone(active)
	for n := 0; ; n++ {
		next := then.Next(left, active)
		if next == i {
			return n
		}
		then.Took(left[next])
		active[left[next]]++
		left = slices.Delete(left, next, next+1)
		if next < i {
			i--
		}
	}
}
