// SPDX-License-Identifier: Apache-2.0

package actionset

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clocktesting "k8s.io/utils/clock/testing"
)

// The texts about size are those of a real API server: one is etcd's, one is of the
// client's way there.
func TestUnanswered(t *testing.T) {
	kind := schema.GroupResource{Resource: "actionsets"}
	for _, c := range []struct {
		err  error
		want bool
	}{
		{&url.Error{Op: "Put", URL: "https://api", Err: errors.New("connection refused")}, true},
		{fmt.Errorf("write: %w", apierrors.NewServiceUnavailable("etcd is away")), true},
		{apierrors.NewTooManyRequests("later", 1), true},
		{apierrors.NewInternalError(errors.New("etcdserver: leader changed")), true},
		{apierrors.NewInternalError(errors.New("etcdserver: request is too large")), false},
		{apierrors.NewInternalError(errors.New("rpc error: code = ResourceExhausted desc = trying to send message larger than max (2098352 vs. 2097152)")), false},
		{apierrors.NewRequestEntityTooLargeError("limit is 3145728"), false},
		{apierrors.NewNotFound(kind, "x"), false},
		{apierrors.NewConflict(kind, "x", errors.New("changed")), false},
		{apierrors.NewForbidden(kind, "x", errors.New("no")), false},
		{errDeleted, false},
		{errors.New("Key 'k' not found in secret 'a:b'"), false},
		{context.Canceled, false},
	} {
		if got := unanswered(c.err); got != c.want {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
	}
}

func TestPersist(t *testing.T) {
	away := apierrors.NewServiceUnavailable("away")
	clock, log := clocktesting.NewFakeClock(epoch), slog.New(slog.DiscardHandler)
	tries := 0
	done := make(chan error, 1)
	go func() {
		done <- persist(context.Background(), clock, log, func() error {
			if tries++; tries < 4 {
				return away
			}
			return nil
		})
	}()
	for ended := false; !ended; {
		select {
		case err := <-done:
			if ended = true; err != nil || tries != 4 {
				t.Errorf("%d tries, %v; want a success at the fourth", tries, err)
			}
		default:
			if clock.HasWaiters() {
				clock.Step(time.Minute)
			}
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	tries = 0
	if err := persist(ctx, clock, log, func() error { tries++; return away }); err == nil || tries != 1 {
		t.Errorf("without time: %d tries, %v; want one", tries, err)
	}
}
