// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// The versions in kubernetes/go.mod and kubernetes-oldest/go.mod; a test holds them equal.
const (
	kubernetesVersion       = "v1.37.2"
	oldestKubernetesVersion = "v1.30.14" // the last patch of the oldest minor that the product supports
)

// goBuild is a set of programs that are built from one module.
type goBuild struct {
	name     string
	folder   string // below test/cluster
	packages []string
	ldflags  string
	tags     string
}

// kubernetesLDFlags give programs of Kubernetes their version: without it kubeadm
// and the API server take themselves for v0.0.0.
func kubernetesLDFlags(version string) string {
	const variable = "-X k8s.io/component-base/version."
	major, rest, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	return variable + "gitVersion=" + version + " " + variable + "gitMajor=" + major + " " +
		variable + "gitMinor=" + minor + " " + variable + "gitTreeState=clean"
}

var (
	kubernetes = goBuild{
		name: "kubernetes", folder: "kubernetes", ldflags: kubernetesLDFlags(kubernetesVersion),
		packages: []string{
			"k8s.io/kubernetes/cmd/kubeadm", "k8s.io/kubernetes/cmd/kubelet", "k8s.io/kubernetes/cmd/kubectl",
			"k8s.io/kubernetes/cmd/kube-apiserver", "k8s.io/kubernetes/cmd/kube-controller-manager",
			"k8s.io/kubernetes/cmd/kube-scheduler", "k8s.io/kubernetes/cmd/kube-proxy",
		},
	}
	oldestKubernetes = goBuild{
		name: "kubernetes-oldest", folder: "kubernetes-oldest", ldflags: kubernetesLDFlags(oldestKubernetesVersion),
		packages: []string{"k8s.io/kubernetes/cmd/kube-apiserver"},
	}
	containerd = goBuild{
		name: "containerd", folder: "containerd", tags: "no_btrfs no_devmapper no_zfs no_aufs",
		packages: []string{
			"github.com/containerd/containerd/v2/cmd/containerd",
			"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
			"github.com/containerd/containerd/v2/cmd/ctr",
		},
	}
	etcd        = goBuild{name: "etcd", folder: "etcd", packages: []string{"go.etcd.io/etcd/server/v3"}}
	coredns     = goBuild{name: "coredns", folder: "coredns", packages: []string{"github.com/coredns/coredns"}}
	kind        = goBuild{name: "kind", folder: "kind", packages: []string{"sigs.k8s.io/kind"}}
	versitygw   = goBuild{name: "versitygw", folder: "versitygw", packages: []string{"github.com/versity/versitygw/cmd/versitygw"}}
	localpath   = goBuild{name: "localpath", folder: "localpath", packages: []string{"github.com/rancher/local-path-provisioner"}}
	certmanager = goBuild{name: "certmanager", folder: "certmanager", packages: []string{"."}}
	policies    = goBuild{name: "policies", folder: "policies", packages: []string{"sigs.k8s.io/kube-network-policies/cmd"}}
	pause       = goBuild{name: "pause", folder: ".", packages: []string{"./pause"}}
	runtimeShim = goBuild{name: "runtime", folder: ".", packages: []string{"./runtime"}}
)

// bin builds the programs, or finds them in the cache, and returns their folder.
func (e *env) bin(ctx context.Context, b goBuild) (string, error) {
	inputs := filepath.Join(e.here, b.folder)
	if b.folder == "." {
		inputs = filepath.Join(e.here, b.packages[0])
	}
	key, err := hash([]string{runtime.Version(), runtime.GOARCH, b.ldflags, b.tags, strings.Join(b.packages, " ")}, inputs)
	if err != nil {
		return "", err
	}
	dir, built, err := e.cache.get("bin-"+b.name, key, func(dir string) error {
		e.log.say("%s: building from Go modules …", b.name)
		args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w " + b.ldflags, "-tags", b.tags, "-o", dir + "/"}
		_, err := e.log.run(ctx, cmd{dir: filepath.Join(e.here, b.folder), env: []string{"CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off"}},
			"go", append(args, b.packages...)...)
		return err
	})
	if built {
		e.log.say("%s: built", b.name)
	}
	return dir, err
}

// linked is a build whose programs get a name in build/.
type linked struct {
	build goBuild
	links map[string]string // name in build/ -> file in the cache
}

// clusterTools are what the cluster and people need.
var clusterTools = []linked{
	{versitygw, map[string]string{"bin/versitygw": "versitygw"}},
	{kind, map[string]string{"bin/kind": "kind"}},
	{etcd, map[string]string{"envtest/etcd": "server"}},
	{kubernetes, map[string]string{
		"bin/kubectl": "kubectl", "envtest/kubectl": "kubectl", "envtest/kube-apiserver": "kube-apiserver",
	}},
}

// testTools are what only tests need: nobody waits for them who wants a cluster.
// An envtest folder is complete with etcd and kubectl; those of the newest serve
// the oldest API server as well.
var testTools = []linked{
	{etcd, map[string]string{"envtest-oldest/etcd": "server"}},
	{kubernetes, map[string]string{"envtest-oldest/kubectl": "kubectl"}},
	{oldestKubernetes, map[string]string{"envtest-oldest/kube-apiserver": "kube-apiserver"}},
}

// link builds programs into build/, without Docker or root.
func (e *env) link(ctx context.Context, tools []linked) error {
	for _, t := range tools {
		dir, err := e.bin(ctx, t.build)
		if err != nil {
			return err
		}
		for link, file := range t.links {
			if err := relink(filepath.Join(dir, file), filepath.Join(e.build, link)); err != nil {
				return err
			}
		}
	}
	e.log.say("tools: ready in build/")
	return nil
}

// relink points link at target, whatever was there.
func relink(target, link string) error {
	if now, err := os.Readlink(link); err == nil && now == target {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
		return err
	}
	if err := os.RemoveAll(link); err != nil {
		return err
	}
	return os.Symlink(target, link)
}
