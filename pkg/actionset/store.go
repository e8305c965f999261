// SPDX-License-Identifier: Apache-2.0

package actionset

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/kube"
)

// errDeleted says that the ActionSet is gone: there is nobody left to tell.
var errDeleted = errors.New("the ActionSet was deleted")

// store writes the status of one ActionSet. The type has no status subresource, so
// the whole object is written, on top of what is there.
type store struct {
	client client.Client
	key    client.ObjectKey
	uid    types.UID
	clock  clock.Clock
	log    *slog.Logger

	mu sync.Mutex // the actions of one ActionSet write one after the other
	// last is the object as it was written or read last. Nearly always nobody else
	// wrote meanwhile, which saves a read for each write; the API server finds out
	// when somebody did.
	last *crv1alpha1.ActionSet
	// status is what was written last, or what the first write begins with: for an
	// object that has none.
	status  *crv1alpha1.ActionSetStatus
	written bool
	// waiting goes with the next write.
	waiting []func(*crv1alpha1.ActionSetStatus)
}

// newStore writes on top of as, whose status may not have been written yet.
func newStore(c client.Client, as *crv1alpha1.ActionSet, clk clock.Clock, log *slog.Logger) *store {
	return &store{
		client: c, key: client.ObjectKeyFromObject(as), uid: as.UID, clock: clk, log: log,
		last: as.DeepCopy(), status: as.Status.DeepCopy(),
	}
}

// later changes the status with the next write.
func (s *store) later(change func(*crv1alpha1.ActionSetStatus)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting = append(s.waiting, change)
}

// update changes the status. It outlives ctx: what happened is written down even
// when the run was cancelled, within writeTimeout. While the API server does not
// answer it waits: an ActionSet whose end is not written down would run for ever.
func (s *store) update(ctx context.Context, change func(*crv1alpha1.ActionSetStatus)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := persist(ctx, s.clock, s.log, func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
		defer cancel()
		return retry.RetryOnConflict(retry.DefaultBackoff, func() error { return s.write(ctx, change) })
	})
	switch {
	case apierrors.IsNotFound(err) || errors.Is(err, errDeleted):
		return errDeleted
	case err != nil:
		return fmt.Errorf("write the status of ActionSet %s: %w", s.key, err)
	}
	return nil
}

func (s *store) write(ctx context.Context, change func(*crv1alpha1.ActionSetStatus)) error {
	if s.last == nil {
		var as crv1alpha1.ActionSet
		if err := s.client.Get(ctx, s.key, &as); err != nil {
			return err
		}
		s.last = &as
	}
	next := s.last.DeepCopy()
	s.last = nil
	// Of the same name may be another one.
	if next.UID != s.uid {
		return errDeleted
	}
	// Somebody wrote before the first write, or took the status away: it is the engine's.
	if next.Status == nil || next.Status.State == "" {
		next.Status = s.status.DeepCopy()
	}
	for _, waiting := range s.waiting {
		waiting(next.Status)
	}
	change(next.Status)
	sumUp(next.Status, s.clock.Now())
	if s.written && equality.Semantic.DeepEqual(next.Status, s.status) {
		s.last = next
		return nil
	}
	if err := s.client.Update(ctx, next); err != nil {
		return err
	}
	s.last, s.status, s.waiting, s.written = next, next.Status, nil, true
	return nil
}

const (
	writeTimeout = 30 * time.Second
	// retryFirst and retryLast are the shortest and the longest wait for an API
	// server that does not answer.
	retryFirst = 250 * time.Millisecond
	retryLast  = 10 * time.Second
)

// persist repeats do while the API server does not answer, until ctx ends; at least
// once.
func persist(ctx context.Context, clk clock.Clock, log *slog.Logger, do func() error) error {
	for wait := retryFirst; ; wait = min(2*wait, retryLast) {
		err := do()
		if err == nil || !kube.Unanswered(err) {
			return err
		}
		log.Warn("the API server does not answer; trying again", "error", err.Error())
		select {
		case <-ctx.Done():
			return err
		case <-clk.After(wait):
		}
	}
}
