// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// registry is the name our own images carry; nothing is ever pulled from it.
const registry = "kanister-kopia.local/"

// inputsLabel is an image's label with the hash of what it was built from.
const inputsLabel = "kanister-kopia.inputs"

// imageSpec is an image made of few files.
type imageSpec struct {
	name       string
	dockerfile string
	files      map[string]string // name in the build context -> file or folder
}

// image builds an image from scratch, unless the same one is there already.
func (e *env) image(ctx context.Context, spec imageSpec) error {
	texts := []string{spec.name, spec.dockerfile}
	var sources []string
	for _, name := range slices.Sorted(mapKeys(spec.files)) {
		texts = append(texts, name)
		sources = append(sources, spec.files[name])
	}
	key, err := hash(texts, sources...)
	if err != nil {
		return err
	}
	if now, err := e.docker(ctx, cmd{}, "image", "inspect", "--format", `{{index .Config.Labels "`+inputsLabel+`"}}`, spec.name); err == nil &&
		strings.TrimSpace(now) == key {
		return nil
	}
	dir, err := os.MkdirTemp(e.cache.dir, "context-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for name, source := range spec.files {
		if _, err := e.log.run(ctx, cmd{}, "cp", "-rL", source, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(spec.dockerfile), 0o644); err != nil {
		return err
	}
	_, err = e.docker(ctx, cmd{}, "build", "--label", inputsLabel+"="+key, "-t", spec.name, dir)
	return err
}

// imported makes image name from a tar of a whole file system.
func (e *env) imported(ctx context.Context, name, tar string, dockerfile string, files map[string]string) error {
	base := name + "-files"
	key := filepath.Base(filepath.Dir(tar))
	if now, err := e.docker(ctx, cmd{}, "image", "inspect", "--format", "{{.Comment}}", base); err != nil || strings.TrimSpace(now) != key {
		if _, err := e.docker(ctx, cmd{}, "import", "--message", key, tar, base); err != nil {
			return err
		}
	}
	// docker import can set neither STOPSIGNAL nor labels: a layer on top does.
	return e.image(ctx, imageSpec{name: name, dockerfile: "# " + key + "\nFROM " + base + "\n" + dockerfile, files: files})
}

// scratch is the Dockerfile of one static program.
func scratch(program, user string) string {
	return fmt.Sprintf("FROM scratch\nCOPY %[1]s /%[1]s\nUSER %[2]s\nENTRYPOINT [\"/%[1]s\"]\n", program, user)
}

// kubernetesImages are the images that kubeadm expects on the node.
func (e *env) kubernetesImages(ctx context.Context) ([]string, error) {
	k8s, err := e.bin(ctx, kubernetes)
	if err != nil {
		return nil, err
	}
	listed, err := e.log.run(ctx, cmd{}, filepath.Join(k8s, "kubeadm"), "config", "images", "list", "--kubernetes-version", kubernetesVersion)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, name := range strings.Fields(listed) {
		repository := name[:strings.LastIndex(name, ":")]
		program := repository[strings.LastIndex(repository, "/")+1:]
		spec := imageSpec{name: name}
		switch program {
		case "etcd":
			dir, err := e.bin(ctx, etcd)
			if err != nil {
				return nil, err
			}
			// kubeadm's manifest calls it by name, so it must be in the PATH.
			spec.files = map[string]string{"etcd": filepath.Join(dir, "server")}
			spec.dockerfile = "FROM scratch\nENV PATH=/usr/local/bin\nCOPY etcd /usr/local/bin/etcd\n"
		case "coredns":
			dir, err := e.bin(ctx, coredns)
			if err != nil {
				return nil, err
			}
			spec.files = map[string]string{"coredns": filepath.Join(dir, "coredns")}
			spec.dockerfile = scratch("coredns", "65532")
		case "pause":
			dir, err := e.bin(ctx, pause)
			if err != nil {
				return nil, err
			}
			// The name in kind's containerd configuration, whatever kubeadm asks for.
			spec.name = "registry.k8s.io/pause:3.10"
			spec.files = map[string]string{"pause": filepath.Join(dir, "pause")}
			spec.dockerfile = scratch("pause", "65535")
		case "kube-proxy":
			// kube-proxy programs the node's tables with iptables and nft.
			spec.files = map[string]string{"kube-proxy": filepath.Join(k8s, "kube-proxy")}
			spec.dockerfile = "FROM " + registry + "node-base:dev\nENTRYPOINT []\nSTOPSIGNAL SIGTERM\nCOPY kube-proxy /usr/local/bin/kube-proxy\n"
		default:
			spec.files = map[string]string{program: filepath.Join(k8s, program)}
			spec.dockerfile = "FROM scratch\nENV PATH=/usr/local/bin\nCOPY " + program + " /usr/local/bin/" + program + "\n"
		}
		if err := e.image(ctx, spec); err != nil {
			return nil, err
		}
		names = append(names, spec.name)
	}
	return names, nil
}

// policiesImage enforces NetworkPolicies on a node that we built.
func (e *env) policiesImage(ctx context.Context) (string, error) {
	dir, err := e.bin(ctx, policies)
	if err != nil {
		return "", err
	}
	// It starts with iptables and nft, as kube-proxy does.
	name := registry + "network-policies:dev"
	return name, e.image(ctx, imageSpec{
		name:       name,
		dockerfile: "FROM " + registry + "node-base:dev\nENTRYPOINT []\nSTOPSIGNAL SIGTERM\nCOPY kube-network-policies /usr/local/bin/\n",
		files:      map[string]string{"kube-network-policies": filepath.Join(dir, "cmd")},
	})
}

// extraImages are what the cluster offers beside Kubernetes; they are loaded into
// any node, ours or kind's.
func (e *env) extraImages(ctx context.Context) ([]string, error) {
	bin := func(b goBuild, program string) (string, error) {
		dir, err := e.bin(ctx, b)
		return filepath.Join(dir, program), err
	}
	s3, err := bin(versitygw, "versitygw")
	if err != nil {
		return nil, err
	}
	manager, err := bin(certmanager, "certmanager")
	if err != nil {
		return nil, err
	}
	provisioner, err := bin(localpath, "local-path-provisioner")
	if err != nil {
		return nil, err
	}
	if err := e.packages(ctx, map[string]string{"/bin/busybox": "busybox-static"}); err != nil {
		return nil, err
	}
	specs := []imageSpec{
		{name: registry + "versitygw:dev", dockerfile: scratch("versitygw", "65532"), files: map[string]string{"versitygw": s3}},
		{name: registry + "certmanager:dev", dockerfile: scratch("certmanager", "65532"), files: map[string]string{"certmanager": manager}},
		{name: registry + "local-path-provisioner:dev", dockerfile: scratch("local-path-provisioner", "65532"), files: map[string]string{"local-path-provisioner": provisioner}},
		{
			name:       registry + "busybox:dev",
			dockerfile: "FROM scratch\nENV PATH=/bin\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\nUSER 65532\nCMD [\"sh\"]\n",
			files:      map[string]string{"busybox": "/bin/busybox"},
		},
	}
	var names []string
	for _, spec := range specs {
		if err := e.image(ctx, spec); err != nil {
			return nil, err
		}
		names = append(names, spec.name)
	}
	databases, err := e.databaseImages(ctx)
	return append(names, databases...), err
}

// stage cuts one stage out of a Dockerfile: the classic builder would build all
// that stand before it, and these want files that are not in the context.
func stage(dockerfile, name string) string {
	_, rest, _ := strings.Cut(dockerfile, "FROM scratch AS "+name+"\n")
	body, _, _ := strings.Cut(rest, "\nFROM ")
	return "FROM scratch\n" + body
}

// productImages builds the product's images and puts them on the node.
func (e *env) productImages(ctx context.Context) error {
	if err := e.engine(ctx); err != nil {
		return err
	}
	programs := []string{"agent", "controller", "webhook", "repository-server"}
	out := filepath.Join(e.build, "image")
	args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", out + "/"}
	for _, p := range append([]string{"operation"}, programs...) {
		args = append(args, "./cmd/"+p)
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	e.log.say("images: compiling %s …", strings.Join(programs, ", "))
	if _, err := e.log.run(ctx, cmd{dir: e.root, env: []string{"CGO_ENABLED=0"}}, "go", args...); err != nil {
		return err
	}
	dockerfile, err := os.ReadFile(filepath.Join(e.root, "Dockerfile"))
	if err != nil {
		return err
	}
	// Public roots, for the one program that speaks to storage elsewhere.
	roots := "/etc/ssl/certs/ca-certificates.crt"
	if err := e.packages(ctx, map[string]string{"/usr/sbin/update-ca-certificates": "ca-certificates"}); err != nil {
		return err
	}
	var names []string
	for _, p := range programs {
		spec := imageSpec{
			name: registry + p + ":dev", dockerfile: stage(string(dockerfile), p+"-prebuilt"),
			files: map[string]string{p: filepath.Join(out, p)},
		}
		switch p {
		case "repository-server":
			spec.files["ca-certificates.crt"] = roots
			fallthrough
		case "agent":
			spec.files["operation"] = filepath.Join(out, "operation")
		}
		if err := e.image(ctx, spec); err != nil {
			return err
		}
		names = append(names, spec.name)
	}
	if err := e.load(ctx, names); err != nil {
		return err
	}
	e.log.say("images: on the node")
	return nil
}
