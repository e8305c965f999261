// SPDX-License-Identifier: Apache-2.0

package decide

import (
	"fmt"
	"maps"
	"math"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	resourcehelper "k8s.io/component-helpers/resource"

	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// A LimitRange and a ResourceQuota are enforced after us, on the whole pod: a pod
// that they refuse for the agent's sake would fail because of us. So the agent is
// fitted into them, and where it does not fit, the pod starts without it. The
// rules are those of the API server's plug-ins LimitRanger and ResourceQuota.

// makeRoom fits the plan into the rules of the namespace. A reason is returned
// where a rule would refuse the pod with the agent and accepts it without.
func makeRoom(pod *corev1.Pod, ns Namespace, plan *Plan) (Reason, string) {
	without := withAgent(pod, nil)
	if needed := demanded(ns.Quotas, without); plan.QoS != corev1.PodQOSBestEffort && pod.Spec.Resources == nil {
		specify(&plan.Resources, needed)
	}
	fit(&plan.Resources, ns.Limits, plan.QoS == corev1.PodQOSGuaranteed)
	if limit, ok := plan.Resources.Limits[corev1.ResourceMemory]; ok {
		plan.MemoryLimit = limit.Value()
	}

	if rule := brokenRule(ns.Limits, corev1.LimitTypeContainer, plan.Resources.Requests, plan.Resources.Limits); rule != "" {
		return LimitRange, "container " + names.AgentContainer + ": " + rule
	}
	if plan.MemoryLimit < minMemory {
		return LimitRange, fmt.Sprintf("container %s would get %s of memory and needs %s", names.AgentContainer, mebibytes(plan.MemoryLimit), mebibytes(minMemory))
	}
	with := withAgent(pod, &plan.Resources)
	if rule := brokenRule(ns.Limits, corev1.LimitTypePod, podRequests(with), podLimits(with)); rule != "" &&
		brokenRule(ns.Limits, corev1.LimitTypePod, podRequests(without), podLimits(without)) == "" {
		return LimitRange, "the pod with the agent: " + rule
	}
	if rule := exceededQuota(ns.Quotas, without, with); rule != "" {
		return QuotaExceeded, rule
	}
	return "", ""
}

// withAgent is the pod with an agent of these resources, or without any agent.
// Only what counts for resources is right in it.
func withAgent(pod *corev1.Pod, r *corev1.ResourceRequirements) *corev1.Pod {
	out := *pod
	out.Spec.InitContainers = slices.DeleteFunc(slices.Clone(pod.Spec.InitContainers), func(c corev1.Container) bool {
		return c.Name == names.AgentContainer
	})
	if r != nil {
		always := corev1.ContainerRestartPolicyAlways
		out.Spec.InitContainers = append(out.Spec.InitContainers, corev1.Container{Name: names.AgentContainer, Resources: *r, RestartPolicy: &always})
	}
	return &out
}

func podRequests(pod *corev1.Pod) corev1.ResourceList {
	return resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
}

func podLimits(pod *corev1.Pod) corev1.ResourceList {
	return resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{})
}

// specify sets the resources that a quota demands of every container.
func specify(r *corev1.ResourceRequirements, needed []corev1.ResourceName) {
	for _, name := range needed {
		switch name {
		case corev1.ResourceCPU, corev1.ResourceRequestsCPU:
			setDefault(&r.Requests, corev1.ResourceCPU, burstableCPU)
		case corev1.ResourceMemory, corev1.ResourceRequestsMemory:
			setDefault(&r.Requests, corev1.ResourceMemory, burstableMemory)
		case corev1.ResourceLimitsCPU:
			setDefault(&r.Limits, corev1.ResourceCPU, larger(burstableCPULimit, r.Requests[corev1.ResourceCPU]))
		case corev1.ResourceLimitsMemory:
			setDefault(&r.Limits, corev1.ResourceMemory, larger(burstableMemoryLimit, r.Requests[corev1.ResourceMemory]))
		}
	}
}

