// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"maps"
	"slices"

	agentclient "github.com/kanister-kopia/kanister-kopia/agent/client"
)

// A server may be out of reach when an operation ends. The Manager owes it the end of the
// session then, and pays with its next look: the password works no longer than that. What
// it owes is in memory: the server's own bounds remain for what a controller that was
// killed has owed.

// owe notes a session that is to end, and of which nobody knows that it has.
func (m *Manager) owe(id, session string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.owed == nil {
		m.owed = map[string]map[string]struct{}{}
	}
	if m.owed[id] == nil {
		m.owed[id] = map[string]struct{}{}
	}
	m.owed[id][session] = struct{}{}
}

// settle notes that a session has ended, or is wanted again.
func (m *Manager) settle(id, session string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if delete(m.owed[id], session); len(m.owed[id]) == 0 {
		delete(m.owed, id)
	}
}

// settleAll notes that a server has stopped, and its sessions with it.
func (m *Manager) settleAll(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.owed, id)
}

func (m *Manager) owes(id string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Keys(m.owed[id]))
}

// pay ends what is owed at a server; a session that it does not know has ended. The lock
// deciding is held, so that nobody asks for one of them meanwhile.
func (m *Manager) pay(ctx context.Context, id string, agent *agentclient.Client) error {
	for _, session := range m.owes(id) {
		if err := agent.EndSession(ctx, session); err != nil {
			return wrap("end session "+session, err)
		}
		m.settle(id, session)
	}
	return nil
}

// reclaim keeps a session from being ended that is asked for again, and says whether it may
// be there still.
func (r *Repository) reclaim(session string) bool {
	if !slices.Contains(r.manager.owes(r.id), session) {
		return false
	}
	r.use.deciding.Lock() // a look may be ending it
	defer r.use.deciding.Unlock()
	r.manager.settle(r.id, session)
	return true
}
