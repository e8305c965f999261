// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// enginePID is where the pid of an engine that we started is kept: only that one is ours to stop.
const enginePID = "/run/kanister-kopia-docker.pid"

// docker runs the docker client. The classic builder needs no helper image.
func (e *env) docker(ctx context.Context, c cmd, args ...string) (string, error) {
	c.env = append(c.env, "DOCKER_BUILDKIT=0")
	return e.log.run(ctx, c, "docker", args...)
}

// engine makes sure that a Docker engine answers.
func (e *env) engine(ctx context.Context) error {
	if e.engineAnswers(ctx) {
		return nil
	}
	if os.Getenv("DOCKER_HOST") != "" {
		return fmt.Errorf("no Docker engine answers at DOCKER_HOST=%s", os.Getenv("DOCKER_HOST"))
	}
	if os.Getuid() != 0 {
		return errors.New("no Docker engine answers: start one, or run as root on Debian, where this starts one")
	}
	if err := e.packages(ctx, map[string]string{"dockerd": "docker.io", "runc": "runc", "iptables": "iptables"}); err != nil {
		return err
	}
	return e.startEngine(ctx)
}

func (e *env) engineAnswers(ctx context.Context) bool {
	if _, err := exec.LookPath("docker"); err != nil {
		return false
	}
	_, err := e.docker(ctx, cmd{}, "version", "--format", "{{.Server.Version}}")
	return err == nil
}

// packages installs Debian packages for programs that are missing.
func (e *env) packages(ctx context.Context, programs map[string]string) error {
	var missing []string
	for program, pkg := range programs {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, pkg)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil || os.Getuid() != 0 {
		return fmt.Errorf("these are missing: %s; install them (root on Debian can: this does it there)", strings.Join(missing, ", "))
	}
	e.log.say("installing %s …", strings.Join(missing, ", "))
	quiet := cmd{env: []string{"DEBIAN_FRONTEND=noninteractive"}}
	install := append([]string{"install", "-y", "--no-install-recommends"}, missing...)
	if _, err := e.log.run(ctx, quiet, "apt-get", install...); err == nil {
		return nil
	}
	// An old package list is the usual reason.
	if _, err := e.log.run(ctx, quiet, "apt-get", "update"); err != nil {
		return fmt.Errorf("update package lists: %w", err)
	}
	if _, err := e.log.run(ctx, quiet, "apt-get", install...); err != nil {
		return fmt.Errorf("install packages: %w", err)
	}
	return nil
}

func (e *env) startEngine(ctx context.Context) error {
	// The engine outlives this program, so it gets a log of its own.
	logFile, err := os.OpenFile(filepath.Join(e.build, "logs", "dockerd.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer logFile.Close()
	args := []string{"--pidfile", enginePID, "--data-root", filepath.Join(e.cache.dir, "docker"), "--storage-driver", "overlay2"}
	lacks, err := lacksSysResource()
	if err != nil {
		return err
	}
	if lacks {
		dir, err := e.bin(ctx, runtimeShim)
		if err != nil {
			return err
		}
		// A path that stays when the cache forgets the build.
		shim := filepath.Join(e.cache.dir, "oci-runtime")
		if err := relink(filepath.Join(dir, "runtime"), shim); err != nil {
			return err
		}
		args = append(args, "--add-runtime", "without-sys-resource="+shim, "--default-runtime", "without-sys-resource")
	}
	_ = os.Remove(enginePID)
	p := exec.Command("dockerd", args...)
	p.Stdout, p.Stderr = logFile, logFile
	p.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := p.Start(); err != nil {
		return fmt.Errorf("start dockerd: %w", err)
	}
	exited := make(chan error, 1)
	go func() { exited <- p.Wait() }()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for !e.engineAnswers(ctx) {
		select {
		case err := <-exited:
			return fmt.Errorf("dockerd ended (%v): see %s", err, logFile.Name())
		case <-ctx.Done():
			return fmt.Errorf("dockerd does not answer: see %s", logFile.Name())
		case <-time.After(300 * time.Millisecond):
		}
	}
	e.log.say("docker engine: started (log: build/logs/dockerd.log)")
	return nil
}

// stopEngine stops the engine if it is ours.
func (e *env) stopEngine(ctx context.Context) error {
	raw, err := os.ReadFile(enginePID)
	if err != nil {
		return nil
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		return nil
	}
	if comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); strings.TrimSpace(string(comm)) != "dockerd" {
		return nil
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop dockerd: %w", err)
	}
	for syscall.Kill(pid, 0) == nil {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
	// The engine leaves its default bridge behind.
	_, _ = e.log.run(ctx, cmd{}, "ip", "link", "delete", "docker0")
	e.log.say("docker engine: stopped")
	return nil
}

// lacksSysResource says whether this process may not hand CAP_SYS_RESOURCE on.
func lacksSysResource() (bool, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false, err
	}
	const capSysResource = 24
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "CapBnd:"); ok {
			set, err := strconv.ParseUint(strings.TrimSpace(rest), 16, 64)
			return set&(1<<capSysResource) == 0, err
		}
	}
	return false, nil
}

// cgroupV1 says whether the host has the legacy cgroup hierarchy.
func cgroupV1() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err != nil
}
