// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/snapshot"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

// mostSessions bounds what uploads at once: it is what the server's memory is made
// for. More wait.
const mostSessions = 16

// What a server has in memory, in bytes: by itself, and for each operation, to which Kopia's
// library adds a copy of all manifests, more than half as large again in memory.
const (
	baseMemory    = 150 << 20
	sessionMemory = 24 << 20
	// entryMemory is of a manifest beside what it says.
	entryMemory = 400
)

// sessionsIn is how many sessions a limit of memory has room for, with manifests of so many
// bytes: two at least, which is for who set the limit.
func sessionsIn(limit, manifests int64) int {
	each := sessionMemory + manifests*17/10
	return int(min(max((limit-baseMemory)/each, 2), mostSessions))
}

// manifestBytes is what the manifests of backups take: snapshots and records.
func manifestBytes(ctx context.Context, rep repo.Repository) (total int64, err error) {
	for _, kind := range []string{snapshot.ManifestType, recordType} {
		entries, err := rep.FindManifests(ctx, map[string]string{manifest.TypeLabelKey: kind})
		if err != nil {
			return 0, fmt.Errorf("measure manifests: %w", err)
		}
		for _, e := range entries {
			total += int64(e.Length) + entryMemory
		}
	}
	return total, nil
}

// waiterPatience is how long a place in the queue is kept for somebody who does not
// ask again.
const waiterPatience = 15 * time.Second

// waiter has asked for a session and did not get one.
type waiter struct {
	host        string // the namespace
	since, seen time.Time
}

// queue says how many are before a request: -1 if it is its turn now. The lock is
// held. Whoever asks keeps the place; the controller asks again every now and then,
// so a place of a controller that is gone is free soon.
func (s *sessions) queue(req api.SessionRequest, now time.Time) int {
	active := map[string]int{}
	room := s.most
	for _, one := range s.by {
		if one.inUse(now) {
			active[one.Hostname]++
			room--
		}
	}
	for id, w := range s.waiting {
		if now.Sub(w.seen) >= waiterPatience {
			delete(s.waiting, id)
		}
	}
	w := s.waiting[req.ID]
	if w == nil {
		w = &waiter{host: req.Hostname, since: now}
		s.waiting[req.ID] = w
	}
	w.seen = now
	ahead := position(s.waiting, active, req.ID)
	if ahead < room {
		delete(s.waiting, req.ID)
		return -1
	}
	return ahead - max(room, 0)
}

// position is how many waiters are served before one. The next is always of the
// namespace with the fewest operations going on, the one that waits longest there:
// a namespace with a hundred backups does not keep another's one waiting.
func position(waiting map[string]*waiter, active map[string]int, id string) int {
	left, counts := maps.Clone(waiting), maps.Clone(active)
	for n := 0; ; n++ {
		next := ""
		for candidate, w := range left {
			if next == "" || before(w, candidate, left[next], next, counts) {
				next = candidate
			}
		}
		if next == id || next == "" {
			return n
		}
		counts[left[next].host]++
		delete(left, next)
	}
}

func before(a *waiter, aID string, b *waiter, bID string, active map[string]int) bool {
	switch {
	case active[a.host] != active[b.host]:
		return active[a.host] < active[b.host]
	case !a.since.Equal(b.since):
		return a.since.Before(b.since)
	}
	return aID < bID
}
