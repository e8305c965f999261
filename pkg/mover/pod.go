// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/webhook/render"
)

// Spec describes one mover.
type Spec struct {
	// Prefix begins the pod's name, as Kanister names its pods: "restore-data-".
	Prefix string
	// OperationID is what the mover is for; a pod of the same operation is reused.
	OperationID string
	Namespace   string
	// ActionSet's name, for a label.
	ActionSet string
	// Claims to mount.
	Claims []string
	// Reads says that the claims are only read: they are mounted so, and no fsGroup
	// is made up, for which the kubelet would change the group of every file.
	Reads bool
	// readOnly claims may be mounted by many nodes at once, but only so.
	readOnly []string
	// Devices are those of Claims that are block devices.
	Devices []string
	// Identity to run as; unknown parts get NonRoot, or root where the namespace allows it.
	Identity Identity
	// Node to run on, because a claim is attached there; "" for any.
	Node string
	// Labels and Annotations that the Blueprint or the ActionSet adds.
	Labels, Annotations map[string]string
	// root says that the namespace allows agents that run as root.
	root bool
	// Override is applied to the pod's spec last; may be nil. It finds the
	// container under names.MoverContainer.
	Override func(corev1.PodSpec) (corev1.PodSpec, error)
}

// Component is the value of names.ComponentLabel of a mover.
const Component = "mover"

// Name of the pod: the same for the same operation.
func (s Spec) Name() string {
	sum := sha256.Sum256([]byte(s.OperationID))
	return s.Prefix + hex.EncodeToString(sum[:6])
}

// VolumeOf is the name under which the agent knows a claim. Claims' names may be
// longer than volumes', so they are numbered.
func (s Spec) VolumeOf(claim string) string {
	return fmt.Sprintf("claim-%d", slices.Index(s.Claims, claim))
}

// memoryLimit of a mover; the agent's budget for one operation is a quarter of it.
const memoryLimit = "512Mi"

// Build renders the pod. It satisfies the restricted Pod Security standard, unless the
// override says otherwise, or the namespace allows root and nobody else is known.
func Build(s Spec, image string, policy corev1.PullPolicy) (*corev1.Pod, error) {
	unknown := NonRoot
	if s.root {
		unknown = 0
	}
	id := s.Identity.Or(Identity{UID: &unknown})
	if id.GID == nil {
		id.GID = id.UID
		if id.FSGroup != nil {
			id.GID = id.FSGroup
		}
	}
	if id.FSGroup == nil && !s.Reads && *id.UID != 0 {
		// New volumes belong to root: the group is what lets a non-root user in.
		id.FSGroup = id.GID
	}
	if id.FSGroup != nil && id.FSGroupChangePolicy == nil {
		id.FSGroupChangePolicy = new(corev1.FSGroupChangeOnRootMismatch)
	}
	limit := resource.MustParse(memoryLimit)
	var mounts []corev1.VolumeMount
	var devices []string
	podVolumes := render.AgentVolumes()
	for _, claim := range s.Claims {
		name := s.VolumeOf(claim)
		if slices.Contains(s.Devices, claim) {
			devices = append(devices, name)
		} else {
			mounts = append(mounts, corev1.VolumeMount{Name: name, MountPath: path.Join(names.VolumesDir, name), ReadOnly: s.Reads})
		}
		podVolumes = append(podVolumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{
				ClaimName: claim, ReadOnly: s.Reads && slices.Contains(s.readOnly, claim),
			},
		}})
	}
	container := render.AgentContainer(render.AgentOptions{
		Name:       names.MoverContainer,
		Image:      image,
		PullPolicy: policy,
		Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{
				corev1.ResourceCPU:    resource.MustParse("50m"),
				corev1.ResourceMemory: resource.MustParse("64Mi"),
			},
			Limits: corev1.ResourceList{corev1.ResourceMemory: limit},
		},
		MemoryLimit: limit.Value(),
		DataMounts:  mounts,
		Devices:     devices,
	})
	// The pod's user is the container's, also one that the override puts there.
	container.SecurityContext.RunAsNonRoot = nil
	spec := corev1.PodSpec{
		RestartPolicy:                 corev1.RestartPolicyNever,
		AutomountServiceAccountToken:  new(false),
		EnableServiceLinks:            new(false),
		TerminationGracePeriodSeconds: new(int64(5)),
		SecurityContext: &corev1.PodSecurityContext{
			RunAsNonRoot:        new(true),
			RunAsUser:           id.UID,
			RunAsGroup:          id.GID,
			FSGroup:             id.FSGroup,
			FSGroupChangePolicy: id.FSGroupChangePolicy,
			SupplementalGroups:  id.SupplementalGroups,
			SELinuxOptions:      id.SELinux,
			SeccompProfile:      &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		Containers: []corev1.Container{*container},
		Volumes:    podVolumes,
	}
	if s.Node != "" {
		// Affinity rather than a fixed node: the scheduler still checks that the
		// pod may run there.
		spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{
					MatchFields: []corev1.NodeSelectorRequirement{{
						Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{s.Node},
					}},
				}},
			},
		}}
	}
	if s.Override != nil {
		var err error
		if spec, err = s.Override(spec); err != nil {
			return nil, err
		}
	}
	if s.root {
		asRoot(&spec, s.Reads)
	}

	// Kanister lets people's labels win over createdBy; those that the system
	// itself goes by are not theirs.
	labels := map[string]string{"createdBy": "kanister"}
	maps.Copy(labels, s.Labels)
	maps.Copy(labels, map[string]string{
		names.ManagedByLabel: names.ManagedByValue,
		names.ComponentLabel: Component,
		names.ActionSetLabel: labelValue(s.ActionSet),
		// It has the agent already, whatever the namespace says.
		names.InjectLabel: "false",
	})
	annotations := map[string]string{}
	maps.Copy(annotations, s.Annotations)
	annotations[names.OperationAnnotation] = s.OperationID
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: s.Namespace, Name: s.Name(), Labels: labels, Annotations: annotations,
		},
		Spec: spec,
	}, nil
}

// asRoot gives a mover that runs as root what its work needs of root's rights, and no more.
func asRoot(spec *corev1.PodSpec, reads bool) {
	i := slices.IndexFunc(spec.Containers, func(c corev1.Container) bool { return c.Name == names.MoverContainer })
	if i < 0 || spec.Containers[i].SecurityContext == nil || spec.SecurityContext == nil {
		return // an override's doing
	}
	c, pod := spec.Containers[i].SecurityContext, spec.SecurityContext
	if uid := cmp.Or(c.RunAsUser, pod.RunAsUser); uid == nil || *uid != 0 {
		return
	}
	c.RunAsNonRoot, pod.RunAsNonRoot = new(false), new(false)
	if c.Capabilities == nil {
		c.Capabilities = &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}
	}
	needs := []corev1.Capability{"CHOWN", "FOWNER", "DAC_OVERRIDE"}
	if reads {
		needs = []corev1.Capability{"DAC_READ_SEARCH"}
	}
	for _, capability := range needs {
		if !slices.Contains(c.Capabilities.Add, capability) {
			c.Capabilities.Add = append(c.Capabilities.Add, capability)
		}
	}
}

// labelValue shortens a name to what a label's value may be.
func labelValue(s string) string {
	if len(s) <= validation.LabelValueMaxLength {
		return s
	}
	return strings.TrimRight(s[:validation.LabelValueMaxLength], "-_.")
}
