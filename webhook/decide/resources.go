// SPDX-License-Identifier: Apache-2.0

package decide

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// Defaults. A Burstable pod reserves little and may use much; a Guaranteed pod
// has to reserve what it may use, so it may use less.
var (
	burstableCPU         = resource.MustParse("10m")
	burstableMemory      = resource.MustParse("48Mi")
	burstableMemoryLimit = resource.MustParse("512Mi")
	burstableCPULimit    = resource.MustParse("1")
	guaranteedCPU        = resource.MustParse("250m")
	guaranteedMemory     = resource.MustParse("256Mi")
)

// DefaultMemoryLimit in bytes is what an agent may use where nothing else is said.
const DefaultMemoryLimit int64 = 512 << 20

// resources returns the agent's resources such that the pod keeps its QoS class.
//
//	Guaranteed             limits equal requests, CPU too
//	Burstable              small requests, a memory limit; a CPU limit only where all
//	                       containers have one, as a quota may demand
//	BestEffort             none; the memory limit only tells the agent what to use
//	resources of the pod   none: the agent shares what the pod as a whole has
func resources(pod *corev1.Pod, p params) (corev1.PodQOSClass, corev1.ResourceRequirements, int64) {
	class := qosClass(pod)
	podLevel := pod.Spec.Resources != nil && (len(pod.Spec.Resources.Requests) > 0 || len(pod.Spec.Resources.Limits) > 0)
	switch {
	case podLevel || class == corev1.PodQOSBestEffort:
		limit := or(p.memoryLimit, or(p.memoryRequest, burstableMemoryLimit))
		return class, corev1.ResourceRequirements{}, limit.Value()

	case class == corev1.PodQOSGuaranteed:
		memory := or(p.memoryLimit, or(p.memoryRequest, guaranteedMemory))
		list := corev1.ResourceList{
			corev1.ResourceCPU:    or(p.cpu, guaranteedCPU),
			corev1.ResourceMemory: memory,
		}
		return class, corev1.ResourceRequirements{Requests: list, Limits: list.DeepCopy()}, memory.Value()

	default:
		limit := or(p.memoryLimit, burstableMemoryLimit)
		request := or(p.memoryRequest, burstableMemory)
		// Only one of the two was given: the other one follows.
		switch {
		case request.Cmp(limit) <= 0:
		case p.memoryLimit == nil:
			limit = request
		default:
			request = limit
		}
		cpu := or(p.cpu, burstableCPU)
		r := corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: cpu, corev1.ResourceMemory: request},
			Limits:   corev1.ResourceList{corev1.ResourceMemory: limit},
		}
		if allLimitCPU(pod) {
			r.Limits[corev1.ResourceCPU] = burstableCPULimit
			if cpu.Cmp(burstableCPULimit) > 0 {
				r.Limits[corev1.ResourceCPU] = cpu
			}
		}
		return class, r, limit.Value()
	}
}

func allLimitCPU(pod *corev1.Pod) bool {
	return !slices.ContainsFunc(pod.Spec.Containers, func(c corev1.Container) bool {
		return c.Resources.Limits.Cpu().IsZero()
	})
}

func or(q *resource.Quantity, def resource.Quantity) resource.Quantity {
	if q != nil {
		return *q
	}
	return def
}

// qosClass is the class of the pod without the agent, by the rules of kubelet:
// Guaranteed if each container has limits for CPU and memory and all requests
// equal them, BestEffort if none has any. A request that is not given is its
// limit, as the API server defaults it.
func qosClass(pod *corev1.Pod) corev1.PodQOSClass {
	if r := pod.Spec.Resources; r != nil && (len(r.Requests) > 0 || len(r.Limits) > 0) {
		guaranteed, any := classify(r.Requests, r.Limits)
		return toClass(guaranteed, any)
	}
	allGuaranteed, anyAtAll := true, false
	count := func(containers []corev1.Container) {
		for i := range containers {
			if containers[i].Name == names.AgentContainer {
				continue
			}
			guaranteed, any := classify(containers[i].Resources.Requests, containers[i].Resources.Limits)
			allGuaranteed = allGuaranteed && guaranteed
			anyAtAll = anyAtAll || any
		}
	}
	count(pod.Spec.Containers)
	count(pod.Spec.InitContainers)
	return toClass(allGuaranteed, anyAtAll)
}

func toClass(guaranteed, any bool) corev1.PodQOSClass {
	switch {
	case !any:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	default:
		return corev1.PodQOSBurstable
	}
}

func classify(requests, limits corev1.ResourceList) (guaranteed, any bool) {
	guaranteed = true
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		limit, hasLimit := limits[name]
		request, hasRequest := requests[name]
		hasLimit = hasLimit && !limit.IsZero()
		if !hasRequest {
			request = limit
		}
		any = any || hasLimit || !request.IsZero()
		guaranteed = guaranteed && hasLimit && request.Cmp(limit) == 0
	}
	return guaranteed, any
}
