// SPDX-License-Identifier: Apache-2.0

//go:build integration

package engine

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	kopiafs "github.com/kopia/kopia/fs"

	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// A file system may list a name twice that is removed and made again meanwhile. A
// directory that has a name twice cannot be restored.
func TestIntegrationSourceNamesOnce(t *testing.T) {
	base := t.TempDir()
	dir := filepath.Join(base, "volumes", "data")
	must(t, os.MkdirAll(dir, 0o755))
	testenv.MountExt4(t, dir, "-O", "^dir_index") // which lists in the order of its blocks
	var want []string
	for i := range 2000 {
		name := fmt.Sprintf("f%06d", i)
		must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
		want = append(want, name)
	}
	volume, err := openVolume(filepath.Join(base, "volumes"), "data")
	must(t, err)
	defer volume.Close()
	s := newSource(volume, newThrottle(t.Context(), 0))
	s.batch = 500
	root, err := s.entry("/")
	must(t, err)
	list, err := root.(kopiafs.Directory).Iterate(t.Context())
	must(t, err)
	defer list.Close()
	var got []string
	for {
		e, err := list.Next(t.Context())
		must(t, err)
		if e == nil {
			break
		}
		if got = append(got, e.Name()); len(got) == s.batch {
			// The first of many have been listed. Others take their places, so that they come
			// last when they are made again.
			for i, name := range want[:s.batch] {
				must(t, os.Rename(filepath.Join(dir, name), filepath.Join(dir, fmt.Sprintf("g%06d", i))))
			}
			for _, name := range want[:s.batch] {
				must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
			}
		}
	}
	got = slices.DeleteFunc(got, func(name string) bool { return name[0] != 'f' })
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("%d names, %d of them different, want %d", len(got), len(slices.Compact(slices.Clone(got))), len(want))
	}
}
