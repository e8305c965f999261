// SPDX-License-Identifier: Apache-2.0

package operation

import "testing"

func (o *turn) began() bool {
	select {
	case <-o.begun:
		return true
	default:
		return false
	}
}

// Long ones beyond their number wait without taking a turn of others, of their tenant too, and
// fairly among themselves.
func TestLongTurnsWait(t *testing.T) {
	all := turns{room: 3, longRoom: 1, running: map[string]int{}}
	first, second, third := all.ask("a", true), all.ask("a", true), all.ask("b", true)
	short, other := all.ask("a", false), all.ask("b", false)
	if !first.began() || second.began() || third.began() || !short.began() || !other.began() {
		t.Fatalf("%d places are left, %d of long ones, %d wait", all.room, all.longRoom, len(all.waiting))
	}
	late := all.ask("c", false)
	all.giveBack(first)
	if !late.began() || third.began() {
		t.Error("the place of a long one goes to another long one, and a tenant with none waits")
	}
	all.giveBack(other)
	if !third.began() || second.began() {
		t.Error("the next long one is of the tenant that has had one")
	}
}

// What is given back before it has begun takes no turn, and leaves no place unused.
func TestTurnsAreGivenBack(t *testing.T) {
	all := turns{room: 1, longRoom: 1, running: map[string]int{}}
	first, left, next := all.ask("a", true), all.ask("b", true), all.ask("c", false)
	all.giveBack(left)
	if left.began() || next.began() {
		t.Error("two have one place")
	}
	all.giveBack(first)
	if left.began() || !next.began() {
		t.Error("it is the turn of who does not wait any more")
	}
	all.giveBack(next)
	if all.room != 1 || all.longRoom != 1 || len(all.running) > 0 || len(all.waiting) > 0 {
		t.Errorf("nobody is there any more, and %d places are free, %d for long ones, %v run, %d wait", all.room, all.longRoom, all.running, len(all.waiting))
	}
}
