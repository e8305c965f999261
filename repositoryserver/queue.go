// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
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
	ahead := s.ahead(req.ID, active)
	if ahead < room {
		delete(s.waiting, req.ID)
		s.turns.Took(req.Hostname)
		return -1
	}
	return ahead - max(room, 0)
}

// ahead is how many waiters are served before one. A namespace with a hundred backups does
// not keep another's one waiting. The lock is held.
func (s *sessions) ahead(id string, active map[string]int) int {
	ids := slices.SortedFunc(maps.Keys(s.waiting), func(a, b string) int {
		return cmp.Or(s.waiting[a].since.Compare(s.waiting[b].since), cmp.Compare(a, b))
	})
	hosts := make([]string, len(ids))
	for i, other := range ids {
		hosts[i] = s.waiting[other].host
	}
	return s.turns.Ahead(hosts, active, slices.Index(ids, id))
}
