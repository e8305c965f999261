// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

// TestLogHasKanistersFields: people have searches and alerts on them.
func TestLogHasKanistersFields(t *testing.T) {
	var out bytes.Buffer
	newLog(&out, "").With("ActionSet", "backup-x").Warn("slow", "Phase", "dump")
	var line map[string]any
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{"level": "warning", "msg": "slow", "ActionSet": "backup-x", "Phase": "dump"} {
		if line[key] != want {
			t.Errorf("%s is %v, want %v, in %s", key, line[key], want, out.String())
		}
	}
	if f, _ := line["Function"].(string); !strings.HasSuffix(f, "TestLogHasKanistersFields") {
		t.Errorf("Function is %v in %s", line["Function"], out.String())
	}
	if n, _ := line["Line"].(float64); line["File"] == nil || n == 0 {
		t.Errorf("no File and Line in %s", out.String())
	}
}

func TestLogLevel(t *testing.T) {
	for level, want := range map[string]string{
		"": "info warning error", "nonsense": "info warning error", "INFO": "info warning error",
		"debug": "debug info warning error", "warn": "warning error", "error": "error",
	} {
		var out bytes.Buffer
		log := newLog(&out, level)
		log.Debug("m")
		log.Info("m")
		log.Warn("m")
		log.Error("m")
		var got []string
		for line := range strings.Lines(out.String()) {
			var fields struct{ Level string }
			if err := json.Unmarshal([]byte(line), &fields); err != nil {
				t.Fatal(err)
			}
			got = append(got, fields.Level)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("LOG_LEVEL=%s writes %q, want %q", level, got, want)
		}
	}
}
