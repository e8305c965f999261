// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// MountExt4 mounts a new ext4 of 64 MiB on a folder until the test ends; options are those
// of mkfs.ext4. It skips the test where nothing can be mounted.
func MountExt4(t testing.TB, folder string, options ...string) {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 64<<20))
	if out, err := exec.Command("mkfs.ext4", slices.Concat([]string{"-q", "-b", "4096"}, options, []string{image})...).CombinedOutput(); err != nil {
		Skip(t, "no ext4 file system can be made here: %v: %s", err, out)
	}
	if out, err := exec.Command("mount", "-o", "loop", image, folder).CombinedOutput(); err != nil {
		Skip(t, "no file system can be mounted here: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = unix.Unmount(folder, unix.MNT_DETACH) })
}
