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
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	kopiafs "github.com/kopia/kopia/fs"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/pkg/ignore"
)

const (
	// readdirBatch names take some 5 MB.
	readdirBatch = 1 << 16
	// namedPaths is how many paths an error or a result lists.
	namedPaths = 10
	// lostAndFound is at the root of every ext4 volume, root's alone, and holds nothing of the application's.
	lostAndFound = "lost+found"
)

// openVolume opens a mirrored volume by its name.
func openVolume(volumesDir, volume string) (*os.Root, error) {
	if err := checkVolumeName(volume); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(filepath.Join(volumesDir, volume))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, &api.Problem{
			Code:  api.CodeUnknownVolume,
			Title: fmt.Sprintf("open volume: %q is not mirrored into this agent", volume),
			Hint:  "the pod's annotation kopia.kanister.io/status lists the volumes and why others were skipped",
		}
	case err != nil:
		return nil, fmt.Errorf("open volume %s: %w", volume, err)
	}
	return root, nil
}

// source shows a part of a volume to Kopia. Kopia's own reader opens paths, so a
// link put in the place of a directory while it reads would lead it out of the
// volume, and it takes names with a certain ending for its own; this one opens
// everything in an os.Root and believes no name.
type source struct {
	volume *os.Root

	limit  *throttle
	device uint64 // of the volume's root
	batch  int    // names that are read and ordered at once

	rules ignore.Rules
	root  string // what the rules' paths begin at, in the volume

	mu       sync.Mutex
	excluded []string // left out
	ignored  paths    // left out by the rules
	vanished int64    // listed, but gone when they were looked at
	changed  []string // written to while they were read
	recorded recorded
}

// recorded counts what is kept in extras.
type recorded struct {
	// files and bytes of the extras' own, which Kopia counts like any other.
	files, bytes int64
	// names of files with more than one, sockets and their kind, entries with attributes.
	linked, special, attributed int64
}

// newSource returns a source that reads a volume, all of it.
func newSource(volume *os.Root, limit *throttle) *source {
	s := &source{volume: volume, limit: limit, batch: readdirBatch, root: "."}
	if info, err := volume.Lstat("."); err == nil {
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			s.device = stat.Dev
		}
	}
	return s
}

// only leaves out what patterns say, of what is below an absolute path.
func (s *source) only(inside string, patterns []string) error {
	rules, err := ignore.Parse(patterns)
	if err != nil {
		return &api.Problem{Code: api.CodeBadRequest, Title: fmt.Sprintf("take snapshot: %v", err), Hint: "accepted: " + ignore.Accepted}
	}
	s.rules, s.root = rules, path.Join(".", inside)
	return nil
}

