// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"bytes"
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"

	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/blueprint"
	"github.com/kanister-kopia/kanister-kopia/pkg/function"
)

// validate prints a verdict per Blueprint, and per file that cannot be read; an error
// if one is refused.
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
			content, err := os.ReadFile(file)
			if err != nil {
				return fmt.Errorf("validate blueprint: %w", err)
			}
			blueprints, err := readBlueprints(content)
			for _, b := range blueprints {
				found++
				name := cmp.Or(b.Name, b.GenerateName, "without a name")
				if err := blueprint.Validate(&b, functions); err != nil {
					refused++
					fmt.Fprintf(stdout, "%s: blueprint %s: refused: %s\n", file, name, err)
					continue
				}
				fmt.Fprintf(stdout, "%s: blueprint %s: valid\n", file, name)
				for _, w := range warnings(&b, functions) {
					fmt.Fprintf(stdout, "%s: blueprint %s: warning: %s\n", file, name, w)
				}
			}
			if err != nil {
				found++
				refused++
				fmt.Fprintf(stdout, "%s: refused: %s\n", file, unreadable(content, err))
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

// blueprintFiles are the YAML and JSON files below a directory, or the file itself. A
// link to a file counts, as in a mounted ConfigMap or Kanister's own examples; a file
// that is reached twice is one.
func blueprintFiles(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil || !info.IsDir() {
		return []string{path}, err
	}
	var files []string
	seen := map[string]bool{}
	err = filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(p)) {
			return err
		}
		target, err := filepath.EvalSymlinks(p)
		if err != nil {
			return err
		}
		info, err := os.Stat(target)
		if err == nil && info.Mode().IsRegular() && !seen[target] {
			seen[target] = true
			files = append(files, p)
		}
		return err
	})
	return files, err
}

// readBlueprints reads the documents that are Blueprints, as kanctl does: fields that
// are not known are not an error, for old Blueprints have some, and a number where a
// text belongs is that text. With an error, those before it.
func readBlueprints(content []byte) ([]crv1alpha1.Blueprint, error) {
	var out []crv1alpha1.Blueprint
	// What a document is must be known before it is read for a Blueprint, and only YAML
	// that is read for one tells numbers from texts: so each is read twice.
	kinds := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(content), 4096)
	documents := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(content), 4096)
	for {
		var document any
		err := kinds.Decode(&document)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		if !isBlueprint(document) {
			if err := documents.Decode(&document); err != nil {
				return out, err
			}
			continue
		}
		var b crv1alpha1.Blueprint
		if err := documents.Decode(&b); err != nil {
			return out, err
		}
		out = append(out, b)
	}
}

// isBlueprint: other groups have a kind of this name, too. What says nothing of a kind
// but has actions with phases is one for kanctl; charts keep such files.
func isBlueprint(document any) bool {
	fields, _ := document.(map[string]any)
	kind, _ := fields["kind"].(string)
	version, _ := fields["apiVersion"].(string)
	if kind == "" && version == "" {
		actions, _ := fields["actions"].(map[string]any)
		for _, action := range actions {
			if action, ok := action.(map[string]any); ok && action["phases"] != nil {
				return true
			}
		}
		return false
	}
	return kind == "Blueprint" && (version == "" || schema.FromAPIVersionAndKind(version, kind).Group == crv1alpha1.GroupVersion.Group)
}

// unreadable says what to do about a file that is no YAML or no Blueprint's YAML.
func unreadable(content []byte, err error) error {
	if bytes.Contains(content, []byte(".Values")) {
		return fmt.Errorf("%w: it is a chart's template: validate what `helm template` makes of it", err)
	}
	return err
}
