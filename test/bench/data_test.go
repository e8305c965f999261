// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"compress/flate"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Two runs of one scale see the same bytes; a change is the same, too, and small.
func TestDataIsDeterministic(t *testing.T) {
	for _, d := range dataSets(0.001) {
		t.Run(d.name, func(t *testing.T) {
			one, two := filepath.Join(t.TempDir(), "one"), filepath.Join(t.TempDir(), "two")
			size, err := d.make(one)
			must(t, err)
			again, err := d.make(two)
			must(t, err)
			must(t, sameTree(one, two))
			if stored, err := sizeOf(one); err != nil || stored != size || again != size {
				t.Errorf("size %d, again %d, on disk %d, %v", size, again, stored, err)
			}
			must(t, d.change(one))
			if sameTree(one, two) == nil {
				t.Error("nothing changed")
			}
			if changed := differing(t, one, two); changed == 0 || changed > size/50 {
				t.Errorf("%d bytes of %d changed", changed, size)
			}
			must(t, d.change(two))
			must(t, sameTree(one, two))
		})
	}
}

// differing counts the bytes that differ between files of the same names and sizes.
func differing(t *testing.T, one, two string) (n int64) {
	t.Helper()
	must(t, filepath.WalkDir(one, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(one, path)
		must(t, err)
		a, err := os.ReadFile(path)
		must(t, err)
		b, err := os.ReadFile(filepath.Join(two, rel))
		must(t, err)
		if len(a) != len(b) {
			t.Fatalf("%s is %d bytes and %d bytes long", rel, len(a), len(b))
		}
		for i := range a {
			if a[i] != b[i] {
				n++
			}
		}
		return nil
	}))
	return n
}

// What is called compressible is, and what is not is not.
func TestDataCompresses(t *testing.T) {
	for _, d := range dataSets(0.001) {
		dir := t.TempDir()
		_, err := d.make(dir)
		must(t, err)
		raw, err := os.ReadFile(filepath.Join(dir, d.file(0)))
		must(t, err)
		var packed bytes.Buffer
		w, err := flate.NewWriter(&packed, flate.BestSpeed)
		must(t, err)
		_, err = w.Write(raw)
		must(t, err)
		must(t, w.Close())
		if small := packed.Len() < len(raw)/2; small != d.text {
			t.Errorf("%s: %d bytes become %d", d.name, len(raw), packed.Len())
		}
	}
}

func TestSameTree(t *testing.T) {
	for name, change := range map[string]func(dir string) error{
		"another byte":      func(dir string) error { return os.WriteFile(filepath.Join(dir, "sub", "f"), []byte("12x"), 0o600) },
		"shorter":           func(dir string) error { return os.WriteFile(filepath.Join(dir, "sub", "f"), []byte("12"), 0o600) },
		"longer":            func(dir string) error { return os.WriteFile(filepath.Join(dir, "sub", "f"), []byte("1234"), 0o600) },
		"missing":           func(dir string) error { return os.Remove(filepath.Join(dir, "sub", "f")) },
		"one more":          func(dir string) error { return os.WriteFile(filepath.Join(dir, "g"), nil, 0o600) },
		"one more, a link":  func(dir string) error { return os.Symlink("sub", filepath.Join(dir, "g")) },
		"a file for a link": func(dir string) error { return replace(filepath.Join(dir, "l")) },
	} {
		t.Run(name, func(t *testing.T) {
			var dirs []string
			for range 2 {
				dir := t.TempDir()
				must(t, os.Mkdir(filepath.Join(dir, "sub"), 0o755))
				must(t, os.WriteFile(filepath.Join(dir, "sub", "f"), []byte("123"), 0o600))
				must(t, os.Symlink(filepath.Join("sub", "f"), filepath.Join(dir, "l")))
				dirs = append(dirs, dir)
			}
			must(t, sameTree(dirs[0], dirs[1]))
			must(t, change(dirs[1]))
			if sameTree(dirs[0], dirs[1]) == nil {
				t.Error("no difference was found")
			}
		})
	}
}

func replace(link string) error {
	if err := os.Remove(link); err != nil {
		return err
	}
	return os.WriteFile(link, []byte("123"), 0o600)
}

func TestCPUIn(t *testing.T) {
	const stat = "42 (a ) b (c)) S 1 42 42 0 -1 4194560 100 200 0 0 3 4 50 600 20 0 12 0 100 200 300"
	if got, err := cpuIn(stat); err != nil || got != 657*10*time.Millisecond {
		t.Errorf("%s, %v; expected 6.57 s", got, err)
	}
	for _, bad := range []string{"", "42 (x) S 1 2"} {
		if got, err := cpuIn(bad); err == nil {
			t.Errorf("%q gives %s", bad, got)
		}
	}
}
