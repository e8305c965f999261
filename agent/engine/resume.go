// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	kopiafs "github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/snapshot"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

// resume knows which files an earlier, cut short restore of the same data to the
// same place has completed. That restore left a mark in the target. A file with the
// size, time, mode, owner and attributes that it should have, whose inode changed after
// the mark was made, is taken for one that it wrote: whoever else writes to a file changes
// its time, too. That is wrong only of an older file with all of that and other content,
// whose owner or mode somebody set again meanwhile; to compare finds it.
type resume struct {
	mark  string
	since time.Time // on the volume's clock; zero: nothing is taken over
}

// bootID changes when the node restarts: what was written before may then have its
// size and time but not its content.
const bootID = "/proc/sys/kernel/random/boot_id"

// markName is the name of a restore's mark: the same for the same data.
func markName(r api.RestoreRequest) string {
	return tempPrefix + "of-" + digest(r.RootObject+"/"+r.SubPath)
}

// begin finds the mark of an earlier try in the target, or makes one.
func (w *restorer) begin(top *folder, r api.RestoreRequest) error {
	w.resume.mark = markName(r)
	boot, err := os.ReadFile(bootID)
	if err != nil {
		boot = []byte(w.token) // no earlier try is trusted
	}
	info, err := top.root.Lstat(w.resume.mark)
	if err == nil && info.Mode().IsRegular() && info.Size() < 1<<10 {
		if found, err := top.root.ReadFile(w.resume.mark); err == nil && string(found) == string(boot) {
			w.resume.since = changeTime(info)
			return nil
		}
	}
	if err == nil {
		err = top.root.RemoveAll(w.resume.mark)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("mark the beginning in /%s: %w", top.path, err)
	}
	if err := top.root.WriteFile(w.resume.mark, boot, 0o600); err != nil {
		return fmt.Errorf("mark the beginning in /%s: %w", top.path, err)
	}
	return nil
}

// end removes the mark: the next restore begins anew.
func (w *restorer) end(top *folder) error {
	if err := top.root.Remove(w.resume.mark); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the mark in /%s: %w", top.path, err)
	}
	return nil
}

// has says whether a file was completed by the earlier try.
func (r resume) has(f *folder, name string, e *snapshot.DirEntry, x extra) bool {
	if r.since.IsZero() {
		return false
	}
	info, err := f.root.Lstat(name)
	if err != nil || !info.Mode().IsRegular() {
		return false
	}
	uid, gid := ownerOf(info)
	if info.Size() != e.FileSize || !info.ModTime().Equal(e.ModTime.ToTime()) || !changeTime(info).After(r.since) ||
		info.Mode()&kopiafs.ModBits != fs.FileMode(e.Permissions)&kopiafs.ModBits || uid != e.UserID || gid != e.GroupID {
		return false
	}
	// Attributes and ACLs have no time of their own.
	attributes, err := readXattrs(unopened(f.self.Fd(), name))
	return err == nil && sameXattrs(attributes, x.Xattrs)
}

func changeTime(info fs.FileInfo) time.Time {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return time.Unix(stat.Ctim.Unix())
	}
	return time.Time{}
}
