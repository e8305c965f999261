// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
	"unsafe"

	kopiafs "github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/snapshot"
	"golang.org/x/sys/unix"
)

// capability is the attribute that holds the capabilities of a program.
const capability = "security.capability"

// kept says what an entry may get after its owner was set.
type kept struct{ owner bool }

// of is the mode that an entry gets: bits that lend the owner's rights are never
// those of another one.
func (k kept) of(p snapshot.Permissions) fs.FileMode {
	mode := fs.FileMode(p) & kopiafs.ModBits
	if !k.owner {
		mode &^= fs.ModeSetuid | fs.ModeSetgid
	}
	return mode
}

// lends says whether a file has the bits of a mode that lend its owner's or group's
// rights. Where the group is none of ours, chmod and an ACL drop setgid without an error.
func lends(mode fs.FileMode, stat func() (fs.FileInfo, error)) bool {
	const lending = fs.ModeSetuid | fs.ModeSetgid
	if mode&lending == 0 {
		return true
	}
	info, err := stat()
	return err == nil && info.Mode()&lending == mode&lending
}

// owner sets the owner as far as the uid allows.
func (w *restorer) owner(where string, uid, gid uint32, stat func() (fs.FileInfo, error), chown func(uid, gid int) error) (kept, error) {
	info, err := stat()
	if err != nil {
		return kept{}, fmt.Errorf("set owner of /%s: %w", where, err)
	}
	if u, g := ownerOf(info); u == uid && g == gid {
		return kept{owner: true}, nil
	}
	// To the kernel this number means: leave it as it is.
	if uid == math.MaxUint32 || gid == math.MaxUint32 {
		err = fs.ErrPermission
	} else {
		err = chown(int(uid), int(gid))
	}
	switch {
	case err == nil:
		return kept{owner: true}, nil
	case !errors.Is(err, fs.ErrPermission):
		return kept{}, fmt.Errorf("set owner of /%s: %w", where, err)
	}
	w.notKept.add("owner", where)
	if gid != math.MaxUint32 {
		_ = chown(-1, int(gid)) // its group, if we are of it: what it may read, it still may
	}
	return kept{}, nil
}

// xattrs sets the chosen extended attributes of a file that has some.
func (w *restorer) xattrs(at xattrHolder, where string, have []string, want []xattr, k kept, chosen func(name string) bool) {
	all := len(want)
	if !k.owner && chosen(capability) {
		// Capabilities lend rights like a setuid bit.
		want = slices.DeleteFunc(slices.Clone(want), func(x xattr) bool { return x.Name == capability })
	}
	if failed := setXattrs(at, have, want, chosen); len(failed) > 0 || len(want) < all {
		w.notKept.add("extended attribute", where)
	}
}

// timeAt sets the time of a link or a special file, which cannot be opened.
func (w *restorer) timeAt(f *folder, name, where string, modTime time.Time) {
	times, err := timespecs(modTime)
	if err == nil {
		err = unix.UtimesNanoAt(int(f.self.Fd()), name, times, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		w.notKept.add("time", where)
	}
}

func timespecs(modTime time.Time) ([]unix.Timespec, error) {
	spec, err := unix.TimeToTimespec(modTime)
	return []unix.Timespec{spec, spec}, err
}

// fileAttributes sets owner, extended attributes, mode, ACLs and time of an open
// file or directory, in this order: a change of owner clears setuid bits and
// capabilities, a file without write permission takes no attributes, an ACL refines
// the mode, and any change touches the time.
func (w *restorer) fileAttributes(f *os.File, where string, e *snapshot.DirEntry, xattrs []xattr) error {
	k, err := w.owner(where, e.UserID, e.GroupID, f.Stat, f.Chown)
	if err != nil {
		return err
	}
	attributes := openFile(f.Fd())
	have, _ := listXattrs(attributes) // an error: nothing can be removed
	w.xattrs(attributes, where, have, xattrs, k, notACL)
	mode := k.of(e.Permissions)
	err = f.Chmod(mode)
	if err != nil && !errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("set mode of /%s: %w", where, err)
	}
	w.xattrs(attributes, where, have, xattrs, k, isACL)
	if err != nil || mode != fs.FileMode(e.Permissions)&kopiafs.ModBits || !lends(mode, f.Stat) {
		w.notKept.add("mode", where)
	}
	times, err := timespecs(e.ModTime.ToTime())
	if err != nil {
		return fmt.Errorf("set time of /%s: %w", where, err)
	}
	// futimens: there is no path that could have changed.
	if _, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, f.Fd(), 0, uintptr(unsafe.Pointer(&times[0])), 0, 0, 0); errno != 0 {
		w.notKept.add("time", where)
	}
	return nil
}

// notKept counts what could not be set, by kind, with the first paths.
type notKept struct {
	mu    sync.Mutex
	first map[string][]string
	count map[string]int
	all   *set // of kinds and paths, if somebody asks for them afterwards
	more  bool // than all can hold
}

func (n *notKept) add(kind, path string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.count == nil {
		n.count, n.first = map[string]int{}, map[string][]string{}
	}
	n.count[kind]++
	n.remember(kind, path)
	if first := n.first[kind]; len(first) < 3 && !slices.Contains(first, "/"+path) {
		n.first[kind] = append(first, "/"+path)
	}
}

// alike says that another name of a file lacks what its first one lacks. It is counted
// once: it is one file.
func (n *notKept) alike(first, other string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, kind := range kinds {
		if n.all != nil && n.all.has(kind+" "+first) {
			n.remember(kind, other)
		}
	}
}

// remember keeps a path for those who ask afterwards. The lock is held.
func (n *notKept) remember(kind, path string) {
	if n.all != nil {
		_, full := n.all.add(kind + " " + path)
		n.more = n.more || full
	}
}

// kinds of what may not be kept.
var kinds = []string{"owner", "mode", "time", "extended attribute", "hard link", "special file", "content"}

// has says whether something could not be set, or whether that is not known any more.
func (n *notKept) has(kind, path string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.all != nil && (n.all.has(kind+" "+path) || n.more && n.count[kind] > 0)
}

func (n *notKept) lines() []string { return n.told("set") }

// told says what could not be done to the entries.
func (n *notKept) told(done string) []string {
	var out []string
	for _, kind := range kinds {
		if n.count[kind] == 0 {
			continue
		}
		out = append(out, fmt.Sprintf("%s of %d entries could not be %s by uid %d, first: %s", kind, n.count[kind], done, os.Getuid(), strings.Join(n.first[kind], ", ")))
	}
	return out
}
