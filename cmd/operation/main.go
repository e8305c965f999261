// SPDX-License-Identifier: Apache-2.0

// Operation does one operation with Kopia: it reads a request from standard input, tells
// of its progress and its result on standard output, and ends. An agent or a repository
// server starts one for each operation; it is no program for people.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/engine"
	"github.com/kanister-kopia/kanister-kopia/agent/operation"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	env := engine.Env{Now: time.Now}
	flag.StringVar(&env.VolumesDir, "volumes-dir", names.VolumesDir, "folder with the mirrored volumes")
	flag.StringVar(&env.DevicesDir, "devices-dir", names.DevicesDir, "folder with the volumes that are block devices")
	flag.StringVar(&env.ScratchDir, "scratch-dir", names.StateDir, "private, writable folder")
	flag.DurationVar(&env.CheckpointInterval, "checkpoint-interval", operation.DefaultCheckpointInterval, "what a snapshot that is cut short has to send again, in time")
	flag.BoolVar(&env.Foreign, "foreign", false, "the repository is behind somebody else's server")
	giveWay := flag.Bool("give-way", false, "work behind the application, and slower while others wait")
	flag.Parse()
	if *giveWay {
		engine.LowerPriority()
		env.Pressure = engine.DefaultPressure
	}
	err := operation.Serve(ctx, os.Stdin, os.Stdout, func(ctx context.Context, req api.StartRequest, limits <-chan int64, report func(api.Progress)) (*api.Result, *api.Problem) {
		env.Limits = limits
		return engine.Run(ctx, req, env, report)
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "operation:", err)
		os.Exit(1)
	}
}
