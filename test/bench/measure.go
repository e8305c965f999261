// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Use is what one operation took.
type Use struct {
	Seconds float64 `json:"seconds"`
	// SyncSeconds more until what was restored is on disk.
	SyncSeconds float64 `json:"syncSeconds,omitempty"`
	// CPU seconds of whoever reads or writes the data, of the peer's server and of
	// the S3 gateway.
	ClientCPU  float64 `json:"clientCPU"`
	ServerCPU  float64 `json:"serverCPU"`
	StorageCPU float64 `json:"storageCPU"`
	// Peak resident memory in bytes.
	ClientRSS int64 `json:"clientRSS"`
	ServerRSS int64 `json:"serverRSS"`
	// Stored bytes, all in all, after a backup.
	Stored int64 `json:"stored,omitempty"`
}

// meter measures one peer. Memory is what the kernel remembers as a process's peak
// (VmHWM), asked for until the process ends: the figure that a parent gets when its
// child has ended includes the parent's own.
type meter struct {
	// Processes that outlive an operation; 0: there is none. Of the agent only the
	// operation's process counts: what the agent itself takes is told apart. Of a
	// server it is its own peak and that of the largest process it starts.
	agent, server, gateway int

	command     atomic.Int64 // the client that runs
	commandCPU  time.Duration
	client      int64
	ownServer   int64
	serverChild int64
}

// measure runs one operation.
func (m *meter) measure(ctx context.Context, do func(context.Context) error) (Use, error) {
	// No operation pays for what an earlier one has not written to disk yet.
	unix.Sync()
	m.commandCPU, m.client, m.ownServer, m.serverChild = 0, 0, 0, 0
	if err := forgetPeak(m.server); err != nil {
		return Use{}, err
	}
	agent, server, gateway := cpuOf(m.agent), cpuOf(m.server), cpuOf(m.gateway)
	stop := m.watch()
	begin := time.Now()
	err := do(ctx)
	took := time.Since(begin)
	stop()
	if err != nil {
		return Use{}, err
	}
	return Use{
		Seconds:    took.Seconds(),
		ClientCPU:  (m.commandCPU + cpuOf(m.agent) - agent).Seconds(),
		ServerCPU:  (cpuOf(m.server) - server).Seconds(),
		StorageCPU: (cpuOf(m.gateway) - gateway).Seconds(),
		ClientRSS:  m.client,
		ServerRSS:  m.ownServer + m.serverChild,
	}, nil
}

// run runs a client's program to its end.
func (m *meter) run(ctx context.Context, dir string, env []string, program string, args ...string) (stdout []byte, err error) {
	var out, complaints bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, env, &out, &complaints
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	m.command.Store(int64(cmd.Process.Pid))
	err = cmd.Wait()
	m.command.Store(0)
	if cmd.ProcessState != nil {
		m.commandCPU += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w\n%s", filepath.Base(program), args[0], err, bytes.TrimSpace(complaints.Bytes()))
	}
	return out.Bytes(), nil
}

// watch looks at memory until it is stopped.
func (m *meter) watch() (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(20 * time.Millisecond)
		defer ticker.Stop()
		var f family
		for {
			m.look(&f)
			select {
			case <-done:
				m.look(&f)
				return
			case <-ticker.C:
			}
		}
	}()
	return func() { close(done); <-ended }
}

func (m *meter) look(f *family) {
	f.refresh(m.agent, m.server)
	m.client = max(m.client, memoryOf(int(m.command.Load())).Peak)
	for _, pid := range f.agents {
		m.client = max(m.client, memoryOf(pid).Peak)
	}
	m.ownServer = max(m.ownServer, memoryOf(m.server).Peak)
	for _, pid := range f.servers {
		m.serverChild = max(m.serverChild, memoryOf(pid).Peak)
	}
}

// family is the children of an agent and of a server. To look for them takes a core's
// tenth, which the peers without a server would not pay: it is done when there is a new process.
type family struct {
	newest          string // the last process that the kernel made
	agents, servers []int
}

func (f *family) refresh(agent, server int) {
	load, _ := os.ReadFile("/proc/loadavg")
	newest := string(load[bytes.LastIndexByte(load, ' ')+1:])
	if newest == f.newest {
		return
	}
	var agents, servers bool
	f.agents, agents = children(agent)
	f.servers, servers = children(server)
	if agents && servers {
		f.newest = newest
	}
}

// Memory of a process in bytes; all zero when it has ended.
type Memory struct {
	Peak      int64 `json:"-"`
	Resident  int64 `json:"resident"`
	Anonymous int64 `json:"anonymous"`
}

func memoryOf(pid int) (m Memory) {
	if pid == 0 {
		return m
	}
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)) // it may just have ended
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		var into *int64
		switch name {
		case "VmHWM":
			into = &m.Peak
		case "VmRSS":
			into = &m.Resident
		case "RssAnon":
			into = &m.Anonymous
		default:
			continue
		}
		kib, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		*into = kib << 10
	}
	return m
}

// forgetPeak makes what a process has now its peak.
func forgetPeak(pid int) error {
	if pid == 0 {
		return nil
	}
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
}

// children are the processes that a process has started and that still run. One that has
// not become its program yet is left out, which is told by all: the memory that it shows is
// its parent's.
func children(pid int) (pids []int, all bool) {
	if pid == 0 {
		return nil, true
	}
	all = true
	program := programOf(pid)
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		raw, _ := os.ReadFile(list) // its thread may just have ended
		for _, field := range strings.Fields(string(raw)) {
			child, err := strconv.Atoi(field)
			switch {
			case err != nil:
			case programOf(child) == program:
				all = false
			default:
				pids = append(pids, child)
			}
		}
	}
	return pids, all
}

// programOf is the file that a process runs; "" when it has ended.
func programOf(pid int) string {
	program, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return program
}

// tick is the unit of /proc/<pid>/stat on every Linux that Go runs on.
const tick = 10 * time.Millisecond

// cpuOf is the CPU time of a process and of those it started that have ended.
func cpuOf(pid int) (total time.Duration) {
	if pid == 0 {
		return 0
	}
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	total, _ = cpuIn(string(stat))
	return total
}

// cpuIn adds up utime, stime, cutime and cstime. The program's name, in
// parentheses, may hold anything.
func cpuIn(stat string) (total time.Duration, err error) {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	const utime, cstime = 11, 14 // counted from the field after the name
	if len(fields) <= cstime {
		return 0, errors.New("/proc/<pid>/stat is short")
	}
	for _, field := range fields[utime : cstime+1] {
		ticks, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, err
		}
		total += time.Duration(ticks) * tick
	}
	return total, nil
}
