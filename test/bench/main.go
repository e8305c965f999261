// SPDX-License-Identifier: Apache-2.0

// Bench compares the data path with its peers: the same data, the same S3 gateway,
// the same machine, in turns. An agent and a repository server, as the processes
// that they are in a pod, stand against Kopia's own program, the same through
// Kopia's own server, and restic. What is restored is compared with what was backed
// up. Read ratios, not seconds.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/internal/pause"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// compression is asked of every peer that knows it; our default, unless a flag says otherwise.
var compression = "zstd-fastest"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	scale := flag.Float64("scale", scaleFromEnvironment(), "size of the data sets, 1 is all; BENCH_SCALE is its default")
	only := flag.String("data", "", "data sets, separated by commas: small, random, text and server (its starts and its memory), which empty is, and for memory many and huge")
	against := flag.String("peers", "", "whom to compare with, separated by commas; empty is everybody")
	file := flag.String("json", "", "file for the figures")
	flag.StringVar(&compression, "compression", compression, "of all peers but restic: one of "+strings.Join(api.Compressions, ", "))
	flag.Parse()
	if !slices.Contains(api.Compressions, compression) {
		return fmt.Errorf("-compression %s is none of %s", compression, strings.Join(api.Compressions, ", "))
	}
	if *scale <= 0 {
		return errors.New("-scale must be more than 0")
	}
	sets := slices.DeleteFunc(dataSets(*scale), func(d dataSet) bool { return !chosen(*only, d.name) || d.extra && *only == "" })
	if len(sets) == 0 && !chosen(*only, serverSet) {
		return fmt.Errorf("-data %s names no data set", *only)
	}

	report := Report{Scale: *scale, Cores: runtime.NumCPU(), Load: loadAverage()}
	root, err := filepath.Abs(filepath.Join("build", "bench"))
	if err != nil {
		return err
	}
	if _, err := os.Stat("go.mod"); err != nil {
		return errors.New("run it in the root of the checkout: go run ./test/bench")
	}
	fmt.Println("building the programs that are compared")
	var p programs
	if p, report.Peers, err = build(ctx, root); err != nil {
		return err
	}
	for _, program := range []string{p.agent, filepath.Join(filepath.Dir(p.agent), "operation")} {
		info, err := os.Stat(program)
		if err != nil {
			return err
		}
		report.AgentBytes += info.Size()
	}
	report.Peers = slices.DeleteFunc(report.Peers, func(p Peer) bool { return p.Name != peerOurs && !chosen(*against, p.Name) })
	err = within(ctx, root, func(s *scope) error {
		report.StartSeconds, err = starts(s, p)
		return err
	})
	if err != nil {
		return err
	}
	if chosen(*only, serverSet) {
		if report.Server, err = measureServer(ctx, root, p, *scale); err != nil {
			return err
		}
	}
	for _, d := range sets {
		err := within(ctx, root, func(s *scope) error {
			figures, err := compare(s, d, p, report.Peers)
			report.Data = append(report.Data, figures)
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
	}
	report.Budgets = report.budgets()
	fmt.Printf("\n%s", report)
	if *file == "" {
		return nil
	}
	raw, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(*file, append(raw, '\n'), 0o644)
}

// chosen says whether a list has a name; an empty one has all.
func chosen(list, name string) bool {
	return list == "" || slices.Contains(strings.Split(list, ","), name)
}

func scaleFromEnvironment() float64 {
	if scale, err := strconv.ParseFloat(os.Getenv("BENCH_SCALE"), 64); err == nil {
		return scale
	}
	return 1
}

func loadAverage() string {
	raw, _ := os.ReadFile("/proc/loadavg")
	one, _, _ := strings.Cut(string(raw), " ")
	return one
}

// build builds what is compared, as it is built for an image, and finds restic.
func build(ctx context.Context, dir string) (p programs, peers []Peer, err error) {
	const kopiaModule = "github.com/kopia/kopia"
	bin := filepath.Join(dir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return p, nil, err
	}
	// Kopia's own program is a package of a module that we link anyway.
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin+"/",
		"./cmd/agent", "./cmd/operation", "./cmd/repository-server", kopiaModule)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return p, nil, fmt.Errorf("build programs: %w\n%s", err, out)
	}
	version, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Version}}", kopiaModule).Output()
	if err != nil {
		return p, nil, fmt.Errorf("ask for kopia's version: %w", err)
	}
	kopia := "Kopia " + strings.TrimSpace(string(version))
	p = programs{agent: filepath.Join(bin, "agent"), server: filepath.Join(bin, "repository-server"), kopia: filepath.Join(bin, "kopia")}
	peers = []Peer{
		{peerOurs, kopia, "agent, TLS, repository server, S3; " + compression},
		{peerKopia, kopia, "stock program, S3; " + compression},
		{peerKopiaServer, kopia, "stock program, TLS, stock server, S3; " + compression},
	}
	program, about, err := findRestic(ctx, dir)
	if err != nil {
		if ctx.Err() != nil {
			return p, nil, context.Cause(ctx)
		}
		fmt.Println("restic is left out:", err)
		return p, peers, nil
	}
	p.restic = program
	return p, append(peers, Peer{peerRestic, about, "S3, repository version 2; compression auto"}), nil
}

