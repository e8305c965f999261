// SPDX-License-Identifier: Apache-2.0

package operation

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// Child runs each operation in a process of its own, so that memory goes back to
// the node when it ends, trust roots are fresh, and whatever does not obey can be
// killed: Kopia does not heed contexts everywhere.
type Child struct {
	// Command is the program and its arguments that read a request on standard input.
	Command []string
	// StateDir is private; the CA bundle of a running child is kept there.
	StateDir string
	// Env is added to the child's environment; never a secret.
	Env []string
	// Grace is how long a cancelled child may take to end; default 10 s.
	Grace time.Duration
	// Stall is how long a child may report no progress at all; default DefaultStall.
	Stall time.Duration
	// Sync is how long it may wait for a volume's storage, which is not the repository
	// server's fault; default DefaultSync, at least Stall.
	Sync time.Duration
	// Spare is how long a process that was started ahead waits for an operation;
	// default 10 s.
	Spare time.Duration
	// ProcFS and CgroupFS are where the kernel shows processes and control groups;
	// default /proc and /sys/fs/cgroup.
	ProcFS, CgroupFS string

	mu    sync.Mutex // protects the following
	spare *process   // started ahead, waits for its request
}

// process is a child.
type process struct {
	cmd    *exec.Cmd
	end    context.CancelFunc // asks it to end, and kills it if it does not
	stdin  io.WriteCloser
	stdout io.Reader
	stderr tail
	// ca is the file of its trust roots, which it reads when it first connects.
	ca     string
	unused *time.Timer // ends it
}

// start starts a process that waits for a request.
func (c *Child) start() (*process, error) {
	p := &process{ca: filepath.Join(c.StateDir, "ca-"+rand.Text()+".crt")}
	var ctx context.Context
	ctx, p.end = context.WithCancel(context.Background())
	p.cmd = exec.CommandContext(ctx, c.Command[0], c.Command[1:]...)
	// Only this CA: the system's roots are looked for where nothing is.
	p.cmd.Env = append([]string{"SSL_CERT_FILE=" + p.ca, "SSL_CERT_DIR=" + filepath.Join(c.StateDir, "none"), "HOME=" + c.StateDir}, c.Env...)
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(syscall.SIGTERM) }
	p.cmd.WaitDelay = cmp.Or(c.Grace, 10*time.Second)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.cmd.Stderr = &p.stderr
	var err error
	if p.stdin, err = p.cmd.StdinPipe(); err == nil {
		p.stdout, err = p.cmd.StdoutPipe()
	}
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		p.end()
		return nil, err
	}
	killFirst(p.cmd.Process.Pid)
	return p, nil
}

// exited says whether it has ended already; Wait still tells how.
func (p *process) exited() bool {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, p.cmd.Process.Pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err != nil || info.Signo != 0
}

// discard ends a process that was asked for nothing: it ends with its input.
func (p *process) discard() {
	_ = p.stdin.Close()
	_ = p.cmd.Wait()
	p.end()
}

// Prepare starts a process ahead for an operation that is about to be asked for: to start
// one is a tenth of a small backup's time. One that nothing asks for ends by itself.
func (c *Child) Prepare() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.spare != nil {
		return
	}
	p, err := c.start()
	if err != nil {
		return // Run says so
	}
	c.spare = p
	p.unused = time.AfterFunc(cmp.Or(c.Spare, 10*time.Second), func() {
		c.mu.Lock()
		mine := c.spare == p
		if mine {
			c.spare = nil
		}
		c.mu.Unlock()
		if mine {
			p.discard()
		}
	})
}

// take returns a process that waits for a request, started ahead or now.
func (c *Child) take() (*process, error) {
	c.mu.Lock()
	p := c.spare
	c.spare = nil
	c.mu.Unlock()
	if p == nil {
		return c.start()
	}
	p.unused.Stop()
	if p.exited() { // somebody killed it: not this operation's fault
		p.discard()
		return c.start()
	}
	return p, nil
}

