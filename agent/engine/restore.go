// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	kopiafs "github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

// pathMax is the longest a link may be on Linux, with its end.
const pathMax = 4096

// defaultParallel files are written at once: small files wait for the server, not for the disk.
const defaultParallel = 8

// restoreVolume writes the tree below a root object. It walks the tree itself
// instead of with Kopia's walker: a name from a snapshot is hostile until checked,
// and every write goes through an os.Root of the target.
func restoreVolume(ctx context.Context, conn *connection, req api.StartRequest, env Env, p *progress) (*api.Result, error) {
	r := req.Restore
	entry, err := rootEntry(ctx, conn.rep, *r)
	if err != nil {
		return nil, err
	}
	volume, err := openVolume(env.VolumesDir, r.Volume)
	if err != nil {
		return nil, err
	}
	defer volume.Close()
	w := &restorer{rep: conn.rep, volume: volume, progress: p, deleteExtra: r.DeleteExtra, token: rand.Text()}
	w.parallel = r.Parallel
	if w.parallel <= 0 {
		w.parallel = defaultParallel
	}
	if !path.IsAbs(r.Path) || path.Clean(r.Path) != r.Path {
		return nil, &api.Problem{Code: api.CodePathRefused, Title: fmt.Sprintf("restore: target %q is not absolute and clean", r.Path)}
	}
	if err := w.run(ctx, strings.TrimPrefix(r.Path, "/"), entry); err != nil {
		if ctx.Err() != nil {
			return nil, &api.Problem{
				Code:  api.CodeCancelled,
				Title: fmt.Sprintf("restore: cancelled; %s is incomplete", r.Path),
				Hint:  "restore again before the application uses it",
			}
		}
		return nil, err
	}
	return &api.Result{Restore: &api.RestoreResult{
		Files: w.files.Load(), Dirs: w.dirs.Load(), Symlinks: w.symlinks.Load(),
		Bytes: p.bytes.Load(), Deleted: w.deleted.Load(), NotKept: w.notKept.lines(),
	}}, nil
}

// rootEntry finds what is to be restored below the root object of the record.
func rootEntry(ctx context.Context, rep repo.Repository, r api.RestoreRequest) (*snapshot.DirEntry, error) {
	id, err := object.ParseID(r.RootObject)
	if err != nil {
		return nil, &api.Problem{Code: api.CodeBadRequest, Title: fmt.Sprintf("restore: root object %q: %v", r.RootObject, err)}
	}
	entry := &snapshot.DirEntry{
		Name: r.Root.Name, Type: snapshot.EntryTypeDirectory, ObjectID: id, FileSize: r.Root.Size,
		Permissions: snapshot.Permissions(r.Root.Mode), UserID: r.Root.UID, GroupID: r.Root.GID,
		ModTime: kopiafs.UTCTimestampFromTime(r.Root.ModTime),
	}
	if r.Root.File {
		entry.Type = snapshot.EntryTypeFile
	}
	if r.SubPath == "" {
		return entry, nil
	}
	for _, name := range strings.Split(r.SubPath, "/") {
		if err := checkName(name); err != nil {
			return nil, err
		}
		if entry.Type != snapshot.EntryTypeDirectory {
			return nil, notInBackup(r.SubPath)
		}
		children, err := readDirectory(ctx, rep, entry)
		if err != nil {
			return nil, fmt.Errorf("look for %s in the backup: %w", r.SubPath, err)
		}
		i := slices.IndexFunc(children, func(e *snapshot.DirEntry) bool { return e.Name == encodeName(name) })
		if i < 0 {
			return nil, notInBackup(r.SubPath)
		}
		entry = children[i]
	}
	return entry, nil
}

// directoryStream is what Kopia begins the object of a directory with.
const directoryStream = "kopia:directory"

// readDirectory reads the entries of a directory as they are stored. Kopia's own
// reader puts the newest time below a directory in the place of the directory's.
func readDirectory(ctx context.Context, rep repo.Repository, dir *snapshot.DirEntry) ([]*snapshot.DirEntry, error) {
	reader, err := rep.OpenObject(ctx, dir.ObjectID)
	if err != nil {
		return nil, fmt.Errorf("open directory %s: %w", dir.ObjectID, err)
	}
	defer reader.Close()
	var manifest snapshot.DirManifest
	if err := json.NewDecoder(reader).Decode(&manifest); err != nil {
		return nil, fmt.Errorf("read directory %s: %w", dir.ObjectID, err)
	}
	if manifest.StreamType != directoryStream {
		return nil, fmt.Errorf("read directory %s: it is %q", dir.ObjectID, manifest.StreamType)
	}
	return manifest.Entries, nil
}

