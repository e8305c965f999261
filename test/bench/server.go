// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/client"
	"github.com/kanister-kopia/kanister-kopia/internal/pause"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// Server are the figures of a repository server with an empty repository. While no
// operation needs one, there is none: its idle cost is nothing.
type Server struct {
	// ReadySeconds are the times from its start until it is ready, FirstSeconds until a
	// first backup of one small file is stored.
	ReadySeconds []float64 `json:"readySeconds"`
	FirstSeconds []float64 `json:"firstSeconds"`
	// Ready is its memory when it has just become ready.
	Ready  Memory  `json:"ready"`
	Crowds []Crowd `json:"crowds"`
}

// Crowd is what it takes with so many agents that all want to back up at once. It
// lets 16 in; the others ask again every now and then.
type Crowd struct {
	Agents  int     `json:"agents"`
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"`
	Peak    int64   `json:"peak"`
}

// serverSet chooses these figures.
const serverSet = "server"

// crowdBytes is what each agent of a crowd backs up, at scale 1.
const crowdBytes = 48 * mib

// measureServer starts some servers.
func measureServer(ctx context.Context, root string, p programs, scale float64) (figures Server, err error) {
	fmt.Println("\nrepository server")
	for range 5 {
		err := within(ctx, root, func(s *scope) error { return figures.start(s, p) })
		if err != nil {
			return figures, fmt.Errorf("start a repository server: %w", err)
		}
	}
	fmt.Printf("  ready after %.2f s, a first small backup is stored after %.2f s\n", median(figures.ReadySeconds), median(figures.FirstSeconds))
	for _, agents := range []int{1, 10, 50} {
		c := Crowd{Agents: agents}
		if err := within(ctx, root, func(s *scope) error { return c.measure(s, p, max(mib, int64(crowdBytes*scale))) }); err != nil {
			return figures, fmt.Errorf("%d agents: %w", agents, err)
		}
		fmt.Printf("  %d agents: %s MiB at most, %.2f s for %s MiB\n", agents, inMiB(c.Peak), c.Seconds, inMiB(c.Bytes))
		figures.Crowds = append(figures.Crowds, c)
	}
	return figures, nil
}

// start measures one start.
func (f *Server) start(s *scope, p programs) error {
	us := &ours{meter: &meter{}, bench: &bench{programs: p, s3: testenv.StartS3(s), volumes: s.TempDir()}}
	us.bench.source = filepath.Join(us.bench.volumes, "source")
	if err := writeFile(filepath.Join(us.bench.source, "file"), dataSet{name: "first", from: 1 << 10, to: 1 << 10}, 0); err != nil {
		return err
	}
	plane := testenv.NewControlPlane(s)
	a, err := startAgent(s, p.agent, us.bench.volumes, plane)
	if err != nil {
		return err
	}
	us.agent = a.client
	begin := time.Now()
	if err := us.serve(s, plane); err != nil {
		return err
	}
	f.ReadySeconds = append(f.ReadySeconds, time.Since(begin).Seconds())
	f.Ready = memoryOf(us.meter.server)
	if err := us.backup(s.ctx); err != nil {
		return err
	}
	f.FirstSeconds = append(f.FirstSeconds, time.Since(begin).Seconds())
	return nil
}

func writeFile(path string, d dataSet, i int) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	_, err := d.write(path, i, 0)
	return err
}

// measure lets a crowd back up, each its own data.
func (c *Crowd) measure(s *scope, p programs, size int64) error {
	us := &ours{meter: &meter{}, bench: &bench{programs: p, s3: testenv.StartS3(s)}}
	plane := testenv.NewControlPlane(s)
	if err := us.serve(s, plane); err != nil {
		return err
	}
	agents := make([]*client.Client, c.Agents)
	for i := range agents {
		volumes := s.TempDir()
		if err := writeFile(filepath.Join(volumes, "data", "file"), dataSet{name: "crowd", from: size, to: size}, i); err != nil {
			return err
		}
		a, err := startAgent(s, p.agent, volumes, plane)
		if err != nil {
			return err
		}
		agents[i] = a.client
		c.Bytes += size
	}
	use, err := us.meter.measure(s.ctx, func(ctx context.Context) error {
		errs := make([]error, len(agents))
		var all sync.WaitGroup
		for i, agent := range agents {
			all.Go(func() { errs[i] = us.turn(ctx, agent, fmt.Sprintf("crowd-%d", i)) })
		}
		all.Wait()
		return errors.Join(errs...)
	})
	c.Seconds, c.Peak = use.Seconds, use.ServerRSS
	return err
}

// turnPause is the controller's.
const turnPause = 2 * time.Second

// turn waits until it is an agent's turn, and has it back its volume up.
func (o *ours) turn(ctx context.Context, agent *client.Client, id string) error {
	user := "pvc." + id
	for {
		session, err := o.server.StartSession(ctx, api.SessionRequest{ID: id, Username: user, Hostname: dataHost})
		if err == nil {
			_, err := agent.Run(ctx, api.StartRequest{
				ID: id, Kind: api.KindSnapshot,
				Credentials: &api.Credentials{URL: o.url, CA: o.ca, Username: user, Hostname: dataHost, Password: session.Password},
				Snapshot:    &api.SnapshotRequest{Volume: "data", Path: "/", SourcePath: "/", Compression: compression},
			}, func(api.Progress) {})
			return errors.Join(err, o.server.EndSession(ctx, id))
		}
		var p *api.Problem
		if !errors.As(err, &p) || p.Code != api.CodeBusy {
			return err
		}
		if err := pause.For(ctx, turnPause); err != nil {
			return err
		}
	}
}
