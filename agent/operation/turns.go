// SPDX-License-Identifier: Apache-2.0

package operation

import (
	"slices"

	"github.com/kanister-kopia/kanister-kopia/internal/fair"
)

// turns say which operation begins next: fairly by tenant, and of long ones so few at once
// that others find a place. The manager's lock is held.
type turns struct {
	room, longRoom int            // places that are left, and how many of them long ones may take
	running        map[string]int // by tenant
	fair           fair.Turns
	waiting        []*turn // in the order in which they came
}

// turn is that of one operation.
type turn struct {
	tenant string
	long   bool
	begun  chan struct{} // closed when it is there
}

// ask asks for a turn. It is to be given back, also before it has begun.
func (t *turns) ask(tenant string, long bool) *turn {
	one := &turn{tenant: tenant, long: long, begun: make(chan struct{})}
	t.waiting = append(t.waiting, one)
	t.begin()
	return one
}

func (t *turns) giveBack(one *turn) {
	if i := slices.Index(t.waiting, one); i >= 0 {
		t.waiting = slices.Delete(t.waiting, i, i+1)
		return
	}
	t.take(one, -1)
	t.begin()
}

// take takes so many places for one.
func (t *turns) take(one *turn, places int) {
	t.room -= places
	if one.long {
		t.longRoom -= places
	}
	if t.running[one.tenant] += places; t.running[one.tenant] == 0 {
		delete(t.running, one.tenant)
	}
}

// begin lets those begin whose turn it is. Long ones beyond their number take nobody's turn.
func (t *turns) begin() {
	for t.room > 0 {
		var may []*turn
		var tenants []string
		for _, one := range t.waiting {
			if !one.long || t.longRoom > 0 {
				may, tenants = append(may, one), append(tenants, one.tenant)
			}
		}
		next := t.fair.Next(tenants, t.running)
		if next < 0 {
			return
		}
		one := may[next]
		t.waiting = slices.DeleteFunc(t.waiting, func(other *turn) bool { return other == one })
		t.fair.Took(one.tenant)
		t.take(one, 1)
		close(one.begun)
	}
}
