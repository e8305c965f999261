// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repositoryserver_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/client"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// children are the processes that another one started.
func children(w *world, parent int) []int {
	w.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", parent))
	w.must(err)
	var pids []int
	for _, task := range tasks {
		raw, err := os.ReadFile(task)
		if err != nil {
			continue // the thread has ended
		}
		for _, field := range strings.Fields(string(raw)) {
			pid, err := strconv.Atoi(field)
			w.must(err)
			// Go forks once to see what the kernel can do, and each time before it executes.
			if raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && bytes.Contains(raw, []byte("/operation\x00")) {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

func alive(pid int) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !bytes.Contains(raw, []byte(") Z "))
}

// running starts an operation whose repository server is frozen, so that it stays
// under way, and returns the process that runs it.
func (w *world) running(agent *client.Client, p *testenv.Process, req api.StartRequest) int {
	w.Helper()
	_, err := agent.Start(w.context(), req)
	w.must(err)
	var pids []int
	testenv.Eventually(w, 2*time.Minute, "the operation's process runs", func() bool {
		op, err := agent.Get(w.context(), req.ID)
		w.must(err)
		pids = children(w, p.Cmd.Process.Pid)
		return op.State == api.StateRunning && len(pids) == 1
	})
	return pids[0]
}

// An operation survives the end of its agent, ends when it is cancelled even if
// nothing answers any more, and shows no secret meanwhile.
func TestIntegrationAgentRestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	source := w.volume()
	for _, dir := range []string{"a", "b", "c"} {
		w.must(os.Mkdir(filepath.Join(source, dir), 0o755))
		w.must(os.WriteFile(filepath.Join(source, dir, "f"), []byte(dir), 0o644))
	}
	s := w.serve()
	agent, process := w.sidecar(source, func(c *exec.Cmd) { c.Env = append(os.Environ(), "GOMEMLIMIT=384MiB") })
	killed := snapshotRequest("killed", w.session(s, "killed", "pvc.a"), "/a")
	ended := snapshotRequest("ended", w.session(s, "ended", "pvc.b"), "/b")
	cancelled := snapshotRequest("cancelled", w.session(s, "cancelled", "pvc.c"), "/c")
	freeze := func(signal syscall.Signal) { w.must(s.Cmd.Process.Signal(signal)) }

	freeze(syscall.SIGSTOP)
	child := w.running(agent, process, killed)
	for _, pid := range []int{process.Cmd.Process.Pid, child, s.Cmd.Process.Pid} {
		for _, file := range []string{"cmdline", "environ"} {
			raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
			w.must(err)
			w.noSecrets(file, raw)
		}
	}
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", child))
	w.must(err)
	for _, want := range []string{"GOMAXPROCS=2", fmt.Sprintf("GOMEMLIMIT=%d", 192<<20)} {
		if !slices.Contains(strings.Split(string(environ), "\x00"), want) {
			t.Errorf("the operation's environment %q lacks %s", environ, want)
		}
	}
	testenv.Eventually(w, time.Minute, "the operation's process goes behind others", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", child))
		w.must(err)
		_, fields, _ := strings.Cut(string(stat), ") ") // behind the name, the third field is the first
		return strings.Fields(fields)[16] == "10"
	})
	// The kernel takes it first when memory is short.
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", child))
	w.must(err)
	if got := strings.TrimSpace(string(raw)); got != "1000" {
		t.Errorf("the operation's process has an oom_score_adj of %s, want 1000", got)
	}
	process.Kill()
	testenv.Eventually(w, time.Minute, "the operation's process ends with its agent", func() bool { return !alive(child) })

	process = process.Again(w)
	w.await(agent, "killed", api.StateNeedsCredentials)
	w.running(agent, process, ended)
	w.must(process.Cmd.Process.Signal(syscall.SIGTERM))
	<-process.Done
	if !process.Cmd.ProcessState.Success() {
		t.Errorf("the agent ends with %s: %s", process.Cmd.ProcessState, testenv.LastLine(process.Log()))
	}

	process = process.Again(w)
	w.await(agent, "ended", api.StateNeedsCredentials)
	child = w.running(agent, process, cancelled)
	ctx, cancel := context.WithCancel(w.context())
	cancel()
	if _, err := agent.Run(ctx, cancelled, func(api.Progress) {}); err == nil {
		t.Error("a cancelled operation succeeds")
	}
	w.await(agent, "cancelled", api.StateCancelled)
	if alive(child) {
		t.Error("the cancelled operation's process goes on")
	}
	freeze(syscall.SIGCONT)

	for _, req := range []api.StartRequest{killed, ended} {
		if _, err := agent.Run(w.context(), req, func(api.Progress) {}); err != nil {
			t.Errorf("%s, asked for again: %v", req.ID, err)
		}
	}
	if _, err := agent.Run(w.context(), cancelled, func(api.Progress) {}); code(err) != api.CodeCancelled {
		t.Errorf("the cancelled one, asked for again: %v, want that it was cancelled", err)
	}
	w.noSecrets("the agent's log", []byte(process.Log()))
}

// await waits until an agent, which may just be starting, knows an operation in a state.
func (w *world) await(agent *client.Client, id string, want api.State) {
	w.Helper()
	testenv.Eventually(w, 2*time.Minute, fmt.Sprintf("operation %s is %s", id, want), func() bool {
		op, err := agent.Get(w.context(), id)
		return err == nil && op.State == want
	})
}

// A server that comes back, with what it left behind or without, serves as before;
// passwords of before its end do not.
func TestIntegrationServerRestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	source := w.volume()
	w.must(os.WriteFile(filepath.Join(source, "f"), []byte("x"), 0o600))
	s := w.serve()
	agent, _ := w.sidecar(source, nil)
	record := w.backup(s, agent, "op-1", "/")
	stale := w.session(s, "stale", "pvc.data")

	s.Kill()
	s.Process = s.Again(w)
	w.ready(s)
	if _, err := agent.Run(w.context(), snapshotRequest("stale", stale, "/"), func(api.Progress) {}); code(err) != api.CodeAccessDenied {
		t.Errorf("a password of before: %v, want %s", err, api.CodeAccessDenied)
	}
	found, err := w.find(s, "find-1", api.FindRequest{BackupID: record.BackupID, Prefix: prefix, KeyID: "default"})
	w.must(err)
	if len(found.Records) != 1 || found.Records[0].Snapshot.ID != record.Snapshot.ID {
		t.Errorf("found %+v", found.Records)
	}
	w.backup(s, agent, "op-2", "/")

	w.must(s.Cmd.Process.Signal(syscall.SIGTERM))
	<-s.Done
	if !s.Cmd.ProcessState.Success() {
		t.Errorf("the server ends with %s: %s", s.Cmd.ProcessState, testenv.LastLine(s.Log()))
	}
	w.noSecrets("the server's log", []byte(s.Log()))
}
