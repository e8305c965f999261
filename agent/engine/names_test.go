// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"testing"
	"unicode/utf8"
)

func TestNames(t *testing.T) {
	for _, name := range []string{"plain", "with space", "ümlaut", "\xff\xfe", "100%", escaped + "x", "a\nb"} {
		stored := encodeName(name)
		if !utf8.ValidString(stored) {
			t.Errorf("%q is stored as %q, which is not UTF-8", name, stored)
		}
		if back, err := decodeName(stored); err != nil || back != name {
			t.Errorf("%q comes back as %q, %v", name, back, err)
		}
	}
	for _, bad := range []string{"", ".", "..", "a/b", "../x", "a\x00", escaped + "..", escaped + "a%2Fb", escaped + "%zz"} {
		if name, err := decodeName(bad); err == nil {
			t.Errorf("stored name %q is taken as %q", bad, name)
		}
	}
}

// FuzzNames: every name of a file system survives, and none leaves its directory.
func FuzzNames(f *testing.F) {
	for _, seed := range []string{"a", "\xff", escaped, "%41", "..", "a/b"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if checkName(name) == nil {
			if back, err := decodeName(encodeName(name)); err != nil || back != name {
				t.Errorf("%q comes back as %q, %v", name, back, err)
			}
		}
		if decoded, err := decodeName(name); err == nil && checkName(decoded) != nil {
			t.Errorf("%q is taken as %q", name, decoded)
		}
	})
}
