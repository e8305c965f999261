// SPDX-License-Identifier: Apache-2.0

// Package ignore holds the patterns of what a backup leaves out. They are those of
// a .gitignore at the root of what is backed up; git itself is the measure in the
// tests. What git takes and never matches, a bracket without an end above all, is
// refused: a pattern that does nothing would be a surprise in the bucket.
package ignore

import (
	"fmt"
	"path"
	"strings"
)

const (
	// maxPatterns and maxLength bound what is compared with each entry.
	maxPatterns = 200
	maxLength   = 1024
)

// Accepted says what a pattern may be.
const Accepted = `patterns as in a .gitignore, one a line, such as *.tmp, /cache/, logs/**/*.gz or !keep.tmp`

// Rules are parsed patterns. The zero value ignores nothing.
type Rules []rule

type rule struct {
	negated, dirOnly bool
	// parts of the path from the root; "**" stands for any number of them, at the
	// end for one or more.
	parts []string
}

// Lines returns the patterns of a text that has one a line. Lines without a pattern
// and comments (#) are left out.
func Lines(text string) (patterns []string) {
	for line := range strings.Lines(text) {
		if line = trimmed(strings.TrimRight(line, "\r\n")); line != "" && !strings.HasPrefix(line, "#") {
			patterns = append(patterns, line)
		}
	}
	return patterns
}

// Parse reads patterns; its error names the one that is malformed.
func Parse(patterns []string) (Rules, error) {
	if len(patterns) > maxPatterns {
		return nil, fmt.Errorf("%d ignore patterns are more than %d", len(patterns), maxPatterns)
	}
	var rules Rules
	for _, p := range patterns {
		r, err := parse(p)
		if err != nil {
			return nil, fmt.Errorf("ignore pattern %q: %w", p, err)
		}
		rules = append(rules, r)
	}
	return rules, nil
}

func parse(pattern string) (r rule, err error) {
	if len(pattern) > maxLength {
		return rule{}, fmt.Errorf("it is longer than %d bytes", maxLength)
	}
	if strings.ContainsAny(pattern, "\x00\n\r") {
		return rule{}, fmt.Errorf("it is not one line of text")
	}
	if strings.HasPrefix(pattern, "#") {
		return rule{}, fmt.Errorf(`it is a comment; begin with \# for a name that begins so`)
	}
	rest, negated := strings.CutPrefix(trimmed(pattern), "!")
	rest, dirOnly := strings.CutSuffix(rest, "/")
	r = rule{negated: negated, dirOnly: dirOnly}
	if rest == "" {
		return rule{}, fmt.Errorf("it names nothing")
	}
	if !strings.Contains(rest, "/") {
		rest = "**/" + rest // at any depth
	}
	parts := strings.Split(strings.TrimPrefix(rest, "/"), "/")
	for i, part := range parts {
		switch {
		case part == "**" && i > 0 && r.parts[len(r.parts)-1] == "**":
			continue
		case part == "" || part == "." || part == "..":
			return rule{}, fmt.Errorf("it has the component %q, which no path has", part)
		case part == "**":
		default:
			if part, err = component(part); err != nil {
				return rule{}, err
			}
		}
		r.parts = append(r.parts, part)
	}
	return r, nil
}

// component turns one part of a pattern into one of path.Match: there a class is
// negated by ^ alone.
func component(part string) (string, error) {
	out := []byte(part)
	inClass := false
	for i := 0; i < len(out); i++ {
		next := byte(0)
		if i+1 < len(out) {
			next = out[i+1]
		}
		switch {
		case out[i] == '\\':
			i++
		case inClass && out[i] == '[' && strings.IndexByte(":.=", next) >= 0:
			return "", fmt.Errorf("character classes such as [:alpha:] are not known; list the characters")
		case !inClass && out[i] == '[':
			inClass = true
			if next == '!' {
				out[i+1] = '^'
			}
			if next == ']' {
				i++ // at the beginning it ends no class
			}
		case inClass && out[i] == ']':
			inClass = false
		}
	}
	if _, err := path.Match(string(out), ""); err != nil {
		return "", fmt.Errorf("it is malformed at %q", part)
	}
	return string(out), nil
}

// trimmed is a pattern without the spaces at its end, but for one behind a backslash.
func trimmed(line string) string {
	end := strings.TrimRight(line, " ")
	escapes := len(end) - len(strings.TrimRight(end, `\`))
	if escapes%2 == 1 && len(end) < len(line) {
		return end + " "
	}
	return end
}

// Ignored says whether an entry is left out; where is its path from the root, without
// a slash at its beginning. The last pattern that fits decides. What is below a
// directory that is left out is not asked about.
func (r Rules) Ignored(where string, isDir bool) bool {
	if len(r) == 0 {
		return false
	}
	names := strings.Split(where, "/")
	for i := len(r) - 1; i >= 0; i-- {
		if (isDir || !r[i].dirOnly) && match(r[i].parts, names) {
			return !r[i].negated
		}
	}
	return false
}

// match holds a path against a pattern. Where it fails, only the last "**" may take
// one name more: so it takes at most the product of their lengths.
func match(parts, names []string) bool {
	p, n := 0, 0
	retryPart, retryName := -1, 0
	for n < len(names) {
		switch {
		case p < len(parts) && parts[p] == "**":
			if p == len(parts)-1 {
				return true // at least one name is left
			}
			p++
			retryPart, retryName = p, n
		case p < len(parts) && matchName(parts[p], names[n]):
			p, n = p+1, n+1
		case retryPart >= 0:
			retryName++
			p, n = retryPart, retryName
		default:
			return false
		}
	}
	return p == len(parts)
}

func matchName(pattern, name string) bool {
	ok, _ := path.Match(pattern, name) // its form was checked
	return ok
}