// fit changes the agent's resources to what the container rules accept. It also
// sets what LimitRanger would otherwise default: a value that appears after our
// turn would look like another webhook's doing when we are asked again.
func fit(r *corev1.ResourceRequirements, items []corev1.LimitRangeItem, guaranteed bool) {
	rules := slices.DeleteFunc(slices.Clone(items), func(i corev1.LimitRangeItem) bool { return i.Type != corev1.LimitTypeContainer })
	for _, i := range rules {
		for name, q := range i.Default {
			setDefault(&r.Limits, name, larger(q, r.Requests[name]))
		}
		for name, q := range i.Max {
			setDefault(&r.Limits, name, q)
		}
		for name, q := range i.DefaultRequest {
			if limit, ok := r.Limits[name]; ok && q.Cmp(limit) > 0 {
				q = limit
			}
			setDefault(&r.Requests, name, q)
		}
		for name, q := range i.Min {
			setDefault(&r.Requests, name, q)
		}
	}
	for _, i := range rules {
		for name, least := range i.Min {
			replace(r.Requests, name, func(q resource.Quantity) resource.Quantity { return larger(q, least) })
			replace(r.Limits, name, func(q resource.Quantity) resource.Quantity { return larger(q, least) })
		}
	}
	for _, i := range rules {
		for name, most := range i.Max {
			replace(r.Requests, name, func(q resource.Quantity) resource.Quantity { return smaller(q, most) })
			replace(r.Limits, name, func(q resource.Quantity) resource.Quantity { return smaller(q, most) })
		}
	}
	for _, i := range rules {
		for name, ratio := range i.MaxLimitRequestRatio {
			limit, ok := r.Limits[name]
			if !ok || ratio.Sign() <= 0 {
				continue
			}
			// Reserving more is safer than allowing less: the agent needs its memory.
			share := limit.AsApproximateFloat64() / ratio.AsApproximateFloat64()
			least := resource.NewQuantity(int64(math.Ceil(share)), limit.Format)
			if name == corev1.ResourceCPU {
				least = resource.NewMilliQuantity(int64(math.Ceil(share*1000)), limit.Format)
			}
			setDefault(&r.Requests, name, *least)
			replace(r.Requests, name, func(q resource.Quantity) resource.Quantity { return larger(q, *least) })
		}
	}
	if guaranteed {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			r.Requests[name] = r.Limits[name]
		}
	}
}

// brokenRule says which rule of the given type the sums break, "" if none.
func brokenRule(items []corev1.LimitRangeItem, kind corev1.LimitType, requests, limits corev1.ResourceList) string {
	for _, i := range items {
		if i.Type != kind {
			continue
		}
		for _, name := range sorted(i.Min) {
			least := i.Min[name]
			request, ok := requests[name]
			limit, limited := limits[name]
			if !ok || request.Cmp(least) < 0 || limited && limit.Cmp(least) < 0 {
				return fmt.Sprintf("at least %s of %s per %s", least.String(), name, kind)
			}
		}
		for _, name := range sorted(i.Max) {
			most := i.Max[name]
			limit, limited := limits[name]
			if request := requests[name]; !limited || limit.Cmp(most) > 0 || request.Cmp(most) > 0 {
				return fmt.Sprintf("at most %s of %s per %s", most.String(), name, kind)
			}
		}
		for _, name := range sorted(i.MaxLimitRequestRatio) {
			ratio := i.MaxLimitRequestRatio[name]
			request, limit := requests[name], limits[name]
			if request.IsZero() || limit.IsZero() || limit.AsApproximateFloat64()/request.AsApproximateFloat64() > ratio.AsApproximateFloat64()*(1+1e-9) {
				return fmt.Sprintf("a limit of %s of at most %s times its request per %s", name, ratio.String(), kind)
			}
		}
	}
	return ""
}

// demanded are the resources that a quota makes every container state.
func demanded(quotas []corev1.ResourceQuota, pod *corev1.Pod) []corev1.ResourceName {
	var list []corev1.ResourceName
	for i := range quotas {
		if covers(&quotas[i], pod) {
			list = append(list, sorted(hard(&quotas[i]))...)
		}
	}
	return list
}

// exceededQuota says which quota has room for the pod but not for its agent.
// What is used is a moment old; should the API server know more, it refuses the
// pod, and whoever made it tries again.
func exceededQuota(quotas []corev1.ResourceQuota, without, with *corev1.Pod) string {
	var before, after corev1.ResourceList
	for i := range quotas {
		q := &quotas[i]
		if !covers(q, without) {
			continue
		}
		if before == nil {
			before, after = usage(without), usage(with)
		}
		for _, name := range sorted(hard(q)) {
			most, used := hard(q)[name], q.Status.Used[name]
			left := most.DeepCopy()
			left.Sub(used)
			b, a := before[name], after[name]
			if a.Cmp(b) > 0 && a.Cmp(left) > 0 && b.Cmp(left) <= 0 {
				return fmt.Sprintf("ResourceQuota %s has %s of %s left, the pod needs %s and with the agent %s", q.Name, left.String(), name, b.String(), a.String())
			}
		}
	}
	return ""
}

