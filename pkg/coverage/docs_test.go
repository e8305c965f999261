// SPDX-License-Identifier: Apache-2.0

package coverage_test

import (
	"os"
	"strings"
	"testing"

	"github.com/kanister-kopia/kanister-kopia/pkg/coverage"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/webhook/decide"
)

// docs/injection.md lists every reason, key and metric that a user may meet.
func TestDocumentation(t *testing.T) {
	raw, err := os.ReadFile("../../docs/injection.md")
	if err != nil {
		t.Fatal(err)
	}
	words := []string{
		names.InjectionLabel, names.InjectLabel, names.StrictLabel, names.PrivilegedAgentsAnnotation,
		names.RunAsAnnotation, names.VolumesAnnotation, names.CPURequestAnnotation, names.MemoryRequestAnnotation,
		names.MemoryLimitAnnotation, names.StatusAnnotation, names.HoldConfigMap,
		"kanister_kopia_pods_without_agent", "kanister_kopia_pods_opted_in", "kanister_kopia_injection_on_hold", "kanister_kopia_namespace_unreadable",
		"kanister_kopia_webhook_decisions_total", "kanister_kopia_webhook_duration_seconds",
	}
	for _, r := range decide.Reasons() {
		words = append(words, "`"+string(r)+"`")
	}
	for _, r := range []coverage.Reason{
		coverage.Missing, coverage.Broken, coverage.NotStarting, coverage.Crashing, coverage.Refused, coverage.LabelMisplaced,
	} {
		words = append(words, "`"+string(r)+"`")
	}
	for _, word := range words {
		if !strings.Contains(string(raw), word) {
			t.Errorf("%s is not there", word)
		}
	}
}
