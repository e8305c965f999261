// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// logger prints one quiet line a step; what sub-commands say goes to a file.
type logger struct {
	out   io.Writer
	mu    sync.Mutex // steps may run beside each other
	file  io.Writer
	begin time.Time
	now   func() time.Time
}

// say prints a line with the time since the start.
func (l *logger) say(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.out, "[%4.0fs] %s\n", l.now().Sub(l.begin).Seconds(), fmt.Sprintf(format, args...))
}

// cmd is one sub-command; its output goes to the log file.
type cmd struct {
	dir   string
	env   []string // added to os.Environ
	stdin io.Reader
}

// run runs a program; an error carries the last lines it printed.
func (l *logger) run(ctx context.Context, c cmd, name string, args ...string) (string, error) {
	p := exec.CommandContext(ctx, name, args...)
	p.Dir, p.Stdin = c.dir, c.stdin
	p.Env = append(p.Environ(), c.env...)
	var stdout, both bytes.Buffer
	p.Stdout, p.Stderr = io.MultiWriter(&stdout, &both), &both
	err := p.Run()
	l.mu.Lock()
	fmt.Fprintf(l.file, "$ %s %s\n%s\n", name, strings.Join(args, " "), both.String())
	l.mu.Unlock()
	if err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, lastLines(both.String(), 15))
	}
	return stdout.String(), nil
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
