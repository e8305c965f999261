// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const (
	clusterName = "kanister-kopia"
	nodeName    = clusterName + "-control-plane"
	// completeFile on the node says with which inputs the cluster was completed;
	// without it the cluster is what an interrupted run left.
	completeFile = "/kind/kanister-kopia-complete"
)

// up brings the cluster up, with everything in it Ready.
func (e *env) up(ctx context.Context) error {
	if err := e.link(ctx, clusterTools); err != nil {
		return err
	}
	if err := e.engine(ctx); err != nil {
		return err
	}
	image := e.pulledNode(ctx)
	if image == "" {
		var err error
		if image, err = e.builtNode(ctx); err != nil {
			return err
		}
	}
	extra, err := e.extraImages(ctx)
	if err != nil {
		return err
	}
	config := kindConfig(cgroupV1())
	imageID, err := e.docker(ctx, cmd{}, "image", "inspect", "--format", "{{.Id}}", image)
	if err != nil {
		return err
	}
	key, err := hash([]string{imageID, config})
	if err != nil {
		return err
	}
	if err := e.ensureCluster(ctx, image, config, key); err != nil {
		return err
	}
	if err := e.load(ctx, extra); err != nil {
		return err
	}
	if err := e.apply(ctx); err != nil {
		return err
	}
	e.log.say("cluster: ready (export KUBECONFIG=build/kubeconfig)")
	return nil
}

// kindConfig is the cluster's configuration for kind.
func kindConfig(cgroupV1 bool) string {
	var b strings.Builder
	b.WriteString("kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\nname: " + clusterName + "\n")
	b.WriteString("nodes:\n- role: control-plane\n")
	if cgroupV1 {
		b.WriteString("kubeadmConfigPatches:\n- |\n  kind: KubeletConfiguration\n  failCgroupV1: false\n")
	}
	return b.String()
}

func (e *env) kind(ctx context.Context, c cmd, args ...string) (string, error) {
	c.env = append(c.env, "KUBECONFIG="+e.kubeconfig())
	return e.log.run(ctx, c, filepath.Join(e.build, "bin", "kind"), args...)
}

func (e *env) kubeconfig() string { return filepath.Join(e.build, "kubeconfig") }

func (e *env) kubectl(ctx context.Context, args ...string) (string, error) {
	return e.log.run(ctx, cmd{}, filepath.Join(e.build, "bin", "kubectl"),
		append([]string{"--kubeconfig", e.kubeconfig(), "--context", "kind-" + clusterName}, args...)...)
}

func (e *env) ensureCluster(ctx context.Context, image, config, key string) error {
	state, err := e.docker(ctx, cmd{}, "inspect", "--format", "{{.State.Running}}", nodeName)
	if err == nil {
		if strings.TrimSpace(state) != "true" {
			e.log.say("cluster: starting its node again")
			if _, err := e.docker(ctx, cmd{}, "start", nodeName); err != nil {
				return err
			}
		}
		marker, err := e.docker(ctx, cmd{}, "exec", nodeName, "cat", completeFile)
		if err == nil && strings.TrimSpace(marker) == key && e.apiAnswers(ctx) {
			return nil
		}
		e.log.say("cluster: removing one that is outdated or incomplete")
		if _, err := e.kind(ctx, cmd{}, "delete", "cluster", "--name", clusterName); err != nil {
			return err
		}
	}
	e.log.say("cluster: creating with kind …")
	if _, err := e.kind(ctx, cmd{stdin: strings.NewReader(config)}, "create", "cluster",
		"--name", clusterName, "--image", image, "--config", "-", "--wait", "3m"); err != nil {
		return err
	}
	// kind's own --wait only warns.
	if _, err := e.kubectl(ctx, "wait", "--for=condition=Ready", "node", "--all", "--timeout=3m"); err != nil {
		return err
	}
	// Who enforces NetworkPolicies is one of them: kindnet, or what our node has instead.
	if _, err := e.kubectl(ctx, "rollout", "status", "daemonset", "-n", "kube-system", "--timeout=3m"); err != nil {
		return err
	}
	_, err = e.docker(ctx, cmd{stdin: strings.NewReader(key)}, "exec", "-i", nodeName, "sh", "-c", "cat > "+completeFile)
	if err == nil {
		e.log.say("cluster: node is Ready")
	}
	return err
}

