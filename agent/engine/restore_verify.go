// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"sync"
	"sync/atomic"
	"syscall"

	kopiafs "github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/snapshot"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

// comparer holds what is in a target against the backup. It writes nothing, and
// follows no link.
type comparer struct {
	*restorer
	links    map[string]linked // by extra.file, of files with more than one name
	verified atomic.Int64
	unread   notKept

	mu    sync.Mutex
	count int64
	first []string
}

// linked is the first name that was met of a file with several.
type linked struct {
	path string
	info fs.FileInfo
}

// verify compares the target with the backup and completes the result.
func (w *restorer) verify(ctx context.Context, target string, r api.RestoreRequest, entry *snapshot.DirEntry, x extra, result *api.RestoreResult) error {
	c := &comparer{restorer: w, links: map[string]linked{}}
	err := c.run(ctx, target, entry, x)
	switch {
	case ctx.Err() != nil:
		return &api.Problem{Code: api.CodeCancelled, Title: fmt.Sprintf("restore: cancelled while %s was compared with the backup", r.Path)}
	case err != nil:
		return err
	case c.count > 0:
		return &api.Problem{
			Code:    api.CodeDiffers,
			Title:   fmt.Sprintf("restore: %d of what is in %s differ from the backup", c.count, r.Path),
			Details: c.first,
			Hint:    "something else writes to the volume, or it does not keep what is written",
		}
	}
	result.Verified, result.Unverified = c.verified.Load(), c.unread.told("compared")
	return nil
}

func (c *comparer) run(ctx context.Context, target string, entry *snapshot.DirEntry, x extra) error {
	found, err := c.findTarget(target, false)
	if err != nil {
		return err
	}
	group, walkCtx := errgroup.WithContext(ctx)
	group.SetLimit(c.parallel)
	var own *snapshot.DirEntry
	if entry.Type == snapshot.EntryTypeDirectory {
		own = entry
	}
	top, err := newFolder(found, target, own)
	if err != nil {
		return err
	}
	if own != nil {
		err = c.folder(walkCtx, group, top)
	} else {
		err = c.found(walkCtx, group, top, entry, x)
	}
	err = c.done(top, err)
	return cmp.Or(group.Wait(), err)
}

// done ends one use of a folder.
func (c *comparer) done(f *folder, err error) error {
	return f.release(err, func(*folder) error { return nil })
}

// differs notes a difference, unless the restore has told that it could not do better.
func (c *comparer) differs(kind, where, format string, args ...any) {
	if c.notKept.has(kind, where) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count++
	if len(c.first) < namedPaths {
		c.first = append(c.first, "/"+where+": "+fmt.Sprintf(format, args...))
	}
}

func (c *comparer) same() {
	c.verified.Add(1)
	c.progress.verified.Add(1)
}

// folder compares a directory with all that is below it.
func (c *comparer) folder(ctx context.Context, group *errgroup.Group, f *folder) error {
	entries, kept, err := readEntries(ctx, c.rep, f.entry)
	if err != nil {
		return fmt.Errorf("compare /%s: %w", f.path, err)
	}
	info, err := f.self.Stat()
	if err != nil {
		return fmt.Errorf("compare /%s: %w", f.path, err)
	}
	c.attributes(f.path, info, f.entry, true)
	c.xattrsOf(f.path, openFile(f.self.Fd()), kept.Self)
	c.same()
	known, extra := map[string]bool{}, kept.byName()
	for _, e := range entries {
		if err := c.found(ctx, group, f, e, extra[e.Name]); err != nil {
			return err
		}
		if name, err := decodeName(e.Name); err == nil {
			known[name] = true
		}
	}
	for _, x := range kept.Entries {
		name, err := decodeName(x.Name)
		if err != nil {
			return fmt.Errorf("compare /%s: %w", f.path, err)
		}
		if x.Special != nil && !known[name] {
			known[name] = true
			c.special(f, name, x)
		}
	}
	if !c.deleteExtra {
		return nil
	}
	names, err := f.self.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("list /%s: %w", f.path, err)
	}
	for _, name := range names {
		if !known[name] && !(f.path == "." && name == lostAndFound) {
			c.differs("", path.Join(f.path, name), "the backup does not have it")
		}
	}
	return nil
}

// found compares an entry of a folder, if it is there at all.
func (c *comparer) found(ctx context.Context, group *errgroup.Group, f *folder, e *snapshot.DirEntry, x extra) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	name, err := decodeName(e.Name)
	if err != nil {
		return fmt.Errorf("compare /%s: %w", f.path, err)
	}
	where := path.Join(f.path, name)
	info, err := f.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		c.differs("", where, "is missing")
		return nil
	}
	if err != nil {
		return fmt.Errorf("compare /%s: %w", where, err)
	}
	want, known := map[snapshot.EntryType]fs.FileMode{
		snapshot.EntryTypeDirectory: fs.ModeDir, snapshot.EntryTypeFile: 0, snapshot.EntryTypeSymlink: fs.ModeSymlink,
	}[e.Type]
	switch {
	case !known:
		return fmt.Errorf("compare /%s: entry of unknown kind %q in the snapshot", where, e.Type)
	case info.Mode().Type() != want:
		c.differs("", where, "is %s, not %s", kindOf(info.Mode()), kindOf(want))
		return nil
	case e.Type == snapshot.EntryTypeDirectory:
		for up := f; up != nil; up = up.parent {
			if up.entry != nil && up.entry.ObjectID == e.ObjectID {
				return untrusted("restore: the snapshot's /%s holds itself", where)
			}
		}
		below, err := openFolder(f, where, e)
		if errors.Is(err, fs.ErrPermission) {
			c.unread.add("content", where)
			return nil
		}
		if err != nil {
			return err
		}
		return c.done(below, c.folder(ctx, group, below))
	case e.Type == snapshot.EntryTypeSymlink:
		c.attributes(where, info, e, false)
		return c.symlink(ctx, f, name, where, e)
	}
	c.attributes(where, info, e, true)
	c.xattrsOf(where, unopened(f.self.Fd(), name), x.Xattrs)
	if c.link(where, info, x.file(e)) {
		c.same()
		return nil // its content is that of its first name
	}
	if info.Size() != e.FileSize {
		c.differs("", where, "has %d bytes, not %d", info.Size(), e.FileSize)
		return nil
	}
	f.refs.Add(1)
	group.Go(func() error { return c.done(f, c.content(ctx, f, name, where, e)) })
	return nil
}

