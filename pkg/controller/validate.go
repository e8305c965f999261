// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"k8s.io/apimachinery/pkg/util/yaml"

	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/blueprint"
	"github.com/kanister-kopia/kanister-kopia/pkg/function"
)

// validate prints a verdict per Blueprint; an error if one is refused.
func validate(args []string, stdout io.Writer, extra []function.Func) error {
	if len(args) == 0 || args[0] != "blueprint" {
		return errors.New("validate what? there is: validate blueprint -f FILE|DIR …")
	}
	var paths []string
	flags := flag.NewFlagSet("controller validate blueprint", flag.ContinueOnError)
	flags.SetOutput(stdout)
	flags.Func("f", "file with Blueprints, YAML or JSON, or a directory that is searched for them; more than once,\nand what follows the flags as well", func(s string) error {
		paths = append(paths, s)
		return nil
	})
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	paths = append(paths, flags.Args()...)
	if len(paths) == 0 {
		return errors.New("validate blueprint: -f is required: a file or a directory")
	}
	functions := allFunctions(&function.Data{}, &function.Companion{}, extra)
	all, refused := 0, 0
	for _, path := range paths {
		files, err := blueprintFiles(path)
		if err != nil {
			return fmt.Errorf("validate blueprint: %w", err)
		}
		found := 0
		for _, file := range files {
			blueprints, err := readBlueprints(file)
			if err != nil {
				return fmt.Errorf("validate blueprint: read %s: %w", file, err)
			}
			for _, b := range blueprints {
				found++
				if err := blueprint.Validate(&b, functions); err != nil {
					refused++
					fmt.Fprintf(stdout, "%s: blueprint %s: refused: %s\n", file, b.Name, err)
					continue
				}
				fmt.Fprintf(stdout, "%s: blueprint %s: valid\n", file, b.Name)
				for _, w := range warnings(&b, functions) {
					fmt.Fprintf(stdout, "%s: blueprint %s: warning: %s\n", file, b.Name, w)
				}
			}
		}
		if found == 0 {
			return fmt.Errorf("validate blueprint: no Blueprint in %s", path)
		}
		all += found
	}
	if refused > 0 {
		return fmt.Errorf("validate blueprint: %d of %d refused", refused, all)
	}
	return nil
}

// blueprintFiles are the YAML and JSON files below a directory, or the file itself.
func blueprintFiles(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil || !info.IsDir() {
		return []string{path}, err
	}
	var files []string
	err = filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(p)) {
			files = append(files, p)
		}
		return err
	})
	return files, err
}

// readBlueprints reads the documents of kind Blueprint; others are none of ours.
// Fields that are not known are not an error, as for kanctl: old Blueprints have some.
func readBlueprints(file string) ([]crv1alpha1.Blueprint, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var out []crv1alpha1.Blueprint
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(content), 4096)
	for {
		var raw json.RawMessage
		err := decoder.Decode(&raw)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		var kind struct{ Kind string }
		if json.Unmarshal(raw, &kind) != nil || kind.Kind != "Blueprint" {
			continue
		}
		var b crv1alpha1.Blueprint
		if err := json.Unmarshal(raw, &b); err != nil {
			return nil, err
		}
		out = append(out, b)
	}
}
