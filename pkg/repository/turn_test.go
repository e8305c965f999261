// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

// A source has one turn at a time; who does not want it any more goes out of the way,
// and nothing of it is kept.
func TestTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &Manager{}
		one, other := &Repository{manager: m, id: "a"}, &Repository{manager: m, id: "b"}
		silent := func() { t.Error("it has to wait") }
		take := func(r *Repository, user, path string) func() {
			done, err := r.Turn(t.Context(), user, path, silent)
			if err != nil {
				t.Fatal(err)
			}
			return done
		}
		done := take(one, "pvc.a", "/")
		for _, free := range []func(){take(one, "pvc.a", "/b"), take(one, "pvc.b", "/"), take(other, "pvc.a", "/")} {
			free()
		}

		ctx, cancel := context.WithCancelCause(t.Context())
		gone := errors.New("gone")
		waiting, mine := 0, 0
		for _, ctx := range []context.Context{ctx, t.Context()} {
			go func() {
				done, err := one.Turn(ctx, "pvc.a", "/", func() { waiting++ })
				if err == nil {
					mine++
					done()
				} else if !errors.Is(err, gone) {
					t.Error(err)
				}
			}()
			synctest.Wait()
		}
		cancel(gone)
		synctest.Wait()
		if waiting != 2 || mine != 0 {
			t.Errorf("%d wait, %d have a turn that is another's", waiting, mine)
		}
		done()
		synctest.Wait()
		if mine != 1 || len(m.turns) != 0 {
			t.Errorf("%d had their turn, want the one that still waited; left: %v", mine, m.turns)
		}
	})
}
