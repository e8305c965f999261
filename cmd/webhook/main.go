// SPDX-License-Identifier: Apache-2.0

// Command webhook gives pods of opted-in namespaces the agent.
//
//	webhook [serve] --agent-image=…   the admission server
//	webhook explain -f pod.yaml       why a pod gets the agent or not, without a cluster
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	corev1 "k8s.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/kanister-kopia/kanister-kopia/webhook/render"
	"github.com/kanister-kopia/kanister-kopia/webhook/serve"
)

// version is set by the linker.
var version = "dev"

func main() {
	err := run(os.Args[1:], os.Stdin, os.Stdout)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "webhook:", err)
		os.Exit(1)
	}
}

func run(args []string, stdin io.Reader, stdout io.Writer) error {
	command := "serve"
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		command, args = args[0], args[1:]
	}
	switch command {
	case "serve":
		return runServe(args, stdout)
	case "explain":
		return runExplain(args, stdin, stdout)
	default:
		return fmt.Errorf("unknown command %q; there are: serve, explain", command)
	}
}

func runServe(args []string, stdout io.Writer) error {
	var o serve.Options
	fs := flag.NewFlagSet("webhook serve", flag.ContinueOnError)
	fs.StringVar(&o.Agent.Image, "agent-image", "", "image of the agent (required)")
	fs.Func("agent-pull-policy", "pull policy of the agent's image (default IfNotPresent)", func(s string) error {
		switch p := corev1.PullPolicy(s); p {
		case corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever:
			o.Agent.PullPolicy = p
			return nil
		default:
			return errors.New("accepted: Always, IfNotPresent, Never")
		}
	})
	fs.StringVar(&o.CertDir, "cert-dir", "/etc/webhook/tls", "directory with tls.crt and tls.key, followed as they change")
	fs.StringVar(&o.Host, "host", "", "address to serve admission on; empty: all")
	fs.IntVar(&o.Port, "port", 9443, "port of the admission server")
	fs.StringVar(&o.HealthAddress, "health-address", ":8081", "address of /healthz and /readyz; 0: none")
	fs.StringVar(&o.MetricsAddress, "metrics-address", ":8080", "address of /metrics; 0: none")
	if err := parse(fs, args); err != nil {
		return err
	}
	if o.Agent.Image == "" {
		return errors.New("--agent-image is required: the image to inject")
	}
	o.Agent.Version = version
	o.Log = slog.New(slog.NewJSONHandler(stdout, nil))

	config, err := ctrl.GetConfig()
	if err != nil {
		return fmt.Errorf("find the cluster: %w", err)
	}
	return serve.Run(ctrl.SetupSignalHandler(), config, o)
}

// parse refuses arguments that are no flags: they would be ignored.
func parse(fs *flag.FlagSet, args []string) error {
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	return nil
}

func agentOptions(image string) render.Options {
	return render.Options{Image: image, Version: version}
}
