// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
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
	// Xattrs are the extended attributes, ACLs included, but not a node's own labels.
	Xattrs string
	// SameAs is the first of several names of one file.
	SameAs string
	// Device of a device node.
	Device uint64
}

// Tree reads a file tree; the root's own entry is ".".
func Tree(t testing.TB, root string) map[string]Entry {
	t.Helper()
	tree := map[string]Entry{}
	inodes := map[uint64]string{}
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
		case info.Mode()&fs.ModeDevice != 0:
			e.Device = stat.Rdev
		case info.Mode().IsRegular():
			if stat.Nlink > 1 {
				if _, known := inodes[stat.Ino]; !known {
					inodes[stat.Ino] = rel
				}
				e.SameAs = inodes[stat.Ino]
			}
			e.Size = info.Size()
			var content []byte
			content, err = os.ReadFile(path)
			sum := sha256.Sum256(content)
			e.SHA256 = hex.EncodeToString(sum[:])
		}
		if err == nil {
			e.Xattrs, err = xattrs(path)
		}
		tree[rel] = e
		return err
	}))
	return tree
}

// xattrs renders the extended attributes of an entry, sorted.
func xattrs(path string) (string, error) {
	buffer := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buffer)
	if err != nil {
		if errors.Is(err, unix.ENOTSUP) {
			return "", nil
		}
		return "", fmt.Errorf("list attributes of %s: %w", path, err)
	}
	var out []string
	for _, name := range strings.Split(strings.TrimRight(string(buffer[:n]), "\x00"), "\x00") {
		if name == "" || name == "security.selinux" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return "", fmt.Errorf("read attribute %s of %s: %w", name, path, err)
		}
		out = append(out, fmt.Sprintf("%s=%x", name, value[:n]))
	}
	slices.Sort(out)
	return strings.Join(out, " "), nil
}

// ACL renders a POSIX ACL as the kernel keeps it: the owner's, the group's, the
// mask's and the others' permissions, and those of one more user.
func ACL(owner, group, mask, other uint16, user uint32, permissions uint16) []byte {
	value := binary.LittleEndian.AppendUint32(nil, 2)
	add := func(tag, permissions uint16, id uint32) {
		value = binary.LittleEndian.AppendUint16(value, tag)
		value = binary.LittleEndian.AppendUint16(value, permissions)
		value = binary.LittleEndian.AppendUint32(value, id)
	}
	const nobody = 1<<32 - 1
	add(0x01, owner, nobody)
	add(0x02, permissions, user)
	add(0x04, group, nobody)
	add(0x10, mask, nobody)
	add(0x20, other, nobody)
	return value
}

// capability renders the file capability net_bind_service, permitted and effective, as
// the kernel keeps it.
func capability() []byte {
	const version2, effective, netBindService = 0x02000000, 1, 1 << 10
	value := binary.LittleEndian.AppendUint32(nil, version2|effective)
	value = binary.LittleEndian.AppendUint32(value, netBindService)
	return append(value, make([]byte, 12)...)
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
	write("dir-\xff/in-\xfe", "bytes", 0o644)
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
	for name, target := range map[string]string{"link": "plain.txt", "dangling": "../nowhere", "dirlink": "dir", "odd link": "not-utf8-\xff\xfe"} {
		path := filepath.Join(root, name)
		must(t, os.Symlink(target, path))
		spec, err := unix.TimeToTimespec(at)
		must(t, err)
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{spec, spec}, unix.AT_SYMLINK_NOFOLLOW))
	}
	// What Kopia itself does not keep.
	must(t, os.Link(filepath.Join(root, "plain.txt"), filepath.Join(root, "dir", "hard link")))
	must(t, os.Link(filepath.Join(root, "plain.txt"), filepath.Join(root, "many", "hard-\xff")))
	for name, kind := range map[string]uint32{"dir/pipe": unix.S_IFIFO, "socket": unix.S_IFSOCK, "many/closed": unix.S_IFIFO} {
		path := filepath.Join(root, name)
		must(t, unix.Mknod(path, kind, 0))
		must(t, os.Chmod(path, 0o640))
		if name == "many/closed" {
			must(t, os.Chmod(path, 0))
		}
		must(t, os.Chtimes(path, at, at))
	}
	for name, attributes := range map[string]map[string]string{
		"plain.txt": {"user.comment": "kept\x00whole", "user.empty": "", "user.not-utf8-\xff": "\xfe"},
		"dir-\xff":  {"user.of-\xff": "yes"},
		"dir":       {"user.of-a-directory": "yes", "system.posix_acl_default": string(ACL(7, 5, 7, 0, 1234, 6))},
		"locked":    {"user.big": strings.Repeat("x", 2000)},
		"many/07":   {"system.posix_acl_access": string(ACL(6, 4, 6, 4, 4321, 6))},
	} {
		for attribute, value := range attributes {
			must(t, unix.Lsetxattr(filepath.Join(root, name), attribute, []byte(value), 0))
		}
	}
	write("before 1970", "old", 0o644)
	old := time.Date(1931, 7, 1, 0, 0, 0, 987654321, time.UTC)
	must(t, os.Chtimes(filepath.Join(root, "before 1970"), old, old))
	must(t, os.Mkdir(filepath.Join(root, "sticky"), 0o755))
	must(t, os.Chmod(filepath.Join(root, "sticky"), fs.ModeSticky|0o777))
	if os.Getuid() == 0 {
		write("capable", "may bind to low ports", 0o755)
		must(t, unix.Lsetxattr(filepath.Join(root, "capable"), "security.capability", capability(), 0))
		must(t, os.Chtimes(filepath.Join(root, "capable"), at, at))
		must(t, os.Lchown(filepath.Join(root, "plain.txt"), 1234, 4321))
		must(t, os.Lchown(filepath.Join(root, "link"), 1234, 4321))
		must(t, os.Lchown(filepath.Join(root, "dir"), 77, 88))
	}
	for _, dir := range []string{"sticky", "dir-\xff", "many", "dir/deep/er", "dir/deep", "dir", "empty-dir", "private", "."} {
		must(t, os.Chtimes(filepath.Join(root, dir), at, at.Add(time.Second)))
	}
}