func notInBackup(subPath string) error {
	return &api.Problem{
		Code:  api.CodePathNotFound,
		Title: fmt.Sprintf("restore: the backup has no %q", subPath),
		Hint:  "backupPath is the absolute path that was backed up, or one below it",
	}
}

// checkName refuses names that are not one plain component.
func checkName(name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return &api.Problem{
			Code:  api.CodePathRefused,
			Title: fmt.Sprintf("restore: the snapshot holds the name %q, which no file system makes; nothing of it is trusted", name),
		}
	}
	return nil
}

// restorer writes one tree into one volume.
type restorer struct {
	rep         repo.Repository
	volume      *os.Root
	progress    *progress
	parallel    int
	deleteExtra bool
	token       string // in the names of this restore's files under way

	files, dirs, symlinks, deleted atomic.Int64
	temp                           atomic.Int64
	notKept                        notKept

	mu       sync.Mutex
	finished []madeDir // in the order they were begun: parents before children
}

type madeDir struct {
	path  string
	entry *snapshot.DirEntry
}

func (w *restorer) run(ctx context.Context, target string, entry *snapshot.DirEntry) error {
	if err := w.makeTarget(target); err != nil {
		return err
	}
	if target == "" {
		target = "."
	}
	// The first failure stops the walk and the other writers.
	group, walkCtx := errgroup.WithContext(ctx)
	group.SetLimit(w.parallel)
	walk := w.entry
	if entry.Type == snapshot.EntryTypeDirectory {
		// What is below it lands in the target itself.
		walk = w.directory
	}
	walkErr := walk(walkCtx, group, target, entry)
	if err := group.Wait(); err != nil {
		return err
	}
	if err := cmp.Or(walkErr, ctx.Err()); err != nil {
		return err
	}
	// Children change their parent's time, so directories come last, deepest first.
	for i := len(w.finished) - 1; i >= 0; i-- {
		d := w.finished[i]
		if err := w.attributes(d.path, d.path, d.entry); err != nil {
			return err
		}
	}
	return w.sync()
}

// makeTarget makes the target directory. A link on the way is refused: what lies
// behind it was not named.
func (w *restorer) makeTarget(target string) error {
	walked := ""
	for _, name := range strings.Split(target, "/") {
		if name == "" {
			continue
		}
		walked = path.Join(walked, name)
		info, err := w.volume.Lstat(walked)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if err := w.volume.Mkdir(walked, 0o755); err != nil {
				return fmt.Errorf("make /%s: %w", walked, err)
			}
		case err != nil:
			return fmt.Errorf("open /%s: %w", walked, err)
		case !info.IsDir():
			return &api.Problem{Code: api.CodePathRefused, Title: fmt.Sprintf("restore: /%s on the volume is %s, not a directory", walked, kindOf(info))}
		}
	}
	return nil
}

func kindOf(info fs.FileInfo) string {
	if info.Mode()&fs.ModeSymlink != 0 {
		return "a symbolic link"
	}
	return "a file"
}

// directory restores what is below a directory that was made already.
func (w *restorer) directory(ctx context.Context, group *errgroup.Group, dirPath string, dir *snapshot.DirEntry) error {
	w.dirs.Add(1)
	w.mu.Lock()
	w.finished = append(w.finished, madeDir{dirPath, dir})
	w.mu.Unlock()
	entries, err := readDirectory(ctx, w.rep, dir)
	if err != nil {
		return fmt.Errorf("restore /%s: %w", dirPath, err)
	}
	names := map[string]bool{}
	for _, e := range entries {
		name, err := decodeName(e.Name)
		if err != nil {
			return fmt.Errorf("restore /%s: %w", dirPath, err)
		}
		names[name] = true
		if err := w.entry(ctx, group, dirPath, e); err != nil {
			return err
		}
	}
	return w.tidy(dirPath, names)
}

// entry restores one entry of a directory; files are written beside each other.
func (w *restorer) entry(ctx context.Context, group *errgroup.Group, dirPath string, e *snapshot.DirEntry) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	name, err := decodeName(e.Name)
	if err != nil {
		return err
	}
	name = path.Join(dirPath, name)
	switch e.Type {
	case snapshot.EntryTypeDirectory:
		if err := w.makeDirectory(name); err != nil {
			return err
		}
		return w.directory(ctx, group, name, e)
	case snapshot.EntryTypeFile:
		group.Go(func() error { return w.file(ctx, dirPath, name, e) })
		return nil
	case snapshot.EntryTypeSymlink:
		return w.symlink(ctx, dirPath, name, e)
	default:
		return fmt.Errorf("restore /%s: entry of unknown kind %q in the snapshot", name, e.Type)
	}
}

