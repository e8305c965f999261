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

	kopiafs "github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

// pathMax is the longest a link may be on Linux, with its end.
const pathMax = 4096

const (
	// defaultParallel files are written at once: small files wait for the server, not for the disk.
	defaultParallel = 32
	// Of large ones fewer: each has pieces of some MiB in memory. Kopia reads a piece of a
	// file when the last one is written; where the next one is asked for meanwhile, half as
	// many files keep both ends as busy.
	largeFile          = 1 << 20
	parallelLarge      = 4
	parallelLargeAhead = 2
)

// restoreVolume writes the tree below a root object. It walks the tree itself
// instead of with Kopia's walker: a name from a snapshot is hostile until checked,
// and every write goes through an os.Root of the target.
func restoreVolume(ctx context.Context, conn *connection, req api.StartRequest, env Env, p *progress, limit *throttle) (*api.Result, error) {
	r := req.Restore
	switch r.Verify {
	case "", api.VerifyAfter, api.VerifyOnly:
	default:
		return nil, &api.Problem{Code: api.CodeBadRequest, Title: fmt.Sprintf("restore: verify %q is neither %q nor %q", r.Verify, api.VerifyAfter, api.VerifyOnly)}
	}
	raw, err := findDevice(env.DevicesDir, r.Volume)
	switch {
	case err != nil:
		return nil, err
	case raw != "" && r.Verify != "":
		return nil, &api.Problem{Code: api.CodeUnsupported, Title: "restore: a device is not verified; leave verify out"}
	case raw != "":
		return restoreDevice(ctx, conn, raw, *r, p, limit)
	case r.Root.Device && !r.DeviceAsFile:
		return nil, deviceIsNoFile(*r)
	}
	entry, x, err := rootEntry(ctx, conn.objects, *r)
	if err != nil {
		return nil, err
	}
	volume, err := openVolume(env.VolumesDir, r.Volume)
	if err != nil {
		return nil, err
	}
	defer volume.Close()
	if !path.IsAbs(r.Path) || path.Clean(r.Path) != r.Path {
		return nil, &api.Problem{Code: api.CodePathRefused, Title: fmt.Sprintf("restore: target %q is not absolute and clean", r.Path)}
	}
	target := path.Join(".", r.Path)
	w := &restorer{
		rep: conn.objects, volume: volume, progress: p, limit: limit, deleteExtra: r.DeleteExtra,
		token: rand.Text(), large: make(chan struct{}, parallelLarge), links: map[string]*link{},
	}
	if ahead, ok := conn.objects.(asker); ok {
		w.ahead, w.large = ahead, make(chan struct{}, parallelLargeAhead)
	}
	if w.parallel = r.Parallel; w.parallel <= 0 {
		w.parallel = defaultParallel
	}
	if r.Verify == api.VerifyAfter {
		w.notKept.all = &set{}
	}
	result := &api.RestoreResult{}
	if r.Verify != api.VerifyOnly {
		if err := w.run(ctx, target, *r, entry, x); err != nil {
			if ctx.Err() != nil {
				return nil, &api.Problem{
					Code:  api.CodeCancelled,
					Title: fmt.Sprintf("restore: cancelled; %s is incomplete", r.Path),
					Hint:  "restore again before the application uses it",
				}
			}
			return nil, err
		}
		*result = api.RestoreResult{
			Files: w.files.Load(), Dirs: w.dirs.Load(), Symlinks: w.symlinks.Load(),
			Bytes: p.bytes.Load(), Deleted: w.deleted.Load(), NotKept: w.notKept.lines(),
			HardLinks: w.hardLinks.Load(), SpecialFiles: w.special.Load(), Resumed: w.resumed.Load(),
		}
	}
	if r.Verify != "" {
		if err := w.verify(ctx, target, *r, entry, x, result); err != nil {
			return nil, err
		}
	}
	return &api.Result{Restore: result}, nil
}

