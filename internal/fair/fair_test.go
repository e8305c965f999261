// SPDX-License-Identifier: Apache-2.0

package fair

import (
	"slices"
	"strings"
	"testing"
)

// order is in which order those who wait are served in so many places, each of which is given
// back by who has it longest.
func order(t *Turns, places int, waiting string) string {
	left, active, served := strings.Split(waiting, ""), map[string]int{}, ""
	for len(left) > 0 {
		if len(served) >= places {
			active[string(served[len(served)-places])]--
		}
		next := t.Next(left, active)
		t.Took(left[next])
		active[left[next]]++
		served += left[next]
		left = slices.Delete(left, next, next+1)
	}
	return served
}

func TestOrder(t *testing.T) {
	for _, c := range []struct {
		name          string
		places        int
		waiting, want string
	}{
		{"one key", 1, "aaa", "aaa"},
		{"one place", 1, "aaaaab", "abaaaa"},
		{"two places", 2, "aaaaab", "abaaaa"},
		{"more keys than places", 2, "aaaabbbbccccd", "abcdabcabcabc"},
		{"first come, first served", 3, "cba", "cba"},
	} {
		if got := order(&Turns{}, c.places, c.waiting); got != c.want {
			t.Errorf("%s: %s is served as %s, want %s", c.name, c.waiting, got, c.want)
		}
	}
	if got := (&Turns{}).Next(nil, nil); got != -1 {
		t.Errorf("nobody waits, and it is the turn of %d", got)
	}
}

// What somebody is told to be before him is what is served before him.
func TestAhead(t *testing.T) {
	var turns Turns
	turns.Took("a")
	active := map[string]int{"a": 1, "c": 2}
	waiting := strings.Split("aabcab", "")
	want := []int{1, 4, 0, 3, 5, 2}
	for i := range waiting {
		if got := turns.Ahead(waiting, active, i); got != want[i] {
			t.Errorf("%d are before %s (%d), want %d", got, waiting[i], i, want[i])
		}
	}
	if turns.n != 1 || active["a"] != 1 || strings.Join(waiting, "") != "aabcab" {
		t.Error("to ask who is before somebody is to take a turn")
	}
}
