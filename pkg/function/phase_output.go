// SPDX-License-Identifier: Apache-2.0

package function

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
)

// outputMark begins an output anywhere in a line of a command's standard output;
// `kando output <key> <value>` writes it.
const outputMark = "###Phase-output###:"

var outputKey = regexp.MustCompile(`^[A-Za-z0-9_]+$`)

// readOutputs collects the outputs in what a command writes and hands every line to
// line. Lines may be of any length. Nil if there are none.
func readOutputs(from io.Reader, line func(string)) (map[string]any, error) {
	var outputs map[string]any
	reader := bufio.NewReader(from)
	for {
		text, err := reader.ReadString('\n')
		if text = strings.TrimRight(text, "\r\n"); text != "" {
			if _, mark, ok := strings.Cut(text, outputMark); ok {
				key, value, perr := parseOutput(mark)
				if perr != nil {
					return outputs, perr
				}
				if outputs == nil {
					outputs = map[string]any{}
				}
				outputs[key] = value
			} else {
				line(text)
			}
		}
		if errors.Is(err, io.EOF) {
			return outputs, nil
		}
		if err != nil {
			return outputs, err
		}
	}
}

func parseOutput(text string) (key, value string, err error) {
	var o struct{ Key, Value string }
	if err := json.NewDecoder(strings.NewReader(text)).Decode(&o); err != nil {
		return "", "", fmt.Errorf("read phase output: %w", err)
	}
	if !outputKey.MatchString(o.Key) {
		return "", "", fmt.Errorf("read phase output: key %q is not letters, digits and _", o.Key)
	}
	return o.Key, o.Value, nil
}
