// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
)

// Reasons of the Ready condition.
const (
	reasonReady       = "Serving"
	reasonStopped     = "Stopped"
	reasonCertificate = "WaitingForCertificate"
	reasonStarting    = "Starting"
	reasonFailed      = "ServerFailed"
	reasonMemory      = "OutOfMemory"
	reasonImage       = "ImageUnavailable"
	reasonScheduling  = "Unschedulable"
)

// verdict is what the pods of a server say.
type verdict struct {
	phase           kopiav1alpha1.Phase
	reason, message string
}

// judge decides from the pods of one revision. A server that stopped by itself
// has failed, even while the kubelet is about to start it again: the reason is
// known and waiting does not change it.
func judge(pods []corev1.Pod, revision string) verdict {
	pods = slices.DeleteFunc(slices.Clone(pods), func(p corev1.Pod) bool {
		return p.Annotations[revisionAnnotation] != revision || p.DeletionTimestamp != nil
	})
	if len(pods) == 0 {
		return verdict{kopiav1alpha1.PhaseStarting, reasonStarting, "waiting for the pod"}
	}
	// The youngest: an evicted one may lie beside it.
	pod := slices.MaxFunc(pods, func(a, b corev1.Pod) int {
		return a.CreationTimestamp.Compare(b.CreationTimestamp.Time)
	})
	for _, c := range pod.Status.Conditions {
		switch {
		case c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue:
			return verdict{kopiav1alpha1.PhaseReady, reasonReady, "serving"}
		case c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && c.Reason == corev1.PodReasonUnschedulable:
			// Not final: a node may be added or freed.
			return verdict{kopiav1alpha1.PhaseStarting, reasonScheduling, "no node takes the pod: " + c.Message}
		}
	}
	if pod.Status.Phase == corev1.PodFailed && len(pod.Status.ContainerStatuses) == 0 {
		return verdict{kopiav1alpha1.PhaseFailed, reasonFailed, strings.TrimSpace(pod.Status.Reason + " " + pod.Status.Message)}
	}
	for _, s := range pod.Status.ContainerStatuses {
		if s.Name != Container {
			continue
		}
		if w := s.State.Waiting; w != nil && slices.Contains(imageReasons, w.Reason) {
			return verdict{kopiav1alpha1.PhaseFailed, reasonImage, strings.TrimSpace(w.Reason + ": " + w.Message)}
		}
		if w := s.State.Waiting; w != nil && (w.Reason == "CreateContainerError" || w.Reason == "CreateContainerConfigError") {
			return verdict{kopiav1alpha1.PhaseFailed, reasonFailed, strings.TrimSpace(w.Reason + ": " + w.Message)}
		}
		if t := cmp.Or(s.State.Terminated, s.LastTerminationState.Terminated); t != nil {
			if t.Reason == "OOMKilled" {
				return verdict{kopiav1alpha1.PhaseFailed, reasonMemory,
					"the server ran out of memory: raise spec.resources.limits.memory of the RepositoryServer"}
			}
			return verdict{kopiav1alpha1.PhaseFailed, reasonFailed, terminationText(t)}
		}
	}
	return verdict{kopiav1alpha1.PhaseStarting, reasonStarting, "starting"}
}

// Not ErrImagePull: the first try may meet a registry that is just restarting.
var imageReasons = []string{"ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName"}

// terminationText is the server's own last word: the last line of its message
// (the end of its log), or of its JSON log the last line that is an error.
func terminationText(t *corev1.ContainerStateTerminated) string {
	lines := strings.FieldsFunc(t.Message, func(r rune) bool { return r == '\n' })
	last := ""
	for _, line := range slices.Backward(lines) {
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
	if last != "" {
		return last
	}
	return fmt.Sprintf("the server stopped with exit code %d (%s) and said nothing", t.ExitCode, t.Reason)
}
