// SPDX-License-Identifier: Apache-2.0

// Package decide says whether a pod gets the agent, why, and with what: which
// volumes, which user, which resources. It is pure: logs, metrics, the status
// annotation and `webhook explain` all show its answer.
package decide

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/pkg/volumes"
)

// Reason is the closed set of outcomes: the label of the metric.
type Reason string

// The reasons.
const (
	// Injected and UpToDate: the pod has the agent; UpToDate if it had it before.
	Injected Reason = "injected"
	UpToDate Reason = "up-to-date"

	NamespaceExcluded   Reason = "namespace-excluded"
	NamespaceNotOptedIn Reason = "namespace-not-opted-in"
	OwnPod              Reason = "own-pod"
	OptedOut            Reason = "opted-out"
	NotLabelled         Reason = "not-labelled"
	MirrorPod           Reason = "mirror-pod"
	Windows             Reason = "windows"
	HostNetwork         Reason = "host-network"
	NameTaken           Reason = "name-taken"
	NoVolume            Reason = "no-volume"
	// LimitRange and QuotaExceeded: the pod would be refused with the agent, and not
	// without it. OnHold: agents of the namespace do not start at present, and the
	// agent is started before the application.
	LimitRange    Reason = "limit-range"
	QuotaExceeded Reason = "quota-exceeded"
	OnHold        Reason = "on-hold"

	// Malformed is the only reason to refuse a pod.
	Malformed Reason = "malformed"

	// The last three are the server's own: the request is none of ours, the
	// namespace could not be read, or we failed.
	NotAPodCreation  Reason = "not-a-pod-creation"
	NamespaceUnknown Reason = "namespace-unknown"
	InternalError    Reason = "internal-error"
)

var texts = map[Reason]string{
	Injected:            "the agent is injected",
	UpToDate:            "the pod has the agent as it should be",
	NamespaceExcluded:   "pods of kube-* namespaces and of the control plane never get an agent",
	NamespaceNotOptedIn: "the namespace has no label " + names.InjectionLabel + "=" + names.InjectionEnabled + " or =" + names.InjectionAll,
	OwnPod:              "the pod is one of Kanister Kopia's own",
	OptedOut:            "the pod has label " + names.InjectLabel + "=false",
	NotLabelled:         "the pod has no label " + names.InjectLabel + "=true; put it into the workload's pod template (a label on the workload itself does nothing)",
	MirrorPod:           "a static pod cannot be changed at admission",
	Windows:             "the agent runs on Linux only",
	HostNetwork:         "the pod uses the host's network, so the agent's loopback port would be the node's",
	NameTaken:           "a name that the agent needs is taken",
	NoVolume:            "the pod has no volume that the agent mirrors",
	LimitRange:          "a LimitRange of the namespace leaves no room for the agent",
	QuotaExceeded:       "a ResourceQuota of the namespace leaves no room for the agent",
	OnHold:              "injection is on hold in this namespace, because agents do not start there",
	Malformed:           "a parameter is malformed",
	NotAPodCreation:     "only the creation of pods is looked at",
	NamespaceUnknown:    "the namespace could not be read",
	InternalError:       "the injector failed; the pod is admitted without the agent",
}

// Reasons returns all reasons, sorted.
func Reasons() []Reason {
	list := make([]Reason, 0, len(texts))
	for r := range texts {
		list = append(list, r)
	}
	slices.Sort(list)
	return list
}

// Text is the reason for people.
func (r Reason) Text() string { return texts[r] }

// Mode is how a namespace is opted in.
type Mode string

// The modes are the values of the namespace's label; ModeNone is every other value.
const (
	ModeNone    Mode = ""
	ModeEnabled Mode = names.InjectionEnabled
	ModeAll     Mode = names.InjectionAll
)

// ModeOf reads the mode from the labels of a namespace.
func ModeOf(labels map[string]string) Mode {
	switch m := Mode(labels[names.InjectionLabel]); m {
	case ModeEnabled, ModeAll:
		return m
	default:
		return ModeNone
	}
}

// Namespace is what a decision needs to know of the pod's namespace.
type Namespace struct {
	Name        string
	Labels      map[string]string
	Annotations map[string]string
	// Mode is ModeOf(Labels), unless the caller knows better: the API server
	// chooses the webhook by labels that our cache may not have yet.
	Mode Mode
	// Limits and Quotas are those of the namespace.
	Limits []corev1.LimitRangeItem
	Quotas []corev1.ResourceQuota
	// Hold says why agents of the namespace do not start at present; "": they do.
	Hold string
}

// Decision is the answer.
type Decision struct {
	Reason Reason
	// Detail is particular to this pod: the volume, the annotation, the name.
	Detail string
	// Plan is what to inject; nil unless Inject().
	Plan *Plan
	// Warnings are for whoever made the pod.
	Warnings []string
}

// Plan is the agent that this pod gets.
type Plan struct {
	// Volumes to mirror, in the pod's order, block devices to hand over, and what is left out.
	Volumes, Devices []string
	Skipped          []volumes.Skipped
	RunAs            RunAs
	// Resources of the container; QoS is the class of the pod without it, and with it.
	QoS       corev1.PodQOSClass
	Resources corev1.ResourceRequirements
	// MemoryLimit in bytes is what the agent may use, also where Resources must
	// not say so.
	MemoryLimit int64
	// NoHealth: the agent has no port on the pod network.
	NoHealth bool
}

// Inject reports whether the pod gets the agent.
func (d Decision) Inject() bool { return d.Plan != nil }

// Deny reports whether the pod is to be refused.
func (d Decision) Deny() bool { return d.Reason == Malformed }

