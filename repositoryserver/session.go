// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"maps"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/contents"
	"github.com/kanister-kopia/kanister-kopia/internal/fair"
)

// sessions are the passwords in force: one an operation, random, in memory only.
// A password stops working when its session ends, and what it opened is cut.
//
// They are also what says whether the server is needed. A session that nobody ends
// (its controller was killed, its ActionSet deleted) must not keep the server up
// for ever: it counts while a stream of it is open, and a while after it was last
// asked for or used.
type sessions struct {
	now func() time.Time
	// most sessions in use at once; others wait their turn.
	most int

	mu       sync.Mutex // protects the following
	by       map[string]*session
	waiting  map[string]*waiter
	turns    fair.Turns // of namespaces
	draining bool
	used     time.Time // the last time that anything was in use, but for what is now
	denied   int64     // streams refused for their password
}

type session struct {
	api.Session
	hash [sha256.Size]byte
	// readOnly sessions read contents by their ids, through contents.go, and nothing else.
	readOnly bool
	ctx      context.Context // ends with the session
	cancel   context.CancelFunc
	// sourcePath is of the one source that it may save manifests of; "": of any.
	sourcePath string
	unread     *contents.Unread
	untaken    atomic.Int64 // bytes of Kopia's answers
	unanswered *semaphore.Weighted
	manifests  atomic.Int64           // that it saved
	saved      atomic.Int64           // bytes of them
	talks      *semaphore.Weighted    // streams of Kopia's
	writer     atomic.Pointer[stream] // the stream of contents that writes
	flushes    *rate.Limiter
	streams    int
	callers    int       // who asked for it, but for those who gave it up
	asked      time.Time // by its controller, the last time
	touched    time.Time // asked for, or a stream of it ended
}

const (
	// abandonedAfter is how long a session without a stream counts as in use: its
	// operation may wait in an agent's queue. The controller that opened it does not
	// depend on it: it knows what it has open.
	abandonedAfter = 15 * time.Minute
	// forgottenAfter is how long its password works when nobody uses it.
	forgottenAfter = 24 * time.Hour
	// longestOperation is how long it works at most. No controller may come back to end it,
	// and who keeps a stream open would keep the server up for ever.
	longestOperation = 7 * 24 * time.Hour
	// mostFlushes come at once, and then one each flushPause. An operation flushes every few
	// minutes. Each is an index blob, which makes a repository slow until hours later, and has
	// Kopia read the repository's index again while everybody waits.
	mostFlushes = 60
	flushPause  = 15 * time.Second
)

func newSessions(most int, now func() time.Time) *sessions {
	return &sessions{now: now, most: most, by: map[string]*session{}, waiting: map[string]*waiter{}, used: now()}
}

// fit changes how many may be in use at once.
func (s *sessions) fit(most int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.most = most
}

var (
	// kopiaName is Kopia's alphabet for the parts of a user's name.
	kopiaName = regexp.MustCompile(`^[a-z0-9._-]{1,253}$`)
	sessionID = regexp.MustCompile(`^[a-z0-9-]{1,128}$`)
)

// start mints a password; the same request again gets the same one, for what it was first
// asked for.
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
	if s.draining {
		return api.Session{}, errDraining()
	}
	now := s.now()
	s.forget(now)
	if old, ok := s.by[req.ID]; ok {
		if old.Username != req.Username || old.Hostname != req.Hostname {
			return api.Session{}, &api.Problem{Status: 409, Code: api.CodeConflict, Title: fmt.Sprintf("start session: %s is another user's", req.ID)}
		}
		old.asked, old.touched = now, now
		old.callers++
		return old.Session, nil
	}
	if ahead := s.queue(req, now); ahead >= 0 {
		return api.Session{}, &api.Problem{
			Status: 503, Code: api.CodeBusy,
			Title: fmt.Sprintf("start session: %d operations are going on and %d are before this one: ask again within %s", s.most, ahead, waiterPatience),
		}
	}
	return s.add(req, now).Session, nil
}

// errDraining tells the controller that this server is about to be stopped, and
// that it has to start another.
func errDraining() *api.Problem {
	return &api.Problem{Status: 503, Code: api.CodeDraining, Title: "the repository server is being stopped because nobody used it: ask the next one"}
}

