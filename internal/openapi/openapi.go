// SPDX-License-Identifier: Apache-2.0

// Package openapi reads docs/agent-api.yaml, for the tests that hold it against the code.
package openapi

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// Document is what is compared of the description.
type Document struct {
	Paths      map[string]map[string]any `json:"paths"`
	Components struct {
		Schemas map[string]Schema `json:"schemas"`
	} `json:"components"`
}

// Schema is one of the description.
type Schema struct {
	Ref                  string            `json:"$ref"`
	Type                 string            `json:"type"`
	Format               string            `json:"format"`
	Enum                 []string          `json:"enum"`
	Required             []string          `json:"required"`
	Properties           map[string]Schema `json:"properties"`
	Items                *Schema           `json:"items"`
	AdditionalProperties any               `json:"additionalProperties"`
}

// Read reads the description.
func Read(t testing.TB) *Document {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(testenv.Root(t), "docs", "agent-api.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	d := &Document{}
	if err := yaml.Unmarshal(raw, d); err != nil {
		t.Fatal(err)
	}
	return d
}

// Routes are the operations of the paths below a prefix, as Go writes them:
// "GET /v1/info", sorted.
func (d *Document) Routes(prefix string) []string {
	var list []string
	for path, methods := range d.Paths {
		for method := range methods {
			if method != "parameters" && strings.HasPrefix(path, prefix) {
				list = append(list, strings.ToUpper(method)+" "+path)
			}
		}
	}
	slices.Sort(list)
	return list
}
