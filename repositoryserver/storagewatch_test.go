// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// One hiccup changes nothing; an outage refuses new work with the storage's words,
// and the next success ends it.
func TestStorageWatch(t *testing.T) {
	c := newClock()
	outage := errors.New("connection refused")
	storage := outage
	w := newStorageWatch(c.Now)
	w.look = func(context.Context) error { return storage }
	if w.saw(outage); w.refuse(t.Context()) != nil {
		t.Error("one failure is an outage")
	}
	pause := time.Duration(0)
	for range 8 {
		next := w.saw(outage)
		if next < pause || next > watchPeriod {
			t.Errorf("looks again after %s, before that after %s", next, pause)
		}
		pause = next
	}
	if err := w.refuse(t.Context()); codeOf(err) != api.CodeStorage || !strings.Contains(err.Error(), "connection refused") || !strings.Contains(err.Error(), "2026-11-24T12:00:00Z") {
		t.Errorf("refused with %v", err)
	}
	for kind, want := range map[api.Kind]api.Code{api.KindFind: api.CodeStorage, api.KindDelete: api.CodeStorage, api.KindRecord: ""} {
		if got := codeOf(w.admit(kind)); got != want {
			t.Errorf("%s in an outage: %q, want %q", kind, got, want)
		}
	}
	testenv.Eventually(t, 20*time.Second, "the storage is looked at for who is refused", func() bool { return !w.looking.Load() })
	storage = nil
	if err := w.refuse(t.Context()); err != nil || w.problem() != "" {
		t.Errorf("the storage answers again, and the next operation is refused: %v", err)
	}
	if err := w.admit(api.KindFind); err != nil {
		t.Errorf("the storage answers again, and its own agent's operation is refused: %v", err)
	}
}

// A caller that goes away in an outage is no word of the storage's, and no failure.
func TestStorageWatchIsLeft(t *testing.T) {
	w := newStorageWatch(newClock().Now)
	w.look = func(ctx context.Context) error {
		<-ctx.Done()
		return fmt.Errorf("get blob: %w", ctx.Err())
	}
	var before time.Duration
	for range watchTolerance {
		before = w.saw(errors.New("connection refused"))
	}
	ctx, leave := context.WithCancel(t.Context())
	leave()
	if err := w.refuse(ctx); codeOf(err) != api.CodeStorage {
		t.Errorf("refused with %v", err)
	}
	if p := w.problem(); !strings.HasSuffix(p, ": connection refused") {
		t.Errorf("the outage is told as %q", p)
	}
	if after := w.saw(errors.New("connection refused")); after != 2*before {
		t.Errorf("the next look is after %s, and was after %s: a caller that left is counted", after, before)
	}
}
