// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Extended attributes that POSIX ACLs are kept in.
const (
	accessACL  = "system.posix_acl_access"
	defaultACL = "system.posix_acl_default"
)

// notOurs are attributes that belong to the node or to one inode, not to the data:
// the kubelet labels a volume for the pod that mounts it, and a seal over an inode's
// number is wrong on every other one.
var notOurs = []string{"security.selinux", "security.evm"}

// xattr is one extended attribute. Name is stored encoded (encodeName).
type xattr struct {
	Name  string `json:"name"`
	Value []byte `json:"value,omitempty"`
}

// xattrHolder is a file whose attributes are read or set.
type xattrHolder struct {
	list   func([]byte) (int, error)
	get    func(name string, value []byte) (int, error)
	set    func(name string, value []byte, flags int) error
	remove func(name string) error
}

// openFile holds the attributes of an open file or directory.
func openFile(fd uintptr) xattrHolder {
	f := int(fd)
	return xattrHolder{
		list:   func(b []byte) (int, error) { return unix.Flistxattr(f, b) },
		get:    func(name string, value []byte) (int, error) { return unix.Fgetxattr(f, name, value) },
		set:    func(name string, value []byte, flags int) error { return unix.Fsetxattr(f, name, value, flags) },
		remove: func(name string) error { return unix.Fremovexattr(f, name) },
	}
}

// unopened holds the attributes of an entry of an open directory. The kernel takes
// the first part of the path for the open directory itself, whatever its name is
// now; these calls do not follow a link in the second.
func unopened(dirFD uintptr, name string) xattrHolder {
	at := fmt.Sprintf("/proc/self/fd/%d/%s", dirFD, name)
	return xattrHolder{
		list:   func(b []byte) (int, error) { return unix.Llistxattr(at, b) },
		get:    func(name string, value []byte) (int, error) { return unix.Lgetxattr(at, name, value) },
		set:    func(name string, value []byte, flags int) error { return unix.Lsetxattr(at, name, value, flags) },
		remove: func(name string) error { return unix.Lremovexattr(at, name) },
	}
}

// grow calls a function that fills a buffer until the buffer is large enough.
func grow(fill func([]byte) (int, error)) ([]byte, error) {
	buffer := make([]byte, 256)
	for {
		n, err := fill(buffer)
		switch {
		case errors.Is(err, unix.ERANGE) && len(buffer) <= 1<<16:
			buffer = make([]byte, 4*len(buffer))
		case err != nil:
			return nil, err
		default:
			return buffer[:n], nil
		}
	}
}

// listXattrs names the extended attributes of a file, sorted. A file system that has none is not an error.
func listXattrs(at xattrHolder) ([]string, error) {
	raw, err := grow(at.list)
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ENOSYS) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list extended attributes: %w", err)
	}
	var names []string
	for _, name := range bytes.Split(raw, []byte{0}) {
		if s := string(name); s != "" && !slices.Contains(notOurs, s) {
			names = append(names, s)
		}
	}
	slices.Sort(names)
	return names, nil
}

// readXattrs reads the extended attributes of a file.
func readXattrs(at xattrHolder) ([]xattr, error) {
	names, err := listXattrs(at)
	if err != nil {
		return nil, err
	}
	var out []xattr
	for _, name := range names {
		value, err := grow(func(b []byte) (int, error) { return at.get(name, b) })
		if errors.Is(err, unix.ENODATA) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("read extended attribute %s: %w", name, err)
		}
		out = append(out, xattr{Name: encodeName(name), Value: value})
	}
	return out, nil
}

// sameXattrs says whether attributes are the same, in whatever order.
func sameXattrs(have, want []xattr) bool {
	sorted := func(all []xattr) []xattr {
		return slices.SortedFunc(slices.Values(all), func(a, b xattr) int { return strings.Compare(a.Name, b.Name) })
	}
	return slices.EqualFunc(sorted(have), sorted(want), func(a, b xattr) bool { return a.Name == b.Name && bytes.Equal(a.Value, b.Value) })
}

// isACL says whether an attribute must be set after the mode, which it refines.
func isACL(name string) bool  { return name == accessACL || name == defaultACL }
func notACL(name string) bool { return !isACL(name) }

// setXattrs makes the attributes of a file those of want for which chosen is true:
// others that it has are removed, a new file may have inherited some. It returns the
// names of those that could not be set or removed.
func setXattrs(at xattrHolder, have []string, want []xattr, chosen func(name string) bool) (failed []string) {
	keep := map[string]bool{}
	for _, x := range want {
		name, err := decodeName(x.Name)
		if err != nil || !strings.Contains(name, ".") || slices.Contains(notOurs, name) || !chosen(name) {
			continue
		}
		keep[name] = true
		if at.set(name, x.Value, 0) != nil {
			failed = append(failed, name)
		}
	}
	for _, name := range have {
		if !keep[name] && chosen(name) {
			if err := at.remove(name); err != nil && !errors.Is(err, unix.ENODATA) {
				failed = append(failed, name)
			}
		}
	}
	return failed
}
