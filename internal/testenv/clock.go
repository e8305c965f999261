// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// Clock is the wall clock of the processes of its programs, which a test can set while
// they run. The machine's own is left alone, and so is time that only passes: timers,
// deadlines, and what is measured with the monotonic clock.
type Clock struct {
	dir    string
	ahead  *int64 // nanoseconds; also in the memory of every process
	mapped []byte
}

// clockFile lies beside the programs that go by it: they find it by where they are, and
// need no environment, of which the agent gives nothing on to its operations.
const clockFile = "clock"

// nowOfTime is where package time asks the machine for the time, and what it does with
// the answer instead.
const (
	nowOfTime = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	jumped    = nowOfTime + `	ahead := clockAhead()
	sec += ahead / 1e9
	if nsec += int32(ahead % 1e9); nsec >= 1e9 {
		sec, nsec = sec+1, nsec-1e9
	} else if nsec < 0 {
		sec, nsec = sec-1, nsec+1e9
	}
`
	// clockOfTime is what package time gets beside its own files.
	clockOfTime = `package time

import (
	"sync/atomic"
	"syscall"
	"unsafe"
)

var clockPage = openClock()

func openClock() []byte {
	path := make([]byte, 4096)
	n, err := syscall.Readlink("/proc/self/exe", path)
	if err != nil {
		panic("clock: " + err.Error())
	}
	for path[n-1] != '/' {
		n--
	}
	fd, err := syscall.Open(string(path[:n])+"` + clockFile + `", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		panic("clock: " + err.Error())
	}
	defer syscall.Close(fd)
	page, err := syscall.Mmap(fd, 0, 8, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		panic("clock: " + err.Error())
	}
	return page
}

func clockAhead() int64 {
	if clockPage == nil {
		return 0
	}
	return atomic.LoadInt64((*int64)(unsafe.Pointer(&clockPage[0])))
}
`
)

// NewClock makes a clock that goes right, and programs that go by it.
//
// The standard library's package time is built with a change of ours, and with it all
// that there is: this takes minutes, the first time on a machine.
func NewClock(t testing.TB, programs ...string) *Clock {
	t.Helper()
	c := &Clock{dir: t.TempDir()}
	// An agent of a test may run as somebody else.
	for dir := c.dir; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		must(t, os.Chmod(dir, 0o755))
	}
	file, err := os.OpenFile(filepath.Join(c.dir, clockFile), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	must(t, err)
	defer file.Close()
	must(t, file.Truncate(8))
	c.mapped, err = syscall.Mmap(int(file.Fd()), 0, 8, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	must(t, err)
	t.Cleanup(func() { _ = syscall.Munmap(c.mapped) })
	c.ahead = (*int64)(unsafe.Pointer(&c.mapped[0]))
	for _, name := range programs {
		must(t, os.Link(jumpingProgram(t, name), filepath.Join(c.dir, name)))
	}
	return c
}

// Program is the path of one of its programs.
func (c *Clock) Program(name string) string { return filepath.Join(c.dir, name) }

// JumpBy sets the clock ahead, or back, at once, in all processes.
func (c *Clock) JumpBy(d time.Duration) { atomic.AddInt64(c.ahead, int64(d)) }

// GoRight sets it to the machine's time again.
func (c *Clock) GoRight() { atomic.StoreInt64(c.ahead, 0) }

// Now is what it shows.
func (c *Clock) Now() time.Time {
	return time.Now().Add(time.Duration(atomic.LoadInt64(c.ahead))).Round(0)
}

// jumpingProgram builds a program of ours, once a test binary, as it is shipped but for
// its clock.
func jumpingProgram(t testing.TB, name string) string {
	t.Helper()
	built.Lock()
	defer built.Unlock()
	dir := programs(t)
	path := filepath.Join(dir, "jumping-"+name)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	cmd := exec.CommandContext(t.Context(), "go", "build", "-overlay", overlay(t, dir), "-o", path, "./cmd/"+name)
	cmd.Dir, cmd.Env = Root(t), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s with a clock: %v\n%s", name, err, out)
	}
	return path
}

// overlay writes the changed package time into a folder and returns the file that tells
// the go command of it.
func overlay(t testing.TB, dir string) string {
	t.Helper()
	goroot, err := exec.CommandContext(t.Context(), "go", "env", "GOROOT").Output()
	must(t, err)
	of := filepath.Join(strings.TrimSpace(string(goroot)), "src", "time")
	original, err := os.ReadFile(filepath.Join(of, "time.go"))
	must(t, err)
	if strings.Count(string(original), nowOfTime) != 1 {
		t.Fatal("time.Now is not written as it was: look at nowOfTime")
	}
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, []byte(content), 0o644))
		return path
	}
	replace := map[string]string{
		filepath.Join(of, "time.go"):          write("time.go", strings.Replace(string(original), nowOfTime, jumped, 1)),
		filepath.Join(of, "jumping_clock.go"): write("jumping_clock.go", clockOfTime),
	}
	raw, err := json.Marshal(map[string]any{"Replace": replace})
	must(t, err)
	return write("overlay.json", string(raw))
}
