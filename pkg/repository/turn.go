// SPDX-License-Identifier: Apache-2.0

package repository

import "context"

// turn is whose a source is: a token for one, and how many hold or want it.
type turn struct {
	free    chan struct{}
	holders int
}

// Turn waits until nobody else takes a snapshot of a source, through whatever agent: two
// pods may share a claim, and of two snapshots at once neither builds on the other. It
// calls waiting if it has to wait. Call done when the snapshot has ended.
//
// Only the controller that leads asks for snapshots, so its memory is enough. A new one
// gives the first turn to the first phase that it picks up.
func (r *Repository) Turn(ctx context.Context, username, sourcePath string, waiting func()) (done func(), err error) {
	m, key := r.manager, r.id+"\x00"+username+"\x00"+sourcePath
	m.mu.Lock()
	t := m.turns[key]
	if t == nil {
		t = &turn{free: make(chan struct{}, 1)}
		t.free <- struct{}{}
		if m.turns == nil {
			m.turns = map[string]*turn{}
		}
		m.turns[key] = t
	}
	t.holders++
	m.mu.Unlock()
	leave := func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if t.holders--; t.holders == 0 {
			delete(m.turns, key)
		}
	}
	select {
	case <-t.free:
	default:
		waiting()
		select {
		case <-t.free:
		case <-ctx.Done():
			leave()
			return nil, context.Cause(ctx)
		}
	}
	return func() {
		t.free <- struct{}{}
		leave()
	}, nil
}
