// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"errors"
	"io"
	"io/fs"
	"math"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// extentReader reads a file with holes: what lies in one is zeros that nobody reads.
type extentReader struct {
	file  *os.File
	at    int64
	until int64 // the end of the extent or hole that at is in
	hole  bool
	read  int64 // bytes that the last Read took from the file
}

// hasHoles says whether a file takes less than its size.
func hasHoles(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && info.Mode().IsRegular() && stat.Blocks*512 < stat.Size
}

// locate finds what is at the place to read: a hole or data, and its end. A file
// system that knows of no holes has data only.
func (r *extentReader) locate() error {
	fd := int(r.file.Fd())
	data, err := unix.Seek(fd, r.at, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO): // no data from here to the end
		info, err := r.file.Stat()
		if err != nil {
			return err
		}
		r.hole, r.until = true, info.Size()
	case err != nil:
		r.hole, r.until = false, math.MaxInt64
	case data > r.at:
		r.hole, r.until = true, data
	default:
		r.hole = false
		if r.until, err = unix.Seek(fd, r.at, unix.SEEK_HOLE); err != nil {
			r.until = math.MaxInt64
		}
	}
	return nil
}

// Read implements io.Reader.
func (r *extentReader) Read(p []byte) (int, error) {
	r.read = 0
	if r.at >= r.until {
		if err := r.locate(); err != nil {
			return 0, err
		}
	}
	if r.hole && r.at >= r.until {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), r.until-r.at)]
	if r.hole {
		clear(p)
		r.at += int64(len(p))
		return len(p), nil
	}
	n, err := r.file.ReadAt(p, r.at)
	r.at, r.read = r.at+int64(n), int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

// Seek implements io.Seeker.
func (r *extentReader) Seek(offset int64, from int) (int64, error) {
	switch from {
	case io.SeekCurrent:
		offset += r.at
	case io.SeekEnd:
		info, err := r.file.Stat()
		if err != nil {
			return 0, err
		}
		offset += info.Size()
	}
	if offset < 0 {
		return 0, fs.ErrInvalid
	}
	r.at, r.until = offset, 0
	return offset, nil
}
