// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/format"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

// storageWatch is the breaker before the storage, which may be somebody else's server. It
// asks it for something small every now and then; after a few failures new operations are
// refused with the storage's own words, instead of each running into its timeout, until it
// answers again. What runs is left alone: Kopia tries again by itself, and may succeed.
type storageWatch struct {
	now func() time.Time
	// name is what is watched, in words, and code that of who is refused.
	name string
	code api.Code
	// look asks what is watched; nil before start.
	look    func(context.Context) error
	looking atomic.Bool // on behalf of who is not admitted

	mu       sync.Mutex // protects the following
	failures int
	since    time.Time
	last     error
}

const (
	watchPeriod  = 30 * time.Second
	watchTimeout = 15 * time.Second
	// watchTolerance is how many failures in a row make an outage.
	watchTolerance = 2
)

// newStorageWatch is of a repository of ours.
func newStorageWatch(now func() time.Time) *storageWatch {
	return &storageWatch{now: now, name: "the storage", code: api.CodeStorage}
}

// start begins to watch, until ctx ends. It comes before anybody is admitted or refused.
func (w *storageWatch) start(ctx context.Context, look func(context.Context) error) {
	w.look = func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, watchTimeout)
		defer cancel()
		return look(ctx)
	}
	go func() {
		timer := time.NewTimer(watchPeriod)
		defer timer.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-timer.C:
			}
			timer.Reset(w.saw(w.look(ctx)))
		}
	}()
}

// readFormat reads the blob that every repository has.
func readFormat(ctx context.Context, st blob.Storage) error {
	err := st.GetBlob(ctx, format.KopiaRepositoryBlobID, 0, -1, &discard{})
	if errors.Is(err, blob.ErrBlobNotFound) {
		return errors.New("the repository is gone from the storage: restore the bucket")
	}
	return err
}

// saw takes a look's outcome and says when to look again: sooner after a failure,
// later with each further one.
func (w *storageWatch) saw(err error) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		w.failures, w.last = 0, nil
		return watchPeriod
	}
	if w.failures == 0 {
		w.since = w.now()
	}
	w.failures++
	w.last = err
	return min(watchPeriod, time.Second<<min(w.failures, 5))
}

// answers says that the storage answered when it was last looked at.
func (w *storageWatch) answers() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failures == 0
}

// problem is why the storage does not answer, "" while it does.
func (w *storageWatch) problem() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failures < watchTolerance {
		return ""
	}
	return fmt.Sprintf("%s has not answered since %s: %v", w.name, w.since.UTC().Format(time.RFC3339), w.last)
}

// admit is what a new operation of the server's own agent is told, nil while the storage
// answers. It waits for nothing: whether the storage answers again is looked at meanwhile. A
// record ends an operation that runs, which is left alone.
func (w *storageWatch) admit(kind api.Kind) error {
	p := w.problem()
	if p == "" || kind == api.KindRecord {
		return nil
	}
	if w.looking.CompareAndSwap(false, true) {
		go func() {
			defer w.looking.Store(false)
			w.saw(w.look(context.Background()))
		}()
	}
	return &api.Problem{Status: 503, Code: w.code, Title: fmt.Sprintf("%s: %s", kind, p)}
}

// refuse is what a new session is told, nil while the storage answers. In an
// outage each asks the storage anew: the first that gets an answer ends it.
func (w *storageWatch) refuse(ctx context.Context) error {
	if w.problem() == "" {
		return nil
	}
	// How a look ends that its caller has given up says nothing of the storage.
	if err := w.look(ctx); err == nil || ctx.Err() == nil {
		w.saw(err)
	}
	if p := w.problem(); p != "" {
		return &api.Problem{Status: 503, Code: w.code, Title: "start session: " + p}
	}
	return nil
}
