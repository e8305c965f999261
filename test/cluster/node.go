// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const (
	nodeBase  = registry + "node-base:dev"
	nodeImage = registry + "node:" + kubernetesVersion
)

func mapKeys(m map[string]string) iter.Seq[string] { return maps.Keys(m) }

// pulledNode returns kind's own node image if a registry gives it, or "".
func (e *env) pulledNode(ctx context.Context) string {
	mode := os.Getenv("CLUSTER_NODE_IMAGE")
	if mode == "build" {
		return ""
	}
	image := "docker.io/kindest/node:" + kubernetesVersion
	if _, err := e.docker(ctx, cmd{}, "image", "inspect", image); err == nil {
		return image
	}
	if mode != "pull" {
		// The answer of a machine without a registry is quick and does not change.
		answer := filepath.Join(e.build, "no-registry")
		if _, err := os.Stat(answer); err == nil {
			return ""
		}
		probe, cancel := context.WithTimeout(ctx, 15*time.Second)
		defer cancel()
		if _, err := e.docker(probe, cmd{}, "manifest", "inspect", image); err != nil {
			e.log.say("node image: no registry has %s for us; building it (CLUSTER_NODE_IMAGE=pull insists)", image)
			_ = os.WriteFile(answer, nil, 0o644)
			return ""
		}
	}
	e.log.say("node image: pulling %s …", image)
	if _, err := e.docker(ctx, cmd{}, "pull", image); err != nil {
		e.log.say("node image: pull failed, building it")
		return ""
	}
	return image
}

// builtNode builds the node image: Debian and kind's files, Kubernetes and
// containerd from Go modules, and the images that kubeadm starts.
func (e *env) builtNode(ctx context.Context) (string, error) {
	// apt and Go keep the two cores busy in turns.
	type result struct {
		tar string
		err error
	}
	files := make(chan result, 1)
	go func() {
		tar, err := e.nodeTar(ctx)
		files <- result{tar, err}
	}()
	k8s, err := e.bin(ctx, kubernetes)
	if err != nil {
		<-files
		return "", err
	}
	runtime, err := e.bin(ctx, containerd)
	if err != nil {
		<-files
		return "", err
	}
	debian := <-files
	if debian.err != nil {
		return "", debian.err
	}
	if err := e.imported(ctx, nodeBase, debian.tar,
		"ENV container=docker\nSTOPSIGNAL SIGRTMIN+3\nENTRYPOINT [\"/usr/local/bin/entrypoint\", \"/sbin/init\"]\n", nil); err != nil {
		return "", err
	}
	images, err := e.kubernetesImages(ctx)
	if err != nil {
		return "", err
	}
	policies, err := e.policiesImage(ctx)
	if err != nil {
		return "", err
	}
	images = append(images, policies)
	key, err := e.nodeKey(ctx, images, k8s, runtime)
	if err != nil {
		return "", err
	}
	if now, err := e.docker(ctx, cmd{}, "image", "inspect", "--format", "{{.Comment}}", nodeImage); err == nil && strings.TrimSpace(now) == key {
		return nodeImage, nil
	}
	e.log.say("node image: assembling …")
	if err := e.assembleNode(ctx, key, images, k8s, runtime); err != nil {
		return "", fmt.Errorf("assemble node image: %w", err)
	}
	e.log.say("node image: ready")
	return nodeImage, nil
}

// assembly is the version of what assembleNode does.
const assembly = "2"

func (e *env) nodeKey(ctx context.Context, images []string, folders ...string) (string, error) {
	texts := []string{assembly}
	for _, image := range append([]string{nodeBase}, images...) {
		id, err := e.docker(ctx, cmd{}, "image", "inspect", "--format", "{{.Id}}", image)
		if err != nil {
			return "", err
		}
		texts = append(texts, id)
	}
	for _, f := range folders {
		texts = append(texts, filepath.Base(f)) // the cache's key of their content
	}
	return hash(texts, filepath.Join(e.here, "manifests", "node"))
}

