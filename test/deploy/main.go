// SPDX-License-Identifier: Apache-2.0

// Deploy puts manifests/ onto the cluster of `make cluster` and waits until all
// of it runs the images that `make images` built last. Running it again changes
// nothing.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/test/scenario"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := deploy(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "deploy:", err)
		os.Exit(1)
	}
}

func deploy(ctx context.Context) error {
	c, err := scenario.Open()
	if err != nil {
		return err
	}
	steps := scenario.NewSteps(os.Stdout, time.Now)
	if err := steps.Do("apply manifests/", func() (string, error) {
		// Server-side: no last-applied annotation, and large CRDs fit.
		_, err := c.Kubectl(ctx, "apply", "--server-side", "--force-conflicts", "-k", filepath.Join(c.Root, "manifests"))
		return "", err
	}); err != nil {
		return err
	}
	if err := steps.Do("certificates", func() (string, error) {
		_, err := c.Kubectl(ctx, "wait", "--for=condition=Ready", "certificate", "--all",
			"-n", names.ControlPlaneNamespace, "--timeout=3m")
		return "", err
	}); err != nil {
		return err
	}
	for _, name := range []string{"webhook", "controller"} {
		if err := steps.Do(name, func() (string, error) { return restartIfStale(ctx, c, name) }); err != nil {
			return err
		}
	}
	return steps.Do("repository servers", func() (string, error) { return restartStaleServers(ctx, c) })
}

// imageAnnotation on a pod template holds the id of the image it was rolled out
// with: the tag stays the same from build to build.
const imageAnnotation = names.Group + "/image-id"

func restartIfStale(ctx context.Context, c *scenario.Cluster, name string) (string, error) {
	id, err := imageID(ctx, name)
	if err != nil {
		return "", err
	}
	// The webhook and the controller name the images of the agent and the server
	// in their flags; those are new with the next pod, without a restart here.
	if _, err := c.Kubectl(ctx, "patch", "deployment", "kanister-kopia-"+name, "-n", names.ControlPlaneNamespace, "--patch",
		fmt.Sprintf(`{"spec":{"template":{"metadata":{"annotations":{%q:%q}}}}}`, imageAnnotation, id)); err != nil {
		return "", err
	}
	return "ready", c.Rollout(ctx, names.ControlPlaneNamespace, "deployment/kanister-kopia-"+name)
}

func restartStaleServers(ctx context.Context, c *scenario.Cluster) (string, error) {
	want, err := imageID(ctx, "repository-server")
	if err != nil {
		return "", err
	}
	marker := filepath.Join(c.Root, "build", "repository-server.image")
	if have, err := os.ReadFile(marker); err == nil && string(have) == want {
		return "current", nil
	}
	if _, err := c.Kubectl(ctx, "delete", "pods", "-n", names.ControlPlaneNamespace, "--ignore-not-found",
		"-l", names.ComponentLabel+"=repository-server"); err != nil {
		return "", err
	}
	return "renewed", os.WriteFile(marker, []byte(want), 0o644)
}

func imageID(ctx context.Context, name string) (string, error) {
	cmd := exec.CommandContext(ctx, "docker", "image", "inspect", "--format", "{{.Id}}",
		"kanister-kopia.local/"+name+":dev")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("find image %s (run 'make images'): %w", name, err)
	}
	return strings.TrimSpace(string(out)), nil
}
