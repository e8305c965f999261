// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"testing"

	"github.com/kopia/kopia/repo/compression"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

// An operation may have its contents compressed as a pod may ask for, and no other way.
func TestStreamCompressions(t *testing.T) {
	for _, name := range api.Compressions {
		if name == "none" {
			continue
		}
		if c := compression.ByName[compression.Name(name)]; c == nil || !compressions[c.HeaderID()] {
			t.Errorf("%s is refused", name)
		}
	}
	if lz4 := compression.ByName["lz4"]; lz4 != nil && compressions[lz4.HeaderID()] {
		t.Error("lz4, which Kopia has given up, is taken")
	}
	if _, err := (&stream{}).WriteContent(t.Context(), []byte("data"), "", 0xdead); err == nil {
		t.Error("an unknown compression is taken")
	}
}
