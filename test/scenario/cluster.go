// SPDX-License-Identifier: Apache-2.0

// Package scenario is what the demo and the end-to-end tests do to a cluster:
// small verbs that read as a story.
package scenario

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// ContextName is the context that `make cluster` writes. Nothing here touches any
// other cluster, whatever KUBECONFIG says.
const ContextName = "kind-kanister-kopia"

// Cluster is the kind cluster of `make cluster`.
type Cluster struct {
	client.WithWatch
	Kube   kubernetes.Interface
	Config *rest.Config
	// Root of the checkout.
	Root string
}

// Open connects to the cluster of this checkout.
func Open() (*Cluster, error) {
	root, err := moduleRoot()
	if err != nil {
		return nil, err
	}
	kubeconfig := filepath.Join(root, "build", "kubeconfig")
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		&clientcmd.ClientConfigLoadingRules{ExplicitPath: kubeconfig},
		&clientcmd.ConfigOverrides{CurrentContext: ContextName},
	).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("read %s (run 'make cluster'): %w", kubeconfig, err)
	}
	config.QPS, config.Burst = 50, 100
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		clientgoscheme.AddToScheme, crv1alpha1.AddToScheme, kopiav1alpha1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	c, err := client.NewWithWatch(config, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("connect to the cluster (run 'make cluster'): %w", err)
	}
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	return &Cluster{WithWatch: c, Kube: kube, Config: config, Root: root}, nil
}

func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "LICENSE")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("find the checkout: run this inside it")
		}
		dir = parent
	}
}

// Kubectl runs the kubectl of this checkout and returns its standard output.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	return c.KubectlWithInput(ctx, "", args...)
}

// KubectlWithInput is Kubectl with text on standard input.
func (c *Cluster) KubectlWithInput(ctx context.Context, input string, args ...string) (string, error) {
	all := append([]string{
		"--kubeconfig", filepath.Join(c.Root, "build", "kubeconfig"), "--context", ContextName,
	}, args...)
	cmd := exec.CommandContext(ctx, filepath.Join(c.Root, "build", "bin", "kubectl"), all...)
	cmd.Stdin = strings.NewReader(input)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// Exec runs a shell script in a container and returns its output.
func (c *Cluster) Exec(ctx context.Context, namespace, pod, container, script string) (string, error) {
	return c.Kubectl(ctx, "exec", "-n", namespace, pod, "-c", container, "--", "sh", "-ec", script)
}

// Rollout waits until a workload ("deployment/x") runs as its spec says.
func (c *Cluster) Rollout(ctx context.Context, namespace, workload string) error {
	_, err := c.Kubectl(ctx, "rollout", "status", "-n", namespace, workload, "--timeout=5m")
	if err == nil {
		return nil
	}
	// Say what a user would look at next.
	pods, _ := c.Kubectl(ctx, "get", "pods", "-n", namespace, "-o", "wide")
	events, _ := c.Kubectl(ctx, "get", "events", "-n", namespace, "--sort-by=.lastTimestamp")
	return fmt.Errorf("%w\n%s\n%s", err, pods, lastLines(events, 15))
}

// Put creates an object or replaces what it holds.
func (c *Cluster) Put(ctx context.Context, obj client.Object) error {
	err := c.Create(ctx, obj)
	if !apierrors.IsAlreadyExists(err) {
		return err
	}
	old := obj.DeepCopyObject().(client.Object)
	if err := c.Get(ctx, client.ObjectKeyFromObject(obj), old); err != nil {
		return err
	}
	obj.SetResourceVersion(old.GetResourceVersion())
	return c.Update(ctx, obj)
}

// Blueprint puts a Blueprint into the control-plane namespace.
func (c *Cluster) Blueprint(ctx context.Context, b *crv1alpha1.Blueprint) error {
	b = b.DeepCopy()
	b.Namespace = names.ControlPlaneNamespace
	return c.Put(ctx, b)
}

// Bind gives the controller one of its per-namespace roles in a namespace.
func (c *Cluster) Bind(ctx context.Context, namespace, role string) error {
	return c.Put(ctx, &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: role},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
		Subjects: []rbacv1.Subject{{
			Kind: rbacv1.ServiceAccountKind, Namespace: names.ControlPlaneNamespace, Name: "kanister-kopia-controller",
		}},
	})
}

// node is the name of the kind cluster's only one, and of its container.
const node = "kanister-kopia-control-plane"

// OnNode runs a shell script on the node as root.
func (c *Cluster) OnNode(ctx context.Context, script string) (string, error) {
	out, err := exec.CommandContext(ctx, "docker", "exec", node, "sh", "-ec", script).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("run a script on node %s: %w: %s", node, err, out)
	}
	return string(out), nil
}

// NodeNetwork is the file of the node's network namespace, if the node is a
// container of this machine.
func (c *Cluster) NodeNetwork(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "docker", "inspect", "--format", "{{.State.Pid}}", node).Output()
	if err != nil {
		return "", fmt.Errorf("find node %s: %w", node, err)
	}
	file := "/proc/" + strings.TrimSpace(string(out)) + "/ns/net"
	_, err = os.Stat(file)
	return file, err
}

// DeleteNamespace deletes a namespace with all that is in it and waits for its end.
// Its repositories' servers go too: a namespace made anew is another tenant.
func (c *Cluster) DeleteNamespace(ctx context.Context, name string) error {
	var servers kopiav1alpha1.RepositoryServerList
	if err := c.List(ctx, &servers, client.InNamespace(names.ControlPlaneNamespace)); err != nil {
		return fmt.Errorf("list repository servers: %w", err)
	}
	for i := range servers.Items {
		if t := servers.Items[i].Spec.Tenant; t == nil || t.Namespace != name {
			continue
		}
		if err := client.IgnoreNotFound(c.Delete(ctx, &servers.Items[i])); err != nil {
			return fmt.Errorf("delete repository server %s: %w", servers.Items[i].Name, err)
		}
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if err := client.IgnoreNotFound(c.Delete(ctx, ns)); err != nil {
		return fmt.Errorf("delete namespace %s: %w", name, err)
	}
	_, err := c.Kubectl(ctx, "wait", "--for=delete", "namespace/"+name, "--timeout=3m")
	return err
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
