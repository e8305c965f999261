// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kanister-kopia/kanister-kopia/internal/openapi"
)

// docs/agent-api.yaml says what a repository server's agent serves besides operations.
func TestOpenAPIRoutes(t *testing.T) {
	got := slices.Sorted(maps.Keys(sessionRoutes(nil, nil)))
	if diff := cmp.Diff(openapi.Read(t).Routes("/v1/sessions"), got); diff != "" {
		t.Errorf("(-description +server)\n%s", diff)
	}
}
