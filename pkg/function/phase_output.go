// SPDX-License-Identifier: Apache-2.0

package function

import (
	"bufio"
	"bytes"
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

// outputLimit is more than an ActionSet can keep.
const outputLimit = 2 << 20

// readOutputs collects the outputs in what a command writes and hands every line to
// line, a long one in parts: a command may write what has no lines, without end. Nil if
// there are none.
func readOutputs(from io.Reader, line func(string)) (map[string]any, error) {
	var outputs map[string]any
	reader := bufio.NewReaderSize(from, longLine)
	var read []byte // of the present line, and not handed on
	for {
		part, err := reader.ReadSlice('\n')
		read = append(read, part...)
		mark := bytes.Index(read, []byte(outputMark))
		if mark >= 0 && len(read)-mark > outputLimit {
			return outputs, fmt.Errorf("read phase output: it is longer than %d MiB: store what is as large, and output where it is", outputLimit>>20)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			// The end may be the beginning of a mark.
			if n := len(read) - (len(outputMark) - 1); mark < 0 {
				line(string(read[:n]))
				read = append(read[:0], read[n:]...)
			}
			continue
		}
		text := strings.TrimRight(string(read), "\r\n")
		read = read[:0]
		if text != "" {
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
