// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"fmt"

	"github.com/kopia/kopia/snapshot"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

// seeCanary looks for the snapshot that only access control in force shows to the
// probe's user.
func seeCanary(ctx context.Context, conn *connection) (*api.Result, error) {
	found, err := conn.rep.FindManifests(ctx, map[string]string{
		"type": snapshot.ManifestType, "username": "canary", "hostname": "system",
	})
	if err != nil {
		return nil, fmt.Errorf("look for the canary: %w", err)
	}
	if len(found) == 0 {
		return nil, &api.Problem{Code: api.CodeAccessDenied, Title: "probe: the canary is not seen; the server's access control is not in force"}
	}
	return &api.Result{}, nil
}
