// SPDX-License-Identifier: Apache-2.0

package function

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The reference has a section for each function, a row for each argument, and
// names tests that exist.
func TestReference(t *testing.T) {
	raw, err := os.ReadFile("../../docs/reference/functions.md")
	if err != nil {
		t.Fatal(err)
	}
	sources := testSources(t)
	sections := map[string]string{}
	for _, section := range strings.Split(string(raw), "\n## ")[1:] {
		name, text, _ := strings.Cut(section, "\n")
		sections[name] = text
	}
	registry := everything()
	for _, name := range registry.Names() {
		f, err := registry.Get(name)
		if err != nil {
			t.Fatal(err)
		}
		rows := map[string]string{}
		for line := range strings.Lines(sections[name]) {
			cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
			argument, ok := strings.CutPrefix(strings.TrimSpace(cells[0]), "`")
			if !ok || len(cells) != 4 {
				continue
			}
			argument = strings.TrimSuffix(argument, "`")
			rows[argument] = line
			if required := strings.TrimSpace(cells[1]) == "required"; required != slices.Contains(f.RequiredArgs(), argument) {
				t.Errorf("%s %s: the reference says required: %v", name, argument, required)
			}
			if strings.TrimSpace(cells[3]) == "" {
				t.Errorf("%s %s has no test", name, argument)
			}
			for test := range strings.SplitSeq(cells[3], ";") {
				checkTest(t, sources, strings.TrimSpace(test))
			}
		}
		if want, got := slices.Sorted(slices.Values(f.Arguments())), slices.Sorted(maps.Keys(rows)); !slices.Equal(want, got) {
			t.Errorf("%s: the reference has rows for\n%s, its arguments are\n%s", name, got, want)
		}
	}
	// Names in the text, too.
	for _, test := range regexp.MustCompile(`\bTest[A-Z][A-Za-z]+\b`).FindAllString(string(raw), -1) {
		checkTest(t, sources, test)
	}
}

// checkTest looks for a test: "TestX/part/part" or "e2e: what the spec says". The
// parts are names in the same file, or a function that is called for one.
func checkTest(t *testing.T, sources map[string]string, test string) {
	t.Helper()
	if spec, ok := strings.CutPrefix(test, "e2e: "); ok {
		for file, text := range sources {
			if strings.Contains(file, "e2e") && strings.Contains(text, `"`+spec+`"`) {
				return
			}
		}
		t.Errorf("no spec %q", spec)
		return
	}
	parts := strings.Split(test, "/")
	for file, text := range sources {
		if !strings.Contains(text, "func "+parts[0]+"(") {
			continue
		}
		for _, part := range parts[1:] {
			inPackage := false
			for other, text := range sources {
				inPackage = inPackage || filepath.Dir(other) == filepath.Dir(file) && strings.Contains(text, `"`+part+`"`)
			}
			if !inPackage {
				t.Errorf("%s: %s has no part %q", test, file, part)
			}
		}
		return
	}
	t.Errorf("no test %s", test)
}

func testSources(t *testing.T) map[string]string {
	t.Helper()
	sources := map[string]string{}
	for _, dir := range []string{".", "../mover", "../podspec", "../../repositoryserver", "../../test/e2e"} {
		files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no tests in %s: %v", dir, err)
		}
		for _, file := range files {
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			sources[file] = string(raw)
		}
	}
	return sources
}