// rootEntry finds what is to be restored below the root object of the record, and its extra.
func rootEntry(ctx context.Context, rep objects, r api.RestoreRequest) (*snapshot.DirEntry, extra, error) {
	entry, err := storedRoot(r.RootObject, r.Root)
	if err != nil {
		return nil, extra{}, err
	}
	var x extra
	for _, attribute := range r.Root.Xattrs {
		x.Xattrs = append(x.Xattrs, xattr(attribute))
	}
	if r.SubPath == "" {
		return entry, x, nil
	}
	for _, name := range strings.Split(r.SubPath, "/") {
		if err := checkName(name); err != nil {
			return nil, extra{}, err
		}
		if entry.Type != snapshot.EntryTypeDirectory {
			return nil, extra{}, notInBackup(r.SubPath)
		}
		children, kept, err := readEntries(ctx, rep, entry)
		if err != nil {
			return nil, extra{}, fmt.Errorf("look for %s in the backup: %w", r.SubPath, err)
		}
		i := slices.IndexFunc(children, func(e *snapshot.DirEntry) bool { return e.Name == encodeName(name) })
		if i < 0 {
			return nil, extra{}, notInBackup(r.SubPath)
		}
		entry, x = children[i], kept.byName()[children[i].Name]
	}
	return entry, x, nil
}

// storedRoot is the entry that no directory holds: the root of a backup, as its record has it.
func storedRoot(rootObject string, r api.RootEntry) (*snapshot.DirEntry, error) {
	id, err := object.ParseID(rootObject)
	if err != nil {
		return nil, &api.Problem{Code: api.CodeBadRequest, Title: fmt.Sprintf("read backup: root object %q: %v", rootObject, err)}
	}
	entry := &snapshot.DirEntry{
		Name: r.Name, Type: snapshot.EntryTypeDirectory, ObjectID: id, FileSize: r.Size,
		Permissions: snapshot.Permissions(r.Mode), UserID: r.UID, GroupID: r.GID,
		ModTime: kopiafs.UTCTimestampFromTime(r.ModTime),
	}
	if r.File {
		entry.Type = snapshot.EntryTypeFile
	}
	return entry, nil
}

// directoryStream is what Kopia begins the object of a directory with.
const directoryStream = "kopia:directory"

// maxDirectory is far more than the entries of any one directory take: reading has an end.
const maxDirectory = 1 << 30

// readEntries reads the entries of a directory and what is kept beside them.
func readEntries(ctx context.Context, rep objects, dir *snapshot.DirEntry) ([]*snapshot.DirEntry, *extras, error) {
	entries, err := readDirectory(ctx, rep, dir)
	if err != nil {
		return nil, nil, err
	}
	return readExtras(ctx, rep, entries)
}

// readDirectory reads the entries of a directory as they are stored. Kopia's own
// reader puts the newest time below a directory in the place of the directory's.
func readDirectory(ctx context.Context, rep objects, dir *snapshot.DirEntry) ([]*snapshot.DirEntry, error) {
	reader, err := rep.OpenObject(ctx, dir.ObjectID)
	if err != nil {
		return nil, fmt.Errorf("open directory %s: %w", dir.ObjectID, err)
	}
	defer reader.Close()
	var manifest snapshot.DirManifest
	if err := readJSON(reader, maxDirectory, &manifest); err != nil {
		return nil, fmt.Errorf("read directory %s: %w", dir.ObjectID, err)
	}
	if manifest.StreamType != directoryStream {
		return nil, fmt.Errorf("read directory %s: it is %q", dir.ObjectID, manifest.StreamType)
	}
	if slices.Contains(manifest.Entries, nil) {
		return nil, fmt.Errorf("read directory %s: an entry is null", dir.ObjectID)
	}
	return manifest.Entries, nil
}

// readJSON reads one value that is not larger than a limit.
func readJSON(r io.Reader, limit int64, into any) error {
	bounded := &io.LimitedReader{R: r, N: limit}
	err := json.NewDecoder(bounded).Decode(into)
	switch {
	case err != nil && bounded.N <= 0:
		return fmt.Errorf("it is larger than %d bytes", limit)
	case errors.Is(err, io.EOF) && bounded.N == limit:
		return errors.New("it is empty")
	}
	return err
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
		return untrusted("restore: the snapshot holds the name %q", name)
	}
	return nil
}

