// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/kanister-kopia/kanister-kopia/internal/pause"
)

// throttleBurst is what may be read or written at once under a limit: a chunk is
// never larger.
const throttleBurst = 256 << 10

// throttle bounds how many bytes of content are read or written in a second, by all
// of an operation together, and in which part of the time. Both may change at any time.
type throttle struct {
	ctx     context.Context
	limiter *rate.Limiter
	began   time.Time
	pace    atomic.Int64 // a pace
}

// newThrottle returns a throttle; limit 0 is none.
func newThrottle(ctx context.Context, limit int64) *throttle {
	t := &throttle{ctx: ctx, limiter: rate.NewLimiter(rate.Inf, throttleBurst), began: time.Now()}
	t.set(limit)
	return t
}

// throttle is an operation's: at the limit that it was asked for with, or at what came
// since, and at the pace that others leave it, until stop.
func (env Env) throttle(ctx context.Context, rateLimit int64) (t *throttle, stop func()) {
	t = newThrottle(ctx, rateLimit)
	unfollow := t.follow(env.Limits)
	if env.Pressure == (Pressure{}) {
		return t, unfollow
	}
	ticker := time.NewTicker(pressureLook)
	stay := t.giveWay(env.Pressure, ticker.C)
	return t, func() { stay(); ticker.Stop(); unfollow() }
}

func (t *throttle) set(limit int64) {
	if limit <= 0 {
		t.limiter.SetLimit(rate.Inf)
		return
	}
	t.limiter.SetLimit(rate.Limit(limit))
}

// follow takes new limits until stop.
func (t *throttle) follow(limits <-chan int64) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case limit := <-limits:
				t.set(limit)
			case <-done:
				return
			}
		}
	})
	return func() { close(done); wg.Wait() }
}

// wait returns when n more bytes are allowed, or with the end of the operation. Who
// waits already does so under the old limit, at most for one burst.
func (t *throttle) wait(n int) error {
	for n > 0 {
		part := min(n, throttleBurst)
		if err := t.limiter.WaitN(t.ctx, part); err != nil {
			return err
		}
		n -= part
	}
	return t.rest()
}

// rest waits if this is a part of the time in which others may work.
func (t *throttle) rest() error {
	long := pace(t.pace.Load()).pause(time.Since(t.began))
	if long == 0 {
		return nil
	}
	if pause.For(t.ctx, long) != nil {
		return t.ctx.Err()
	}
	return nil
}
