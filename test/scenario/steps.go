// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"fmt"
	"io"
	"time"
)

// Steps prints a story: one line a step, with the time it took.
type Steps struct {
	out   io.Writer
	now   func() time.Time
	begin time.Time
}

// NewSteps starts the clock.
func NewSteps(out io.Writer, now func() time.Time) *Steps {
	return &Steps{out: out, now: now, begin: now()}
}

// Do runs one step and says how it went.
func (s *Steps) Do(what string, step func() (string, error)) error {
	start := s.now()
	result, err := step()
	took := s.now().Sub(start).Seconds()
	total := s.now().Sub(s.begin).Seconds()
	if err != nil {
		fmt.Fprintf(s.out, "[%4.0fs] FAILED %s after %.1fs\n", total, what, took)
		return fmt.Errorf("%s: %w", what, err)
	}
	if result != "" {
		result = ": " + result
	}
	fmt.Fprintf(s.out, "[%4.0fs] %s%s (%.1fs)\n", total, what, result, took)
	return nil
}

// Say prints lines that are not a step.
func (s *Steps) Say(format string, args ...any) {
	fmt.Fprintf(s.out, format+"\n", args...)
}
