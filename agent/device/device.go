// SPDX-License-Identifier: Apache-2.0

// Package device opens block devices, and says why one cannot be.
package device

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

// Open opens a block device and tells its size in bytes. Its error names the uid where
// that is what is wrong, and what to do.
func Open(where string, flags int) (*os.File, int64, error) {
	f, err := os.OpenFile(where, flags|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, explain(where, err)
	}
	info, err := f.Stat()
	if err == nil && (info.Mode()&fs.ModeDevice == 0 || info.Mode()&fs.ModeCharDevice != 0) {
		err = errors.New("it is not a block device")
	}
	var size int64
	if err == nil {
		size, err = f.Seek(0, io.SeekEnd)
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, 0, fmt.Errorf("open device %s: %w", where, err)
	}
	return f, size, nil
}

func explain(where string, err error) error {
	reason := err
	if path := new(fs.PathError); errors.As(err, &path) {
		reason = path.Err
	}
	p := &api.Problem{Title: fmt.Sprintf("open device %s as uid %d: %v", where, os.Getuid(), reason)}
	switch {
	case errors.Is(err, fs.ErrPermission):
		p.Code = api.CodeUnreadable
		p.Hint = "the node gives a device to root, or, with device_ownership_from_security_context of its container runtime, to the container's user: " +
			"allow root agents in the namespace (annotation kopia.kanister.io/privileged-agents) and ask for one on the pod (kopia.kanister.io/run-as: \"0\"), " +
			"for a restore with podOverride"
	case errors.Is(err, syscall.EBUSY):
		p.Code, p.Hint = api.CodeBusy, "it is mounted or in use on this node: scale the workload down first"
	default:
		return fmt.Errorf("open device %s: %w", where, err)
	}
	return p
}