// attributes compares mode, owner and time.
func (c *comparer) attributes(where string, info fs.FileInfo, e *snapshot.DirEntry, hasMode bool) {
	if uid, gid := ownerOf(info); uid != e.UserID || gid != e.GroupID {
		c.differs("owner", where, "belongs to %d:%d, not %d:%d", uid, gid, e.UserID, e.GroupID)
	}
	if want := fs.FileMode(e.Permissions) & kopiafs.ModBits; hasMode && info.Mode()&kopiafs.ModBits != want {
		c.differs("mode", where, "has mode %v, not %v", info.Mode()&kopiafs.ModBits, want)
	}
	if !info.ModTime().Equal(e.ModTime.ToTime()) {
		c.differs("time", where, "was changed at %s, not %s", info.ModTime().UTC(), e.ModTime.ToTime().UTC())
	}
}

// xattrsOf compares extended attributes and ACLs.
func (c *comparer) xattrsOf(where string, at xattrHolder, want []xattr) {
	have, err := readXattrs(at)
	if err != nil {
		c.unread.add("extended attribute", where)
		return
	}
	if !sameXattrs(have, want) {
		c.differs("extended attribute", where, "has other extended attributes")
	}
}

// link compares which names are of one file, and says whether this is one of a file
// that was met before.
func (c *comparer) link(where string, info fs.FileInfo, file string) bool {
	if file == "" {
		if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Nlink > 1 {
			c.differs("hard link", where, "has %d names, not one", stat.Nlink)
		}
		return false
	}
	first, known := c.links[file]
	switch {
	case !known:
		c.links[file] = linked{where, info}
		return false
	case os.SameFile(first.info, info):
		return true
	}
	c.differs("hard link", where, "is not the same file as /%s", first.path)
	return false
}

func (c *comparer) symlink(ctx context.Context, f *folder, name, where string, e *snapshot.DirEntry) error {
	want, err := c.linkTarget(ctx, where, e)
	if err != nil {
		return err
	}
	have, err := f.root.Readlink(name)
	if err != nil {
		return fmt.Errorf("compare /%s: %w", where, err)
	}
	if have != want {
		c.differs("", where, "leads to %q, not %q", have, want)
		return nil
	}
	c.same()
	return nil
}

// special compares a socket, pipe or device.
func (c *comparer) special(f *folder, name string, x extra) {
	where := path.Join(f.path, name)
	info, err := f.root.Lstat(name)
	if err != nil {
		c.differs("special file", where, "is missing")
		return
	}
	have := specialOf(info)
	if have == nil || have.Kind != x.Special.Kind || have.Major != x.Special.Major || have.Minor != x.Special.Minor {
		c.differs("special file", where, "is another kind of file")
		return
	}
	c.attributes(where, info, &snapshot.DirEntry{
		UserID: x.Special.UID, GroupID: x.Special.GID, Permissions: x.Special.Mode, ModTime: kopiafs.UTCTimestampFromTime(x.Special.ModTime),
	}, true)
	c.xattrsOf(where, unopened(f.self.Fd(), name), x.Xattrs)
	c.same()
}

// content compares a file's content, as the disk has it.
func (c *comparer) content(ctx context.Context, f *folder, name, where string, e *snapshot.DirEntry) error {
	file, err := f.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrPermission) {
		c.unread.add("content", where)
		return nil
	}
	if err != nil {
		return fmt.Errorf("compare /%s: %w", where, err)
	}
	defer file.Close()
	// What is only in memory is no proof.
	_ = unix.Fadvise(int(file.Fd()), 0, 0, unix.FADV_DONTNEED)
	defer c.bound(e.FileSize)()
	reader, err := c.rep.OpenObject(ctx, e.ObjectID)
	if err != nil {
		return fmt.Errorf("read %s from the backup: %w", where, err)
	}
	defer reader.Close()
	want, have := pieceBuffers.Get().(*[pieceBytes]byte), pieceBuffers.Get().(*[pieceBytes]byte)
	defer pieceBuffers.Put(want)
	defer pieceBuffers.Put(have)
	for at := int64(0); ; {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		n, err := io.ReadFull(reader, want[:])
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return fmt.Errorf("read %s from the backup: %w", where, err)
		}
		c.progress.downloaded.Add(int64(n))
		if err := c.limit.wait(n); err != nil {
			return err
		}
		m, readErr := io.ReadFull(file, have[:])
		if readErr != nil && readErr != io.EOF && readErr != io.ErrUnexpectedEOF {
			return fmt.Errorf("compare /%s: %w", where, readErr)
		}
		if n != m || !bytes.Equal(want[:n], have[:m]) {
			c.differs("", where, "has other content, in the %d bytes from %d", max(n, m), at)
			return nil
		}
		at += int64(n)
		if n < len(want) {
			break
		}
	}
	c.same()
	return nil
}
