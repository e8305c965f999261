// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repositoryserver_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// memoryGroup is a control group that bounds memory, as a container has one.
type memoryGroup struct {
	*world
	dir          string
	limit, usage string // files
}

func (w *world) memoryGroup() *memoryGroup {
	w.Helper()
	g := &memoryGroup{w, "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		g = &memoryGroup{w, "/sys/fs/cgroup", "memory.max", "memory.current"}
	}
	g.dir = filepath.Join(g.dir, fmt.Sprintf("kanister-kopia-test-%d", os.Getpid()))
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		testenv.Skip(w, "no control group can be made here: %v", err)
	}
	w.Cleanup(func() {
		// The test's context is over. What was killed is gone in a moment.
		ticker := time.NewTicker(50 * time.Millisecond)
		defer ticker.Stop()
		for range 200 {
			if !errors.Is(syscall.Rmdir(g.dir), syscall.EBUSY) {
				return
			}
			<-ticker.C
		}
		w.Error("the control group has processes left")
	})
	if _, err := os.Stat(filepath.Join(g.dir, g.limit)); err != nil {
		testenv.Skip(w, "control groups do not bound memory here: %v", err)
	}
	return g
}

// bound lets the group have some more than it has now.
func (g *memoryGroup) bound(more int64) {
	g.Helper()
	raw, err := os.ReadFile(filepath.Join(g.dir, g.usage))
	g.must(err)
	now, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
	g.must(err)
	g.must(os.WriteFile(filepath.Join(g.dir, g.limit), []byte(strconv.FormatInt(now+more, 10)), 0o644))
}

// enter lets a process begin its life in the group.
func (g *memoryGroup) enter(c *exec.Cmd) {
	c.Args = append([]string{"sh", "-c", `echo $$ >"$0" && exec "$@"`, filepath.Join(g.dir, "cgroup.procs")}, c.Args...)
	c.Path = "/bin/sh"
}

// What the kernel kills for want of memory is told so, with what to raise; the
// agent goes on, and with more memory so does the operation.
func TestIntegrationOutOfMemory(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	group := w.memoryGroup()
	source := w.volume()
	content := make([]byte, 64<<20) // noise, so that as much is on its way as may be
	_, _ = rand.NewChaCha8([32]byte{}).Read(content)
	w.must(os.WriteFile(filepath.Join(source, "f"), content, 0o600))
	s := w.serve()
	agent, process := w.sidecar(source, group.enter)
	testenv.Eventually(t, 3*time.Minute, "the agent answers", func() bool {
		_, err := agent.Info(w.context())
		return err == nil
	})
	// The process that was started ahead has its memory already. It ends if nobody wants it.
	testenv.Eventually(t, time.Minute, "nothing is started ahead", func() bool { return len(children(w, process.Cmd.Process.Pid)) == 0 })
	// Enough to begin with, not for the work, which takes some 80 MiB more. What ended just now
	// may still be counted for a moment, 23 MiB: that is not enough for the work either.
	group.bound(24 << 20)
	_, err := agent.Run(w.context(), snapshotRequest("small", w.session(s, "small", "pvc.data"), "/"), func(api.Progress) {})
	if code(err) != api.CodeOutOfMemory || !strings.Contains(err.Error(), "the kernel killed the operation") || !strings.Contains(err.Error(), "kopia.kanister.io/memory-limit") {
		t.Errorf("%v (%s), want %s and the annotation", err, code(err), api.CodeOutOfMemory)
	}
	if op, err := agent.Get(w.context(), "small"); err != nil || op.State != api.StateFailed || !alive(process.Cmd.Process.Pid) {
		t.Errorf("afterwards the agent says %+v, %v", op, err)
	}
	group.bound(1 << 30)
	w.backup(s, agent, "large", "/")
}

// Where the whole container is killed, the agent with it, an operation that is asked
// for again and again comes to an end, and the next one works.
func TestIntegrationAgentKilledAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	source := w.volume()
	w.must(os.WriteFile(filepath.Join(source, "f"), []byte("x"), 0o600))
	s := w.serve()
	agent, process := w.sidecar(source, nil)
	req := snapshotRequest("deadly", w.session(s, "deadly", "pvc.data"), "/")

	w.must(s.Cmd.Process.Signal(syscall.SIGSTOP)) // it does not end by itself
	for _, want := range []api.State{api.StateNeedsCredentials, api.StateFailed} {
		w.running(agent, process, req)
		process.Kill()
		process = process.Again(w)
		w.await(agent, req.ID, want)
	}
	w.must(s.Cmd.Process.Signal(syscall.SIGCONT))
	_, err := agent.Run(w.context(), req, func(api.Progress) {})
	if code(err) != api.CodeOutOfMemory || !strings.Contains(err.Error(), "kopia.kanister.io/memory-limit") {
		t.Errorf("%v (%s), want %s and the annotation", err, code(err), api.CodeOutOfMemory)
	}
	w.backup(s, agent, "next", "/")
}
