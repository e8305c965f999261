// SPDX-License-Identifier: Apache-2.0

package pause

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// A pause lasts as long as it should, and ends with whoever waits.
func TestFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		if err := For(t.Context(), time.Minute); err != nil || time.Since(began) != time.Minute {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
		enough := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(enough) })
		began = time.Now()
		if err := For(ctx, time.Minute); !errors.Is(err, enough) || time.Since(began) != time.Second {
			t.Errorf("cancelled after %s: %v", time.Since(began), err)
		}
	})
}
