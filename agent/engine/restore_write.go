// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"sync"

	kopiafs "github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/snapshot"
	"golang.org/x/sys/unix"

	"github.com/kanister-kopia/kanister-kopia/agent/contents"
)

// tempPrefix begins the names of files under way, and of a restore's own mark.
const tempPrefix = ".kopia-restore-"

func (w *restorer) tempName() string {
	return fmt.Sprintf("%s%s-%d", tempPrefix, w.token, w.temp.Add(1))
}

// link is a file with more than one name. The first who wants it writes it, the
// others wait and link to it.
type link struct {
	mu   sync.Mutex
	info fs.FileInfo // nil: it was not written yet
	path string      // in the volume
}

// file restores a file, or a further name of one that was restored already.
func (w *restorer) file(ctx context.Context, j fileJob) error {
	f, name, file := j.folder, j.name, j.extra.file(j.entry)
	if file == "" {
		return w.writeFile(ctx, j)
	}
	w.mu.Lock()
	l := w.links[file]
	if l == nil {
		l = &link{}
		w.links[file] = l
	}
	w.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	where := path.Join(f.path, name)
	if l.info == nil {
		if err := w.writeFile(ctx, j); err != nil {
			return err
		}
		info, err := f.root.Lstat(name)
		if err != nil {
			return fmt.Errorf("make /%s: %w", where, err)
		}
		l.info, l.path = info, where
		return nil
	}
	if there, err := f.root.Lstat(name); err != nil || !os.SameFile(l.info, there) {
		temp := w.tempName()
		if err := w.link(l, f, temp); err != nil {
			// Not every file system has hard links; the content is what counts.
			w.notKept.add("hard link", where)
			return w.writeFile(ctx, j)
		}
		if err := w.place(f, temp, name); err != nil {
			return err
		}
	}
	w.notKept.alike(l.path, where)
	w.hardLinks.Add(1)
	w.files.Add(1)
	w.progress.files.Add(1)
	return nil
}

// link makes another name of a file that was restored, in an open folder. The file is
// found by its path, and may be another one by now: that is not linked to.
func (w *restorer) link(l *link, f *folder, name string) error {
	first, err := w.volume.OpenFile(l.path, unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer first.Close()
	now, err := first.Stat()
	if err != nil {
		return err
	}
	if !os.SameFile(l.info, now) {
		return errors.New("it was replaced meanwhile")
	}
	return unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", first.Fd()), int(f.self.Fd()), name, unix.AT_SYMLINK_FOLLOW)
}

// writeFile writes a file beside its place and renames it there when complete, so
// that nobody sees half of one and a link in its place is replaced, not followed.
func (w *restorer) writeFile(ctx context.Context, j fileJob) (err error) {
	f, e := j.folder, j.entry
	where := path.Join(f.path, j.name)
	if j.there {
		w.resumed.Add(1)
		w.files.Add(1)
		w.progress.files.Add(1)
		w.progress.bytes.Add(e.FileSize)
		return nil
	}
	defer w.bound(e.FileSize)()
	content, done, err := w.open(ctx, j)
	if err != nil {
		return fmt.Errorf("read %s from the backup: %w", where, err)
	}
	defer done()
	temp := w.tempName()
	out, err := f.create(temp)
	if err != nil {
		return fmt.Errorf("make /%s: %w", where, err)
	}
	defer func() {
		if err != nil {
			_ = f.root.Remove(temp)
		}
	}()
	err = w.copy(ctx, out, content, e.FileSize)
	if err != nil {
		err = fmt.Errorf("write /%s: %w", where, err)
	} else {
		err = w.fileAttributes(out, where, e, j.extra.Xattrs)
	}
	if closeErr := out.Close(); err == nil && closeErr != nil {
		err = fmt.Errorf("write /%s: %w", where, closeErr)
	}
	if err != nil {
		return err
	}
	if err := w.place(f, temp, j.name); err != nil {
		return err
	}
	w.files.Add(1)
	w.progress.files.Add(1)
	return nil
}

// create makes a file that nobody else has. It is what os.Root does for a name without
// slashes, without trying for each file whether it can be polled, which no file can.
func (f *folder) create(temp string) (*os.File, error) {
	for {
		fd, err := unix.Openat(int(f.self.Fd()), temp, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, &fs.PathError{Op: "openat", Path: temp, Err: err}
		}
		return os.NewFile(uintptr(fd), temp), nil
	}
}

// rename is of one name of the folder to another. As with create, it is what os.Root does.
func (f *folder) rename(from, to string) error {
	if err := unix.Renameat(int(f.self.Fd()), from, int(f.self.Fd()), to); err != nil {
		return &os.LinkError{Op: "renameat", Old: from, New: to, Err: err}
	}
	return nil
}

// bound waits until a file may be read. The others end whatever happens, so it does too.
func (w *restorer) bound(size int64) (done func()) {
	if size <= largeFile {
		return func() {}
	}
	w.large <- struct{}{}
	return func() { <-w.large }
}

// copy writes the content and leaves holes where there are only zeros.
func (w *restorer) copy(ctx context.Context, out *os.File, content pieces, size int64) error {
	var written, end int64 // end: of what is on the volume
	for piece, err := range content {
		if err != nil {
			return fmt.Errorf("read from the backup: %w", err)
		}
		for len(piece) > 0 {
			// Holes have the same borders however the content was cut into pieces.
			n := min(int64(len(piece)), pieceBytes-written%pieceBytes)
			if err := w.put(ctx, out, piece[:n], written, &end); err != nil {
				return err
			}
			written += n
			piece = piece[n:]
		}
	}
	if written != size {
		return fmt.Errorf("the backup gave %d bytes of %d", written, size)
	}
	if end == size {
		return nil
	}
	return out.Truncate(size) // a hole at its end
}

func (w *restorer) put(ctx context.Context, out *os.File, data []byte, at int64, end *int64) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if !contents.AllZero(data) { // zeros are next to nothing on the way, and nothing is written
		if err := w.limit.wait(len(data)); err != nil {
			return err
		}
		if _, err := out.WriteAt(data, at); err != nil {
			return err
		}
		*end = at + int64(len(data))
		w.progress.downloaded.Add(int64(len(data)))
	}
	w.progress.bytes.Add(int64(len(data)))
	return nil
}

