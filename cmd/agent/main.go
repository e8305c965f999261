// SPDX-License-Identifier: Apache-2.0

// Agent moves the bytes of the volumes it sees: as a sidecar, or in a mover pod.
//
//	agent serve   the API on loopback, and health on the pod network
//
// It links no Kopia: it sits in other people's pods day and night. Each operation is a
// process of the program operation, which lies beside it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent"
	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/operation"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	command := ""
	if len(os.Args) > 1 {
		command = os.Args[1]
	}
	err := fmt.Errorf("unknown command %q: use serve", command)
	if command == "serve" {
		err = serve(ctx, os.Args[2:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		os.Exit(1)
	}
}

func serve(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	stateDir := flags.String("state-dir", names.StateDir, "private, writable folder")
	caDir := flags.String("ca-dir", names.CADir, "folder with the ca.crt that client certificates must come from")
	volumesDir := flags.String("volumes-dir", names.VolumesDir, "folder with the mirrored volumes")
	devicesDir := flags.String("devices-dir", names.DevicesDir, "folder with the volumes that are block devices")
	port := flags.Int("port", names.AgentPort, "port of the API, on loopback: it is reached through the API server")
	health := flags.String("health-listen", fmt.Sprintf(":%d", names.AgentHealthPort), "address of /healthz and /metrics; empty: none")
	stall := flags.Duration("stall-timeout", operation.DefaultStall, "how long an operation may move no data before it is ended")
	checkpoint := flags.Duration("checkpoint-interval", operation.DefaultCheckpointInterval, "what a snapshot that is cut short has to send again, in time; at most 45m")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *checkpoint <= 0 || *checkpoint > operation.MaxCheckpointInterval {
		return fmt.Errorf("-checkpoint-interval %s is none from 0 to %s", *checkpoint, operation.MaxCheckpointInterval)
	}
	// The resident process does next to nothing: a heap this small costs no time.
	debug.SetGCPercent(50)
	out := agent.NewLog(os.Stdout, time.Now)
	log := slog.New(slog.NewJSONHandler(out, nil))
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	child := &operation.Child{
		Command: []string{filepath.Join(filepath.Dir(self), "operation"), "-volumes-dir", *volumesDir, "-devices-dir", *devicesDir,
			"-scratch-dir", *stateDir, "-checkpoint-interval", checkpoint.String(), "-give-way"},
		StateDir: *stateDir, Env: agent.ChildEnv(), Stall: *stall,
	}
	operations, err := operation.New(operation.Options{
		Kinds: []api.Kind{api.KindSnapshot, api.KindRestore}, StateDir: *stateDir, Now: time.Now, Log: log,
		Runner: child, Prepare: child.Prepare,
	})
	if err != nil {
		return err
	}
	volumes := &agent.Volumes{Dir: *volumesDir, Devices: *devicesDir}
	server, err := agent.NewServer(agent.Config{
		Operations: operations, Info: volumes.Info,
		StateDir: *stateDir, CADir: *caDir, Log: log, Out: out, Now: time.Now,
	})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", *port))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	seen := agent.Watch(ctx, volumes.Info, log)
	if *health != "" {
		// The port may be the application's: an agent does its work without it.
		go func() {
			if err := agent.ServeHealth(ctx, *health, seen, operations); err != nil {
				log.Warn(err.Error())
			}
		}()
	}
	log.Info("agent serves", "listen", listener.Addr().String(), "uid", os.Getuid())
	select {
	case err = <-ended:
	case <-ctx.Done():
	}
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
	defer cancel()
	_ = server.Close() // first: nobody starts what would be ended
	return errors.Join(err, operations.Close(bounded))
}
