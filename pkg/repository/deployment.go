// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// Image says which image to run.
type Image struct {
	Name       string
	PullPolicy corev1.PullPolicy
}

// Container is the name of the server's container, which also holds its agent.
const Container = "repository-server"

// Folders of the server's container.
const (
	configDir = "/etc/repository"
	tlsDir    = "/etc/repository-tls"
)

// nonRoot is the user that our images run as.
const nonRoot int64 = 65532

// defaultResources carry some dozens of agents; a spec may say otherwise.
func defaultResources() corev1.ResourceRequirements {
	return corev1.ResourceRequirements{
		Requests: corev1.ResourceList{
			corev1.ResourceCPU:    resource.MustParse("50m"),
			corev1.ResourceMemory: resource.MustParse("128Mi"),
		},
		Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("768Mi")},
	}
}

// goMemLimit leaves a quarter of the container's memory to what the Go heap does
// not count: memory-backed volumes and buffers of the kernel.
func goMemLimit(r corev1.ResourceRequirements) []corev1.EnvVar {
	limit, ok := r.Limits[corev1.ResourceMemory]
	if !ok {
		return nil
	}
	return []corev1.EnvVar{{Name: "GOMEMLIMIT", Value: strconv.FormatInt(limit.Value()/4*3, 10)}}
}

// podSpec is what the server and its maintenance have in common: the restricted
// pod security standard, no token, the storage keys in a mounted Secret, and what is
// written of them in memory. The container is the first; it needs Args.
func podSpec(rs *kopiav1alpha1.RepositoryServer, image Image, resources corev1.ResourceRequirements) corev1.PodSpec {
	no, yes := false, true
	user, mode := nonRoot, int32(0o440)
	grace := int64(10)
	stateSize := resource.MustParse("64Mi")
	spec := corev1.PodSpec{
		AutomountServiceAccountToken:  &no,
		EnableServiceLinks:            &no,
		TerminationGracePeriodSeconds: &grace,
		SecurityContext: &corev1.PodSecurityContext{
			RunAsNonRoot:   &yes,
			RunAsUser:      &user,
			RunAsGroup:     &user,
			FSGroup:        &user,
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		Containers: []corev1.Container{{
			Name:            Container,
			Image:           image.Name,
			ImagePullPolicy: image.PullPolicy,
			Env:             goMemLimit(resources),
			Resources:       resources,
			// The last lines of the log say why it failed.
			TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
			SecurityContext: &corev1.SecurityContext{
				RunAsNonRoot:             &yes,
				AllowPrivilegeEscalation: &no,
				ReadOnlyRootFilesystem:   &yes,
				Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			VolumeMounts: []corev1.VolumeMount{
				{Name: "config", MountPath: configDir, ReadOnly: true},
				{Name: names.StateVolume, MountPath: names.StateDir},
			},
		}},
		Volumes: []corev1.Volume{
			{Name: "config", VolumeSource: corev1.VolumeSource{
				Secret: &corev1.SecretVolumeSource{SecretName: configSecretName(rs), DefaultMode: &mode},
			}},
			// In memory: Kopia writes the storage keys into its configuration file.
			{Name: names.StateVolume, VolumeSource: corev1.VolumeSource{
				EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: &stateSize},
			}},
		},
	}
	if fs := rs.Spec.Storage.Filesystem; fs != nil {
		mount(&spec, corev1.VolumeMount{Name: "repository", MountPath: claimDir}, corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: fs.Claim},
		})
		// A claim that one node at a time may mount is where the other of the two pods is.
		spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{
			PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{
				Weight: 100,
				PodAffinityTerm: corev1.PodAffinityTerm{
					LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{
						names.ManagedByLabel: names.ManagedByValue, names.RepositoryLabel: rs.Name,
					}},
					TopologyKey: corev1.LabelHostname,
				},
			}},
		}}
	}
	return spec
}

func mount(spec *corev1.PodSpec, m corev1.VolumeMount, from corev1.VolumeSource) {
	spec.Containers[0].VolumeMounts = append(spec.Containers[0].VolumeMounts, m)
	spec.Volumes = append(spec.Volumes, corev1.Volume{Name: m.Name, VolumeSource: from})
}

