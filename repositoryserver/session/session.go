// SPDX-License-Identifier: Apache-2.0

// Package session holds who may use the repository server just now: passwords
// minted per operation, in memory only, in force until they are ended.
package session

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

// Max sessions at once; each needs a few hundred bytes. More than this is a
// caller that forgets to end them.
const Max = 4096

// ErrEnded is the cause of a session's context after End.
var ErrEnded = errors.New("the session has ended")

// Table holds the sessions. Its methods may be called from many goroutines.
type Table struct {
	reservedHost string

	mu     sync.RWMutex // protects the following
	byID   map[string]*Session
	byUser map[user]map[string]*Session // by id
	closed bool
}

type user struct{ name, host string }

// Session is one password in force.
type Session struct {
	ID, Username, Hostname string

	password string
	digest   [sha256.Size]byte
	ctx      context.Context
	end      context.CancelCauseFunc
}

// Context is cancelled with ErrEnded when the session ends.
func (s *Session) Context() context.Context { return s.ctx }

// NewTable makes an empty table. Mint refuses reservedHost and hosts below it.
func NewTable(reservedHost string) *Table {
	return &Table{reservedHost: reservedHost, byID: map[string]*Session{}, byUser: map[user]map[string]*Session{}}
}

var (
	validID = regexp.MustCompile(`^[a-z0-9-]{1,128}$`)
	// Kopia's own rule for user@host, in two halves.
	validName = regexp.MustCompile(`^[a-z0-9\-_.]{1,253}$`)
)

// Validate tells whether a session may be minted for these names.
func (t *Table) Validate(r api.SessionRequest) error {
	bad := func(format string, args ...any) error {
		return &api.Problem{Status: http.StatusBadRequest, Code: api.CodeBadRequest, Title: "start session: " + fmt.Sprintf(format, args...)}
	}
	switch {
	case !validID.MatchString(r.ID):
		return bad("id must be 1 to 128 of [a-z0-9-]")
	case !validName.MatchString(r.Username):
		return bad("username must be 1 to 253 of [a-z0-9._-]")
	case !validName.MatchString(r.Hostname):
		return bad("hostname must be 1 to 253 of [a-z0-9._-]")
	case r.Hostname == t.reservedHost || strings.HasSuffix(r.Hostname, "."+t.reservedHost):
		return bad("hostname %q is reserved", r.Hostname)
	}
	return nil
}

// Mint makes a session with a password of 256 random bits. The same request
// again is the same session; the same id for another user is a conflict.
func (t *Table) Mint(r api.SessionRequest) (api.Session, error) {
	if err := t.Validate(r); err != nil {
		return api.Session{}, err
	}
	return t.mint(r)
}

// MintReserved is Mint for a user of the reserved host: the server's own.
func (t *Table) MintReserved(id, username string) (api.Session, error) {
	return t.mint(api.SessionRequest{ID: id, Username: username, Hostname: t.reservedHost})
}

func (t *Table) mint(r api.SessionRequest) (api.Session, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s, ok := t.byID[r.ID]; ok {
		if s.Username != r.Username || s.Hostname != r.Hostname {
			return api.Session{}, &api.Problem{
				Status: http.StatusConflict, Code: api.CodeConflict,
				Title: fmt.Sprintf("start session: %s is the session of another user", r.ID),
			}
		}
		return s.api(), nil
	}
	if t.closed || len(t.byID) >= Max {
		return api.Session{}, &api.Problem{
			Status: http.StatusServiceUnavailable, Code: api.CodeBusy,
			Title: "start session: the repository server takes no more sessions", Hint: "try again later",
		}
	}
	secret := make([]byte, 32)
	rand.Read(secret) // never fails
	s := &Session{ID: r.ID, Username: r.Username, Hostname: r.Hostname, password: base64.RawURLEncoding.EncodeToString(secret)}
	s.digest = sha256.Sum256([]byte(s.password))
	s.ctx, s.end = context.WithCancelCause(context.Background())
	t.byID[s.ID] = s
	key := user{s.Username, s.Hostname}
	if t.byUser[key] == nil {
		t.byUser[key] = map[string]*Session{}
	}
	t.byUser[key][s.ID] = s
	return s.api(), nil
}

func (s *Session) api() api.Session {
	return api.Session{ID: s.ID, Username: s.Username, Hostname: s.Hostname, Password: s.password}
}

// End ends a session: its password stops working before End returns, and whoever
// waits for its context is told. An unknown id is fine.
func (t *Table) End(id string) {
	t.mu.Lock()
	s, ok := t.byID[id]
	if ok {
		t.remove(s)
	}
	t.mu.Unlock()
	if ok {
		s.end(ErrEnded)
	}
}

func (t *Table) remove(s *Session) {
	key := user{s.Username, s.Hostname}
	delete(t.byID, s.ID)
	delete(t.byUser[key], s.ID)
	if len(t.byUser[key]) == 0 {
		delete(t.byUser, key)
	}
}

// Close ends all sessions and refuses new ones.
func (t *Table) Close() {
	t.mu.Lock()
	t.closed = true
	all := t.byID
	t.byID, t.byUser = map[string]*Session{}, map[user]map[string]*Session{}
	t.mu.Unlock()
	for _, s := range all {
		s.end(ErrEnded)
	}
}

// Count is the number of sessions that Mint made and nobody has ended.
func (t *Table) Count() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	n := 0
	for _, s := range t.byID {
		if s.Hostname != t.reservedHost {
			n++
		}
	}
	return n
}

// Authenticate returns the session whose password this is. It compares digests,
// in constant time, with each session of the user; how long it takes tells at
// most how many sessions the user has.
func (t *Table) Authenticate(username, hostname, password string) (*Session, bool) {
	digest := sha256.Sum256([]byte(password))
	t.mu.RLock()
	defer t.mu.RUnlock()
	var found *Session
	for _, s := range t.byUser[user{username, hostname}] {
		if subtle.ConstantTimeCompare(s.digest[:], digest[:]) == 1 {
			found = s
		}
	}
	return found, found != nil
}
