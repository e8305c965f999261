// SPDX-License-Identifier: Apache-2.0

// Runtime is an OCI runtime that hands everything to runc, but for a capability
// that this machine lacks: where CAP_SYS_RESOURCE is missing, runc refuses any
// container that asks for it, and privileged containers (kind's node) do.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

const missing = "CAP_SYS_RESOURCE"

func main() {
	for i, arg := range os.Args {
		var file string
		switch {
		case (arg == "--bundle" || arg == "-b") && i+1 < len(os.Args):
			file = filepath.Join(os.Args[i+1], "config.json")
		case (arg == "--process" || arg == "-p") && i+1 < len(os.Args):
			file = os.Args[i+1]
		case strings.HasPrefix(arg, "--bundle="):
			file = filepath.Join(strings.TrimPrefix(arg, "--bundle="), "config.json")
		case strings.HasPrefix(arg, "--process="):
			file = strings.TrimPrefix(arg, "--process=")
		default:
			continue
		}
		if err := drop(file); err != nil {
			fmt.Fprintf(os.Stderr, "drop %s from %s: %v\n", missing, file, err)
			os.Exit(1)
		}
	}
	runc, err := exec.LookPath("runc")
	if err != nil {
		runc = "/usr/sbin/runc"
	}
	err = syscall.Exec(runc, append([]string{"runc"}, os.Args[1:]...), os.Environ())
	fmt.Fprintln(os.Stderr, "run runc:", err)
	os.Exit(1)
}

// drop removes the capability from every set of a bundle's or a process's file.
func drop(file string) error {
	old, err := os.ReadFile(file)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	var doc any
	decoder := json.NewDecoder(bytes.NewReader(old))
	decoder.UseNumber()
	if err := decoder.Decode(&doc); err != nil {
		return err
	}
	out, err := json.Marshal(without(doc))
	if err != nil {
		return err
	}
	return os.WriteFile(file, out, 0o600)
}

func without(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k := range v {
			v[k] = without(v[k])
		}
		return v
	case []any:
		kept := make([]any, 0, len(v))
		for _, x := range v {
			if x != missing {
				kept = append(kept, without(x))
			}
		}
		return kept
	default:
		return v
	}
}