// ask writes the request to a child, and what changes of it while it runs. A child
// that does not read any more has ended or is about to.
func ask(stdin io.WriteCloser, req api.StartRequest, limits <-chan int64, ended <-chan struct{}) {
	defer stdin.Close()
	encoder := json.NewEncoder(stdin)
	if encoder.Encode(req) != nil {
		return
	}
	for {
		select {
		case <-ended:
			return
		case limit := <-limits:
			if encoder.Encode(control{RateLimit: limit}) != nil {
				return
			}
		}
	}
}

// control is what follows the request on a child's standard input.
type control struct {
	RateLimit int64 `json:"rateLimit"`
}

const (
	// DefaultCheckpointInterval bounds what a killed snapshot has to send again.
	DefaultCheckpointInterval = 5 * time.Minute
	// MaxCheckpointInterval is Kopia's.
	MaxCheckpointInterval = 45 * time.Minute
)

// DefaultStall is longer than what a network takes to come back, and than what a
// storage takes to answer.
const DefaultStall = 5 * time.Minute

// DefaultSync is longer than what a slow disk takes to write what a node's memory holds of it.
const DefaultSync = time.Hour

// message is one line of a child's standard output.
type message struct {
	Progress *api.Progress `json:"progress,omitempty"`
	Result   *api.Result   `json:"result,omitempty"`
	Problem  *api.Problem  `json:"problem,omitempty"`
}

// Run implements Runner.
func (c *Child) Run(ctx context.Context, req api.StartRequest, limits <-chan int64, report func(api.Progress)) (*api.Result, *api.Problem) {
	stall := cmp.Or(c.Stall, DefaultStall)
	syncing := max(stall, cmp.Or(c.Sync, DefaultSync))
	watch, stalled := newWatchdog(ctx, stall)
	defer watch.stop()
	kills, counted := c.oomKills()
	p, err := c.take()
	if err != nil {
		return nil, internal("start child", err)
	}
	defer p.end()
	defer context.AfterFunc(watch.ctx, p.end)()
	if err := p.trust(req); err != nil {
		p.discard()
		return nil, api.OwnFolder(string(req.Kind)+": write CA bundle", err)
	}
	defer os.Remove(p.ca)
	ended := make(chan struct{})
	var asking sync.WaitGroup
	asking.Go(func() { ask(p.stdin, req, limits, ended) })
	defer asking.Wait()
	defer close(ended)
	var last message
	var lastProgress api.Progress
	lines := bufio.NewReader(p.stdout)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			break
		}
		var m message
		if json.Unmarshal(line, &m) != nil {
			continue
		}
		if m.Progress != nil {
			// A child that only says it is alive does not move data.
			if *m.Progress != lastProgress {
				lastProgress = *m.Progress
				if lastProgress.Syncing {
					watch.pet(syncing)
				} else {
					watch.pet(stall)
				}
			}
			report(*m.Progress)
			continue
		}
		last = m
	}
	waitErr := p.cmd.Wait()
	switch {
	case last.Result != nil && waitErr == nil:
		return last.Result, nil
	case stalled() && lastProgress.Syncing:
		return nil, &api.Problem{
			Code:  api.CodeStalled,
			Title: fmt.Sprintf("%s: all is written, but the volume's storage has not taken it within %s; the operation was ended", req.Kind, syncing),
			Hint:  "look at the storage that the volume is on",
		}
	case stalled():
		return nil, &api.Problem{
			Code:  api.CodeStalled,
			Title: fmt.Sprintf("%s: no data moved for %s; the operation was ended", req.Kind, stall),
			Hint:  "look at the repository server and its storage, and whether the volume answers",
		}
	case ctx.Err() != nil:
		if last.Problem != nil && last.Problem.Code == api.CodeCancelled {
			return nil, last.Problem
		}
		return nil, &api.Problem{Code: api.CodeCancelled, Title: fmt.Sprintf("%s: cancelled", req.Kind)}
	case last.Problem != nil:
		return nil, last.Problem
	default:
		now, _ := c.oomKills()
		return nil, died(req.Kind, waitErr, p.stderr.String(), counted, now > kills)
	}
}