// apiAnswers waits a while for the API server of a cluster that is there, and
// makes sure that build/kubeconfig leads to it.
func (e *env) apiAnswers(ctx context.Context) bool {
	if _, err := e.kind(ctx, cmd{}, "export", "kubeconfig", "--name", clusterName); err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	for {
		if _, err := e.kubectl(ctx, "wait", "--for=condition=Ready", "node", "--all", "--timeout=60s"); err == nil {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(time.Second):
		}
	}
}

// load puts images on the node that are not there yet in this version.
func (e *env) load(ctx context.Context, images []string) error {
	var stale []string
	var marks strings.Builder
	for _, image := range images {
		id, err := e.docker(ctx, cmd{}, "image", "inspect", "--format", "{{.Id}}", image)
		if err != nil {
			return err
		}
		mark := "/kind/loaded-" + strings.NewReplacer("/", "_", ":", "_").Replace(image)
		if now, err := e.docker(ctx, cmd{}, "exec", nodeName, "cat", mark); err == nil && strings.TrimSpace(now) == strings.TrimSpace(id) {
			continue
		}
		stale = append(stale, image)
		fmt.Fprintf(&marks, "echo %s > %s\n", strings.TrimSpace(id), mark)
	}
	if len(stale) == 0 {
		return nil
	}
	if _, err := e.kind(ctx, cmd{}, append([]string{"load", "docker-image", "--name", clusterName}, stale...)...); err != nil {
		return err
	}
	_, err := e.docker(ctx, cmd{}, "exec", nodeName, "sh", "-ec", marks.String())
	e.log.say("images: loaded %s", strings.Join(stale, ", "))
	return err
}

// apply puts storage and cert-manager on the cluster and waits for them.
func (e *env) apply(ctx context.Context) error {
	crds, err := e.log.run(ctx, cmd{dir: filepath.Join(e.here, "certmanager"), env: []string{"GOFLAGS=", "GOWORK=off"}},
		"go", "list", "-m", "-f", "{{.Dir}}", "github.com/cert-manager/cert-manager")
	if err != nil {
		return err
	}
	for _, path := range []string{
		filepath.Join(strings.TrimSpace(crds), "deploy", "crds"),
		filepath.Join(e.here, "manifests", "cluster"),
	} {
		if _, err := e.kubectl(ctx, "apply", "--server-side", "--force-conflicts", "-f", path); err != nil {
			return err
		}
	}
	for _, d := range [][2]string{
		{"kube-system", "deployment/coredns"}, {"local-path-storage", "deployment/local-path-provisioner"},
		{"cert-manager", "deployment/cert-manager"},
	} {
		if _, err := e.kubectl(ctx, "rollout", "status", "-n", d[0], d[1], "--timeout=3m"); err != nil {
			return err
		}
	}
	e.log.say("cluster: CoreDNS, storage and cert-manager are Ready")
	return nil
}

// down removes the cluster, and the engine if it is ours.
func (e *env) down(ctx context.Context) error {
	if _, err := exec.LookPath("docker"); err != nil {
		return nil
	}
	if e.engineAnswers(ctx) {
		if _, err := e.docker(ctx, cmd{}, "inspect", nodeName); err == nil {
			if _, err := e.docker(ctx, cmd{}, "rm", "-f", "-v", nodeName); err != nil {
				return err
			}
			e.log.say("cluster: removed")
		}
		if _, err := e.docker(ctx, cmd{}, "network", "inspect", "kind"); err == nil {
			_, _ = e.docker(ctx, cmd{}, "network", "rm", "kind")
		}
	}
	_ = os.Remove(e.kubeconfig())
	return e.stopEngine(ctx)
}
