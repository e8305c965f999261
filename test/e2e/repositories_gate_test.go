// SPDX-License-Identifier: Apache-2.0

//go:build e2e && !soak

package e2e

import "time"

// killingTime is how long the trial of repositories goes on.
const killingTime = time.Minute
