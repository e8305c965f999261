// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"regexp"
	"sync"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

// sessions are the passwords in force: one an operation, random, in memory only.
// A password stops working when its session ends, and what it opened is cut.
type sessions struct {
	mu sync.Mutex // protects the following
	by map[string]*session
}

type session struct {
	api.Session
	hash   [sha256.Size]byte
	ctx    context.Context // ends with the session
	cancel context.CancelFunc
}

func newSessions() *sessions { return &sessions{by: map[string]*session{}} }

var (
	// kopiaName is Kopia's alphabet for the parts of a user's name.
	kopiaName = regexp.MustCompile(`^[a-z0-9._-]{1,253}$`)
	sessionID = regexp.MustCompile(`^[a-z0-9-]{1,128}$`)
)

// start mints a password; the same request again gets the same one.
func (s *sessions) start(req api.SessionRequest) (api.Session, error) {
	bad := func(format string, args ...any) (api.Session, error) {
		return api.Session{}, &api.Problem{Status: 400, Code: api.CodeBadRequest, Title: "start session: " + fmt.Sprintf(format, args...)}
	}
	switch {
	case !sessionID.MatchString(req.ID):
		return bad("id %q is not 1 to 128 of [a-z0-9-]", req.ID)
	case !kopiaName.MatchString(req.Username) || !kopiaName.MatchString(req.Hostname):
		return bad("user %q@%q is not of [a-z0-9._-]", req.Username, req.Hostname)
	case req.Hostname == systemHost || req.Hostname == serverHost:
		return bad("users @%s are the server's own", req.Hostname)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, ok := s.by[req.ID]; ok {
		if old.Username != req.Username || old.Hostname != req.Hostname {
			return api.Session{}, &api.Problem{Status: 409, Code: api.CodeConflict, Title: fmt.Sprintf("start session: %s is another user's", req.ID)}
		}
		return old.Session, nil
	}
	return s.add(req).Session, nil
}

// add makes a session. The lock is held.
func (s *sessions) add(req api.SessionRequest) *session {
	n := &session{Session: api.Session{ID: req.ID, Username: req.Username, Hostname: req.Hostname, Password: rand.Text() + rand.Text()}}
	n.hash = sha256.Sum256([]byte(n.Password))
	n.ctx, n.cancel = context.WithCancel(context.Background())
	s.by[req.ID] = n
	return n
}

// end ends a session and cuts its streams; one that is not known has ended.
func (s *sessions) end(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, ok := s.by[id]; ok {
		old.cancel()
		delete(s.by, id)
	}
}

// authenticate finds the session of a user and password. All of a user's sessions
// are compared, each in constant time.
func (s *sessions) authenticate(user, host, password string) (*session, bool) {
	sum := sha256.Sum256([]byte(password))
	s.mu.Lock()
	defer s.mu.Unlock()
	var found *session
	for _, one := range s.by {
		if one.Username == user && one.Hostname == host && subtle.ConstantTimeCompare(one.hash[:], sum[:]) == 1 {
			found = one
		}
	}
	return found, found != nil
}