// findRestic finds restic, or gets Debian's package, which apt checks, and unpacks it.
func findRestic(ctx context.Context, dir string) (program, version string, err error) {
	program, err = exec.LookPath("restic")
	if err != nil {
		unpacked := filepath.Join(dir, "restic")
		program = filepath.Join(unpacked, "usr", "bin", "restic")
		if _, err := os.Stat(program); err != nil {
			if err := unpackRestic(ctx, dir, unpacked); err != nil {
				return "", "", err
			}
		}
	}
	out, err := exec.CommandContext(ctx, program, "version").Output()
	if err != nil {
		return "", "", fmt.Errorf("%s version: %w", program, err)
	}
	version, _, _ = strings.Cut(string(out), " compiled")
	return program, version, nil
}

func unpackRestic(ctx context.Context, dir, to string) error {
	cmd := exec.CommandContext(ctx, "apt-get", "download", "-q", "restic")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get download restic: %w\n%s", err, out)
	}
	packages, err := filepath.Glob(filepath.Join(dir, "restic_*.deb"))
	if err != nil || len(packages) == 0 {
		return errors.New("apt-get download restic: no package came")
	}
	if out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", packages[len(packages)-1], to).CombinedOutput(); err != nil {
		return fmt.Errorf("unpack restic: %w\n%s", err, out)
	}
	return nil
}

// starts measures some starts of the agent.
func starts(s *scope, p programs) (seconds []float64, err error) {
	plane, volumes := testenv.NewControlPlane(s), s.TempDir()
	for range 9 {
		a, err := startAgent(s, p.agent, volumes, plane)
		if err != nil {
			return nil, err
		}
		a.process.Kill()
		seconds = append(seconds, a.start.Seconds())
	}
	return seconds, nil
}

// contender is a peer that was set up.
type contender struct {
	peer
	*meter
	name, storage string
}

// compare runs all operations of all peers on one data set.
func compare(s *scope, d dataSet, p programs, peers []Peer) (Data, error) {
	figures := Data{Name: d.name, About: d.about, Files: d.files}
	b := &bench{programs: p, s3: testenv.StartS3(s), volumes: s.TempDir()}
	b.source = filepath.Join(b.volumes, "source")
	var err error
	if figures.Bytes, err = d.make(b.source); err != nil {
		return figures, err
	}
	fmt.Printf("\n%s: %d %s, %s MiB\n", d.name, d.files, d.about, inMiB(figures.Bytes))

	us := &ours{}
	var all []contender
	for _, c := range []struct {
		name, folder string
		peer         peer
	}{
		{peerOurs, "ours", us}, {peerKopia, "kopia", &stock{}}, {peerKopiaServer, "kopia-server", &stockServer{}}, {peerRestic, "restic", &restic{}},
	} {
		if !slices.ContainsFunc(peers, func(p Peer) bool { return p.Name == c.name }) {
			continue
		}
		m, err := c.peer.setup(s, b)
		if err != nil {
			return figures, fmt.Errorf("set %s up: %w", c.name, err)
		}
		all = append(all, contender{c.peer, m, c.name, filepath.Join(b.s3.Dir, c.folder)})
	}
	if err := pause.For(s.ctx, idleSeconds*time.Second); err != nil {
		return figures, err
	}
	figures.Before = memoryOf(us.meter.agent)

	for _, name := range []string{opFirst, opUnchanged, opChanged, opRestore, opRestoreFile} {
		if name == opChanged {
			if err := d.change(b.source); err != nil {
				return figures, err
			}
		}
		fmt.Printf("  %-18s", name)
		o := Operation{Name: name}
		for _, c := range all {
			u, err := b.operate(s.ctx, d, name, c)
			if err != nil {
				fmt.Println()
				return figures, fmt.Errorf("%s, %s: %w", name, c.name, err)
			}
			fmt.Printf("  %s %.2f s", c.name, u.Seconds)
			o.Peers = append(o.Peers, u)
		}
		fmt.Println()
		figures.Operations = append(figures.Operations, o)
	}

	before := cpuOf(us.meter.agent)
	if err := pause.For(s.ctx, idleSeconds*time.Second); err != nil {
		return figures, err
	}
	figures.After, figures.IdleCPU = memoryOf(us.meter.agent), (cpuOf(us.meter.agent) - before).Seconds()
	return figures, nil
}

// operate measures one operation of one peer and checks what it did.
func (b *bench) operate(ctx context.Context, d dataSet, name string, c contender) (u Use, err error) {
	switch name {
	case opRestore, opRestoreFile:
	default:
		if u, err = c.measure(ctx, c.backup); err == nil {
			u.Stored, err = sizeOf(c.storage)
		}
		return u, err
	}
	target := filepath.Join(b.volumes, "target")
	if err := os.Mkdir(target, 0o755); err != nil {
		return u, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(target)) }()
	if name == opRestoreFile {
		file := d.file(d.files / 2)
		u, err = c.measure(ctx, func(ctx context.Context) error { return c.restoreFile(ctx, file, target) })
		if err != nil {
			return u, err
		}
		return u, onlyFile(filepath.Join(b.source, file), target)
	}
	if u, err = c.measure(ctx, func(ctx context.Context) error { return c.restore(ctx, target) }); err != nil {
		return u, err
	}
	begin := time.Now()
	unix.Sync()
	u.SyncSeconds = time.Since(begin).Seconds()
	return u, sameTree(b.source, target)
}
