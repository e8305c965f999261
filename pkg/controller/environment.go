// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"math"
	"strconv"
	"time"
)

// podStartTimeouts are Kanister's names for how many minutes a temporary pod may take
// to run: since 0.113, and before.
var podStartTimeouts = []string{"KANISTER_POD_READY_WAIT_TIMEOUT", "TIMEOUT_WORKER_POD_READY"}

// podStartTimeout is what the environment says of it, 0 if nothing. What Kanister
// takes for the default, because it is no number, is an error here.
func podStartTimeout(getenv func(string) string) (time.Duration, error) {
	for _, name := range podStartTimeouts {
		value := getenv(name)
		if value == "" {
			continue
		}
		minutes, err := strconv.ParseInt(value, 10, 64)
		if err != nil || minutes < 1 || minutes > int64(math.MaxInt64/time.Minute) {
			return 0, fmt.Errorf("%s=%q: give minutes, a whole number above 0", name, value)
		}
		return time.Duration(minutes) * time.Minute, nil
	}
	return 0, nil
}
