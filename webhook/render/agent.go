// SPDX-License-Identifier: Apache-2.0

// Package render turns a decision's plan into edits of a pod. It is pure. It also
// holds the one definition of the agent's container, which temporary pods share.
package render

import (
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/pkg/volumes"
)

// stateSize bounds the agent's private volume. It holds a key and some state;
// a pod is evicted when it grows past this, so there is much to spare.
const stateSize = "256Mi"

// noTokenSize is of the volume that covers the token's path; nothing can write to it.
const noTokenSize = "1Mi"

// serviceAccountDir is where the API server mounts a token unless something is
// mounted there already.
const serviceAccountDir = "/var/run/secrets/kubernetes.io/serviceaccount"

// HealthPortName names the agent's only port on the pod network.
const HealthPortName = "kopia-health"

// AgentOptions describe one agent container. Name and Image are required.
type AgentOptions struct {
	// Name is names.AgentContainer or names.MoverContainer.
	Name  string
	Image string
	// PullPolicy; "" is IfNotPresent.
	PullPolicy corev1.PullPolicy
	// UID and GID; nil sets nothing, so those of the pod hold. UID 0 is the only
	// way to root.
	UID, GID *int64
	// Capabilities added after all are dropped; for root only.
	Capabilities []corev1.Capability
	// SELinux options; nil: the pod's.
	SELinux   *corev1.SELinuxOptions
	Resources corev1.ResourceRequirements
	// MemoryLimit in bytes from which the soft limit of the Go runtime follows.
	MemoryLimit int64
	// DataMounts are the volumes the agent works on, below names.VolumesDir.
	DataMounts []corev1.VolumeMount
	// Devices are the names of volumes that are block devices, below names.DevicesDir.
	Devices []string
	// NoHealth leaves out the agent's only port on the pod network.
	NoHealth bool
}

// AgentContainer builds the agent's container. It needs the volumes of
// AgentVolumes in its pod. Fields that the API server would default are set, so
// that a container read back compares equal.
func AgentContainer(o AgentOptions) *corev1.Container {
	if o.PullPolicy == "" {
		o.PullPolicy = corev1.PullIfNotPresent
	}
	root := o.UID != nil && *o.UID == 0
	mounts := make([]corev1.VolumeMount, 0, len(o.DataMounts)+3)
	mounts = append(mounts,
		corev1.VolumeMount{Name: names.StateVolume, MountPath: names.StateDir},
		// No subPath: such a mount never sees the ConfigMap change.
		corev1.VolumeMount{Name: names.CAVolume, MountPath: names.CADir, ReadOnly: true},
	)
	var devices []corev1.VolumeDevice
	for _, name := range o.Devices {
		devices = append(devices, corev1.VolumeDevice{Name: name, DevicePath: volumes.DevicePath(name)})
	}
	args := []string{"serve"}
	ports := []corev1.ContainerPort{{Name: HealthPortName, ContainerPort: names.AgentHealthPort, Protocol: corev1.ProtocolTCP}}
	if o.NoHealth {
		args, ports = append(args, "-health-listen="), nil
	}
	return &corev1.Container{
		Name:         o.Name,
		Image:        o.Image,
		Args:         args,
		Ports:        ports,
		Env:          []corev1.EnvVar{{Name: "GOMEMLIMIT", Value: goMemLimit(o.MemoryLimit)}},
		Resources:    o.Resources,
		VolumeMounts: append(mounts, o.DataMounts...),
		// There is no read-only device; the agent opens it so.
		VolumeDevices: devices,
		// An agent that dies says why in the pod's status.
		TerminationMessagePath:   corev1.TerminationMessagePathDefault,
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
		ImagePullPolicy:          o.PullPolicy,
		SecurityContext: &corev1.SecurityContext{
			RunAsUser:                o.UID,
			RunAsGroup:               o.GID,
			RunAsNonRoot:             new(!root),
			AllowPrivilegeEscalation: new(false),
			Privileged:               new(false),
			ReadOnlyRootFilesystem:   new(true),
			Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: slices.Clone(o.Capabilities)},
			SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			SELinuxOptions:           o.SELinux.DeepCopy(),
		},
	}
}

// AgentVolumes are the volumes that AgentContainer mounts besides DataMounts.
func AgentVolumes() []corev1.Volume {
	return []corev1.Volume{
		{Name: names.StateVolume, VolumeSource: corev1.VolumeSource{EmptyDir: emptyDir(stateSize)}},
		{Name: names.CAVolume, VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: names.CAConfigMap},
			DefaultMode:          new(corev1.ConfigMapVolumeSourceDefaultMode),
			// A pod must start without its CA: it may be published a moment later.
			Optional: new(true),
		}}},
	}
}

// sidecar is the agent's container as it is injected: a native sidecar, without a
// service account's token and without probes, which could take the application
// out of service.
func sidecar(o AgentOptions) *corev1.Container {
	c := AgentContainer(o)
	c.RestartPolicy = new(corev1.ContainerRestartPolicyAlways)
	c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: names.NoTokenVolume, MountPath: serviceAccountDir, ReadOnly: true})
	return c
}

func sidecarVolumes() []corev1.Volume {
	return append(AgentVolumes(), corev1.Volume{
		Name: names.NoTokenVolume, VolumeSource: corev1.VolumeSource{EmptyDir: emptyDir(noTokenSize)},
	})
}

func emptyDir(size string) *corev1.EmptyDirVolumeSource {
	return &corev1.EmptyDirVolumeSource{SizeLimit: new(resource.MustParse(size))}
}

// goMemLimit leaves a quarter of the container's memory to what the Go runtime
// does not count and to the resident parent of an operation's process.
func goMemLimit(limit int64) string {
	return strconv.FormatInt(limit/4*3>>20, 10) + "MiB"
}
