// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"os"
	"testing"
)

// skipNothing makes what would be skipped fail: where every trial can run, none goes
// missing without a word.
const skipNothing = "KANISTER_KOPIA_SKIP_NOTHING"

// Skip ends a test that this machine cannot run, for want of a right or of a kernel's
// feature.
func Skip(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv(skipNothing) != "" {
		t.Fatalf(skipNothing+" is set, and "+format, args...)
	}
	t.Skipf(format, args...)
}
