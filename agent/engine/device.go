// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	kopiafs "github.com/kopia/kopia/fs"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/contents"
	"github.com/kanister-kopia/kanister-kopia/agent/device"
)

const (
	// deviceChunk is read or written at once, and is the grain of what counts as zeros.
	deviceChunk = 1 << 20
	// devicePart is restored by one reader.
	devicePart = 256 << 20
	// deviceParallel parts are restored at once: each reader holds a piece of the backup.
	deviceParallel = 2
)

// findDevice is where the agent sees a volume that is a block device, "" for one that
// it does not see as such.
func findDevice(devicesDir, volume string) (string, error) {
	if err := checkVolumeName(volume); err != nil || devicesDir == "" {
		return "", err
	}
	where := filepath.Join(devicesDir, volume)
	_, err := os.Stat(where)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("open volume %s: %w", volume, err)
	}
	return where, nil
}

// sourceDevice shows a device to Kopia as a file. It is opened for reading only. Its
// time is that of the snapshot: a device does not tell when it was written to, so
// nothing of an earlier one is taken for unchanged unread.
type sourceDevice struct {
	sourceEntry
	where string
}

func newSourceDevice(s *source, volume, where string, size int64, now time.Time) *sourceDevice {
	return &sourceDevice{where: where, sourceEntry: sourceEntry{
		s: s, name: encodeName(volume), size: size, mode: 0o600, modTime: now,
		owner: kopiafs.OwnerInfo{UserID: uint32(os.Getuid()), GroupID: uint32(os.Getgid())},
	}}
}

// Open implements kopiafs.File.
func (d *sourceDevice) Open(context.Context) (kopiafs.Reader, error) {
	f, _, err := device.Open(d.where, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	return &deviceReader{f, d}, nil
}

type deviceReader struct {
	file  *os.File
	entry *sourceDevice
}

// Read takes its time if there is a rate limit.
func (r *deviceReader) Read(p []byte) (int, error) {
	n, err := r.file.Read(p)
	if waitErr := r.entry.s.limit.wait(n); err == nil {
		err = waitErr
	}
	return n, err
}

func (r *deviceReader) Seek(offset int64, from int) (int64, error) { return r.file.Seek(offset, from) }
func (r *deviceReader) Close() error                               { return r.file.Close() }

// Entry implements kopiafs.Reader.
func (r *deviceReader) Entry() (kopiafs.Entry, error) { return r.entry, nil }

// restoreDevice writes the backup of a device onto one of at least its size, in place.
// What lies behind the backup's end stays.
func restoreDevice(ctx context.Context, conn *connection, where string, r api.RestoreRequest, p *progress, limit *throttle) (*api.Result, error) {
	switch {
	case !r.Root.Device:
		return nil, &api.Problem{
			Code:  api.CodePathRefused,
			Title: fmt.Sprintf("restore: volume %s is a block device, and the backup is of files", r.Volume),
			Hint:  "restore it into a claim with a file system",
		}
	case r.Path != "/" || r.SubPath != "":
		return nil, &api.Problem{Code: api.CodePathRefused, Title: fmt.Sprintf("restore: volume %s is a block device: it is restored as a whole", r.Volume)}
	}
	entry, _, err := rootEntry(ctx, conn.objects, r)
	if err != nil {
		return nil, err
	}
	// Exclusive: not over a file system that is mounted.
	target, size, err := device.Open(where, os.O_RDWR|os.O_EXCL)
	if err != nil {
		return nil, err
	}
	defer target.Close()
	if size < entry.FileSize {
		return nil, &api.Problem{
			Code:  api.CodeNoSpace,
			Title: fmt.Sprintf("restore: device %s has %d bytes, the backup %d", where, size, entry.FileSize),
			Hint:  "restore into a claim that is at least as large",
		}
	}
	p.EstimatedDataSize(1, entry.FileSize)
	group, inner := errgroup.WithContext(ctx)
	group.SetLimit(deviceParallel)
	for from := int64(0); from < entry.FileSize; from += devicePart {
		group.Go(func() error {
			object, err := conn.objects.OpenObject(inner, entry.ObjectID)
			if err != nil {
				return fmt.Errorf("read the backup: %w", err)
			}
			defer object.Close()
			if _, err := object.Seek(from, io.SeekStart); err != nil {
				return fmt.Errorf("read the backup: %w", err)
			}
			return writeDevice(inner, target, object, from, min(devicePart, entry.FileSize-from), p, limit)
		})
	}
	err = group.Wait()
	if err == nil {
		err = p.sync(target.Sync)
	}
	switch {
	case ctx.Err() != nil:
		return nil, &api.Problem{
			Code:  api.CodeCancelled,
			Title: fmt.Sprintf("restore: cancelled; device %s is incomplete", where),
			Hint:  "restore again before the application uses it",
		}
	case err != nil:
		return nil, fmt.Errorf("write device %s: %w", where, err)
	}
	p.files.Add(1)
	return &api.Result{Restore: &api.RestoreResult{Files: 1, Bytes: p.bytes.Load()}}, nil
}

// writeDevice writes a part of a device.
func writeDevice(ctx context.Context, target *os.File, in io.Reader, at, size int64, p *progress, limit *throttle) error {
	buffer, scratch := make([]byte, deviceChunk), make([]byte, deviceChunk)
	for end := at + size; at < end; {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		chunk := buffer[:min(deviceChunk, end-at)]
		if _, err := io.ReadFull(in, chunk); err != nil {
			return fmt.Errorf("read the backup at %d of %d bytes: %w", at, end, err)
		}
		var err error
		if contents.AllZero(chunk) {
			err = zeroDevice(target, at, chunk, scratch)
		} else if err = limit.wait(len(chunk)); err == nil {
			_, err = target.WriteAt(chunk, at)
			p.downloaded.Add(int64(len(chunk)))
		}
		if err != nil {
			return err
		}
		at += int64(len(chunk))
		p.bytes.Add(int64(len(chunk)))
	}
	return nil
}

// zeroDevice makes a place of a device read as zeros: it is left alone where it does,
// then given back to a storage that allocates as it is written to, and written to
// where there is no other way. Either call of fallocate is done by the device itself
// or not at all.
func zeroDevice(target *os.File, at int64, zeros, scratch []byte) error {
	there := scratch[:len(zeros)]
	if _, err := target.ReadAt(there, at); err == nil && contents.AllZero(there) {
		return nil
	}
	for _, mode := range []uint32{unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE} {
		if unix.Fallocate(int(target.Fd()), mode, at, int64(len(zeros))) == nil {
			return nil
		}
	}
	_, err := target.WriteAt(zeros, at)
	return err
}

// deviceIsNoFile refuses to put a device's backup into a file system unasked.
func deviceIsNoFile(r api.RestoreRequest) error {
	return &api.Problem{
		Code:  api.CodePathRefused,
		Title: fmt.Sprintf("restore: the backup is of a block device, and volume %s is a file system", r.Volume),
		Hint:  "restore it into a claim of volumeMode Block; to have it as a file, give backupPath, and a directory as restorePath",
	}
}

// checkVolumeName refuses what is no volume's name.
func checkVolumeName(volume string) error {
	if volume == "" || volume == "." || volume == ".." || strings.ContainsAny(volume, "/\x00") {
		return &api.Problem{Code: api.CodeUnknownVolume, Title: fmt.Sprintf("open volume: %q is not a volume's name", volume)}
	}
	return nil
}
