// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/kube"
)

// Reasons of the Ready condition, besides those of kube.PodFailure.
const (
	reasonReady         = "Serving"
	reasonStopped       = "Stopped"
	reasonCertificate   = "WaitingForCertificate"
	reasonStarting      = "Starting"
	reasonPaused        = "NotReady"
	reasonUnschedulable = "Unschedulable"
	reasonNodeLost      = "NodeLost"
	reasonLocationTaken = "LocationTaken"
	reasonStorage       = "StorageUnavailable"
	reasonRefused       = "ObjectsRefused"
)

// verdict is what the pods of a server say.
type verdict struct {
	phase           kopiav1alpha1.Phase
	reason, message string
}

// isUp says that the server has come up, also while its readiness pauses.
func (v verdict) isUp() bool {
	return v.phase == kopiav1alpha1.PhaseReady || v.reason == reasonPaused
}

// mayWork says that operations may go on in the server: it has come up, and may live on
// where its node is out of reach.
func (v verdict) mayWork() bool { return v.isUp() || v.reason == reasonNodeLost }

// unwatched is after which pause it may be another one, of which no watch tells; 0: never.
func (v verdict) unwatched(rs *kopiav1alpha1.RepositoryServer) time.Duration {
	switch {
	case v.reason == reasonLocationTaken: // the other repository may have gone
		return time.Minute
	case v.reason == reasonCertificate && ownSecret(rs) != "": // it may have been made
		return secretPause
	}
	return 0
}

// judge decides from the pods of one revision.
func judge(pods []corev1.Pod, revision string) verdict {
	pods = slices.DeleteFunc(slices.Clone(pods), func(p corev1.Pod) bool {
		return p.Annotations[revisionAnnotation] != revision || p.DeletionTimestamp != nil
	})
	if len(pods) == 0 {
		return verdict{kopiav1alpha1.PhaseStarting, reasonStarting, "waiting for the pod"}
	}
	// The youngest that has not failed: one that was evicted may lie beside it, and one that a
	// node refused is often of the same second.
	pod := slices.MaxFunc(pods, func(a, b corev1.Pod) int {
		switch af, bf := a.Status.Phase == corev1.PodFailed, b.Status.Phase == corev1.PodFailed; {
		case af && !bf:
			return -1
		case bf && !af:
			return 1
		}
		return a.CreationTimestamp.Compare(b.CreationTimestamp.Time)
	})
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return verdict{kopiav1alpha1.PhaseReady, reasonReady, "serving"}
		}
	}
	if f := kube.Failure(&pod, Container); f != nil {
		if f.Reason == "OutOfMemory" {
			f.Message += ": raise spec.resources.limits.memory of the RepositoryServer"
		}
		return verdict{kopiav1alpha1.PhaseFailed, f.Reason, f.Message}
	}
	if kube.NodeLost(&pod) {
		return verdict{kopiav1alpha1.PhaseStarting, reasonNodeLost, fmt.Sprintf(
			"node %s does not answer: another one gets a pod when it has not for %d s", pod.Spec.NodeName, lostNodeSeconds)}
	}
	if why := kube.Unschedulable(&pod); why != "" {
		return verdict{kopiav1alpha1.PhaseStarting, reasonUnschedulable, "no node takes the pod: " + why + ": give the cluster room for what it requests, or let spec.resources request less"}
	}
	if hasStarted(&pod) {
		return verdict{kopiav1alpha1.PhaseStarting, reasonPaused, "it has come up, and is not ready at the moment: look at its pod's log if that lasts"}
	}
	return verdict{kopiav1alpha1.PhaseStarting, reasonStarting, "starting"}
}

// hasStarted says that a server has come up in a pod.
func hasStarted(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.ContainerStatuses, func(s corev1.ContainerStatus) bool {
		return s.Name == Container && kube.HasStarted(&s)
	})
}