// Uncounted are the quotas as they were before the pod was created: what it uses
// is taken off what is used. For whoever asks about a pod that exists.
func Uncounted(quotas []corev1.ResourceQuota, pod *corev1.Pod) []corev1.ResourceQuota {
	list := make([]corev1.ResourceQuota, 0, len(quotas))
	for i := range quotas {
		q := quotas[i].DeepCopy()
		if covers(q, pod) {
			for name, used := range usage(pod) {
				replace(q.Status.Used, name, func(all resource.Quantity) resource.Quantity { all.Sub(used); return all })
			}
		}
		list = append(list, *q)
	}
	return list
}

func hard(q *corev1.ResourceQuota) corev1.ResourceList {
	if len(q.Status.Hard) > 0 {
		return q.Status.Hard
	}
	return q.Spec.Hard
}

// usage is what a pod counts for in a quota, by the quota's names.
func usage(pod *corev1.Pod) corev1.ResourceList {
	list := corev1.ResourceList{}
	for name, q := range podRequests(pod) {
		list[name], list["requests."+name] = q, q
	}
	for name, q := range podLimits(pod) {
		list["limits."+name] = q
	}
	return list
}

// covers reports whether a quota counts the pod. A scope that is not known here
// counts: the agent is rather left out than the pod refused.
func covers(q *corev1.ResourceQuota, pod *corev1.Pod) bool {
	selectors := []corev1.ScopedResourceSelectorRequirement{}
	if q.Spec.ScopeSelector != nil {
		selectors = append(selectors, q.Spec.ScopeSelector.MatchExpressions...)
	}
	for _, scope := range q.Spec.Scopes {
		selectors = append(selectors, corev1.ScopedResourceSelectorRequirement{ScopeName: scope, Operator: corev1.ScopeSelectorOpExists})
	}
	return !slices.ContainsFunc(selectors, func(s corev1.ScopedResourceSelectorRequirement) bool { return !inScope(s, pod) })
}

func inScope(s corev1.ScopedResourceSelectorRequirement, pod *corev1.Pod) bool {
	switch s.ScopeName {
	case corev1.ResourceQuotaScopeTerminating:
		return pod.Spec.ActiveDeadlineSeconds != nil
	case corev1.ResourceQuotaScopeNotTerminating:
		return pod.Spec.ActiveDeadlineSeconds == nil
	case corev1.ResourceQuotaScopeBestEffort:
		return qosClass(pod) == corev1.PodQOSBestEffort
	case corev1.ResourceQuotaScopeNotBestEffort:
		return qosClass(pod) != corev1.PodQOSBestEffort
	case corev1.ResourceQuotaScopePriorityClass:
		return classMatches(s, pod.Spec.PriorityClassName)
	default:
		return true
	}
}

func classMatches(s corev1.ScopedResourceSelectorRequirement, class string) bool {
	operators := map[corev1.ScopeSelectorOperator]selection.Operator{
		corev1.ScopeSelectorOpIn: selection.In, corev1.ScopeSelectorOpNotIn: selection.NotIn,
		corev1.ScopeSelectorOpExists: selection.Exists, corev1.ScopeSelectorOpDoesNotExist: selection.DoesNotExist,
	}
	requirement, err := labels.NewRequirement(string(s.ScopeName), operators[s.Operator], s.Values)
	if err != nil {
		return true
	}
	set := labels.Set{}
	if class != "" {
		set[string(s.ScopeName)] = class
	}
	return requirement.Matches(set)
}

func setDefault(list *corev1.ResourceList, name corev1.ResourceName, q resource.Quantity) {
	if _, ok := (*list)[name]; ok {
		return
	}
	if *list == nil {
		*list = corev1.ResourceList{}
	}
	(*list)[name] = q
}

func replace(list corev1.ResourceList, name corev1.ResourceName, f func(resource.Quantity) resource.Quantity) {
	if q, ok := list[name]; ok {
		list[name] = f(q)
	}
}

func larger(a, b resource.Quantity) resource.Quantity {
	if a.Cmp(b) >= 0 {
		return a
	}
	return b
}

func smaller(a, b resource.Quantity) resource.Quantity {
	if a.Cmp(b) <= 0 {
		return a
	}
	return b
}

func sorted(list corev1.ResourceList) []corev1.ResourceName { return slices.Sorted(maps.Keys(list)) }

func mebibytes(n int64) string { return resource.NewQuantity(n, resource.BinarySI).String() }