// Message is reason and detail for people.
func (d Decision) Message() string {
	if d.Detail == "" {
		return d.Reason.Text()
	}
	return d.Reason.Text() + ": " + d.Detail
}

// Decide decides. The first line that fits, from the top:
//
//	namespace is kube-* or the control plane's       namespace-excluded
//	pod is one that our controller made              own-pod
//	namespace has neither mode                       namespace-not-opted-in
//	label inject=false                               opted-out
//	mode enabled, label inject is not "true"         not-labelled
//	mode all, label inject is neither true nor false malformed
//	static pod, Windows, host network                mirror-pod, windows, host-network
//	a parameter cannot be understood                 malformed
//	another container or volume has our name         name-taken
//	nothing to mirror                                no-volume
//	agents of the namespace do not start             on-hold
//	the namespace's rules leave no room for it       limit-range, quota-exceeded
//	else                                             injected
//
// A pod that has the agent already is decided as if it had not: what the agent
// should be follows from the rest of the pod.
func Decide(pod *corev1.Pod, ns Namespace) Decision {
	if reason, detail := skip(pod, ns); reason != "" {
		d := Decision{Reason: reason, Detail: detail}
		if pod.Labels[names.InjectLabel] == "true" && reason != Malformed && reason != OwnPod {
			d.Warnings = []string{"no backup agent: " + d.Message()}
		}
		return d
	}
	params, err := parseParams(pod)
	if err != nil {
		return Decision{Reason: Malformed, Detail: err.Error()}
	}
	if taken := nameTaken(pod); taken != "" {
		return warned(NameTaken, taken)
	}
	choice, err := volumes.Choose(pod, params.volumes)
	if err != nil {
		return Decision{Reason: Malformed, Detail: volumesError(pod, err).Error()}
	}
	if len(choice.Mirrored)+len(choice.Devices) == 0 {
		d := Decision{Reason: NoVolume, Detail: skippedText(choice.Skipped)}
		if pod.Labels[names.InjectLabel] == "true" {
			d.Warnings = []string{"no backup agent: " + d.Message()}
		}
		return d
	}

	if ns.Hold != "" {
		return warned(OnHold, ns.Hold)
	}

	plan := &Plan{
		Volumes:  choice.Mirrored,
		Devices:  choice.Devices,
		Skipped:  choice.Skipped,
		RunAs:    runAs(pod, ns, slices.Concat(choice.Mirrored, choice.Devices), params),
		NoHealth: params.noHealth,
	}
	plan.QoS, plan.Resources, plan.MemoryLimit = resources(pod, params)
	warnings := unknownKeys(pod)
	if len(ns.Limits)+len(ns.Quotas) > 0 {
		wanted := plan.MemoryLimit
		if reason, detail := makeRoom(pod, ns, plan); reason != "" {
			return warned(reason, detail)
		}
		if params.memoryLimit != nil && plan.MemoryLimit < wanted {
			warnings = append(warnings, "the agent gets "+mebibytes(plan.MemoryLimit)+", the most that a LimitRange of the namespace allows, instead of what annotation "+names.MemoryLimitAnnotation+" asks for")
		}
	}
	return Decision{Reason: Injected, Plan: plan, Warnings: warnings}
}

// warned is a decision against the agent that its pod's author did not choose.
func warned(reason Reason, detail string) Decision {
	d := Decision{Reason: reason, Detail: detail}
	d.Warnings = []string{"no backup agent: " + d.Message()}
	return d
}

func skip(pod *corev1.Pod, ns Namespace) (Reason, string) {
	label, labelled := pod.Labels[names.InjectLabel]
	_, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]
	switch {
	case strings.HasPrefix(ns.Name, "kube-"), ns.Name == names.ControlPlaneNamespace:
		return NamespaceExcluded, "namespace " + ns.Name
	case pod.Labels[names.ManagedByLabel] == names.ManagedByValue && pod.Labels[names.ComponentLabel] != "":
		return OwnPod, ""
	case ns.Mode == ModeNone:
		return NamespaceNotOptedIn, "namespace " + ns.Name
	case label == "false":
		return OptedOut, ""
	case ns.Mode == ModeEnabled && label != "true":
		return NotLabelled, ""
	case ns.Mode == ModeAll && labelled && label != "true":
		return Malformed, malformed("label", names.InjectLabel, label, "true, false").Error()
	case mirror:
		return MirrorPod, ""
	case isWindows(pod):
		return Windows, ""
	case pod.Spec.HostNetwork:
		return HostNetwork, ""
	default:
		return "", ""
	}
}

func isWindows(pod *corev1.Pod) bool {
	return pod.Spec.OS != nil && pod.Spec.OS.Name == corev1.Windows ||
		pod.Spec.NodeSelector[corev1.LabelOSStable] == string(corev1.Windows)
}

// nameTaken finds a container or a volume that bears our name and is not ours. A
// init container of our name is ours, with whatever another webhook or an older
// version left of it.
func nameTaken(pod *corev1.Pod) string {
	for i := range pod.Spec.Containers {
		if pod.Spec.Containers[i].Name == names.AgentContainer {
			return "container " + names.AgentContainer
		}
	}
	for _, c := range volumes.Containers(&pod.Spec) {
		for i := range c.VolumeMounts {
			if name := c.VolumeMounts[i].Name; volumes.Own(name) {
				return fmt.Sprintf("volume %s is mounted by container %s", name, c.Name)
			}
		}
	}
	return ""
}

func skippedText(list []volumes.Skipped) string {
	var parts []string
	for _, s := range list {
		parts = append(parts, s.Name+" ("+s.Reason+")")
	}
	return strings.Join(parts, ", ")
}