// untrusted refuses a snapshot for what it holds.
func untrusted(format string, args ...any) error {
	return &api.Problem{
		Code:  api.CodePathRefused,
		Title: fmt.Sprintf(format, args...) + ", which no file system makes; nothing of it is trusted",
	}
}

// restorer writes one tree into one volume.
type restorer struct {
	rep         objects
	volume      *os.Root
	progress    *progress
	limit       *throttle
	parallel    int
	large       chan struct{} // of the large files that are read
	deleteExtra bool
	token       string // in the names of this restore's files under way
	resume      resume

	files, dirs, symlinks, deleted atomic.Int64
	hardLinks, special, resumed    atomic.Int64
	temp                           atomic.Int64
	notKept                        notKept

	mu    sync.Mutex
	links map[string]*link // by extra.file, of files with more than one name

	writers
}

// folder is a directory of the target that is being filled. It stays open until all
// below it is complete; then it gets its attributes, after its children, whose
// making changes its time.
type folder struct {
	parent *folder
	path   string   // in the volume
	root   *os.Root // what is made in it is one step away, whatever its path is now
	self   *os.File // the same directory, for calls that os.Root does not have
	entry  *snapshot.DirEntry
	xattrs []xattr
	keep   map[string]bool // the names that belong in it; nil if it was not read to the end
	refs   atomic.Int32    // one for its own walk, one for each of what is under way in it
}

// step opens a directory of an open one. What lies behind a link in its place was not
// named, also if it is put there meanwhile.
func step(at *os.Root, name string) (*os.Root, error) {
	next, err := at.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	there, err := at.Lstat(name)
	if err == nil {
		var opened fs.FileInfo
		if opened, err = next.Stat("."); err == nil && !os.SameFile(there, opened) {
			err = errors.New("it was replaced meanwhile")
		}
	}
	if err != nil {
		return nil, errors.Join(err, next.Close())
	}
	return next, nil
}

// openFolder opens a directory of one that is being filled.
func openFolder(parent *folder, where string, e *snapshot.DirEntry) (*folder, error) {
	root, err := step(parent.root, path.Base(where))
	if err != nil {
		return nil, fmt.Errorf("open /%s: %w", where, err)
	}
	f, err := newFolder(root, where, e)
	if err == nil {
		f.parent = parent
		parent.refs.Add(1)
	}
	return f, err
}

// newFolder takes over an open directory.
func newFolder(root *os.Root, where string, e *snapshot.DirEntry) (*folder, error) {
	f := &folder{root: root, path: where, entry: e}
	f.refs.Store(1)
	var err error
	if f.self, err = f.root.Open("."); err != nil {
		return nil, errors.Join(fmt.Errorf("open /%s: %w", where, err), f.root.Close())
	}
	return f, nil
}

// release ends one use of a folder. The last one completes it, unless err says that
// something in it failed, and then ends its use of its parent.
func (w *restorer) release(f *folder, err error) error {
	return f.release(err, func(f *folder) error {
		if f.keep == nil {
			return nil
		}
		return w.complete(f)
	})
}

func (f *folder) release(err error, complete func(*folder) error) error {
	for ; f != nil && f.refs.Add(-1) == 0; f = f.parent {
		if err == nil {
			err = complete(f)
		}
		f.self.Close()
		f.root.Close()
	}
	return err
}

// complete removes what does not belong in a folder and sets its attributes.
func (w *restorer) complete(f *folder) error {
	if err := w.tidy(f); err != nil {
		return err
	}
	w.progress.entries.Add(1)
	if f.entry == nil {
		return nil // a target that only holds what is restored
	}
	return w.fileAttributes(f.self, f.path, f.entry, f.xattrs)
}

