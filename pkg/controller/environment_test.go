// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"strings"
	"testing"
	"time"
)

func TestPodStartTimeout(t *testing.T) {
	for _, c := range []struct {
		now, before string
		want        time.Duration
		refused     string
	}{
		{"", "", 0, ""},
		{"", "5", 5 * time.Minute, ""},
		{"7", "", 7 * time.Minute, ""},
		{"7", "5", 7 * time.Minute, ""},
		{"15m", "", 0, `KANISTER_POD_READY_WAIT_TIMEOUT="15m": give minutes`},
		{"", "0", 0, `TIMEOUT_WORKER_POD_READY="0": give minutes`},
		{"", "-1", 0, "give minutes"},
		{"", "999999999999", 0, "give minutes"},
	} {
		got, err := podStartTimeout(func(name string) string {
			return map[string]string{"KANISTER_POD_READY_WAIT_TIMEOUT": c.now, "TIMEOUT_WORKER_POD_READY": c.before}[name]
		})
		if got != c.want || (c.refused == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.refused) {
			t.Errorf("%q and %q: %s, %v; want %s, %q", c.now, c.before, got, err, c.want, c.refused)
		}
	}
}