// entry finds an absolute path of the volume. No component may be a link: what is
// backed up is what the path says.
func (s *source) entry(inside string) (kopiafs.Entry, error) {
	if !path.IsAbs(inside) || path.Clean(inside) != inside {
		return nil, &api.Problem{Code: api.CodePathRefused, Title: fmt.Sprintf("open path: %q is not absolute and clean", inside)}
	}
	walked := "."
	info, err := s.volume.Lstat(walked)
	for _, name := range strings.Split(strings.Trim(inside, "/"), "/") {
		if name == "" {
			continue
		}
		walked = path.Join(walked, name)
		info, err = s.volume.Lstat(walked)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
			return nil, &api.Problem{Code: api.CodePathNotFound, Title: fmt.Sprintf("open path: /%s does not exist", walked)}
		case err == nil && info.Mode()&fs.ModeSymlink != 0:
			return nil, &api.Problem{
				Code:  api.CodePathRefused,
				Title: fmt.Sprintf("open path: /%s is a symbolic link", walked),
				Hint:  "name the directory it points to",
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open /%s: %w", walked, err)
	}
	e := s.make(walked, info)
	if e == nil {
		return nil, &api.Problem{Code: api.CodePathRefused, Title: fmt.Sprintf("open path: /%s is neither a directory nor a file", walked)}
	}
	return e, nil
}

// readable opens an entry and closes it again.
func readable(ctx context.Context, e kopiafs.Entry) error {
	switch e := e.(type) {
	case kopiafs.Directory:
		i, err := e.Iterate(ctx)
		if err == nil {
			i.Close()
		}
		return err
	case kopiafs.File:
		r, err := e.Open(ctx)
		if err == nil {
			err = r.Close()
		}
		return err
	default:
		return nil
	}
}

// make returns the entry of a path, or nil for what Kopia has no entry for: sockets,
// pipes and devices, and the volume's own lost+found, which is left out.
func (s *source) make(where string, info fs.FileInfo) kopiafs.Entry {
	uid, gid := ownerOf(info)
	e := sourceEntry{
		s: s, path: where, name: encodeName(path.Base(where)), size: info.Size(), mode: info.Mode(), modTime: info.ModTime(),
		owner: kopiafs.OwnerInfo{UserID: uid, GroupID: gid},
	}
	switch {
	case info.IsDir() && where == lostAndFound && uid == 0:
		return nil
	case info.IsDir():
		e.size = 0
		return &sourceDirectory{e}
	case info.Mode().IsRegular():
		return &sourceFile{e}
	case info.Mode()&fs.ModeSymlink != 0:
		return &sourceSymlink{e}
	default:
		return nil
	}
}

// note changes what the source keeps of its own reading.
func (s *source) note(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// paths counts paths and keeps the first of them.
type paths struct {
	first []string
	count int
}

func (p *paths) add(where string) {
	p.count++
	i, _ := slices.BinarySearch(p.first, where)
	if p.first = slices.Insert(p.first, i, where); len(p.first) > namedPaths {
		p.first = p.first[:namedPaths]
	}
}

// names lists the first paths, and how many more there are.
func (p *paths) names() []string {
	if more := p.count - len(p.first); more > 0 {
		return append(slices.Clone(p.first), fmt.Sprintf("and %d more", more))
	}
	return p.first
}

func firstOf(all []string) []string {
	var p paths
	for _, where := range all {
		p.add(where)
	}
	return p.names()
}

// ignores says whether the rules leave an entry out.
func (s *source) ignores(where string, isDir bool) bool {
	if s.root != "." {
		where = strings.TrimPrefix(where, s.root+"/")
	}
	return s.rules.Ignored(where, isDir)
}

// errVanished is of an entry that was listed, looked at, and gone when it was to be read.
var errVanished = errors.New("it was removed meanwhile")

// gone says of the error of an entry that it vanished, if it did: it was not there at
// the moment of the snapshot, like one removed just before. Kopia tells its error to
// progress, which counts it.
func (s *source) gone(where string, err error) error {
	if !isGone(err) {
		return err
	}
	if _, there := s.volume.Lstat(where); !isGone(there) {
		return err
	}
	return fmt.Errorf("%w: %w", errVanished, err)
}

// isGone says whether there is nothing at a path, nor, where it led, a directory.
func isGone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) }

// estimate counts the files that are read, and their bytes.
func (s *source) estimate(ctx context.Context) (files, size int64) {
	_ = fs.WalkDir(s.volume.FS(), s.root, func(where string, d fs.DirEntry, err error) error {
		if err == nil && where != s.root && s.ignores(where, d.IsDir()) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return ctx.Err()
		}
		if err != nil || !d.Type().IsRegular() {
			return ctx.Err() // what cannot be read is told by who reads it
		}
		if info, err := d.Info(); err == nil {
			files, size = files+1, size+info.Size()
		}
		return ctx.Err()
	})
	return files, size
}

// sourceEntry implements kopiafs.Entry.
type sourceEntry struct {
	s       *source
	path    string // in the volume
	name    string // as it is stored
	size    int64
	mode    fs.FileMode
	modTime time.Time
	owner   kopiafs.OwnerInfo
}

