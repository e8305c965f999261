// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"context"
	"encoding/json"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent"
	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

func codeOf(err error) api.Code {
	var p *api.Problem
	if errors.As(err, &p) {
		return p.Code
	}
	return ""
}

func TestSessionNames(t *testing.T) {
	for name, c := range map[string]struct {
		req  api.SessionRequest
		want api.Code
	}{
		"good":                {api.SessionRequest{ID: "op-1", Username: "pvc.data", Hostname: "ns-1"}, ""},
		"no id":               {api.SessionRequest{Username: "u", Hostname: "h"}, api.CodeBadRequest},
		"odd id":              {api.SessionRequest{ID: "Op 1", Username: "u", Hostname: "h"}, api.CodeBadRequest},
		"long id":             {api.SessionRequest{ID: strings.Repeat("x", 129), Username: "u", Hostname: "h"}, api.CodeBadRequest},
		"no user":             {api.SessionRequest{ID: "op-1", Hostname: "h"}, api.CodeBadRequest},
		"no host":             {api.SessionRequest{ID: "op-1", Username: "u"}, api.CodeBadRequest},
		"upper case":          {api.SessionRequest{ID: "op-1", Username: "U", Hostname: "h"}, api.CodeBadRequest},
		"two users":           {api.SessionRequest{ID: "op-1", Username: "u@h", Hostname: "h"}, api.CodeBadRequest},
		"a line of its own":   {api.SessionRequest{ID: "op-1", Username: "u", Hostname: "h\nv@h"}, api.CodeBadRequest},
		"a password with it":  {api.SessionRequest{ID: "op-1", Username: "u", Hostname: "h:x"}, api.CodeBadRequest},
		"everybody":           {api.SessionRequest{ID: "op-1", Username: "*", Hostname: "*"}, api.CodeBadRequest},
		"the administrator":   {api.SessionRequest{ID: "op-1", Username: adminUser, Hostname: adminHost}, api.CodeBadRequest},
		"the canary":          {api.SessionRequest{ID: "op-1", Username: canaryUser, Hostname: canaryHost}, api.CodeBadRequest},
		"the server":          {api.SessionRequest{ID: "op-1", Username: serverUser, Hostname: serverHost}, api.CodeBadRequest},
		"the maintenance":     {api.SessionRequest{ID: "op-1", Username: "maintenance", Hostname: serverHost}, api.CodeBadRequest},
		"an admin's namesake": {api.SessionRequest{ID: "op-1", Username: adminUser, Hostname: "ns-1"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := newSessions(mostSessions, time.Now).start(c.req)
			if codeOf(err) != c.want || (err == nil) != (c.want == "") {
				t.Errorf("error %v, want code %q", err, c.want)
			}
			if err == nil && len(s.Password) < 40 {
				t.Errorf("password of %d characters", len(s.Password))
			}
		})
	}
}

func TestSessionsOfOneUser(t *testing.T) {
	all := newSessions(mostSessions, time.Now)
	one, err := all.start(api.SessionRequest{ID: "1", Username: "u", Hostname: "h"})
	if err != nil {
		t.Fatal(err)
	}
	two, err := all.start(api.SessionRequest{ID: "2", Username: "u", Hostname: "h"})
	if err != nil {
		t.Fatal(err)
	}
	if again, err := all.start(api.SessionRequest{ID: "1", Username: "u", Hostname: "h"}); err != nil || again != one {
		t.Errorf("the same request again: %v, want the same password", err)
	}
	if _, err := all.start(api.SessionRequest{ID: "1", Username: "v", Hostname: "h"}); codeOf(err) != api.CodeConflict {
		t.Errorf("another user with the same id: %v, want a conflict", err)
	}
	if one.Password == two.Password {
		t.Error("two sessions have one password")
	}

	first, ok := all.authenticate("u", "h", one.Password)
	if !ok || first.ID != "1" {
		t.Fatal("the first password is not known")
	}
	second, ok := all.authenticate("u", "h", two.Password)
	if !ok || second.ID != "2" {
		t.Fatal("the second password is not known")
	}
	for _, c := range [][3]string{{"v", "h", one.Password}, {"u", "i", one.Password}, {"u", "h", ""}, {"u", "h", one.Password + " "}, {"", "", ""}} {
		if _, ok := all.authenticate(c[0], c[1], c[2]); ok {
			t.Errorf("%s@%s is let in with the wrong password", c[0], c[1])
		}
	}

	all.end("1")
	all.end("1") // again is fine
	all.end("unknown")
	if first.ctx.Err() == nil {
		t.Error("the ended session's streams are not cut")
	}
	if second.ctx.Err() != nil {
		t.Error("the other session's streams are cut")
	}
	if _, ok := all.authenticate("u", "h", one.Password); ok {
		t.Error("the ended session's password works")
	}
	if _, ok := all.authenticate("u", "h", two.Password); !ok {
		t.Error("the other session's password does not work")
	}
	if again, err := all.start(api.SessionRequest{ID: "1", Username: "u", Hostname: "h"}); err != nil || again.Password == one.Password {
		t.Errorf("a new session of the same id: %v, want a new password", err)
	}
}

