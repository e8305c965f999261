// SPDX-License-Identifier: Apache-2.0

// Package access is what the repository enforces: who may do what, and that
// nothing deletes backups by itself. It is written to the repository before any
// client can reach it, and read back.
package access

import (
	"maps"
	"slices"
	"strings"
)

// Host is the reserved host of our own users: no session can be had for it, nor
// for a host below it.
const Host = "kanister-kopia"

// ServerHost is the host of Server alone. Kopia takes over the snapshot sources
// of its own host, so nothing else may carry it, the canary neither.
const ServerHost = "server." + Host

// Our own users, all but Server at Host.
const (
	// Administrator is who the server's own agent works as.
	Administrator = "administrator"
	// Probe sees the canary, and only because of the access rules: a server whose
	// rules failed to load looks normal to everybody else.
	Probe = "probe"
	// Canary owns the snapshot that Probe looks for.
	Canary = "canary"
	// Server is the identity of the serving process. It owns nothing, so Kopia
	// neither schedules snapshots nor runs maintenance in it.
	Server = "server"
	// Maintenance owns maintenance, wherever it runs.
	Maintenance = "maintenance"
)

// RecordType is the manifest type of backup records, which the agent's engine
// writes: the administrator's alone.
const RecordType = "kanister-backup"

// Entry is one rule in Kopia's JSON form. The highest matching access counts;
// there is no deny. OWN_USER and OWN_HOST stand for whoever asks.
type Entry struct {
	User   string            `json:"user"`
	Target map[string]string `json:"target"`
	Access string            `json:"access"`
}

// Rules are all the rules there are. Everybody may add and read contents, and add
// and read snapshots of his own; nobody but the administrator may delete anything;
// nobody at all may change rules, users or policies through the server.
func Rules() []Entry {
	at := func(name string) string { return name + "@" + Host }
	return []Entry{
		{"*@*", map[string]string{"type": "content"}, "APPEND"},
		{"*@*", map[string]string{"type": "snapshot", "username": "OWN_USER", "hostname": "OWN_HOST"}, "APPEND"},
		{at(Administrator), map[string]string{"type": "snapshot"}, "FULL"},
		{at(Administrator), map[string]string{"type": RecordType}, "FULL"},
		{at(Probe), map[string]string{"type": "snapshot", "username": Canary, "hostname": Host}, "READ"},
	}
}

// key is the same for equal rules.
func (e Entry) key() string {
	parts := []string{e.User, e.Access}
	for _, label := range slices.Sorted(maps.Keys(e.Target)) {
		parts = append(parts, label+"="+e.Target[label])
	}
	return strings.Join(parts, "\n")
}

// stored is a rule manifest found in the repository.
type stored struct {
	id     string
	labels map[string]string
	entry  Entry
}

// plan says what to remove and what to add, so that the repository holds each of
// want once and nothing else.
func plan(have []stored, want []Entry) (remove []string, add []Entry) {
	missing := map[string]Entry{}
	for _, e := range want {
		missing[e.key()] = e
	}
	for _, s := range have {
		if _, ok := missing[s.entry.key()]; ok && len(s.labels) == 1 {
			delete(missing, s.entry.key())
			continue
		}
		remove = append(remove, s.id)
	}
	for _, e := range want {
		if _, ok := missing[e.key()]; ok {
			add = append(add, e)
		}
	}
	return remove, add
}
