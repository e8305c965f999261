// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repositoryserver_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// loop makes a block device of a size, as name in a folder that agents look for devices
// in, and returns the file behind it.
func (w *world) loop(dir, name string, size int64) (node, backing string) {
	w.Helper()
	backing = filepath.Join(w.TempDir(), name)
	w.must(os.WriteFile(backing, nil, 0o600))
	w.must(os.Truncate(backing, size))
	out, err := exec.Command("losetup", "--find", "--show", backing).CombinedOutput()
	if err != nil {
		testenv.Skip(w, "no loop devices here: %v: %s", err, out)
	}
	at := strings.TrimSpace(string(out))
	w.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", at).CombinedOutput(); err != nil {
			w.Errorf("detach %s: %v: %s", at, err, out)
		}
	})
	var stat unix.Stat_t
	w.must(unix.Stat(at, &stat))
	node = filepath.Join(dir, name)
	if err := unix.Mknod(node, unix.S_IFBLK|0o600, int(stat.Rdev)); err != nil {
		testenv.Skip(w, "no device can be made here: %v", err)
	}
	return node, backing
}

func (w *world) noise(node string, seed byte, at, size int64) {
	w.Helper()
	f, err := os.OpenFile(node, os.O_WRONLY, 0)
	w.must(err)
	defer f.Close()
	content := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(content)
	_, err = f.WriteAt(content, at)
	w.must(err)
	w.must(f.Sync())
}

func (w *world) deviceContent(node string) []byte {
	w.Helper()
	f, err := os.Open(node)
	w.must(err)
	defer f.Close()
	content, err := io.ReadAll(f)
	w.must(err)
	return content
}

