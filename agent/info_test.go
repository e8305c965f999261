// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// An agent tells which Kopia its operations use, and links none of it: what sits in the
// application's pod is small.
func TestKopia(t *testing.T) {
	raw, err := os.ReadFile("../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	required := regexp.MustCompile(`(?m)^\s*github\.com/kopia/kopia (\S+)`).FindSubmatch(raw)
	if required == nil || string(required[1]) != Info("/nonexistent", "/nonexistent").KopiaVersion {
		t.Errorf("agents tell that they use Kopia %s, go.mod says %q", kopiaVersion, required)
	}
	linked, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "../cmd/agent").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range strings.Fields(string(linked)) {
		if strings.HasPrefix(p, "github.com/kopia/") || strings.HasPrefix(p, "k8s.io/") {
			t.Errorf("the agent links %s", p)
		}
	}
}
