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
)

const (
	// readdirBatch is how many names are read at once.
	readdirBatch = 200
	// namedPaths is how many paths an error or a result lists.
	namedPaths = 10
	// lostAndFound is at the root of every ext4 volume, root's alone, and holds nothing of the application's.
	lostAndFound = "lost+found"
)

// openVolume opens a mirrored volume by its name.
func openVolume(volumesDir, volume string) (*os.Root, error) {
	if volume == "" || strings.ContainsAny(volume, "/\x00") || volume == "." || volume == ".." {
		return nil, &api.Problem{Code: api.CodeUnknownVolume, Title: fmt.Sprintf("open volume: %q is not a volume's name", volume)}
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

	mu       sync.Mutex
	excluded map[string]struct{}
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

// make returns the entry of a path, or nil if it is left out: sockets, pipes and
// devices, which have no content, and the volume's own lost+found.
func (s *source) make(where string, info fs.FileInfo) kopiafs.Entry {
	uid, gid := ownerOf(info)
	e := sourceEntry{
		s: s, path: where, name: encodeName(path.Base(where)), size: info.Size(), mode: info.Mode(), modTime: info.ModTime(),
		owner: kopiafs.OwnerInfo{UserID: uid, GroupID: gid},
	}
	switch {
	case info.IsDir() && where == lostAndFound && uid == 0:
		s.exclude(where)
		return nil
	case info.IsDir():
		e.size = 0
		return &sourceDirectory{e}
	case info.Mode().IsRegular():
		return &sourceFile{e}
	case info.Mode()&fs.ModeSymlink != 0:
		return &sourceSymlink{e}
	default:
		s.exclude(where)
		return nil
	}
}

func (s *source) exclude(where string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.excluded == nil {
		s.excluded = map[string]struct{}{}
	}
	// A set: Kopia walks the tree a second time to estimate it.
	s.excluded["/"+where] = struct{}{}
}

// leftOut names the entries that were left out, the first ones and a count.
func (s *source) leftOut() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	for where := range s.excluded {
		all = append(all, where)
	}
	slices.Sort(all)
	if more := len(all) - namedPaths; more > 0 {
		all = append(all[:namedPaths], fmt.Sprintf("and %d more", more))
	}
	return all
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
		return nil, err
	}
	r := &sourceReader{opened, f}
	if _, err := r.Entry(); err != nil {
		return nil, errors.Join(err, opened.Close())
	}
	return r, nil
}

type sourceReader struct {
	*os.File
	entry *sourceFile
}

// Entry implements kopiafs.Reader: the file as it is now.
func (r *sourceReader) Entry() (kopiafs.Entry, error) {
	info, err := r.Stat()
	if err != nil {
		return nil, err
	}
	now, ok := r.entry.s.make(r.entry.path, info).(*sourceFile)
	if !ok {
		return nil, fmt.Errorf("read /%s: it is not a file any more", r.entry.path)
	}
	return now, nil
}

type sourceSymlink struct{ sourceEntry }

func (l *sourceSymlink) Readlink(context.Context) (string, error) { return l.s.volume.Readlink(l.path) }

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
	if e := d.s.make(where, info); e != nil {
		return e, nil
	}
	return nil, kopiafs.ErrEntryNotFound
}

func (d *sourceDirectory) Iterate(context.Context) (kopiafs.DirectoryIterator, error) {
	root, err := d.s.volume.OpenRoot(d.path)
	if err != nil {
		return nil, err
	}
	list, err := root.Open(".")
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return &sourceIterator{d: d, root: root, list: list}, nil
}

type sourceIterator struct {
	d     *sourceDirectory
	root  *os.Root // the directory itself: what is asked of it is one step away
	list  *os.File
	names []string
}

func (i *sourceIterator) Close() {
	i.list.Close()
	i.root.Close()
}

func (i *sourceIterator) Next(context.Context) (kopiafs.Entry, error) {
	for {
		if len(i.names) == 0 {
			var err error
			if i.names, err = i.list.Readdirnames(readdirBatch); errors.Is(err, io.EOF) {
				return nil, nil
			} else if err != nil {
				return nil, err
			}
		}
		name := i.names[0]
		i.names = i.names[1:]
		where := path.Join(i.d.path, name)
		info, err := i.root.Lstat(name)
		switch {
		case errors.Is(err, fs.ErrNotExist): // removed meanwhile
		case err != nil:
			return &sourceError{sourceEntry{s: i.d.s, path: where, name: encodeName(name)}, err}, nil
		default:
			if e := i.d.s.make(where, info); e != nil {
				return e, nil
			}
		}
	}
}
