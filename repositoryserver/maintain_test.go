// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"slices"
	"testing"
	"time"

	"github.com/kopia/kopia/repo/manifest"
)

// The last unfinished snapshot of a source is what its next backup goes on from, and
// what protects one that still runs.
func TestForgettable(t *testing.T) {
	now := newClock().now
	entry := func(id, user string, age time.Duration) *manifest.EntryMetadata {
		return &manifest.EntryMetadata{
			ID: manifest.ID(id), ModTime: now.Add(-age),
			Labels: map[string]string{"username": user, "hostname": "h", "path": "/"},
		}
	}
	got := forgettable([]*manifest.EntryMetadata{
		entry("replaced", "a", 30*time.Hour), entry("last", "a", 25*time.Hour), entry("old", "a", 200*time.Hour),
		entry("given-up", "b", 8*24*time.Hour),
		entry("running", "c", 5*time.Minute), entry("before-it", "c", 15*time.Minute), entry("yesterday's", "c", 25*time.Hour),
		entry("week", "d", 6*24*time.Hour),
	}, now)
	slices.Sort(got)
	if want := []manifest.ID{"given-up", "old", "replaced", "yesterday's"}; !slices.Equal(got, want) {
		t.Errorf("%v are removed, want %v", got, want)
	}
}
