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
	got := slices.Sorted(maps.Keys(sessionRoutes(nil, nil, nil, nil)))
	doc := openapi.Read(t)
	want := slices.Concat(doc.Routes("/v1/sessions"), doc.Routes("/v1/activity"), doc.Routes("/v1/drain"))
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-description +server)\n%s", diff)
	}
}