// A session that could not be let in ends, unless another caller was told its password, or
// is about to be.
func TestSessionNotLetIn(t *testing.T) {
	open := newSessions(mostSessions, time.Now)
	arrived, outcome := make(chan struct{}), make(chan error)
	routes := sessionRoutes(open, func(context.Context, *api.Session) error {
		arrived <- struct{}{}
		return <-outcome
	}, nil, &storageWatch{now: time.Now})
	caller := t.Context()
	ask := func() <-chan api.Session {
		answered := make(chan api.Session, 1)
		ctx := caller
		go func() {
			w := httptest.NewRecorder()
			routes["POST /v1/sessions"](w, httptest.NewRequestWithContext(ctx, "POST", "/v1/sessions", strings.NewReader(`{"id":"1","username":"u","hostname":"h"}`)))
			var s api.Session
			if err := json.Unmarshal(w.Body.Bytes(), &s); err != nil {
				t.Error(err)
			}
			answered <- s
		}()
		<-arrived
		return answered
	}
	works := func(s api.Session) bool {
		_, ok := open.authenticate("u", "h", s.Password)
		return ok
	}
	failed := errors.New("Kopia does not answer")

	first, second := ask(), ask()
	outcome <- failed // for either of them
	outcome <- nil
	told := <-first
	if other := <-second; told.Password == "" {
		told = other
	}
	if told.Password == "" || !works(told) {
		t.Error("a session ended with the failure of another caller")
	}
	again := ask()
	outcome <- failed
	<-again
	if !works(told) {
		t.Error("a session in use ended when its caller asked once more")
	}
	open.end("1")
	first, second = ask(), ask()
	outcome <- failed
	outcome <- failed
	<-first
	<-second
	if len(open.by) > 0 {
		t.Error("a session that nobody was told of is there still")
	}
	var leave context.CancelFunc
	caller, leave = context.WithCancel(t.Context())
	answered := ask()
	leave()
	outcome <- nil
	<-answered
	if len(open.by) > 0 {
		t.Error("a session of a caller who has gone is there still")
	}
}

// FuzzSession: whatever is asked for is refused, or is a password of a user of Kopia's
// alphabet that is nobody of the server's own, and works for him alone.
func FuzzSession(f *testing.F) {
	for _, seed := range []string{
		`{"id":"op-1","username":"pvc.data","hostname":"0f3c6f0e-ns"}`, "", "null", "{}", `{"id":"a","username":"u@h","hostname":"h"}`,
		`{"id":"a","username":"` + adminUser + `","hostname":"` + adminHost + `"}`, `{"id":"a","username":"u","hostname":"h\n"}`, `{"id":"A","username":"*","hostname":"*"}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		var req api.SessionRequest
		w := httptest.NewRecorder()
		r := httptest.NewRequestWithContext(t.Context(), "POST", "/v1/sessions", strings.NewReader(body))
		if !agent.ReadJSON(w, r, &req) {
			if w.Code != 400 {
				t.Errorf("%d %s", w.Code, w.Body)
			}
			return
		}
		open := newSessions(mostSessions, time.Now)
		s, err := open.start(req)
		if err != nil {
			if codeOf(err) != api.CodeBadRequest || len(open.by) > 0 {
				t.Errorf("%v, %d sessions", err, len(open.by))
			}
			return
		}
		if strings.Trim(s.Username+s.Hostname, "abcdefghijklmnopqrstuvwxyz0123456789._-") != "" || s.Username == "" || s.Hostname == "" ||
			s.Hostname == adminHost || s.Hostname == serverHost || len(s.Password) < 40 {
			t.Errorf("session %+v", s)
		}
		if got, ok := open.authenticate(req.Username, req.Hostname, s.Password); !ok || got.ID != req.ID {
			t.Error("its password does not work")
		}
		if _, ok := open.authenticate(req.Username+"x", req.Hostname, s.Password); ok {
			t.Error("its password works for another")
		}
	})
}
