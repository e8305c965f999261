// SPDX-License-Identifier: Apache-2.0

// Repository-server serves one Kopia repository, and is the only program that
// holds its storage keys.
//
//	repository-server serve      the server
//	repository-server maintain   one maintenance, as the repository's owner
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/repositoryserver"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// Kopia's S3 client copies this one. Go keeps two idle connections of a host; Kopia has more
	// requests on their way than that, and each of the others would begin with a lookup and a
	// TLS handshake of its own.
	http.DefaultTransport.(*http.Transport).MaxIdleConnsPerHost = 32
	command := ""
	if len(os.Args) > 1 {
		command = os.Args[1]
	}
	var err error
	switch command {
	case "serve":
		err = serve(ctx, os.Args[2:])
	case "maintain":
		err = maintain(ctx, os.Args[2:])
	default:
		err = fmt.Errorf("unknown command %q: use serve or maintain", command)
	}
	if err != nil {
		// The last line of the log: the controller shows it to the user.
		slog.New(slog.NewJSONHandler(os.Stdout, nil)).Error(err.Error())
		os.Exit(1)
	}
}

func serve(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	config := flags.String("config", "/etc/repository/config.json", "configuration file, all of it secret")
	tlsDir := flags.String("tls-dir", "/etc/repository-tls", "folder with tls.crt and tls.key")
	caDir := flags.String("ca-dir", names.CADir, "folder with the ca.crt that client certificates must come from")
	stateDir := flags.String("state-dir", names.StateDir, "private folder, in memory")
	listen := flags.String("listen", fmt.Sprintf(":%d", names.RepositoryPort), "address for agents")
	agentListen := flags.String("agent-listen", fmt.Sprintf("127.0.0.1:%d", names.AgentPort), "address of the agent API")
	// Below the ports of outgoing connections: who asks such a port of loopback again and
	// again until somebody listens gets, now and then, a connection with itself, which holds it.
	kopiaListen := flags.String("kopia-listen", "127.0.0.1:15516", "address of Kopia's own server, on loopback")
	health := flags.String("health-listen", fmt.Sprintf(":%d", names.AgentHealthPort), "address of /healthz and /readyz")
	if err := flags.Parse(args); err != nil {
		return err
	}
	c, err := repositoryserver.ReadConfig(*config)
	if err != nil {
		return err
	}
	if err := repositoryserver.StateFolders(*stateDir); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	out := agent.NewLog(os.Stdout, time.Now)
	// Most of the memory is buffers, which cost the collector nothing to look at: it may come
	// often, and a third of the memory is not needed.
	debug.SetGCPercent(25)
	return repositoryserver.Run(ctx, repositoryserver.Options{
		Config: c, TLSDir: *tlsDir, CADir: *caDir, StateDir: *stateDir,
		Listen: *listen, AgentListen: *agentListen, KopiaListen: *kopiaListen, HealthListen: *health,
		// Operations run in the same program as an agent's, which links no storage: it starts
		// in half the time, in a third of the memory.
		Child: []string{filepath.Join(filepath.Dir(self), "operation"), "-scratch-dir", *stateDir},
		Log:   slog.New(slog.NewJSONHandler(out, nil)), Out: out, Now: time.Now,
	})
}

// maintain writes its result as JSON to where the kubelet reads it.
func maintain(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("maintain", flag.ExitOnError)
	config := flags.String("config", "/etc/repository/config.json", "configuration file, all of it secret")
	stateDir := flags.String("state-dir", names.StateDir, "private folder, in memory")
	mode := flags.String("mode", "", "quick or full")
	percent := flags.Float64("verify-percent", 0, "share of the files of each source's latest backup that is read")
	result := flags.String("result", "/dev/termination-log", "file for the result, as JSON")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *mode != "quick" && *mode != "full" {
		return fmt.Errorf("maintain: --mode=%q: want quick or full", *mode)
	}
	c, err := repositoryserver.ReadConfig(*config)
	if err != nil {
		return err
	}
	if err := repositoryserver.StateFolders(*stateDir); err != nil {
		return err
	}
	done, err := repositoryserver.Maintain(ctx, repositoryserver.MaintainOptions{
		Config: c, StateDir: *stateDir, Full: *mode == "full", VerifyPercent: *percent,
		Log: slog.New(slog.NewJSONHandler(os.Stdout, nil)), Now: time.Now,
	})
	if err != nil {
		return err
	}
	raw, err := json.Marshal(done)
	if err != nil {
		return err
	}
	if err := os.WriteFile(*result, raw, 0o600); err != nil {
		return fmt.Errorf("maintain: keep the result: %w", err)
	}
	return nil
}
