// SPDX-License-Identifier: Apache-2.0

package render_test

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
)

// otherInjectors do to a pod what well-known injectors do, in what matters to us:
// where they put containers, what they add to those of others, what they break.
var otherInjectors = map[string]func(*corev1.Pod){
	// Native sidecar behind its init container; both in front of everybody's.
	"istio": func(p *corev1.Pod) {
		annotate(p, "sidecar.istio.io/status", "{}")
		prependInit(p, corev1.Container{Name: "istio-init", Image: "istio"}, sidecarOf("istio-proxy"))
		addEmptyDir(p, "istio-data")
	},
	// Before native sidecars: the proxy is the first container.
	"istio-classic": func(p *corev1.Pod) {
		prependInit(p, corev1.Container{Name: "istio-init", Image: "istio"})
		prependContainer(p, corev1.Container{Name: "istio-proxy", Image: "istio"})
	},
	"linkerd": func(p *corev1.Pod) {
		appendInit(p, corev1.Container{Name: "linkerd-init", Image: "linkerd"}, sidecarOf("linkerd-proxy"))
		addEmptyDir(p, "linkerd-identity-end-entity")
	},
	"linkerd-classic": func(p *corev1.Pod) {
		appendInit(p, corev1.Container{Name: "linkerd-init", Image: "linkerd"})
		prependContainer(p, corev1.Container{Name: "linkerd-proxy", Image: "linkerd"})
	},
	// Its secrets are mounted into every container, ours too.
	"vault": func(p *corev1.Pod) {
		annotate(p, "vault.hashicorp.com/agent-inject-status", "injected")
		prependInit(p, corev1.Container{Name: "vault-agent-init", Image: "vault"})
		appendContainer(p, corev1.Container{Name: "vault-agent", Image: "vault"})
		addEmptyDir(p, "vault-secrets")
		everyContainer(p, func(c *corev1.Container) {
			if !slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == "vault-secrets" }) {
				c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "vault-secrets", MountPath: "/vault/secrets"})
			}
		})
	},
	// Variables for every container.
	"dapr": func(p *corev1.Pod) {
		appendContainer(p, corev1.Container{Name: "daprd", Image: "dapr"})
		everyContainer(p, func(c *corev1.Container) {
			if !slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == "DAPR_HTTP_PORT" }) {
				c.Env = append(c.Env, corev1.EnvVar{Name: "DAPR_HTTP_PORT", Value: "3500"})
			}
		})
	},
	// An old type of the pod in it: fields that it does not know are lost.
	"gcs-fuse": func(p *corev1.Pod) {
		for i := range p.Spec.InitContainers {
			p.Spec.InitContainers[i].RestartPolicy = nil
		}
		prependInit(p, sidecarOf("gke-gcsfuse-sidecar"))
		for _, name := range []string{"gke-gcsfuse-tmp", "gke-gcsfuse-buffer", "gke-gcsfuse-cache"} {
			addEmptyDir(p, name)
		}
	},
}

// In whatever order an injector and we come, with us once more at the end if it
// changed something, as reinvocationPolicy IfNeeded does: the agent is the same,
// what the other one did stays, and asking us again changes nothing.
func TestOtherInjectors(t *testing.T) {
	for name, other := range otherInjectors {
		for _, golden := range []string{"statefulset", "cloudnative-pg", "guaranteed", "best-effort", "job", "sub-path"} {
			t.Run(name+"/"+golden, func(t *testing.T) {
				ns, document, _ := readCase(t, filepath.Join("testdata", golden+".yaml"))
				ours := func(p *corev1.Pod) *corev1.Pod {
					t.Helper()
					before := parse(t, marshal(t, p))
					d, out := inject(t, marshal(t, p), ns, options)
					if !d.Inject() {
						t.Fatal(d.Message())
					}
					touchesOnlyOurs(t, before, parse(t, out))
					return parse(t, out)
				}
				theirs := func(p *corev1.Pod) *corev1.Pod { p = p.DeepCopy(); other(p); return p }
				plain := parse(t, document)

				theyFirst := ours(theirs(plain))
				weFirst := ours(theirs(ours(plain)))
				sound(t, theirs(plain), theyFirst, false)
				if diff := cmp.Diff(theyFirst, ours(theyFirst)); diff != "" {
					t.Errorf("they, we, we: another pod than they, we\n%s", diff)
				}
				if diff := cmp.Diff(weFirst, ours(weFirst)); diff != "" {
					t.Errorf("we, they, we, we: another pod than we, they, we\n%s", diff)
				}
				if diff := cmp.Diff(agentOf(theyFirst), agentOf(weFirst)); diff != "" {
					t.Errorf("the agent depends on who came first (-they +we)\n%s", diff)
				}
				// They find it done, and so do we.
				if diff := cmp.Diff(unordered(weFirst), unordered(theyFirst)); diff != "" && name != "gcs-fuse" {
					t.Errorf("the pod depends on who came first (-we +they)\n%s", diff)
				}
			})
		}
	}
}

// unordered is a pod whose lists are sorted by name.
func unordered(pod *corev1.Pod) *corev1.Pod {
	pod = pod.DeepCopy()
	slices.SortFunc(pod.Spec.InitContainers, func(a, b corev1.Container) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(pod.Spec.Volumes, func(a, b corev1.Volume) int { return strings.Compare(a.Name, b.Name) })
	return pod
}

func sidecarOf(name string) corev1.Container {
	always := corev1.ContainerRestartPolicyAlways
	return corev1.Container{Name: name, Image: name, RestartPolicy: &always}
}

// Like the real ones, these do nothing twice.
func has(list []corev1.Container, name string) bool {
	return slices.ContainsFunc(list, func(c corev1.Container) bool { return c.Name == name })
}

func missing(list, add []corev1.Container) []corev1.Container {
	return slices.DeleteFunc(slices.Clone(add), func(c corev1.Container) bool { return has(list, c.Name) })
}

func prependInit(p *corev1.Pod, add ...corev1.Container) {
	p.Spec.InitContainers = append(missing(p.Spec.InitContainers, add), p.Spec.InitContainers...)
}

func appendInit(p *corev1.Pod, add ...corev1.Container) {
	p.Spec.InitContainers = append(p.Spec.InitContainers, missing(p.Spec.InitContainers, add)...)
}

func prependContainer(p *corev1.Pod, add ...corev1.Container) {
	p.Spec.Containers = append(missing(p.Spec.Containers, add), p.Spec.Containers...)
}

func appendContainer(p *corev1.Pod, add ...corev1.Container) {
	p.Spec.Containers = append(p.Spec.Containers, missing(p.Spec.Containers, add)...)
}

func addEmptyDir(p *corev1.Pod, name string) {
	if !slices.ContainsFunc(p.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == name }) {
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
	}
}

func annotate(p *corev1.Pod, key, value string) {
	if p.Annotations == nil {
		p.Annotations = map[string]string{}
	}
	p.Annotations[key] = value
}

func everyContainer(p *corev1.Pod, change func(*corev1.Container)) {
	for _, list := range [][]corev1.Container{p.Spec.Containers, p.Spec.InitContainers} {
		for i := range list {
			change(&list[i])
		}
	}
}
