// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// PodFailure is why a container does not run and will not without a change.
type PodFailure struct {
	// Reason is one word: ImageUnavailable, ContainerRefused, OutOfMemory, Exited
	// or Evicted.
	Reason string
	// Message is the kubelet's, or the container's own last word.
	Message string
}

// Failure judges a container of a pod. A container that ended by itself has
// failed, even while the kubelet is about to start it again: the reason is known
// and waiting does not change it. Nil: it runs, or it may yet. One that has started is not
// judged by how the one before it ended, nor by its readiness, which may pause.
func Failure(pod *corev1.Pod, container string) *PodFailure {
	for i := range pod.Status.ContainerStatuses {
		s := &pod.Status.ContainerStatuses[i]
		if s.Name != container || s.Ready || HasStarted(s) {
			continue
		}
		if w := s.State.Waiting; w != nil && slices.Contains(imageReasons, w.Reason) {
			return &PodFailure{"ImageUnavailable", strings.TrimSpace(w.Reason + ": " + w.Message)}
		}
		if w := s.State.Waiting; w != nil && slices.Contains(refusedReasons, w.Reason) {
			return &PodFailure{"ContainerRefused", strings.TrimSpace(w.Reason + ": " + w.Message)}
		}
		if t := cmp.Or(s.State.Terminated, s.LastTerminationState.Terminated); t != nil {
			if t.Reason == "OOMKilled" {
				return &PodFailure{"OutOfMemory", "it ran out of memory"}
			}
			return &PodFailure{"Exited", lastWord(t)}
		}
	}
	if pod.Status.Phase == corev1.PodFailed {
		return &PodFailure{"Evicted", cmp.Or(strings.TrimSpace(pod.Status.Reason+" "+pod.Status.Message), "the pod failed without a reason")}
	}
	return nil
}

// HasStarted says that a container runs and that its startup probe has succeeded.
func HasStarted(s *corev1.ContainerStatus) bool {
	return s.State.Running != nil && s.Started != nil && *s.Started
}

// Not ErrImagePull: the first try may meet a registry that is just restarting.
var imageReasons = []string{"ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName"}

var refusedReasons = []string{"CreateContainerError", "CreateContainerConfigError", "RunContainerError"}

// Unschedulable is the scheduler's reason why no node takes the pod, "" if one
// does or may. It is not final: a node may be added or freed.
func Unschedulable(pod *corev1.Pod) string {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && c.Reason == corev1.PodReasonUnschedulable {
			return c.Message
		}
	}
	return ""
}

// NodeLost says whether the pod's node has stopped to answer. Then the control plane takes
// the pod's readiness away, and that of its containers stays as the kubelet left it.
func NodeLost(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type != corev1.PodReady {
			continue
		}
		return c.Status != corev1.ConditionTrue && pod.Status.Phase == corev1.PodRunning && len(pod.Spec.ReadinessGates) == 0 &&
			len(pod.Status.ContainerStatuses) > 0 &&
			!slices.ContainsFunc(pod.Status.ContainerStatuses, func(s corev1.ContainerStatus) bool { return !s.Ready })
	}
	return false
}

// lastWord is what a container said before it ended: the last error of its JSON
// log (the termination message is the log's end), else its last line.
func lastWord(t *corev1.ContainerStateTerminated) string {
	last := ""
	for _, line := range slices.Backward(strings.Split(t.Message, "\n")) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		var entry struct{ Level, Msg, Err, Error string }
		if json.Unmarshal([]byte(line), &entry) != nil {
			last = cmp.Or(last, line)
			continue
		}
		text := entry.Msg
		if e := cmp.Or(entry.Err, entry.Error); e != "" {
			text += ": " + e
		}
		if entry.Level == "ERROR" {
			return text
		}
		last = cmp.Or(last, text)
	}
	return cmp.Or(last, fmt.Sprintf("it ended with exit code %d (%s) and said nothing", t.ExitCode, t.Reason))
}
