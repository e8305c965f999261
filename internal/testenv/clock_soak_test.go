// SPDX-License-Identifier: Apache-2.0

//go:build integration && soak

package testenv_test

import (
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// A program that goes by a clock of a test jumps with it while it runs, by what it logs;
// its timers and the machine's time do not.
func TestIntegrationSoakClock(t *testing.T) {
	clock := testenv.NewClock(t, "agent", "operation")
	dir := t.TempDir()
	start := func() *testenv.Process {
		return testenv.Start(t, nil, clock.Program("agent"), "serve", "-state-dir", dir, "-ca-dir", dir,
			"-volumes-dir", dir, "-health-listen", "", "-port", strconv.Itoa(testenv.Port(t)))
	}
	said := func(p *testenv.Process) (at time.Time) {
		testenv.Eventually(t, time.Minute, "it serves", func() bool {
			for line := range strings.Lines(p.Log()) {
				var l struct {
					Time time.Time
					Msg  string
				}
				if json.Unmarshal([]byte(line), &l) == nil && l.Msg == "agent serves" {
					at = l.Time
				}
			}
			return !at.IsZero()
		})
		return at
	}
	for _, by := range []time.Duration{0, 6 * time.Hour, -12 * time.Hour, 6*time.Hour + 700*time.Millisecond} {
		clock.JumpBy(by)
		begun := clock.Now()
		p := start()
		if at := said(p); at.Before(begun) || at.After(clock.Now()) {
			t.Errorf("it says that it is %s; its clock shows %s", at, clock.Now())
		}
		p.Kill()
	}
	if off := time.Until(clock.Now()); off < 600*time.Millisecond || off > 700*time.Millisecond {
		t.Errorf("the clock is ahead by %s", off)
	}
}
