// SPDX-License-Identifier: Apache-2.0

package render

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/pkg/volumes"
	"github.com/kanister-kopia/kanister-kopia/webhook/decide"
)

// safeToEvict lists local volumes that do not keep the cluster autoscaler from
// removing a node. Without ours in it, every pod with an agent would.
const safeToEvict = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes"

// Options are what all injected agents have in common.
type Options struct {
	// Image of the agent; required.
	Image string
	// PullPolicy; "" is IfNotPresent.
	PullPolicy corev1.PullPolicy
	// Version is put into the status annotation.
	Version string
}

// Edit is what is to be changed in a pod: only our container, our volumes and
// our annotations. The zero Edit changes nothing.
type Edit struct {
	// Container to put at ContainerIndex of the init containers; nil: it is there
	// and right. An index behind the last appends.
	Container      *corev1.Container
	ContainerIndex int
	// Volumes to put at their index; an index behind the last appends.
	Volumes []VolumeEdit
	// Annotations to set.
	Annotations map[string]string
}

// VolumeEdit puts a volume at an index.
type VolumeEdit struct {
	Index  int
	Volume corev1.Volume
}

// Empty reports whether the pod is as it should be.
func (e Edit) Empty() bool {
	return e.Container == nil && len(e.Volumes) == 0 && len(e.Annotations) == 0
}

// Inject returns the edit that gives the pod the agent of the plan. The agent is
// appended as the last init container; one that is there already is replaced
// where it is, and untouched if it is right.
func Inject(pod *corev1.Pod, plan *decide.Plan, o Options) Edit {
	e := Edit{ContainerIndex: len(pod.Spec.InitContainers), Annotations: map[string]string{}}

	want := sidecar(AgentOptions{
		Name:         names.AgentContainer,
		Image:        o.Image,
		PullPolicy:   o.PullPolicy,
		UID:          plan.RunAs.UID,
		GID:          plan.RunAs.GID,
		Capabilities: capabilities(plan.RunAs),
		SELinux:      plan.RunAs.SELinux,
		Resources:    plan.Resources,
		MemoryLimit:  plan.MemoryLimit,
		DataMounts:   mirrorMounts(plan.Volumes),
		Devices:      plan.Devices,
		NoHealth:     plan.NoHealth,
	})
	e.Container = want
	for i := range pod.Spec.InitContainers {
		if have := &pod.Spec.InitContainers[i]; have.Name == want.Name {
			e.ContainerIndex = i
			if equality.Semantic.DeepEqual(have, want) {
				e.Container = nil
			}
			break
		}
	}

	appended := len(pod.Spec.Volumes)
	var local []string
	for _, v := range sidecarVolumes() {
		if v.EmptyDir != nil {
			local = append(local, v.Name)
		}
		i := slices.IndexFunc(pod.Spec.Volumes, func(have corev1.Volume) bool { return have.Name == v.Name })
		switch {
		case i < 0:
			e.Volumes = append(e.Volumes, VolumeEdit{Index: appended, Volume: v})
			appended++
		case !equality.Semantic.DeepEqual(&pod.Spec.Volumes[i], &v):
			e.Volumes = append(e.Volumes, VolumeEdit{Index: i, Volume: v})
		}
	}

	e.annotate(pod, names.StatusAnnotation, status(plan, o.Version))
	e.annotate(pod, safeToEvict, mergeList(pod.Annotations[safeToEvict], local))
	return e
}

func (e *Edit) annotate(pod *corev1.Pod, key, value string) {
	if have, ok := pod.Annotations[key]; !ok || have != value {
		e.Annotations[key] = value
	}
}

// capabilities of a root agent: it may read every file and nothing else.
func capabilities(r decide.RunAs) []corev1.Capability {
	if r.Root {
		return []corev1.Capability{"DAC_READ_SEARCH"}
	}
	return nil
}

func mirrorMounts(list []string) []corev1.VolumeMount {
	mounts := make([]corev1.VolumeMount, 0, len(list))
	for _, name := range list {
		mounts = append(mounts, corev1.VolumeMount{Name: name, MountPath: volumes.MirrorPath(name), ReadOnly: true})
	}
	return mounts
}

// mergeList adds names to a comma-separated list and keeps what is there as it is.
func mergeList(list string, add []string) string {
	have := strings.Split(list, ",")
	for i := range have {
		have[i] = strings.TrimSpace(have[i])
	}
	for _, name := range add {
		switch {
		case slices.Contains(have, name):
		case list == "":
			list = name
		default:
			list += "," + name
		}
	}
	return list
}

// Status is the value of annotation names.StatusAnnotation.
type Status struct {
	// Version of the injector.
	Version string `json:"version"`
	// Volumes mirrored at /volumes/<name>, block devices at /devices/<name>, and what is
	// not there.
	Volumes []string          `json:"volumes"`
	Devices []string          `json:"devices,omitempty"`
	Skipped []volumes.Skipped `json:"skipped,omitempty"`
	// UID of the agent, absent where the cluster chooses; RunAs says why.
	UID   *int64 `json:"uid,omitempty"`
	RunAs string `json:"runAs"`
}

func status(plan *decide.Plan, version string) string {
	b, err := json.Marshal(Status{
		Version: version,
		Volumes: append([]string{}, plan.Volumes...), // [], not null
		Devices: plan.Devices,
		Skipped: plan.Skipped,
		UID:     plan.RunAs.EffectiveUID,
		RunAs:   plan.RunAs.Why,
	})
	if err != nil {
		panic(fmt.Sprintf("marshalling strings and numbers: %v", err))
	}
	return string(b)
}
