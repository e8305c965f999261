// SPDX-License-Identifier: Apache-2.0

package function

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"k8s.io/client-go/util/jsonpath"
)

// pathMark is a JSON path in a condition: {$.status.phase}.
var pathMark = regexp.MustCompile(`\{\s*(\$\.[^{}]*?)\s*\}`)

// fillPaths puts the values of an object in the place of the JSON paths in a
// template. A value stays a value: where a text of the template holds the path it
// is written as that text, and where none does it may not begin an action.
func fillPaths(template string, object map[string]any) (string, error) {
	var out strings.Builder
	at := 0
	for _, m := range pathMark.FindAllStringSubmatchIndex(template, -1) {
		if m[0] > 0 && template[m[0]-1] == '{' {
			continue // an action of the template itself: {{$.x}}
		}
		value, err := valueAt(template[m[2]:m[3]], object)
		if err != nil {
			return "", err
		}
		out.WriteString(template[at:m[0]])
		switch quoteAt(template[:m[0]]) {
		case '"':
			quoted := strconv.Quote(value)
			value = quoted[1 : len(quoted)-1]
		case '`':
			if strings.Contains(value, "`") {
				return "", fmt.Errorf("the value at %s holds a backquote: write the path in double quotes", template[m[2]:m[3]])
			}
		default:
			if strings.ContainsAny(value, "{}\"`") {
				return "", fmt.Errorf("the value at %s is more than a word or number: write the path in double quotes", template[m[2]:m[3]])
			}
		}
		out.WriteString(value)
		at = m[1]
	}
	out.WriteString(template[at:])
	return out.String(), nil
}

func valueAt(path string, object map[string]any) (string, error) {
	p := jsonpath.New("condition")
	if err := p.Parse("{" + path + "}"); err != nil {
		return "", fmt.Errorf("read path %s: %w", path, err)
	}
	var out bytes.Buffer
	if err := p.Execute(&out, object); err != nil {
		return "", fmt.Errorf("look at %s: %w", path, err)
	}
	return out.String(), nil
}

// quoteAt is the quote that a template's text is inside of after before: ", ` or,
// outside of any or of an action, 0.
func quoteAt(before string) byte {
	action, quote := false, byte(0)
	for i := 0; i < len(before); i++ {
		c := before[i]
		switch {
		case !action:
			if strings.HasPrefix(before[i:], "{{") {
				action = true
				i++
			}
		case quote == '"' && c == '\\':
			i++
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '"' || c == '`':
			quote = c
		case strings.HasPrefix(before[i:], "}}"):
			action = false
			i++
		}
	}
	return quote
}
