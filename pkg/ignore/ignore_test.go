// SPDX-License-Identifier: Apache-2.0

package ignore

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// tree is what git and we are asked about; a name with a slash at its end is a directory.
var tree = []string{
	"a", "b.tmp", "keep.tmp", ".hidden", "!bang", "#hash", "space ", "star*", "[x]", "x1", "x2", "xy", `back\slash`,
	"cache/", "cache/a", "cache/deep/", "cache/deep/b.tmp", "dir/", "dir/cache/", "dir/cache/f", "dir/a", "dir/b.tmp", "dir/keep.tmp",
	"logs/", "logs/one.gz", "logs/2024/", "logs/2024/one.gz", "logs/2024/05/", "logs/2024/05/one.gz", "logs/2024/05/a", "dir/logs/", "dir/logs/one.gz",
	"file", "dir/file/", "dir/file/f",
}

// ignoredByUs walks the tree: what is below a directory that is left out is left out.
func ignoredByUs(r Rules) (out []string) {
	var gone []string
	for _, name := range tree {
		where, isDir := strings.CutSuffix(name, "/")
		below := slices.ContainsFunc(gone, func(dir string) bool { return strings.HasPrefix(where, dir+"/") })
		if below || r.Ignored(where, isDir) {
			out = append(out, where)
			if isDir {
				gone = append(gone, where)
			}
		}
	}
	slices.Sort(out)
	return out
}

// git is a repository with the tree.
func git(t testing.TB) string {
	dir := t.TempDir()
	run(t, dir, "", "init", "-q")
	for _, name := range tree {
		at := filepath.Join(dir, name)
		if strings.HasSuffix(name, "/") {
			must(t, os.MkdirAll(at, 0o755))
			continue
		}
		must(t, os.MkdirAll(filepath.Dir(at), 0o755))
		must(t, os.WriteFile(at, nil, 0o644))
	}
	return dir
}

func run(t testing.TB, dir, stdin string, args ...string) string {
	t.Helper()
	c := exec.Command("git", args...)
	c.Dir, c.Stdin = dir, strings.NewReader(stdin)
	c.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "GIT_DIR=", "GIT_CEILING_DIRECTORIES="+filepath.Dir(dir))
	c.Env = slices.DeleteFunc(c.Env, func(e string) bool { return strings.HasPrefix(e, "GIT_DIR") || strings.HasPrefix(e, "GIT_WORK_TREE") })
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil && c.ProcessState.ExitCode() != 1 { // 1: nothing is ignored
		t.Fatalf("git %v: %v: %s", args, err, stderr.String())
	}
	return string(out)
}

func ignoredByGit(t testing.TB, dir string, patterns []string) (out []string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(dir, ".git", "info", "exclude"), []byte(strings.Join(patterns, "\n")+"\n"), 0o644))
	names := strings.Builder{}
	for _, name := range tree {
		names.WriteString(strings.TrimSuffix(name, "/") + "\x00")
	}
	for name := range strings.SplitSeq(run(t, dir, names.String(), "check-ignore", "--no-index", "-z", "--stdin"), "\x00") {
		if name != "" {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// What is left out is what git leaves out.
func TestIgnoredAsByGit(t *testing.T) {
	dir := git(t)
	for _, patterns := range [][]string{
		{"*.tmp"}, {"*.tmp", "!keep.tmp"}, {"!keep.tmp", "*.tmp"}, {"cache"}, {"cache/"}, {"/cache"}, {"/cache/"}, {"dir/cache"}, {"cache/*"},
		{"cache/**"}, {"**/cache"}, {"**/cache/**"}, {"logs/**/*.gz"}, {"**/*.gz"}, {"logs/*.gz"}, {"logs/*/*.gz"}, {"/logs/**/05"}, {"**"}, {"*"}, {"/*"},
		{"*", "!a"}, {"*", "!dir", "!dir/a"}, {"*/"}, {"**/"}, {"file/"}, {"file"}, {"x?"}, {"x[0-9]"}, {"x[!0-9]"}, {"x[^1]"}, {`\!bang`}, {`\#hash`},
		{`space\ `}, {"space "}, {`star\*`}, {`\[x]`}, {`\[x\]`}, {"[[]x]"}, {`back\\slash`}, {".*"}, {"a**"}, {"**p"}, {"dir/**/a"}, {"logs/**/**/one.gz"},
		{"dir/", "!dir/a"}, {"nothing"}, {"logs/2024/**", "!logs/2024/05/"}, {"*.GZ"}, {"dir/**/"}, {`\*`}, {"[*]"}, {"x[1-]"}, {"?"},
	} {
		r, err := Parse(patterns)
		if err != nil {
			t.Logf("%q is refused: %v", patterns, err)
			if got := ignoredByGit(t, dir, patterns); len(got) > 0 && !strings.Contains(patterns[0], "-]") {
				t.Errorf("%q is refused: %v; git leaves out %q", patterns, err, got)
			}
			continue
		}
		if got, want := ignoredByUs(r), ignoredByGit(t, dir, patterns); !slices.Equal(got, want) {
			t.Errorf("%q leaves out\n %q, git\n %q", patterns, got, want)
		}
	}
}

// A pattern that is malformed is refused by its name.
func TestParseRefuses(t *testing.T) {
	for pattern, why := range map[string]string{
		"": "names nothing", "/": "names nothing", "!": "names nothing", "a[": `malformed at "a["`, "a/[b": `malformed at "[b"`, `a\`: "malformed",
		"a//b": "no path has", "../a": "no path has", "./a": "no path has", "a/..": "no path has", "[[:alpha:]]": "not known", "#a": "comment",
		"a\nb": "one line", "a\x00": "one line", strings.Repeat("a", maxLength+1): "longer", "[z-a": "malformed",
	} {
		_, err := Parse([]string{"fine", pattern})
		if err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%q: %v, want %q", pattern, err, why)
		}
	}
	if _, err := Parse(make([]string, maxPatterns+1)); err == nil {
		t.Error("any number of patterns is taken")
	}
}

func TestLines(t *testing.T) {
	got := Lines("# what can be made again\n\n*.tmp  \r\n/cache/\nspace\\ \n   \n!keep.tmp")
	if want := []string{"*.tmp", "/cache/", `space\ `, "!keep.tmp"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// FuzzParse: no pattern and no name is too much, and who takes a pattern takes it as
// it is written out again.
func FuzzParse(f *testing.F) {
	for _, p := range []string{"*.tmp", "a/**/b", "[!a]", `\!x`, "**/**/**", "!x/", "[[]", strings.Repeat("*a", 100), strings.Repeat("**/a/", 100)} {
		f.Add(p, "a/b/c.tmp")
	}
	f.Fuzz(func(t *testing.T, pattern, name string) {
		r, err := Parse(Lines(pattern))
		if err != nil {
			return
		}
		if !fs.ValidPath(name) {
			name = path.Join("a", strings.Repeat("b/", 50), "c")
		}
		file, dir := r.Ignored(name, false), r.Ignored(name, true)
		if file && !dir && !slices.ContainsFunc(r, func(x rule) bool { return x.negated }) {
			t.Errorf("%q leaves %q out as a file only", pattern, name)
		}
	})
}