func (e *sourceEntry) Name() string                { return e.name }
func (e *sourceEntry) Size() int64                 { return e.size }
func (e *sourceEntry) Mode() fs.FileMode           { return e.mode }
func (e *sourceEntry) ModTime() time.Time          { return e.modTime }
func (e *sourceEntry) IsDir() bool                 { return e.mode.IsDir() }
func (e *sourceEntry) Sys() any                    { return nil }
func (e *sourceEntry) Owner() kopiafs.OwnerInfo    { return e.owner }
func (e *sourceEntry) Device() kopiafs.DeviceInfo  { return kopiafs.DeviceInfo{} }
func (e *sourceEntry) LocalFilesystemPath() string { return "" }
func (e *sourceEntry) Close()                      {}

type sourceFile struct{ sourceEntry }

// Open does not wait for a writer if the file has become a pipe meanwhile.
func (f *sourceFile) Open(context.Context) (kopiafs.Reader, error) {
	opened, err := f.s.volume.OpenFile(f.path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, f.s.gone(f.path, err)
	}
	r := &sourceReader{file: opened, entry: f}
	info, err := opened.Stat()
	if err == nil {
		_, err = r.now(info)
	}
	if err != nil {
		return nil, errors.Join(err, opened.Close())
	}
	if hasHoles(info) {
		r.extents = &extentReader{file: opened}
	}
	return r, nil
}

type sourceReader struct {
	file    *os.File
	extents *extentReader // of a file with holes
	entry   *sourceFile
}

// Read takes its time if there is a rate limit; holes take none.
func (r *sourceReader) Read(p []byte) (n int, err error) {
	read := 0
	if r.extents != nil {
		n, err = r.extents.Read(p)
		read = int(r.extents.read)
	} else {
		n, err = r.file.Read(p)
		read = n
	}
	if waitErr := r.entry.s.limit.wait(read); err == nil {
		err = waitErr
	}
	return n, err
}

func (r *sourceReader) Seek(offset int64, from int) (int64, error) {
	if r.extents != nil {
		return r.extents.Seek(offset, from)
	}
	return r.file.Seek(offset, from)
}

// Close notes whether the file was written to since it was listed: what was read of
// it is then of several moments.
func (r *sourceReader) Close() error {
	if info, err := r.file.Stat(); err == nil && (info.Size() != r.entry.size || !info.ModTime().Equal(r.entry.modTime)) {
		s := r.entry.s
		s.note(func() {
			if where := "/" + r.entry.path; !slices.Contains(s.changed, where) { // a large file is read in parts
				s.changed = append(s.changed, where)
			}
		})
	}
	return r.file.Close()
}

// Entry implements kopiafs.Reader: the file as it is now.
func (r *sourceReader) Entry() (kopiafs.Entry, error) {
	info, err := r.file.Stat()
	if err != nil {
		return nil, err
	}
	return r.now(info)
}

func (r *sourceReader) now(info fs.FileInfo) (kopiafs.Entry, error) {
	now, ok := r.entry.s.make(r.entry.path, info).(*sourceFile)
	if !ok {
		return nil, fmt.Errorf("read /%s: it is not a file any more", r.entry.path)
	}
	return now, nil
}

type sourceSymlink struct{ sourceEntry }

func (l *sourceSymlink) Readlink(context.Context) (string, error) {
	target, err := l.s.volume.Readlink(l.path)
	return target, l.s.gone(l.path, err)
}

func (l *sourceSymlink) Resolve(context.Context) (kopiafs.Entry, error) {
	return nil, fmt.Errorf("read /%s: links are not followed", l.path)
}

// sourceError is an entry that is there but cannot be looked at.
type sourceError struct {
	sourceEntry
	err error
}

func (e *sourceError) ErrorInfo() error { return e.err }

type sourceDirectory struct{ sourceEntry }

func (d *sourceDirectory) SupportsMultipleIterations() bool { return true }

func (d *sourceDirectory) Child(_ context.Context, stored string) (kopiafs.Entry, error) {
	name, err := decodeName(stored)
	if err != nil {
		return nil, err
	}
	where := path.Join(d.path, name)
	info, err := d.s.volume.Lstat(where)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, kopiafs.ErrEntryNotFound
	}
	if err != nil {
		return nil, err
	}
	if e := d.s.make(where, info); e != nil && !d.s.ignores(where, info.IsDir()) {
		return e, nil
	}
	return nil, kopiafs.ErrEntryNotFound
}