// A block device comes back byte by byte on another one, whatever that held; a change
// sends little; what cannot be is said.
func TestIntegrationDevice(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		testenv.Skip(t, "loop devices are root's")
	}
	const size = 96 << 20
	w := newWorld(t)
	devices := w.TempDir()
	raw, _ := w.loop(devices, "raw", size)
	target, backing := w.loop(devices, "target", size+4<<20)
	w.loop(devices, "small", size/2)
	w.noise(raw, 1, 0, 5<<20)
	w.noise(raw, 2, 60<<20+512, 3<<20)
	w.noise(target, 3, 0, size+4<<20)
	w.must(os.Chmod(devices, 0o755))
	w.reachable(devices)
	files := w.volume()
	w.must(os.WriteFile(filepath.Join(files, "f"), []byte("a file"), 0o644))
	w.reachable(files)
	s := w.serve()
	agent, process := w.sidecar(files, nil, "-devices-dir", devices)
	nobody, _ := w.sidecar(files, asNobody, "-devices-dir", devices)
	snapshot := func(id, path string) api.StartRequest {
		req := snapshotRequest(id, w.session(s, id, "pvc.raw"), path)
		req.Snapshot.Volume = "raw"
		return req
	}
	restore := func(id, volume string, of *api.SnapshotResult) api.StartRequest {
		return api.StartRequest{ID: id, Kind: api.KindRestore, Credentials: w.toRestore(s, id), Restore: &api.RestoreRequest{
			RootObject: of.RootObject, Root: of.Root, Volume: volume, Path: "/",
		}}
	}
	done := func(req api.StartRequest) *api.Result {
		t.Helper()
		result, err := agent.Run(w.context(), req, func(api.Progress) {})
		w.must(err)
		w.must(s.agent.EndSession(w.context(), req.ID))
		return result
	}

	first := done(snapshot("first", "/")).Snapshot
	if !first.Root.Device || !first.Root.File || first.Root.Size != size || first.Files != 1 || first.Bytes != size {
		t.Errorf("first: %+v, want a device of %d bytes", first, size)
	}
	if first.NewBytes > 40<<20 {
		t.Errorf("%d bytes were sent of a device with 8 MiB of data", first.NewBytes)
	}
	w.noise(raw, 4, 30<<20, size/100)
	want := w.deviceContent(raw)
	second := done(snapshot("second", "/")).Snapshot
	t.Logf("first %d bytes sent, 1 %% changed %d", first.NewBytes, second.NewBytes)
	if second.NewBytes == 0 || second.NewBytes > 25<<20 {
		t.Errorf("%d bytes were sent after a change of %d", second.NewBytes, size/100)
	}

	tail := w.deviceContent(target)[size:]
	if result := done(restore("restored", "target", second)).Restore; result.Bytes != size || result.Files != 1 {
		t.Errorf("restored %+v", result)
	}
	got := w.deviceContent(target)
	if !bytes.Equal(got[:size], want) {
		t.Error("the device does not hold what was backed up")
	}
	if !bytes.Equal(got[size:], tail) {
		t.Error("what lies behind the backup's end was changed")
	}
	if used := sys(w, backing).Blocks * 512; punches(w) && used > 32<<20 {
		t.Errorf("the device takes %d bytes, want those of its data: zeros are given back", used)
	}

	// One that is cancelled says what it leaves.
	cut := restore("cancelled", "target", first)
	cut.RateLimit = 1 << 20 // all of it would take 96 s
	if op := w.cancelled(agent, cut); !strings.Contains(op.Failure.Title, "is incomplete") {
		t.Errorf("cancelled: %s, want the device named as incomplete", told(op))
	}
	done(restore("restored-again", "target", second))
	if !bytes.Equal(w.deviceContent(target)[:size], want) {
		t.Error("after a cancelled restore the device does not hold what was backed up")
	}

	// One that is killed says that it was, and the next one is exact.
	w.noise(target, 5, 0, size)
	link := testenv.StartProxy(w, strings.TrimPrefix(s.url, "https://"))
	(&trial{world: w, s: s}).held(agent, link, 3<<20, restore("killed", "target", second))
	for _, pid := range children(w, process.Cmd.Process.Pid) {
		w.must(syscall.Kill(pid, syscall.SIGKILL))
	}
	if op := (&trial{world: w, s: s}).ended(agent, "killed"); !failedWith(op, api.CodeKilled, api.CodeOutOfMemory) {
		t.Errorf("killed: %s", told(op))
	}
	done(restore("restored-after-kill", "target", second))
	if got := w.deviceContent(target); !bytes.Equal(got[:size], want) || !bytes.Equal(got[size:], tail) {
		t.Error("after a killed restore the device does not hold what was backed up, or what was behind it is gone")
	}

	single := done(snapshotRequest("files", w.session(s, "files", "pvc.data"), "/")).Snapshot
	asFile := restore("as-file", "data", second)
	asFile.Restore.DeviceAsFile = true
	done(asFile)
	if content, err := os.ReadFile(filepath.Join(files, "raw")); err != nil || !bytes.Equal(content, want) {
		t.Errorf("as a file it has %d bytes, %v", len(content), err)
	}

	held, err := os.OpenFile(target, os.O_RDWR|syscall.O_EXCL, 0)
	w.must(err)
	defer held.Close()
	sub := restore("sub-path", "small", second)
	sub.Restore.SubPath = "x"
	after, only := restore("verify-after", "target", second), restore("verify-only", "target", second)
	after.Restore.Verify, only.Restore.Verify = api.VerifyAfter, api.VerifyOnly
	for name, c := range map[string]struct {
		req   api.StartRequest
		want  api.Code
		texts []string
	}{
		"in use":                         {restore("in-use", "target", second), api.CodeBusy, []string{"busy", "uid 0", "scale the workload down"}},
		"too small":                      {restore("too-small", "small", second), api.CodeNoSpace, []string{fmt.Sprint(size / 2), fmt.Sprint(size)}},
		"files onto a device":            {restore("files-onto", "small", single), api.CodePathRefused, []string{"block device"}},
		"a device into files, not asked": {restore("into-files", "data", second), api.CodePathRefused, []string{"block device", "backupPath"}},
		"a part of a device":             {sub, api.CodePathRefused, []string{"as a whole"}},
		"to be verified":                 {after, api.CodeUnsupported, []string{"device", "leave verify out"}},
		"only to be verified":            {only, api.CodeUnsupported, []string{"device", "leave verify out"}},
		"a path of a device":             {snapshot("a-path", "/x"), api.CodePathRefused, []string{"/x"}},
	} {
		_, err := agent.Run(w.context(), c.req, func(api.Progress) {})
		if code(err) != c.want {
			t.Errorf("%s: %v (%s), want %s", name, err, code(err), c.want)
			continue
		}
		for _, text := range c.texts {
			if !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %q, want %q in it", name, err, text)
			}
		}
	}

	info, err := nobody.Info(w.context())
	w.must(err)
	for _, v := range info.Volumes {
		if v.Device && (v.Readable || !strings.Contains(v.Problem, "uid 65532") || !strings.Contains(v.Problem, "privileged-agents")) {
			t.Errorf("who may not read a device says %+v", v)
		}
	}
	if len(info.Volumes) != 4 {
		t.Errorf("volumes %+v, want one with files and three devices", info.Volumes)
	}
	for _, req := range []api.StartRequest{snapshot("nobody-reads", "/"), restore("nobody-writes", "small", second)} {
		if _, err := nobody.Run(w.context(), req, func(api.Progress) {}); code(err) != api.CodeUnreadable || !strings.Contains(err.Error(), "uid 65532") {
			t.Errorf("%s by nobody: %v (%s)", req.Kind, err, code(err))
		}
	}
}

// punches says whether the file system of temporary files gives back what is punched out.
func punches(w *world) bool {
	f, err := os.Create(filepath.Join(w.TempDir(), "punched"))
	w.must(err)
	defer f.Close()
	w.must(f.Truncate(1 << 20))
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 1<<20) == nil
}