// makeDirectory makes a directory, in place of whatever else has its name: a link
// there is replaced, never followed.
func (w *restorer) makeDirectory(name string) error {
	info, err := w.volume.Lstat(name)
	if err == nil && info.IsDir() {
		// Writable while its children are written; its own mode comes at the end.
		if info.Mode().Perm()&0o700 != 0o700 {
			_ = w.volume.Chmod(name, info.Mode().Perm()|0o700)
		}
		return nil
	}
	if err == nil {
		if err := w.volume.Remove(name); err != nil {
			return fmt.Errorf("replace /%s: %w", name, err)
		}
	}
	if err := w.volume.Mkdir(name, 0o700); err != nil {
		return fmt.Errorf("make /%s: %w", name, err)
	}
	return nil
}

// file writes a file beside its place and renames it there when complete, so that
// nobody sees half of one and a link in its place is replaced, not followed.
func (w *restorer) file(ctx context.Context, dirPath, name string, e *snapshot.DirEntry) (err error) {
	reader, err := w.rep.OpenObject(ctx, e.ObjectID)
	if err != nil {
		return fmt.Errorf("read %s from the backup: %w", name, err)
	}
	defer reader.Close()
	temp := w.tempName(dirPath)
	out, err := w.volume.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("make /%s: %w", name, err)
	}
	defer func() {
		if err != nil {
			_ = w.volume.Remove(temp)
		}
	}()
	err = w.copy(ctx, out, reader, e.FileSize)
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("write /%s: %w", name, err)
	}
	if err := w.attributes(temp, name, e); err != nil {
		return err
	}
	if err := w.place(temp, name); err != nil {
		return err
	}
	w.files.Add(1)
	w.progress.files.Add(1)
	return nil
}

// copy writes the content and leaves holes where there are only zeros.
func (w *restorer) copy(ctx context.Context, out *os.File, in io.Reader, size int64) error {
	buffer := make([]byte, 128<<10)
	var written int64
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		n, readErr := io.ReadFull(in, buffer)
		if n > 0 {
			if !allZero(buffer[:n]) {
				if _, err := out.WriteAt(buffer[:n], written); err != nil {
					return err
				}
			}
			written += int64(n)
			w.progress.bytes.Add(int64(n))
			w.progress.downloaded.Add(int64(n))
		}
		if readErr == io.EOF || readErr == io.ErrUnexpectedEOF {
			break
		}
		if readErr != nil {
			return readErr
		}
	}
	if written != size {
		return fmt.Errorf("the backup gave %d bytes of %d", written, size)
	}
	return out.Truncate(size)
}

func allZero(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}

func (w *restorer) symlink(ctx context.Context, dirPath, name string, e *snapshot.DirEntry) error {
	reader, err := w.rep.OpenObject(ctx, e.ObjectID)
	if err != nil {
		return fmt.Errorf("read link %s from the backup: %w", name, err)
	}
	defer reader.Close()
	target, err := io.ReadAll(io.LimitReader(reader, pathMax))
	if err != nil {
		return fmt.Errorf("read link %s from the backup: %w", name, err)
	}
	temp := w.tempName(dirPath)
	if err := w.volume.Symlink(string(target), temp); err != nil {
		return fmt.Errorf("make link /%s: %w", name, err)
	}
	if err := w.attributes(temp, name, e); err != nil {
		return err
	}
	if err := w.place(temp, name); err != nil {
		return err
	}
	w.symlinks.Add(1)
	return nil
}

// tempPrefix begins the names of files under way.
const tempPrefix = ".kopia-restore-"

func (w *restorer) tempName(dirPath string) string {
	return path.Join(dirPath, fmt.Sprintf("%s%s-%d", tempPrefix, w.token, w.temp.Add(1)))
}

// place puts what was made as temp in the place of name.
func (w *restorer) place(temp, name string) error {
	if info, err := w.volume.Lstat(name); err == nil && info.IsDir() {
		if err := w.volume.RemoveAll(name); err != nil {
			return fmt.Errorf("replace directory /%s: %w", name, err)
		}
	}
	if err := w.volume.Rename(temp, name); err != nil {
		return fmt.Errorf("make /%s: %w", name, err)
	}
	return nil
}

