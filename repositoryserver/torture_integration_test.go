// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repositoryserver_test

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// ext4 mounts a new file system of its own, with its lost+found, as a volume.
func (w *world) ext4() string {
	w.Helper()
	volume := w.volume()
	testenv.MountExt4(w, volume)
	return volume
}

// The tree of all that is hard, on a file system as a claim has it, comes back on
// another one: as root all of it, as root with our pods' capabilities all but what needs
// more of them, as the files' owner all but what is root's to make, as another user all
// but the owner too, and what is missing is told.
func TestIntegrationLadder(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		testenv.Skip(t, "mounting, and making other users' files, is root's")
	}
	const owner, stranger = 65532, 65533
	w := newWorld(t)
	s := w.serve()
	as := func(uid, gid uint32) func(*exec.Cmd) {
		return func(c *exec.Cmd) { c.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: gid} }
	}
	// trial backs a volume up as one user and restores it as one.
	trial := func(name, source string, reads, setup func(*exec.Cmd), uid, gid int) (map[string]testenv.Entry, *api.RestoreResult) {
		t.Helper()
		w.reachable(filepath.Dir(source))
		agent, _ := w.sidecar(source, reads)
		record := w.backup(s, agent, name, "/")
		if got := record.Snapshot.Excluded; !slices.Equal(got, []string{"/lost+found"}) {
			t.Errorf("%s: left out %q, want the file system's own lost+found alone", name, got)
		}
		target := w.ext4()
		w.must(os.Lchown(target, uid, gid))
		w.reachable(filepath.Dir(target))
		// The file system's own stays, what an earlier one left goes.
		lost := *sys(w, filepath.Join(target, "lost+found"))
		w.must(os.WriteFile(filepath.Join(target, "extra"), nil, 0o644))
		w.must(os.Lchown(filepath.Join(target, "extra"), uid, gid))
		to, _ := w.sidecar(target, setup)
		result, err := to.Run(w.context(), api.StartRequest{
			ID: name + "-restore", Kind: api.KindRestore, Credentials: w.toRestore(s, name+"-restore"), Restore: &api.RestoreRequest{
				RootObject: record.Snapshot.RootObject, Root: record.Snapshot.Root, Volume: "data", Path: "/",
				DeleteExtra: true, Verify: api.VerifyAfter,
			},
		}, func(api.Progress) {})
		w.must(err)
		if now := sys(w, filepath.Join(target, "lost+found")); now.Ino != lost.Ino || now.Mode != lost.Mode || now.Uid != 0 || now.Ctim != lost.Ctim {
			t.Errorf("%s: lost+found was %+v, is %+v", name, lost, *now)
		}
		if result.Restore.Deleted != 1 {
			t.Errorf("%s: %d extra entries deleted, want 1", name, result.Restore.Deleted)
		}
		return withoutLost(testenv.Tree(t, target)), result.Restore
	}

	source := w.ext4()
	testenv.MakeTree(t, source)
	for name, mode := range map[string]uint32{"null": unix.S_IFCHR | 0o666, "disk": unix.S_IFBLK | 0o660} {
		if err := unix.Mknod(filepath.Join(source, name), mode, int(unix.Mkdev(1, 3))); err != nil {
			testenv.Skip(t, "no device can be made here: %v", err)
		}
	}
	// What lends the rights of a group that root is not of.
	lent := filepath.Join(source, "lent")
	w.must(os.WriteFile(lent, []byte("to 88"), 0o644))
	w.must(os.Chown(lent, 77, 88))
	w.must(os.Chmod(lent, fs.ModeSetgid|0o755))
	want := withoutLost(testenv.Tree(t, source))
	got, result := trial("as-root", source, nil, nil, 0, 0)
	w.same(want, got)
	if len(result.NotKept) > 0 {
		t.Errorf("as root: not kept: %q, want nothing", result.NotKept)
	}

	// Root as our pods are it: the sidecar that reads, the mover that writes.
	got, result = trial("as-our-root", source, withOnly("dac_read_search"), withOnly("chown", "fowner", "dac_override"), 0, 0)
	limited := maps.Clone(want)
	for name, e := range limited {
		switch {
		case e.Mode&fs.ModeDevice != 0:
			delete(limited, name)
		case name == "lent":
			e.Mode &^= fs.ModeSetgid
		case name == "capable":
			e.Xattrs = ""
		}
		if _, ok := limited[name]; ok {
			limited[name] = e
		}
	}
	w.same(limited, got)
	if len(result.NotKept) != 3 || !toldOf(result, "special file of 2 entries") || !toldOf(result, "mode of 1 entries") || !toldOf(result, "extended attribute of 1 entries") {
		t.Errorf("as root with our capabilities: not kept: %q, want two devices, a setgid bit and a program's capabilities", result.NotKept)
	}

	// The same tree as an application has it: nothing of it is another user's. It may
	// read all of its files.
	handOver(t, source, owner)
	// What not even the owner may read, root backs up; the owner restores it, and cannot look at it again.
	want = withoutLost(testenv.Tree(t, source))
	got, result = trial("root-to-owner", source, nil, as(owner, owner), owner, owner)
	for name, e := range want {
		if e.Mode&fs.ModeDevice != 0 {
			delete(want, name)
		}
	}
	w.same(want, got)
	if line := fmt.Sprintf("content of 1 entries could not be compared by uid %d, first: /locked", owner); !slices.Contains(result.Unverified, line) {
		t.Errorf("root to owner: not compared: %q, want %q", result.Unverified, line)
	}

	w.must(os.Chmod(filepath.Join(source, "locked"), 0o440))
	w.must(os.Chmod(filepath.Join(source, "private", "secret"), 0o440))
	w.must(os.Chmod(filepath.Join(source, "private"), 0o550))
	want = withoutLost(testenv.Tree(t, source))
	got, result = trial("as-owner", source, as(owner, owner), as(owner, owner), owner, owner)
	for name, e := range want {
		if e.Mode&fs.ModeDevice != 0 {
			delete(want, name) // what no restricted pod can make
		}
	}
	w.same(want, got)
	if !toldOf(result, "special file of 2 entries") || len(result.NotKept) != 1 {
		t.Errorf("as the owner: not kept: %q, want the two devices alone", result.NotKept)
	}

	// Another user of the group, as an fsGroup makes it.
	for name := range want {
		info, err := os.Lstat(filepath.Join(source, name))
		w.must(err)
		if info.Mode().IsRegular() || info.IsDir() {
			more := fs.FileMode(0o040)
			if info.IsDir() {
				more = 0o050
			}
			w.must(os.Chmod(filepath.Join(source, name), info.Mode()|more))
		}
	}
	want = withoutLost(testenv.Tree(t, source))
	got, result = trial("as-group", source, as(stranger, owner), as(stranger, owner), stranger, owner)
	for name, e := range want {
		if e.Mode&fs.ModeDevice != 0 {
			delete(want, name)
			continue
		}
		e.UID = stranger
		e.Mode &^= fs.ModeSetuid | fs.ModeSetgid // nobody's rights are lent
		want[name] = e
	}
	w.same(want, got)
	if !toldOf(result, "special file of 2 entries") || !toldOf(result, "owner of ") || !toldOf(result, "mode of ") {
		t.Errorf("as another user: not kept: %q, want owners, the modes that lend them, and devices", result.NotKept)
	}
	// What they are made of, nobody takes for damage.
	if _, message := w.maintain("--mode", "full", "--verify-percent", "100"); message != "" {
		t.Errorf("maintenance of all that: %s", message)
	}
}

