// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kopia/kopia/repo/compression"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

// An operation may have its contents compressed as a pod may ask for, and no other way.
func TestStreamCompressions(t *testing.T) {
	for _, name := range api.Compressions {
		if name == "none" {
			continue
		}
		if c := compression.ByName[compression.Name(name)]; c == nil || !compressions[c.HeaderID()] {
			t.Errorf("%s is refused", name)
		}
	}
	if lz4 := compression.ByName["lz4"]; lz4 != nil && compressions[lz4.HeaderID()] {
		t.Error("lz4, which Kopia has given up, is taken")
	}
	if _, err := (&stream{session: &session{}}).WriteContent(t.Context(), []byte("data"), "", 0xdead); err == nil {
		t.Error("an unknown compression is taken")
	}
}

// Memory is handed back when the last stream has ended, at once or a little later, and not
// for each of those that come and go.
func TestMemoryIsHandedBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var frees atomic.Int32
		m := &memory{free: func() { frees.Add(1) }}
		after := func(d time.Duration, want int32, when string) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			if n := frees.Load(); n != want {
				t.Errorf("%s: handed back %d times, want %d", when, n, want)
			}
		}
		first, second := m.use(), m.use()
		first()
		after(time.Hour, 0, "while one is used")
		second()
		after(0, 1, "when nobody is left")
		for range 100 {
			m.use()()
			time.Sleep(10 * time.Millisecond)
		}
		after(0, 1, "while they come and go")
		after(freePause, 2, "later")
		m.use()()
		busy := m.use()
		after(time.Hour, 2, "while one came back")
		busy()
		after(0, 3, "when he has gone")
		after(time.Hour, 3, "for nobody")
	})
}
