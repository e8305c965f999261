// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// What kind's own base image installs, on Debian bookworm, plus the CNI plugins.
const nodePackages = "systemd,systemd-sysv,dbus,conntrack,iptables,nftables,iproute2,ethtool,util-linux,mount,kmod," +
	"libseccomp2,pigz,e2fsprogs,bash,ca-certificates,curl,jq,procps,runc,socat,containernetworking-plugins"

const debianSuite = "bookworm"

func debianMirror() string {
	if m := os.Getenv("DEBIAN_MIRROR"); m != "" {
		return m
	}
	return "http://deb.debian.org/debian"
}

// debootstrap unpacks a Debian with the given packages into a cached tar file.
// finish may change the file tree before it is packed.
func (e *env) debootstrap(ctx context.Context, name, packages, recipe string, finish func(root string) error) (tar string, err error) {
	key, err := hash([]string{debianSuite, packages, recipe})
	if err != nil {
		return "", err
	}
	return e.fileSystem(ctx, name, key, func(root string) error {
		if err := e.packages(ctx, map[string]string{"debootstrap": "debootstrap"}); err != nil {
			return err
		}
		args := []string{"--variant=minbase"}
		if packages != "" {
			args = append(args, "--include="+packages)
		}
		if _, err := e.log.run(ctx, cmd{}, "debootstrap", append(args, debianSuite, root, debianMirror())...); err != nil {
			return err
		}
		return finish(root)
	})
}

// fileSystem is a cached tar file of what fill puts into an empty directory.
func (e *env) fileSystem(ctx context.Context, name, key string, fill func(root string) error) (tar string, err error) {
	dir, built, err := e.cache.get("debian-"+name, key, func(dir string) error {
		e.log.say("%s: unpacking Debian packages …", name)
		root := filepath.Join(dir, "root")
		if err := os.Mkdir(root, 0o755); err != nil {
			return err
		}
		if err := fill(root); err != nil {
			return err
		}
		for _, junk := range []string{"var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"} {
			if err := os.RemoveAll(filepath.Join(root, junk)); err != nil {
				return err
			}
		}
		if _, err := e.log.run(ctx, cmd{}, "tar", "-C", root, "-cf", filepath.Join(dir, "root.tar"), "."); err != nil {
			return err
		}
		return os.RemoveAll(root)
	})
	if built {
		e.log.say("%s: Debian file system ready", name)
	}
	return filepath.Join(dir, "root.tar"), err
}

// chroot runs a shell script inside a file tree.
func (e *env) chroot(ctx context.Context, root, script string) error {
	_, err := e.log.run(ctx, cmd{env: []string{"DEBIAN_FRONTEND=noninteractive"}}, "chroot", root, "sh", "-ec", script)
	return err
}

// nodeRecipe does what kind's base image does after it installed its packages:
// no unit that makes no sense in a container, and the three that a node needs.
const nodeRecipe = `
chmod 755 /kind /kind/bin /kind/bin/* /usr/local/bin/entrypoint
rm -f /lib/systemd/system/sysinit.target.wants/systemd-tmpfiles-setup.service
rm -f /lib/systemd/system/multi-user.target.wants/* /lib/systemd/system/local-fs.target.wants/*
rm -f /lib/systemd/system/sockets.target.wants/*udev* /lib/systemd/system/sockets.target.wants/*initctl*
rm -f /lib/systemd/system/basic.target.wants/*
rm -rf /etc/systemd/system/*.wants
echo ReadKMsg=no >> /etc/systemd/journald.conf
systemctl enable kubelet.service containerd.service undo-mount-hacks.service
systemctl mask systemd-binfmt.service
mkdir -p /etc/kubernetes/manifests /kind/manifests /etc/cni/net.d /opt/cni/bin
cp /usr/lib/cni/ptp /usr/lib/cni/host-local /usr/lib/cni/loopback /usr/lib/cni/portmap /opt/cni/bin/
: > /etc/machine-id
`

// nodeTar is the node's file system without Kubernetes: Debian and kind's own files.
func (e *env) nodeTar(ctx context.Context) (string, error) {
	files, err := e.kindFiles(ctx)
	if err != nil {
		return "", err
	}
	content, err := hash(nil, files)
	if err != nil {
		return "", err
	}
	return e.debootstrap(ctx, "node", nodePackages, nodeRecipe+content, func(root string) error {
		if _, err := e.log.run(ctx, cmd{}, "cp", "-rT", "--no-preserve=mode", files, root); err != nil {
			return err
		}
		if err := e.chroot(ctx, root, nodeRecipe); err != nil {
			return err
		}
		return adaptContainerd(filepath.Join(root, "etc/containerd/config.toml"))
	})
}

// kindFiles is the folder of kind's module with the node's entrypoint, units and configuration.
func (e *env) kindFiles(ctx context.Context) (string, error) {
	out, err := e.log.run(ctx, cmd{dir: filepath.Join(e.here, "kind"), env: []string{"GOFLAGS=", "GOWORK=off"}},
		"go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/kind")
	if err != nil {
		return "", err
	}
	dir := strings.TrimSpace(out)
	if dir == "" {
		if _, err := e.log.run(ctx, cmd{dir: filepath.Join(e.here, "kind")}, "go", "mod", "download", "sigs.k8s.io/kind"); err != nil {
			return "", err
		}
		return e.kindFiles(ctx)
	}
	return filepath.Join(dir, "images", "base", "files"), nil
}

// adaptContainerd keeps the OOM score of containers within what the host allows.
func adaptContainerd(path string) error {
	lacks, err := lacksSysResource()
	if err != nil || !lacks {
		return err
	}
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	changed := strings.Replace(string(old), "restrict_oom_score_adj = false", "restrict_oom_score_adj = true", 1)
	if changed == string(old) {
		return fmt.Errorf("adapt %s: restrict_oom_score_adj not found; kind's configuration has changed", path)
	}
	return os.WriteFile(path, []byte(changed), 0o644)
}

// baseRuntimeSpec is kind's /etc/containerd/cri-base.json: containerd's default
// spec without rlimits and with kind's hook, from what `ctr oci spec` printed.
func baseRuntimeSpec(printed string) ([]byte, error) {
	var spec map[string]any
	if err := json.Unmarshal([]byte(printed), &spec); err != nil {
		return nil, fmt.Errorf("read the output of ctr oci spec: %w", err)
	}
	if process, ok := spec["process"].(map[string]any); ok {
		delete(process, "rlimits")
	}
	spec["hooks"] = map[string]any{
		"createContainer": []any{map[string]any{"path": "/kind/bin/mount-product-files.sh"}},
	}
	return json.Marshal(spec)
}