// linkTarget reads where a link of the backup leads.
func (w *restorer) linkTarget(ctx context.Context, where string, e *snapshot.DirEntry) (string, error) {
	reader, err := w.rep.OpenObject(ctx, e.ObjectID)
	if err != nil {
		return "", fmt.Errorf("read link %s from the backup: %w", where, err)
	}
	defer reader.Close()
	target, err := io.ReadAll(io.LimitReader(reader, pathMax))
	if err != nil {
		return "", fmt.Errorf("read link %s from the backup: %w", where, err)
	}
	return string(target), nil
}

func (w *restorer) symlink(ctx context.Context, f *folder, name string, e *snapshot.DirEntry) error {
	where := path.Join(f.path, name)
	defer w.progress.entries.Add(1)
	target, err := w.linkTarget(ctx, where, e)
	if err != nil {
		return err
	}
	temp := w.tempName()
	if err := f.root.Symlink(target, temp); err != nil {
		return fmt.Errorf("make link /%s: %w", where, err)
	}
	if _, err := w.owner(where, e.UserID, e.GroupID, func() (fs.FileInfo, error) { return f.root.Lstat(temp) },
		func(uid, gid int) error { return f.root.Lchown(temp, uid, gid) }); err != nil {
		return err
	}
	w.timeAt(f, temp, where, e.ModTime.ToTime())
	if err := w.place(f, temp, name); err != nil {
		return err
	}
	w.symlinks.Add(1)
	return nil
}

// specialFile makes a socket, a pipe or a device. Devices need a capability that no
// restricted pod has: they are told as not kept.
func (w *restorer) specialFile(f *folder, name string, x extra) error {
	s, where := x.Special, path.Join(f.path, name)
	defer w.progress.entries.Add(1)
	kind, known := specialKinds[s.Kind]
	if !known {
		return fmt.Errorf("restore /%s: special file of unknown kind %q in the snapshot", where, s.Kind)
	}
	temp := w.tempName()
	err := unix.Mknodat(int(f.self.Fd()), temp, kind|0o600, int(unix.Mkdev(s.Major, s.Minor)))
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EOPNOTSUPP) {
		w.notKept.add("special file", where)
		return nil
	}
	if err != nil {
		return fmt.Errorf("make /%s: %w", where, err)
	}
	stat := func() (fs.FileInfo, error) { return f.root.Lstat(temp) }
	owned, err := w.owner(where, s.UID, s.GID, stat,
		func(uid, gid int) error { return f.root.Lchown(temp, uid, gid) })
	if err != nil {
		return err
	}
	attributes := unopened(f.self.Fd(), temp)
	have, _ := listXattrs(attributes)
	w.xattrs(attributes, where, have, x.Xattrs, owned, notACL)
	mode := owned.of(s.Mode)
	err = f.root.Chmod(temp, mode)
	w.xattrs(attributes, where, have, x.Xattrs, owned, isACL)
	if err != nil || mode != fs.FileMode(s.Mode)&kopiafs.ModBits || !lends(mode, stat) {
		w.notKept.add("mode", where)
	}
	w.timeAt(f, temp, where, s.ModTime)
	if err := w.place(f, temp, name); err != nil {
		return err
	}
	w.special.Add(1)
	return nil
}

// place puts what was made as temp in the place of name.
func (w *restorer) place(f *folder, temp, name string) error {
	err := f.rename(temp, name)
	if err == nil {
		return nil
	}
	// Most likely a directory is in the way, which is rare: it is not asked for before.
	if info, statErr := f.root.Lstat(name); statErr == nil && info.IsDir() {
		if err := w.removeAll(f.root, name); err != nil {
			return fmt.Errorf("replace directory /%s: %w", path.Join(f.path, name), err)
		}
		err = f.rename(temp, name)
	}
	if err != nil {
		return fmt.Errorf("make /%s: %w", path.Join(f.path, name), err)
	}
	return nil
}