func (d *sourceDirectory) Iterate(context.Context) (kopiafs.DirectoryIterator, error) {
	root, err := d.s.volume.OpenRoot(d.path)
	if err != nil {
		return nil, d.s.gone(d.path, err)
	}
	list, err := root.Open(".")
	if err != nil {
		return nil, d.s.gone(d.path, errors.Join(err, root.Close()))
	}
	i := &sourceIterator{d: d, root: root, list: list, seen: map[string]bool{}}
	if i.extras.Self, err = readXattrs(openFile(list.Fd())); err != nil {
		i.Close()
		return nil, err
	}
	return i, nil
}

type sourceIterator struct {
	d      *sourceDirectory
	root   *os.Root // the directory itself: what is asked of it is one step away
	list   *os.File
	names  []string
	extras extras
	seen   map[string]bool // names returned: what is made anew during a listing may be in it twice
	ended  bool
}

func (i *sourceIterator) Close() {
	i.list.Close()
	i.root.Close()
}

// Next returns the entries of the directory and at last, if there is any need, the
// file with what Kopia does not keep of them.
func (i *sourceIterator) Next(context.Context) (kopiafs.Entry, error) {
	for !i.ended {
		if len(i.names) == 0 {
			var err error
			if i.names, err = i.list.Readdirnames(i.d.s.batch); errors.Is(err, io.EOF) {
				i.ended = true
				return i.last()
			} else if err != nil {
				return nil, i.d.s.gone(i.d.path, err)
			}
			// What is stored side by side is restored side by side: a restore walks by name.
			slices.Sort(i.names)
		}
		name := i.names[0]
		i.names = i.names[1:]
		if i.seen[name] {
			continue
		}
		entry, err := i.entry(name)
		if errors.Is(err, fs.ErrNotExist) {
			i.d.s.note(func() { i.d.s.vanished++ })
			continue
		}
		i.seen[name] = true
		if err != nil {
			return &sourceError{sourceEntry{s: i.d.s, path: path.Join(i.d.path, name), name: encodeName(name)}, err}, nil
		}
		if entry != nil {
			return entry, nil
		}
	}
	return nil, nil
}

// entry looks at one name of the directory and keeps its extra.
func (i *sourceIterator) entry(name string) (kopiafs.Entry, error) {
	s, where := i.d.s, path.Join(i.d.path, name)
	info, err := i.root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if s.ignores(where, info.IsDir()) {
		s.note(func() { s.ignored.add("/" + where) })
		return nil, nil
	}
	entry := s.make(where, info)
	x := extra{Name: encodeName(name), Inode: inodeOf(info, s.device)}
	if entry == nil {
		if x.Special = specialOf(info); x.Special == nil {
			s.note(func() { s.excluded = append(s.excluded, "/"+where) })
			return nil, nil
		}
	}
	// A directory keeps its own, a link can have none that anybody could set.
	if !info.IsDir() && info.Mode()&fs.ModeSymlink == 0 {
		if x.Xattrs, err = readXattrs(unopened(i.list.Fd(), name)); err != nil {
			return nil, err
		}
	}
	if x.Inode != "" || x.Special != nil || x.Xattrs != nil {
		i.extras.Entries = append(i.extras.Entries, x)
	}
	return entry, nil
}

// last returns the file of the directory's extras.
func (i *sourceIterator) last() (kopiafs.Entry, error) {
	if i.extras.empty() {
		return nil, nil
	}
	content, err := i.extras.encode()
	if err != nil {
		return nil, fmt.Errorf("keep attributes of /%s: %w", i.d.path, err)
	}
	s := i.d.s
	s.note(func() {
		r := &s.recorded
		r.files, r.bytes = r.files+1, r.bytes+int64(len(content))
		if i.extras.Self != nil {
			r.attributed++
		}
		for _, e := range i.extras.Entries {
			if e.Inode != "" {
				r.linked++
			}
			if e.Special != nil {
				r.special++
			}
			if e.Xattrs != nil {
				r.attributed++
			}
		}
	})
	return newExtrasFile(i.d, content), nil
}