// add makes a session. The lock is held.
func (s *sessions) add(req api.SessionRequest, now time.Time) *session {
	n := &session{
		Session:  api.Session{ID: req.ID, Username: req.Username, Hostname: req.Hostname, Password: rand.Text() + rand.Text()},
		readOnly: req.ReadOnly, sourcePath: req.SourcePath, callers: 1, asked: now, touched: now,
		unread: contents.NewUnread(), unanswered: semaphore.NewWeighted(mostUnanswered), talks: semaphore.NewWeighted(mostTalks),
		flushes: rate.NewLimiter(rate.Every(flushPause), mostFlushes),
	}
	n.hash = sha256.Sum256([]byte(n.Password))
	n.ctx, n.cancel = context.WithCancel(context.Background())
	s.by[req.ID] = n
	return n
}

// end ends a session and cuts its streams; one that is not known has ended.
func (s *sessions) end(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(id)
	delete(s.waiting, id)
}

// giveUp takes start back for a caller who is not told the password. The session ends if
// nobody else has asked for it: who asks beside him may be let in, or has been.
func (s *sessions) giveUp(given api.Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	one, ok := s.by[given.ID]
	if !ok || one.Password != given.Password {
		return // it has ended
	}
	if one.callers--; one.callers == 0 {
		s.remove(given.ID)
	}
}

// remove ends a session. The lock is held.
func (s *sessions) remove(id string) {
	if old, ok := s.by[id]; ok {
		old.cancel()
		delete(s.by, id)
		s.used = s.now()
	}
}

// forget ends what nobody has used for a day, and what lasts too long. The lock is held.
func (s *sessions) forget(now time.Time) {
	for id, one := range s.by {
		if one.streams == 0 && now.Sub(one.touched) > forgottenAfter || now.Sub(one.asked) > longestOperation {
			s.remove(id)
		}
	}
}

func (one *session) inUse(now time.Time) bool {
	return one.streams > 0 || now.Sub(one.touched) < abandonedAfter
}

// stream counts a stream of a session until done is called, unless the session has too many.
func (s *sessions) stream(one *session) (done func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if one.streams >= maxSessionStreams {
		return nil, false
	}
	one.streams++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		one.streams--
		one.touched = s.now()
		s.used = one.touched
	}, true
}

// touch says that something else than a session is in use now. It fails if the
// server is to be stopped.
func (s *sessions) touch() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining {
		return errDraining()
	}
	s.used = s.now()
	return nil
}

// activity says what is in use.
func (s *sessions) activity() api.Activity {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.look(s.now())
}

// look is activity. The lock is held.
func (s *sessions) look(now time.Time) api.Activity {
	s.forget(now)
	a := api.Activity{Draining: s.draining, LastUsed: s.used}
	users := map[string]bool{}
	for _, one := range s.by {
		a.Streams += one.streams
		if !one.inUse(now) {
			continue
		}
		a.Sessions++
		users[one.Username+"@"+one.Hostname] = true
		a.LastUsed = now
	}
	a.Users = len(users)
	for _, w := range s.waiting {
		if now.Sub(w.seen) < waiterPatience {
			a.Waiting++
			a.LastUsed = now
		}
	}
	return a
}

// drain refuses whatever comes from now on if nothing has been in use for so long.
// It is one decision under one lock: what was let in before is seen, and nothing is
// let in after. A server that drains never serves again.
func (s *sessions) drain(idle time.Duration) api.Activity {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	a := s.look(now)
	if a.Sessions == 0 && a.Streams == 0 && a.Waiting == 0 && now.Sub(a.LastUsed) >= idle {
		s.draining, a.Draining = true, true
		for id := range maps.Clone(s.by) {
			s.remove(id)
		}
	}
	return a
}

// authenticate finds the session of a user and password. All of a user's sessions
// are compared, each in constant time.
func (s *sessions) authenticate(user, host, password string) (*session, bool) {
	sum := sha256.Sum256([]byte(password))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(s.now())
	var found *session
	for _, one := range s.by {
		if one.Username == user && one.Hostname == host && subtle.ConstantTimeCompare(one.hash[:], sum[:]) == 1 {
			found = one
		}
	}
	if found == nil {
		s.denied++
	}
	return found, found != nil
}