func (w *restorer) run(ctx context.Context, target string, r api.RestoreRequest, entry *snapshot.DirEntry, x extra) error {
	found, err := w.findTarget(target, true)
	if err != nil {
		return err
	}
	// A file lands in the target, what is below a directory in its place.
	isDir := entry.Type == snapshot.EntryTypeDirectory
	own := entry
	if !isDir {
		own = nil
	}
	top, err := newFolder(found, target, own)
	if err != nil {
		return err
	}
	if err := w.begin(top, r); err != nil {
		return w.release(top, err)
	}
	// The first failure stops the walk and the other writers.
	group, walkCtx := errgroup.WithContext(ctx)
	w.start(walkCtx, group)
	var walkErr error
	if isDir {
		walkErr = w.fill(walkCtx, top)
	} else {
		walkErr = w.entry(walkCtx, top, entry, x)
	}
	walkErr = w.finish(walkCtx, walkErr)
	top.refs.Add(1) // completed below, when all is on disk
	walkErr = w.release(top, walkErr)
	if err := group.Wait(); err != nil {
		return w.release(top, err)
	}
	if err := cmp.Or(walkErr, ctx.Err()); err != nil {
		return w.release(top, err)
	}
	if err := w.progress.sync(w.sync); err != nil {
		return w.release(top, err)
	}
	if err := w.end(top); err != nil {
		return w.release(top, err)
	}
	return w.release(top, nil)
}

// findTarget opens the target directory and makes it, if it may. A link on the way is
// refused: what lies behind it was not named.
func (w *restorer) findTarget(target string, mayMake bool) (*os.Root, error) {
	at, err := w.volume.OpenRoot(".")
	if err != nil {
		return nil, fmt.Errorf("open the volume: %w", err)
	}
	walked := ""
	for _, name := range strings.Split(target, "/") {
		if name == "." {
			continue
		}
		walked = path.Join(walked, name)
		next, err := towards(at, name, walked, mayMake)
		if err = errors.Join(err, at.Close()); err != nil {
			return nil, err
		}
		at = next
	}
	return at, nil
}

// towards opens the next directory on the way to the target, walked so far.
func towards(at *os.Root, name, walked string, mayMake bool) (*os.Root, error) {
	info, err := at.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist) && mayMake:
		if err := at.Mkdir(name, 0o755); err != nil {
			return nil, fmt.Errorf("make /%s: %w", walked, err)
		}
	case errors.Is(err, fs.ErrNotExist):
		return nil, &api.Problem{Code: api.CodePathNotFound, Title: fmt.Sprintf("restore: there is no /%s on the volume to compare with the backup", walked)}
	case err != nil:
		return nil, fmt.Errorf("open /%s: %w", walked, err)
	case !info.IsDir():
		return nil, &api.Problem{Code: api.CodePathRefused, Title: fmt.Sprintf("restore: /%s on the volume is %s, not a directory", walked, kindOf(info.Mode()))}
	}
	next, err := step(at, name)
	if err != nil {
		return nil, fmt.Errorf("open /%s: %w", walked, err)
	}
	return next, nil
}

func kindOf(mode fs.FileMode) string {
	switch {
	case mode.IsDir():
		return "a directory"
	case mode.IsRegular():
		return "a file"
	case mode&fs.ModeSymlink != 0:
		return "a symbolic link"
	default:
		return "a socket, pipe or device"
	}
}

// fill restores what is below a directory into its folder.
func (w *restorer) fill(ctx context.Context, f *folder) error {
	w.dirs.Add(1)
	entries, kept, err := readEntries(ctx, w.rep, f.entry)
	if err != nil {
		return fmt.Errorf("restore /%s: %w", f.path, err)
	}
	f.xattrs = kept.Self
	extra := kept.byName()
	keep := map[string]bool{}
	for _, e := range entries {
		name, err := decodeName(e.Name)
		if err != nil {
			return fmt.Errorf("restore /%s: %w", f.path, err)
		}
		if keep[name] {
			// One would be written through what is there of the other.
			return untrusted("restore: the snapshot holds the name %q twice in /%s", name, f.path)
		}
		keep[name] = true
		if err := w.entry(ctx, f, e, extra[e.Name]); err != nil {
			return err
		}
	}
	for _, x := range kept.Entries {
		if x.Special == nil {
			continue
		}
		name, err := decodeName(x.Name)
		if err != nil {
			return fmt.Errorf("restore /%s: %w", f.path, err)
		}
		if keep[name] {
			continue // a true entry of this name is what was there
		}
		keep[name] = true
		if err := w.specialFile(f, name, x); err != nil {
			return err
		}
	}
	f.keep = keep
	return nil
}