// attributes sets owner, mode and time, in this order: a change of owner clears
// setuid bits, and any change touches the time. name is what is at the path for now.
func (w *restorer) attributes(at, name string, e *snapshot.DirEntry) error {
	modTime := e.ModTime.ToTime()
	info, err := w.volume.Lstat(at)
	if err != nil {
		return fmt.Errorf("set attributes of /%s: %w", name, err)
	}
	mode := os.FileMode(e.Permissions) & kopiafs.ModBits
	if uid, gid := ownerOf(info); uid != e.UserID || gid != e.GroupID {
		if err := w.volume.Lchown(at, int(e.UserID), int(e.GroupID)); err != nil {
			if !errors.Is(err, fs.ErrPermission) {
				return fmt.Errorf("set owner of /%s: %w", name, err)
			}
			w.notKept.add("owner", name)
			// These bits lend the owner's rights: never those of another one.
			if lent := mode & (fs.ModeSetuid | fs.ModeSetgid); lent != 0 {
				mode &^= lent
				w.notKept.add("mode", name)
			}
		}
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		return w.linkTime(at, name, modTime)
	}
	if err := w.volume.Chmod(at, mode); err != nil {
		if !errors.Is(err, fs.ErrPermission) {
			return fmt.Errorf("set mode of /%s: %w", name, err)
		}
		w.notKept.add("mode", name)
	}
	if err := w.volume.Chtimes(at, modTime, modTime); err != nil {
		if !errors.Is(err, fs.ErrPermission) {
			return fmt.Errorf("set time of /%s: %w", name, err)
		}
		w.notKept.add("time", name)
	}
	return nil
}

// linkTime sets the time of a link itself, which os.Root cannot.
func (w *restorer) linkTime(at, name string, modTime time.Time) error {
	dir, err := w.volume.OpenRoot(path.Dir(at))
	if err != nil {
		return fmt.Errorf("set time of /%s: %w", name, err)
	}
	defer dir.Close()
	self, err := dir.Open(".")
	if err != nil {
		return fmt.Errorf("set time of /%s: %w", name, err)
	}
	defer self.Close()
	spec, err := unix.TimeToTimespec(modTime)
	if err != nil {
		return fmt.Errorf("set time of /%s: %w", name, err)
	}
	if err := unix.UtimesNanoAt(int(self.Fd()), path.Base(at), []unix.Timespec{spec, spec}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		w.notKept.add("time", name)
	}
	return nil
}

// tidy removes what an earlier restore left when it was killed and, if it is to be,
// what the snapshot does not have.
func (w *restorer) tidy(dirPath string, keep map[string]bool) error {
	dir, err := w.volume.Open(dirPath)
	if err != nil {
		return fmt.Errorf("list /%s: %w", dirPath, err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("list /%s: %w", dirPath, err)
	}
	for _, name := range names {
		left := strings.HasPrefix(name, tempPrefix)
		switch {
		case keep[name], strings.HasPrefix(name, tempPrefix+w.token), dirPath == "." && name == lostAndFound, !left && !w.deleteExtra:
			continue
		}
		if err := w.volume.RemoveAll(path.Join(dirPath, name)); err != nil {
			return fmt.Errorf("remove /%s: %w", path.Join(dirPath, name), err)
		}
		if !left {
			w.deleted.Add(1)
		}
	}
	return nil
}

// sync makes what was written survive a crash of the node.
func (w *restorer) sync() error {
	dir, err := w.volume.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return fmt.Errorf("sync the volume: %w", err)
	}
	return nil
}

// notKept counts what could not be set, by kind, with the first paths.
type notKept struct {
	mu    sync.Mutex
	kinds map[string][]string
	count map[string]int
}

func (n *notKept) add(kind, path string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.count == nil {
		n.count, n.kinds = map[string]int{}, map[string][]string{}
	}
	n.count[kind]++
	if len(n.kinds[kind]) < 3 {
		n.kinds[kind] = append(n.kinds[kind], "/"+path)
	}
}

func (n *notKept) lines() []string {
	var out []string
	for _, kind := range []string{"owner", "mode", "time"} {
		if c := n.count[kind]; c > 0 {
			out = append(out, fmt.Sprintf("%s of %d entries could not be set by uid %d, first: %s", kind, c, os.Getuid(), strings.Join(n.kinds[kind], ", ")))
		}
	}
	return out
}
