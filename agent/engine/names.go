// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"fmt"
	"net/url"
	"strings"
	"unicode/utf8"
)

// escaped begins the stored form of a name that Kopia's directories, which are
// JSON, cannot hold as it is. The rest is the name's bytes, percent-encoded.
const escaped = ".kanister-kopia-name:"

// encodeName is how a name is stored: as it is, unless it is not UTF-8 or looks
// like one that was encoded.
func encodeName(name string) string {
	if utf8.ValidString(name) && !strings.HasPrefix(name, escaped) {
		return name
	}
	return escaped + url.PathEscape(name)
}

// decodeName is the inverse of encodeName. What it returns is checked: one plain
// component of a path.
func decodeName(stored string) (string, error) {
	name := stored
	if rest, ok := strings.CutPrefix(stored, escaped); ok {
		var err error
		if name, err = url.PathUnescape(rest); err != nil {
			return "", fmt.Errorf("restore: stored name %q: %w", stored, err)
		}
	}
	return name, checkName(name)
}
