// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	agentclient "github.com/kanister-kopia/kanister-kopia/agent/client"
	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
)

// openAt is a repository that is open, and whose server's agent answers as a handler does.
func openAt(t *testing.T, agents http.Handler) *Repository {
	t.Helper()
	rs := &kopiav1alpha1.RepositoryServer{ObjectMeta: metav1.ObjectMeta{Namespace: "control", Name: "id"}}
	rs.Status.Phase, rs.Status.Revision = kopiav1alpha1.PhaseReady, "r"
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "control", Name: "id-1", Labels: labels(rs), Annotations: map[string]string{revisionAnnotation: "r"}}}
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	m := &Manager{
		Client: clusterOf(t, rs, pod), Namespace: "control", Agents: startAgent(t, agents), Clock: clocktesting.NewFakePassiveClock(noon),
		CA: func() ([]byte, error) { return nil, nil },
	}
	return &Repository{manager: m, id: "id", rs: rs, use: m.hold("id", 1)}
}

// sessionServer is a repository server that keeps sessions, and does worse if it is told to.
type sessionServer struct {
	mu    sync.Mutex // protects the following
	known map[string]bool
	deaf  bool // it ends none
	// begun, if there is one, is told of a session whose answer never comes.
	begun chan struct{}
}

func (s *sessionServer) handler() http.Handler {
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, what any) { _ = json.NewEncoder(w).Encode(what) }
	mux.HandleFunc("POST /v1/sessions", func(w http.ResponseWriter, r *http.Request) {
		var req api.SessionRequest
		_ = json.NewDecoder(r.Body).Decode(&req)
		s.mu.Lock()
		s.known[req.ID] = true
		begun := s.begun
		s.mu.Unlock()
		if begun != nil {
			begun <- struct{}{}
			<-r.Context().Done()
			return
		}
		answer(w, api.Session{ID: req.ID, Password: "p"})
	})
	mux.HandleFunc("DELETE /v1/sessions/{id}", func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.deaf {
			panic(http.ErrAbortHandler)
		}
		delete(s.known, r.PathValue("id"))
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("GET /v1/activity", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, api.Activity{Sessions: len(s.sessions())})
	})
	return mux
}

func (s *sessionServer) sessions() (ids []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.known {
		ids = append(ids, id)
	}
	return ids
}

func (s *sessionServer) set(deaf bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deaf = deaf
}

// A session that the server could not be told to end ends with the next look, unless its
// operation has asked for it again.
func TestSessionsAreOwed(t *testing.T) {
	ctx := t.Context()
	s := &sessionServer{known: map[string]bool{}}
	repo := openAt(t, s.handler())
	begin := func(id string) {
		t.Helper()
		if _, err := repo.Session(ctx, id, "u", "h", "/"); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []string{"one", "again", "other"} {
		begin(id)
	}
	s.set(true)
	for _, id := range []string{"one", "again"} {
		if err := repo.EndSession(ctx, id); err == nil {
			t.Fatal("no session was to end: nothing is tested")
		}
	}
	if _, _, err := repo.manager.look(ctx, repo.rs, 0, nil); err == nil || len(s.sessions()) != 3 {
		t.Errorf("the server ends none: %v, %v are left", err, s.sessions())
	}
	s.set(false)
	begin("again")
	a, _, err := repo.manager.look(ctx, repo.rs, 0, nil)
	if left := s.sessions(); err != nil || a.Sessions != 2 || slices.Contains(left, "one") {
		t.Errorf("after a look %v are left, %d of them known to it, %v", left, a.Sessions, err)
	}
	if err := repo.EndSession(ctx, "again"); err != nil {
		t.Error(err)
	}
	if len(repo.manager.owed) != 0 {
		t.Errorf("owed still: %v", repo.manager.owed)
	}

	// A server that stops takes them along.
	s.set(true)
	if err := repo.EndSession(ctx, "other"); err == nil || len(repo.manager.owed) != 1 {
		t.Errorf("the server ends none: %v, owed %v", err, repo.manager.owed)
	}
	if err := repo.manager.stop(ctx, repo.rs); err != nil || len(repo.manager.owed) != 0 {
		t.Errorf("it was stopped: %v, owed still: %v", err, repo.manager.owed)
	}
}

// Who is cancelled while the answer is on its way leaves no session, unless the next
// controller asks for the same one.
func TestSessionOfWhoIsGone(t *testing.T) {
	for _, c := range []struct {
		cause error
		want  int
	}{{errors.New("cancelled"), 0}, {agentclient.ErrDetached, 1}} {
		s := &sessionServer{known: map[string]bool{}, begun: make(chan struct{}, 1)}
		repo := openAt(t, s.handler())
		ctx, cancel := context.WithCancelCause(t.Context())
		ended := make(chan error, 1)
		go func() {
			_, err := repo.Session(ctx, "one", "u", "h", "/")
			ended <- err
		}()
		<-s.begun
		cancel(c.cause)
		if err := <-ended; err == nil {
			t.Errorf("%v: no error", c.cause)
		}
		if left := s.sessions(); len(left) != c.want {
			t.Errorf("%v: sessions %v are left, want %d", c.cause, left, c.want)
		}
	}
}
