// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/object"
)

// session is a write session that sees what goes on beside each of its calls.
type session struct {
	repo.RepositoryWriter
	t       *testing.T
	of      *calmWriter
	calls   []string
	failure error
}

// writes is each call that writes contents: no flush may begin meanwhile.
func (s *session) writes(what string) {
	s.t.Helper()
	s.calls = append(s.calls, what)
	if s.of.writing.TryLock() {
		s.of.writing.Unlock()
		s.t.Errorf("a flush may begin during %s", what)
	}
}

func (s *session) NewObjectWriter(_ context.Context, o object.WriterOptions) object.Writer {
	if o.AsyncWrites != 0 {
		s.t.Errorf("%d writes behind the calls, want none", o.AsyncWrites)
	}
	return sessionObject{s: s}
}

func (s *session) ConcatenateObjects(context.Context, []object.ID, repo.ConcatenateOptions) (object.ID, error) {
	s.writes("concatenate")
	return object.EmptyID, nil
}

func (s *session) Flush(context.Context) error {
	s.calls = append(s.calls, "flush")
	if s.of.writing.TryRLock() {
		s.of.writing.RUnlock()
		s.t.Error("what writes may begin during a flush")
	}
	return s.failure
}

type sessionObject struct {
	object.Writer
	s *session
}

func (o sessionObject) Write(p []byte) (int, error) {
	o.s.writes("write")
	return len(p), nil
}

func (o sessionObject) Checkpoint() (object.ID, error) {
	o.s.writes("checkpoint")
	return object.EmptyID, nil
}

func (o sessionObject) Result() (object.ID, error) {
	o.s.writes("result")
	return object.EmptyID, o.s.failure
}

// Nothing is written while a flush goes on, nor the other way round, nor behind the calls.
func TestCalmWriter(t *testing.T) {
	s := &session{t: t, failure: errors.New("the session's word")}
	w := &calmWriter{RepositoryWriter: s}
	s.of = w
	o := w.NewObjectWriter(t.Context(), object.WriterOptions{AsyncWrites: 4})
	if n, err := o.Write([]byte("four")); n != 4 || err != nil {
		t.Errorf("%d bytes written, %v, want 4", n, err)
	}
	_, err := o.Checkpoint()
	must(t, err)
	if _, err := o.Result(); !errors.Is(err, s.failure) {
		t.Errorf("the result is %v, want %v", err, s.failure)
	}
	_, err = w.ConcatenateObjects(t.Context(), nil, repo.ConcatenateOptions{})
	must(t, err)
	if err := w.Flush(t.Context()); !errors.Is(err, s.failure) {
		t.Errorf("the flush says %v, want %v", err, s.failure)
	}
	if got, want := fmt.Sprint(s.calls), "[write checkpoint result concatenate flush]"; got != want {
		t.Errorf("calls %s, want %s", got, want)
	}
}

// Writers and flushes that come together, as a checkpoint's does, are apart and all end.
func TestCalmWriterTogether(t *testing.T) {
	counted := &counting{t: t}
	w := &calmWriter{RepositoryWriter: counted}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 200 {
				o := w.NewObjectWriter(t.Context(), object.WriterOptions{})
				_, _ = o.Write(nil)
				_, _ = o.Checkpoint()
				_, _ = o.Result()
				_ = o.Close()
				_, _ = w.ConcatenateObjects(t.Context(), nil, repo.ConcatenateOptions{})
			}
		})
		all.Go(func() {
			for range 50 {
				_ = w.Flush(t.Context())
			}
		})
	}
	all.Wait()
}

// counting counts as a client does what it sends: a plain number, that the race detector
// looks at, is changed by a flush and read by all others.
type counting struct {
	repo.RepositoryWriter
	t       *testing.T
	flushes int
}

func (c *counting) NewObjectWriter(context.Context, object.WriterOptions) object.Writer {
	return countingObject{c}
}

func (c *counting) ConcatenateObjects(context.Context, []object.ID, repo.ConcatenateOptions) (object.ID, error) {
	return countingObject{c}.Result()
}

func (c *counting) Flush(context.Context) error {
	c.flushes++
	return nil
}

type countingObject struct{ *counting }

func (o countingObject) look() {
	if o.flushes < 0 {
		o.t.Error("no flush was counted")
	}
}

func (o countingObject) Write(p []byte) (int, error) { o.look(); return len(p), nil }

func (o countingObject) Checkpoint() (object.ID, error) { o.look(); return object.EmptyID, nil }

func (o countingObject) Result() (object.ID, error) { o.look(); return object.EmptyID, nil }

func (countingObject) Close() error { return nil }