// buildDeployment runs the server: one replica. The next pod does not wait for the end
// of the one before, as it would with the strategy Recreate: a pod of a node that is gone
// never ends. Two servers at once do no harm: Kopia bears two writers, and the Service
// leads to the one that is ready and not about to end.
//
// There is no PodDisruptionBudget: with one replica it would block the drain of a
// node for as long as a backup runs. An operation that a drain cuts fails with the
// reason, and the next goes on from its checkpoint. The cluster autoscaler, which can
// choose another node, is asked to.
func buildDeployment(rs *kopiav1alpha1.RepositoryServer, image Image, revision string, replicas int32) *appsv1.Deployment {
	yes, mode := true, int32(0o440)
	resources := rs.Spec.Resources
	if len(resources.Requests) == 0 && len(resources.Limits) == 0 {
		resources = defaultResources()
	}
	probe := func(path string, period, failures int32) *corev1.Probe {
		return &corev1.Probe{
			ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
				Path: path, Port: intstr.FromString(healthPortName), Scheme: corev1.URISchemeHTTP,
			}},
			PeriodSeconds:    period,
			TimeoutSeconds:   5,
			SuccessThreshold: 1,
			FailureThreshold: failures,
		}
	}
	spec := podSpec(rs, image, resources)
	mount(&spec, corev1.VolumeMount{Name: names.CAVolume, MountPath: names.CADir, ReadOnly: true}, corev1.VolumeSource{
		ConfigMap: &corev1.ConfigMapVolumeSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: names.CAConfigMap}, Optional: &yes,
		},
	})
	c := &spec.Containers[0]
	c.Args = []string{"serve"}
	c.Ports = []corev1.ContainerPort{{Name: healthPortName, ContainerPort: names.AgentHealthPort, Protocol: corev1.ProtocolTCP}}
	if rs.Spec.External == nil {
		c.Ports = append(c.Ports, corev1.ContainerPort{Name: repositoryPortName, ContainerPort: names.RepositoryPort, Protocol: corev1.ProtocolTCP})
		mount(&spec, corev1.VolumeMount{Name: tlsVolume, MountPath: tlsDir, ReadOnly: true}, corev1.VolumeSource{
			Secret: &corev1.SecretVolumeSource{SecretName: tlsSecretName(rs), DefaultMode: &mode},
		})
	}
	// Opening a large repository takes its time: only readiness judges it.
	// The startup probe is quick, so that the first phase does not wait long; what is asked
	// too early is answered when the repository is open, or after 4 s: ten minutes in all.
	c.StartupProbe = probe("/readyz", 1, 150)
	c.ReadinessProbe = probe("/readyz", 10, 3)
	c.LivenessProbe = probe("/healthz", 20, 3)
	lost := lostNodeSeconds
	for _, key := range []string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable} {
		spec.Tolerations = append(spec.Tolerations, corev1.Toleration{
			Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &lost,
		})
	}
	none, one := intstr.FromInt32(0), intstr.FromInt32(1)
	meta := ownedMeta(rs, rs.Name)
	meta.Annotations = map[string]string{templateAnnotation: templateOf(spec)}
	return &appsv1.Deployment{
		ObjectMeta: meta,
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Strategy: appsv1.DeploymentStrategy{
				Type:          appsv1.RollingUpdateDeploymentStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &none, MaxUnavailable: &one},
			},
			Selector: &metav1.LabelSelector{MatchLabels: labels(rs)},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{
					Labels: labels(rs),
					Annotations: map[string]string{
						revisionAnnotation: revision,
						"cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
					},
				},
				Spec: spec,
			},
		},
	}
}

const healthPortName = "health"

// lostNodeSeconds is how long a node may be out of reach before its server is given up.
// That is soon: Kopia bears a second writer, should the first live on unseen.
const lostNodeSeconds int64 = 30

// templateAnnotation on a Deployment says what its pods were made from: another image,
// other resources or another version of this file give another value. The API server
// fills in what a pod's spec leaves out, so the specs themselves cannot be compared.
const templateAnnotation = names.Group + "/template"

func templateOf(spec corev1.PodSpec) string {
	raw, err := json.Marshal(spec)
	if err != nil {
		panic(fmt.Sprintf("marshalling a pod's spec: %v", err))
	}
	sum := sha256.Sum256(raw)
	return text(sum[:], 16)
}