// died explains the end of a child that said nothing. What the kernel killed for
// want of memory is known where it was counted.
func died(kind api.Kind, err error, stderr string, counted, oom bool) *api.Problem {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() && status.Signal() == syscall.SIGKILL {
			switch {
			case oom:
				return outOfMemory(fmt.Sprintf("%s: the kernel killed the operation for want of memory", kind))
			case !counted:
				return outOfMemory(fmt.Sprintf("%s: the operation was killed, most likely for want of memory", kind))
			default:
				return &api.Problem{
					Code:  api.CodeKilled,
					Title: fmt.Sprintf("%s: somebody killed the operation; it was not for want of memory", kind),
					Hint:  "look for who ends processes on the node",
				}
			}
		}
	}
	p := internal(string(kind)+": child ended", err)
	if stderr != "" {
		p.Details = []string{stderr}
	}
	return p
}

func outOfMemory(title string) *api.Problem {
	return &api.Problem{Code: api.CodeOutOfMemory, Title: title, Hint: "raise the pod's annotation " + names.MemoryLimitAnnotation}
}

// trust writes the CA that the request trusts, before the child is asked for anything.
func (p *process) trust(req api.StartRequest) error {
	if req.Credentials == nil {
		return nil
	}
	err := os.WriteFile(p.ca, []byte(req.Credentials.CA), 0o600)
	if err != nil {
		_ = os.Remove(p.ca) // what a full disk took of it
	}
	return err
}

func internal(what string, err error) *api.Problem {
	return &api.Problem{Code: api.CodeInternal, Title: fmt.Sprintf("%s: %v", what, err)}
}

// watchdog cancels its context when it was not petted for a while.
type watchdog struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
}

var errStalled = errors.New("stalled")

func newWatchdog(parent context.Context, limit time.Duration) (w *watchdog, stalled func() bool) {
	w = &watchdog{}
	w.ctx, w.cancel = context.WithCancelCause(parent)
	w.timer = time.AfterFunc(limit, func() { w.cancel(errStalled) })
	return w, func() bool { return errors.Is(context.Cause(w.ctx), errStalled) }
}

func (w *watchdog) pet(limit time.Duration) { w.timer.Reset(limit) }
func (w *watchdog) stop()                   { w.timer.Stop(); w.cancel(nil) }

// tail keeps the end of what is written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const tailBytes = 2000

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	t.buf = t.buf[max(0, len(t.buf)-tailBytes):]
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.buf))
}

// Serve is the child's side: it reads a request from in, runs it and writes what
// happens to out. SIGTERM cancels it; the end of the parent kills it.
func Serve(ctx context.Context, in io.Reader, out io.Writer,
	run func(context.Context, api.StartRequest, <-chan int64, func(api.Progress)) (*api.Result, *api.Problem),
) error {
	var req api.StartRequest
	decoder := json.NewDecoder(in)
	if err := decoder.Decode(&req); errors.Is(err, io.EOF) {
		return nil // started ahead, for nothing
	} else if err != nil {
		return fmt.Errorf("read request: %w", err)
	}
	limits := make(chan int64)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() { // ends with its input, at the latest with the process
		for {
			var c control
			if decoder.Decode(&c) != nil {
				return
			}
			select {
			case limits <- c.RateLimit:
			case <-ctx.Done():
				return
			}
		}
	}()
	var mu sync.Mutex
	encoder := json.NewEncoder(out)
	say := func(m message) {
		mu.Lock()
		defer mu.Unlock()
		_ = encoder.Encode(m) // a parent that is gone kills us
	}
	result, problem := run(ctx, req, limits, func(p api.Progress) { say(message{Progress: &p}) })
	say(message{Result: result, Problem: problem})
	return nil
}

// killFirst lets the kernel take this process before any other when memory is short:
// before the agent, which tells what happened, and on a full node before the
// application. Anybody may raise his own; where he may not, nothing is worse than before.
func killFirst(pid int) {
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("1000"), 0)
}
