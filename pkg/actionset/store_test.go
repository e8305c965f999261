// SPDX-License-Identifier: Apache-2.0

package actionset

import (
	"context"
	"log/slog"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	clocktesting "k8s.io/utils/clock/testing"
)

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
