// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

// clock is a time that a test moves.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time       { return c.now }
func (c *clock) pass(d time.Duration) { c.now = c.now.Add(d) }
func newClock() *clock                { return &clock{time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)} }
func ask(s *sessions, id, host string) api.Code {
	_, err := s.start(api.SessionRequest{ID: id, Username: "u", Hostname: host})
	return codeOf(err)
}

// A namespace with many backups does not keep another's one waiting.
func TestQueueIsFair(t *testing.T) {
	c := newClock()
	s := newSessions(2, c.Now)
	for i := range 2 {
		if code := ask(s, fmt.Sprintf("a%d", i), "a"); code != "" {
			t.Fatalf("there is room, but: %s", code)
		}
	}
	for i := 2; i < 6; i++ {
		c.pass(time.Second)
		if code := ask(s, fmt.Sprintf("a%d", i), "a"); code != api.CodeBusy {
			t.Fatalf("a third at once: %q", code)
		}
	}
	c.pass(time.Second)
	if code := ask(s, "b0", "b"); code != api.CodeBusy {
		t.Fatalf("no room, but: %q", code)
	}
	if a := s.activity(); a.Sessions != 2 || a.Waiting != 5 || a.Users != 1 {
		t.Errorf("activity %+v", a)
	}
	s.end("a0")
	if code := ask(s, "a2", "a"); code != api.CodeBusy {
		t.Errorf("a is served before b, which has nothing going on: %q", code)
	}
	if code := ask(s, "b0", "b"); code != "" {
		t.Errorf("b does not get the free place: %s", code)
	}
	s.end("a1")
	if code := ask(s, "a3", "a"); code != api.CodeBusy {
		t.Errorf("a3 is served before a2, which waits longer: %q", code)
	}
	// Who does not ask again loses the place.
	c.pass(waiterPatience)
	if code := ask(s, "a5", "a"); code != "" {
		t.Errorf("the only one that still asks waits: %s", code)
	}
}

// A namespace with one backup does not wait for all those of as many others as there are places.
func TestQueueIsFairAmongMany(t *testing.T) {
	c := newClock()
	s := newSessions(2, c.Now)
	for i := range 3 {
		for _, host := range []string{"a", "b"} {
			ask(s, fmt.Sprintf("%s%d", host, i), host)
		}
	}
	c.pass(time.Second)
	if code := ask(s, "c0", "c"); code != api.CodeBusy {
		t.Fatalf("no room, but: %q", code)
	}
	s.end("a0")
	if code := ask(s, "a1", "a"); code != api.CodeBusy {
		t.Errorf("a, which has had a turn, is served before c, which has had none: %q", code)
	}
	if code := ask(s, "c0", "c"); code != "" {
		t.Errorf("c does not get the free place: %s", code)
	}
}

// What nobody ends does not hold its place, or the server, for ever; what streams
// does, for as long as it does.
func TestSessionsThatNobodyEnds(t *testing.T) {
	c := newClock()
	s := newSessions(2, c.Now)
	ask(s, "streams", "a")
	ask(s, "lost", "a")
	one := s.by["streams"]
	lost := s.by["lost"]
	done, _ := s.stream(one)
	c.pass(abandonedAfter)
	if a := s.activity(); a.Sessions != 1 || a.Streams != 1 || !a.LastUsed.Equal(c.now) {
		t.Errorf("activity %+v, want the one that streams", a)
	}
	if code := ask(s, "next", "b"); code != "" {
		t.Errorf("a session that nobody ends keeps a place: %s", code)
	}
	s.end("next")
	if _, ok := s.authenticate("u", "a", lost.Password); !ok {
		t.Error("an operation that waits in its agent's queue lost its password")
	}
	c.pass(5 * time.Hour)
	if a := s.drain(time.Minute); a.Draining {
		t.Fatal("drains under a stream of five hours")
	}
	done()
	if a := s.drain(time.Minute); a.Draining {
		t.Error("drains at once after a stream has ended: its client may come back")
	}
	c.pass(forgottenAfter)
	if _, ok := s.authenticate("u", "a", lost.Password); ok || lost.ctx.Err() == nil {
		t.Error("a password that nobody used for a day still works")
	}
	// Whoever keeps a stream open keeps the server, but not for ever.
	ask(s, "kept", "a")
	kept := s.by["kept"]
	done, _ = s.stream(kept)
	defer done()
	c.pass(longestOperation / 2)
	ask(s, "kept", "a")
	c.pass(longestOperation)
	if s.activity().Sessions != 1 || kept.ctx.Err() != nil {
		t.Error("an operation that its controller has asked for again is cut")
	}
	c.pass(time.Second)
	if s.activity().Streams != 0 || kept.ctx.Err() == nil {
		t.Error("a stream that nobody has asked for in a week keeps the server")
	}
}

func TestDrain(t *testing.T) {
	c := newClock()
	s := newSessions(2, c.Now)
	if a := s.drain(time.Minute); a.Draining {
		t.Error("drains as soon as it has started")
	}
	ask(s, "1", "a")
	c.pass(2 * time.Minute)
	if a := s.drain(time.Minute); a.Draining || a.Sessions != 1 {
		t.Errorf("drains while an operation goes on: %+v", a)
	}
	s.end("1")
	c.pass(59 * time.Second)
	if a := s.drain(time.Minute); a.Draining {
		t.Error("drains before its time")
	}
	c.pass(time.Second)
	if a := s.drain(time.Minute); !a.Draining {
		t.Errorf("does not drain: %+v", a)
	}
	if code := ask(s, "2", "a"); code != api.CodeDraining {
		t.Errorf("an operation is let in by a server that is about to stop: %q", code)
	}
	if err := s.touch(); codeOf(err) != api.CodeDraining {
		t.Errorf("an operation of its own agent is let in: %v", err)
	}
	if a := s.drain(time.Hour); !a.Draining {
		t.Error("a server that drains serves again")
	}
}

// A server with little memory, or with the manifests of many backups, lets fewer in at once.
func TestSessionsIn(t *testing.T) {
	const mib = 1 << 20
	for name, c := range map[string]struct {
		limit, manifests int64
		want             int
	}{
		"usual":               {614 * mib, 0, mostSessions},
		"some":                {614 * mib, 2 * mib, mostSessions},
		"ten thousand":        {614 * mib, 20 * mib, 8},
		"the same, more room": {1200 * mib, 20 * mib, mostSessions},
		"little room":         {200 * mib, 0, 2},
		"none":                {10 * mib, 0, 2},
		"no limit":            {math.MaxInt64, 100 * mib, mostSessions},
	} {
		if got := sessionsIn(c.limit, c.manifests); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}