// withOnly starts a process as a root that has some capabilities, as a container has them.
func withOnly(capabilities ...string) func(*exec.Cmd) {
	return func(c *exec.Cmd) {
		program := c.Path
		c.Path, c.Err = exec.LookPath("setpriv")
		c.Args = append([]string{"setpriv", "--no-new-privs", "--bounding-set", "-all,+" + strings.Join(capabilities, ",+"), program}, c.Args[1:]...)
	}
}

// withoutLost is a volume's tree without the file system's own lost+found.
func withoutLost(tree map[string]testenv.Entry) map[string]testenv.Entry {
	delete(tree, "lost+found")
	return tree
}

func toldOf(r *api.RestoreResult, what string) bool {
	return slices.ContainsFunc(r.NotKept, func(line string) bool { return strings.HasPrefix(line, what) })
}

// handOver gives all but lost+found to one user, with modes and times as they were. What
// lends root's rights goes with the change of owner.
func handOver(t *testing.T, root string, uid int) {
	t.Helper()
	var times []func() error
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == filepath.Join(root, "lost+found") {
			return filepath.SkipDir
		}
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		if err := os.Lchown(path, uid, uid); err != nil {
			return err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			if err := os.Chmod(path, info.Mode()); err != nil {
				return err
			}
			times = append(times, func() error { return os.Chtimes(path, info.ModTime(), info.ModTime()) })
		}
		return nil
	})
	for _, set := range slices.Backward(times) {
		if err == nil {
			err = set()
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}
