// SPDX-License-Identifier: Apache-2.0

// Demo shows the main job: a PostgreSQL is backed up by a Blueprint, destroyed,
// restored, and its rows are compared. It starts from a clean slate each time, so
// it may be stopped anywhere and run again.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/test/scenario"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := demo(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func demo(ctx context.Context) error {
	c, err := scenario.Open()
	if err != nil {
		return err
	}
	steps := scenario.NewSteps(os.Stdout, time.Now)
	shop := scenario.Shop{Cluster: c, Profile: "demo", Watch: showPhases(steps)}

	for _, s := range []struct {
		what string
		do   func() (string, error)
	}{
		{"an S3 bucket and a Profile for it", func() (string, error) { return "", shop.Storage(ctx) }},
		{"a PostgreSQL with a labelled pod", func() (string, error) { return shop.Start(ctx) }},
		{"rows", func() (string, error) { return shop.Fill(ctx, 20000) }},
		{"first backup", func() (string, error) { return shop.Backup(ctx) }},
		{"some more rows", func() (string, error) { return shop.Fill(ctx, 500) }},
		{"second backup, of the same source", func() (string, error) { return shop.Backup(ctx) }},
		{"disaster: table dropped, files damaged", func() (string, error) { return shop.Destroy(ctx) }},
		{"restore of the second backup", func() (string, error) { return shop.Restore(ctx) }},
		{"rows compared", func() (string, error) { return shop.Compare(ctx) }},
	} {
		if err := steps.Do(s.what, s.do); err != nil {
			return err
		}
	}

	steps.Say(`
The rows are equal. Look around (export KUBECONFIG=build/kubeconfig; kubectl is in build/bin):
  kubectl get pod -n shop db-0 -o yaml                          the agent, a native sidecar
  kubectl get secrets -n shop                                   no key, no password
  kubectl get actionsets -n kanister-kopia                      what ran
  kubectl get actionset -n kanister-kopia %s -o yaml   sizes, ids, artifacts
  kubectl get repositoryservers,pods -n kanister-kopia          the repository's server, made on demand
  kubectl logs -n kanister-kopia deploy/kanister-kopia-controller   what the controller did
'make cluster-down' removes everything.`, shop.LastBackup().Name)
	return nil
}

// showPhases prints a line when a phase begins, and when its progress has moved on.
func showPhases(steps *scenario.Steps) func(*crv1alpha1.ActionSet) {
	last := ""
	return func(as *crv1alpha1.ActionSet) {
		if as.Status == nil || as.Status.Progress.RunningPhase == "" {
			return
		}
		running := as.Status.Progress.RunningPhase
		line := "         phase " + running
		for _, action := range as.Status.Actions {
			for _, p := range action.Phases {
				if moved := p.Progress.SizeUploadedB + p.Progress.SizeDownloadedB; p.Name == running && moved > 0 {
					line += fmt.Sprintf(", %d MiB", moved>>20)
				}
			}
		}
		if line != last {
			last = line
			steps.Say("%s", line)
		}
	}
}