func (e *env) assembleNode(ctx context.Context, key string, images []string, k8s, runtime string) error {
	const name = "kanister-kopia-node-assembly"
	_, _ = e.docker(ctx, cmd{}, "rm", "-f", "-v", name)
	if _, err := e.docker(ctx, cmd{}, "run", "-d", "--privileged", "--name", name, "--entrypoint", "sleep", nodeBase, "infinity"); err != nil {
		return err
	}
	defer func() { _, _ = e.docker(context.WithoutCancel(ctx), cmd{}, "rm", "-f", "-v", name) }()

	spec, err := e.log.run(ctx, cmd{}, filepath.Join(runtime, "ctr"), "oci", "spec")
	if err != nil {
		return err
	}
	base, err := baseRuntimeSpec(spec)
	if err != nil {
		return err
	}
	put := func(path string, content []byte) error {
		_, err := e.docker(ctx, cmd{stdin: strings.NewReader(string(content))}, "exec", "-i", name, "sh", "-c", "cat > "+path)
		return err
	}
	for path, content := range map[string][]byte{
		"/etc/containerd/cri-base.json": base,
		"/kind/version":                 []byte(kubernetesVersion),
	} {
		if err := put(path, content); err != nil {
			return err
		}
	}
	for path, file := range map[string]string{
		"/etc/cni/net.d/10-ptp.conflist":       "ptp.conflist",
		"/kind/manifests/default-cni.yaml":     "network-policies.yaml",
		"/kind/manifests/default-storage.yaml": "none.yaml",
	} {
		content, err := os.ReadFile(filepath.Join(e.here, "manifests", "node", file))
		if err != nil {
			return err
		}
		if err := put(path, content); err != nil {
			return err
		}
	}
	for dest, sources := range map[string][]string{
		"/usr/bin/":       {filepath.Join(k8s, "kubeadm"), filepath.Join(k8s, "kubelet"), filepath.Join(k8s, "kubectl")},
		"/usr/local/bin/": {filepath.Join(runtime, "containerd"), filepath.Join(runtime, "containerd-shim-runc-v2"), filepath.Join(runtime, "ctr")},
	} {
		for _, source := range sources {
			if _, err := e.docker(ctx, cmd{}, "cp", source, name+":"+dest); err != nil {
				return err
			}
		}
	}
	if _, err := e.docker(ctx, cmd{}, "exec", "-d", name, "containerd"); err != nil {
		return err
	}
	// The socket is there when containerd serves.
	if _, err := e.docker(ctx, cmd{}, "exec", name, "sh", "-c",
		"for i in $(seq 100); do ctr version >/dev/null 2>&1 && exit 0; sleep 0.2; done; exit 1"); err != nil {
		return err
	}
	if err := e.importImages(ctx, name, images); err != nil {
		return err
	}
	if _, err := e.docker(ctx, cmd{}, "exec", name, "sh", "-c",
		"pkill containerd; for i in $(seq 100); do pgrep -x containerd >/dev/null || exit 0; sleep 0.2; done; exit 1"); err != nil {
		return err
	}
	_, err = e.docker(ctx, cmd{}, "commit", "--message", key,
		"--change", `ENTRYPOINT [ "/usr/local/bin/entrypoint", "/sbin/init" ]`, name, nodeImage)
	return err
}

// importImages copies images from the engine into a container's containerd.
func (e *env) importImages(ctx context.Context, container string, images []string) error {
	save := exec.CommandContext(ctx, "docker", append([]string{"save"}, images...)...)
	pipe, err := save.StdoutPipe()
	if err != nil {
		return err
	}
	if err := save.Start(); err != nil {
		return err
	}
	_, err = e.docker(ctx, cmd{stdin: pipe}, "exec", "-i", container,
		"ctr", "--namespace=k8s.io", "images", "import", "--all-platforms", "--no-unpack", "--digests", "-")
	if waitErr := save.Wait(); err == nil && waitErr != nil {
		err = fmt.Errorf("docker save: %w", waitErr)
	}
	return err
}
