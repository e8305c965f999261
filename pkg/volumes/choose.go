// SPDX-License-Identifier: Apache-2.0

package volumes

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// Choice is which volumes of a pod the agent mirrors.
type Choice struct {
	// Mirrored volume names, in the pod's order, and those of block devices.
	Mirrored, Devices []string
	// Skipped volumes that could hold data. Secrets, config maps, projected and
	// downward API volumes are not listed.
	Skipped []Skipped
}

// Skipped is a volume that is not mirrored.
type Skipped struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// UnknownVolumeError is a wanted volume that cannot be mirrored.
type UnknownVolumeError struct {
	// Volume that was asked for, and why it cannot be had.
	Volume string
	Why    string
	// Accepted names, in the pod's order.
	Accepted []string
}

func (e *UnknownVolumeError) Error() string {
	return fmt.Sprintf("volume %q: %s", e.Volume, e.Why)
}

// Choose says which volumes of the pod are mirrored. With wanted nil these are
// all volumes of a persistent kind that a container mounts or has as a device: a volume nobody
// mounts is not attached to the node, and the agent must not change that. With
// wanted given, exactly those, emptyDir included; one that cannot be mirrored is
// an *UnknownVolumeError.
//
// The agent's own container and volumes do not count, so the answer is the same
// for a pod that has them already.
func Choose(pod *corev1.Pod, wanted []string) (Choice, error) {
	mounted, devices := usedVolumes(&pod.Spec)

	var choice Choice
	reasons := map[string]string{}
	var accepted []string
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if Own(v.Name) {
			continue
		}
		why, ok := mirrorable(v)
		if ok {
			accepted = append(accepted, v.Name)
		}
		if ok && wanted == nil {
			switch {
			case KindOf(v) == EmptyDir:
				why, ok = "an emptyDir is mirrored only when annotation "+names.VolumesAnnotation+" lists it", false
			case !mounted[v.Name] && !devices[v.Name]:
				why, ok = "no container mounts it", false
			}
		}
		if ok && wanted != nil && !slices.Contains(wanted, v.Name) {
			why, ok = "annotation "+names.VolumesAnnotation+" does not list it", false
		}
		switch {
		case ok && devices[v.Name]:
			choice.Devices = append(choice.Devices, v.Name)
		case ok:
			choice.Mirrored = append(choice.Mirrored, v.Name)
		default:
			reasons[v.Name] = why
			if isData(KindOf(v)) {
				choice.Skipped = append(choice.Skipped, Skipped{Name: v.Name, Reason: why})
			}
		}
	}

	for _, name := range wanted {
		if slices.Contains(choice.Mirrored, name) || slices.Contains(choice.Devices, name) {
			continue
		}
		why, known := reasons[name]
		if !known {
			why = "the pod has no such volume"
		}
		return Choice{}, &UnknownVolumeError{Volume: name, Why: why, Accepted: accepted}
	}
	return choice, nil
}

// Own reports whether a volume of this name is the agent's own.
func Own(name string) bool {
	return slices.Contains([]string{names.StateVolume, names.CAVolume, names.NoTokenVolume}, name)
}

// Containers returns all containers of the pod but the agent: regular ones first,
// since they are the ones that use the data, then init containers, each in order.
func Containers(spec *corev1.PodSpec) []*corev1.Container {
	all := make([]*corev1.Container, 0, len(spec.Containers)+len(spec.InitContainers))
	for i := range spec.Containers {
		all = append(all, &spec.Containers[i])
	}
	for i := range spec.InitContainers {
		if c := &spec.InitContainers[i]; c.Name != names.AgentContainer {
			all = append(all, c)
		}
	}
	return all
}

func usedVolumes(spec *corev1.PodSpec) (mounted, devices map[string]bool) {
	mounted, devices = map[string]bool{}, map[string]bool{}
	for _, c := range Containers(spec) {
		for i := range c.VolumeMounts {
			mounted[c.VolumeMounts[i].Name] = true
		}
		for i := range c.VolumeDevices {
			devices[c.VolumeDevices[i].Name] = true
		}
	}
	return mounted, devices
}

// MirrorPath is where the agent sees the volume of that name.
func MirrorPath(volume string) string {
	return names.VolumesDir + "/" + volume
}

// DevicePath is where the agent sees the block device of that volume.
func DevicePath(volume string) string {
	return names.DevicesDir + "/" + volume
}

func quoteAll(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}
