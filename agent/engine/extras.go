// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io/fs"
	"slices"
	"syscall"
	"time"

	kopiafs "github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/snapshot"
	"golang.org/x/sys/unix"
)

// extrasName is the file of a stored directory that holds what Kopia's directories
// cannot: extended attributes and POSIX ACLs, which names are links to one file, and
// sockets, pipes and devices. No name on a volume is ever stored as this: what
// follows the prefix cannot be percent-decoded.
const extrasName = escaped + "%extras.json"

// maxExtras bounds what a restore reads into memory for one directory.
const maxExtras = 256 << 20

// extras is the content of that file. There is none for a directory that needs none.
type extras struct {
	Version int `json:"version"`
	// Self are the attributes of the directory itself.
	Self    []xattr `json:"self,omitempty"`
	Entries []extra `json:"entries,omitempty"`

	// stored is the entry that this was read from.
	stored *snapshot.DirEntry
}

// extra is what is kept of one entry beside Kopia's own record. Name is as stored.
type extra struct {
	Name   string  `json:"name"`
	Xattrs []xattr `json:"xattrs,omitempty"`
	// Inode is the same for all names of one file in a snapshot.
	Inode   string   `json:"inode,omitempty"`
	Special *special `json:"special,omitempty"`
}

// special is an entry that Kopia drops.
type special struct {
	Kind string `json:"kind"`
	// Mode has no form for zero: it must be left out then.
	Mode    snapshot.Permissions `json:"mode,omitempty"`
	UID     uint32               `json:"uid"`
	GID     uint32               `json:"gid"`
	ModTime time.Time            `json:"modTime"`
	// Major and Minor of a device.
	Major uint32 `json:"major,omitempty"`
	Minor uint32 `json:"minor,omitempty"`
}

// specialKinds are the file types that a special may have.
var specialKinds = map[string]uint32{
	"fifo": unix.S_IFIFO, "socket": unix.S_IFSOCK, "block": unix.S_IFBLK, "char": unix.S_IFCHR,
}

// specialOf describes a socket, pipe or device.
func specialOf(info fs.FileInfo) *special {
	s := &special{Mode: snapshot.Permissions(info.Mode() & kopiafs.ModBits), ModTime: info.ModTime().UTC()}
	s.UID, s.GID = ownerOf(info)
	switch mode := info.Mode(); {
	case mode&fs.ModeNamedPipe != 0:
		s.Kind = "fifo"
	case mode&fs.ModeSocket != 0:
		s.Kind = "socket"
	case mode&fs.ModeCharDevice != 0:
		s.Kind = "char"
	case mode&fs.ModeDevice != 0:
		s.Kind = "block"
	default:
		return nil
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && info.Mode()&fs.ModeDevice != 0 {
		s.Major, s.Minor = unix.Major(stat.Rdev), unix.Minor(stat.Rdev)
	}
	return s
}

// inodeOf names a file that has more than one name; "" for any other. The device is
// left out where it is the volume's own: it changes with every mount.
func inodeOf(info fs.FileInfo, volumeDevice uint64) string {
	stat, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok, !info.Mode().IsRegular(), stat.Nlink < 2:
		return ""
	case stat.Dev == volumeDevice:
		return fmt.Sprintf("%d", stat.Ino)
	default:
		return fmt.Sprintf("%d:%d", stat.Dev, stat.Ino)
	}
}

// file names the file that an entry is a name of; "" if it has no other one. The names
// were not listed in one moment: an inode may have become another file's meanwhile, and
// its file may have been written to. Names are of one file if they are alike, too.
func (x extra) file(e *snapshot.DirEntry) string {
	if x.Inode == "" {
		return ""
	}
	return fmt.Sprintf("%s %s %d", x.Inode, e.ObjectID, e.ModTime)
}

func (x *extras) empty() bool { return len(x.Self) == 0 && len(x.Entries) == 0 }

// encode renders extras; the same extras always in the same bytes.
func (x *extras) encode() ([]byte, error) {
	x.Version = 1
	slices.SortFunc(x.Entries, func(a, b extra) int { return cmp.Compare(a.Name, b.Name) })
	raw, err := json.Marshal(x)
	if err == nil && len(raw) > maxExtras {
		err = fmt.Errorf("the attributes of its entries take %d bytes, more than %d", len(raw), maxExtras)
	}
	return raw, err
}

// byName finds entries by their stored names.
func (x *extras) byName() map[string]extra {
	out := make(map[string]extra, len(x.Entries))
	for _, e := range x.Entries {
		out[e.Name] = e
	}
	return out
}

// readExtras reads the extras of a directory and takes their file from its entries.
func readExtras(ctx context.Context, rep objects, entries []*snapshot.DirEntry) ([]*snapshot.DirEntry, *extras, error) {
	i := slices.IndexFunc(entries, func(e *snapshot.DirEntry) bool { return e.Name == extrasName })
	if i < 0 {
		return entries, &extras{}, nil
	}
	entry := entries[i]
	entries = slices.Delete(entries, i, i+1)
	reader, err := rep.OpenObject(ctx, entry.ObjectID)
	if err != nil {
		return nil, nil, fmt.Errorf("open attributes %s: %w", entry.ObjectID, err)
	}
	defer reader.Close()
	var x extras
	if err := readJSON(reader, maxExtras, &x); err != nil {
		return nil, nil, fmt.Errorf("read attributes %s: %w", entry.ObjectID, err)
	}
	if x.Version != 1 {
		return nil, nil, fmt.Errorf("read attributes %s: version %d was written by a later agent than this", entry.ObjectID, x.Version)
	}
	x.stored = entry
	return entries, &x, nil
}

// extrasFile shows extras to Kopia as a file. Its time is made from its content, so
// that Kopia, which looks at sizes and times, uploads it when it has changed and only then.
type extrasFile struct {
	sourceEntry
	content []byte
}

func newExtrasFile(d *sourceDirectory, content []byte) *extrasFile {
	sum := sha256.Sum256(content)
	return &extrasFile{
		sourceEntry: sourceEntry{
			s: d.s, path: d.path, name: extrasName, size: int64(len(content)), mode: 0o600,
			modTime: time.Unix(0, int64(binary.BigEndian.Uint64(sum[:8])>>3)), owner: d.owner, // a time from 1970 to 2043
		},
		content: content,
	}
}

// Open implements kopiafs.File.
func (f *extrasFile) Open(context.Context) (kopiafs.Reader, error) {
	return &extrasReader{bytes.NewReader(f.content), f}, nil
}

type extrasReader struct {
	*bytes.Reader
	file *extrasFile
}

func (r *extrasReader) Close() error                  { return nil }
func (r *extrasReader) Entry() (kopiafs.Entry, error) { return r.file, nil }
