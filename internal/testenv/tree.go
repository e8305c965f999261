// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Entry is all that a restore must give back of one entry.
type Entry struct {
	Mode     fs.FileMode
	UID, GID uint32
	ModTime  time.Time
	Size     int64
	SHA256   string
	Link     string
}

// Tree reads a file tree; the root's own entry is ".".
func Tree(t testing.TB, root string) map[string]Entry {
	t.Helper()
	tree := map[string]Entry{}
	must(t, filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		stat := info.Sys().(*syscall.Stat_t)
		e := Entry{Mode: info.Mode(), UID: stat.Uid, GID: stat.Gid, ModTime: info.ModTime()}
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			e.Link, err = os.Readlink(path)
		case info.Mode().IsRegular():
			e.Size = info.Size()
			var content []byte
			content, err = os.ReadFile(path)
			sum := sha256.Sum256(content)
			e.SHA256 = hex.EncodeToString(sum[:])
		}
		tree[rel] = e
		return err
	}))
	return tree
}

// MakeTree fills a folder with what backups find hard: odd names, links, modes,
// owners, times, sparse and empty files.
func MakeTree(t testing.TB, root string) {
	t.Helper()
	at := time.Date(2024, 2, 29, 12, 34, 56, 123456789, time.UTC)
	write := func(name, content string, mode fs.FileMode) {
		path := filepath.Join(root, name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, []byte(content), 0o600))
		must(t, os.Chmod(path, mode))
		must(t, os.Chtimes(path, at, at))
	}
	write("plain.txt", "hello\n", 0o644)
	write("empty", "", 0o600)
	write("dir/script.sh", "#!/bin/sh\n", 0o755)
	write("dir/deep/er/file", strings.Repeat("0123456789", 5000), 0o640)
	write("dir/setuid", "s", fs.ModeSetuid|0o755)
	write("name with space\tand \"quotes\"", "odd", 0o644)
	write("not-utf8-\xff\xfe", "bytes", 0o644)
	write(strings.Repeat("n", 255), "long name", 0o644)
	write(".kopiaignore", "*\n", 0o644)
	write("private/secret", "s", 0o400)
	write("locked", "nobody may", 0)
	must(t, os.MkdirAll(filepath.Join(root, "empty-dir"), 0o755))
	must(t, os.Chmod(filepath.Join(root, "empty-dir"), fs.ModeSetgid|0o2770))
	must(t, os.Chmod(filepath.Join(root, "private"), 0o500))
	for i := range 50 {
		write(fmt.Sprintf("many/%02d", i), fmt.Sprint("file ", i), 0o644)
	}
	sparse, err := os.Create(filepath.Join(root, "sparse"))
	must(t, err)
	_, err = sparse.WriteAt([]byte("end"), 3<<20)
	must(t, err)
	must(t, sparse.Close())
	for name, target := range map[string]string{"link": "plain.txt", "dangling": "../nowhere", "dirlink": "dir"} {
		path := filepath.Join(root, name)
		must(t, os.Symlink(target, path))
		spec, err := unix.TimeToTimespec(at)
		must(t, err)
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{spec, spec}, unix.AT_SYMLINK_NOFOLLOW))
	}
	if os.Getuid() == 0 {
		must(t, os.Lchown(filepath.Join(root, "plain.txt"), 1234, 4321))
		must(t, os.Lchown(filepath.Join(root, "link"), 1234, 4321))
		must(t, os.Lchown(filepath.Join(root, "dir"), 77, 88))
	}
	for _, dir := range []string{"many", "dir/deep/er", "dir/deep", "dir", "empty-dir", "private", "."} {
		must(t, os.Chtimes(filepath.Join(root, dir), at, at.Add(time.Second)))
	}
}
