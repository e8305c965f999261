// SPDX-License-Identifier: Apache-2.0

// Package pause waits between two tries.
package pause

import (
	"context"
	"time"
)

// For waits for d, unless ctx ends before: the error is then its cause.
func For(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