// entry restores one entry of a folder; files are written beside each other.
func (w *restorer) entry(ctx context.Context, f *folder, e *snapshot.DirEntry, x extra) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	name, err := decodeName(e.Name)
	if err != nil {
		return err
	}
	switch e.Type {
	case snapshot.EntryTypeDirectory:
		for up := f; up != nil; up = up.parent {
			if up.entry != nil && up.entry.ObjectID == e.ObjectID {
				return untrusted("restore: the snapshot's /%s holds itself", path.Join(f.path, name))
			}
		}
		if err := w.makeDirectory(f, name); err != nil {
			return err
		}
		below, err := openFolder(f, path.Join(f.path, name), e)
		if err != nil {
			return err
		}
		return w.release(below, w.fill(ctx, below))
	case snapshot.EntryTypeFile:
		return w.enqueue(ctx, fileJob{folder: f, name: name, entry: e, extra: x})
	case snapshot.EntryTypeSymlink:
		return w.symlink(ctx, f, name, e)
	default:
		return fmt.Errorf("restore /%s: entry of unknown kind %q in the snapshot", path.Join(f.path, name), e.Type)
	}
}

// makeDirectory makes a directory, in place of whatever else has its name: a link
// there is replaced, never followed.
func (w *restorer) makeDirectory(f *folder, name string) error {
	where := path.Join(f.path, name)
	w.progress.entries.Add(1)
	info, err := f.root.Lstat(name)
	if err == nil && info.IsDir() {
		// Writable while its children are written; its own mode comes at the end.
		if info.Mode().Perm()&0o700 != 0o700 {
			_ = f.root.Chmod(name, info.Mode().Perm()|0o700)
		}
		return nil
	}
	if err == nil {
		if err := f.root.Remove(name); err != nil {
			return fmt.Errorf("replace /%s: %w", where, err)
		}
	}
	if err := f.root.Mkdir(name, 0o700); err != nil {
		return fmt.Errorf("make /%s: %w", where, err)
	}
	return nil
}

// tidy removes what an earlier restore left when it was killed and, if it is to be,
// what the snapshot does not have.
func (w *restorer) tidy(f *folder) error {
	if _, err := f.self.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("list /%s: %w", f.path, err)
	}
	names, err := f.self.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("list /%s: %w", f.path, err)
	}
	for _, name := range names {
		left := strings.HasPrefix(name, tempPrefix)
		switch {
		case f.keep[name], name == w.resume.mark, f.path == "." && name == lostAndFound, !left && !w.deleteExtra:
			continue
		}
		if err := w.removeAll(f.root, name); err != nil {
			return fmt.Errorf("remove /%s: %w", path.Join(f.path, name), err)
		}
		if !left {
			w.deleted.Add(1)
		}
	}
	return nil
}

// removeTogether entries of a directory are listed at once.
const removeTogether = 1024

// removeAll removes an entry and all below it, as os.Root does, and counts what it removes:
// that of a large tree takes long.
func (w *restorer) removeAll(at *os.Root, name string) error {
	err := at.Remove(name)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		w.progress.entries.Add(1)
		return nil
	}
	info, statErr := at.Lstat(name)
	if statErr != nil || !info.IsDir() {
		return err
	}
	if err := w.empty(at, name); err != nil {
		return err
	}
	w.progress.entries.Add(1)
	return at.Remove(name)
}

// empty removes what is below a directory.
func (w *restorer) empty(at *os.Root, name string) error {
	below, err := step(at, name)
	if err != nil {
		return err
	}
	defer below.Close()
	for {
		// Opened anew: what is removed while a directory is listed may shift the rest.
		dir, err := below.Open(".")
		if err != nil {
			return err
		}
		names, err := dir.Readdirnames(removeTogether)
		dir.Close()
		if len(names) == 0 {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		for _, name := range names {
			if err := w.removeAll(below, name); err != nil {
				return err
			}
		}
	}
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
