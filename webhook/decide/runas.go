// SPDX-License-Identifier: Apache-2.0

package decide

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/pkg/volumes"
)

// DefaultUID is the agent's own user where nothing says who owns the data. It is
// also the user of our images.
const DefaultUID int64 = 65532

const (
	openShiftUIDRange  = "openshift.io/sa.scc.uid-range"
	podSecurityEnforce = "pod-security.kubernetes.io/enforce"
)

// RunAs is who the agent is.
type RunAs struct {
	// UID and GID to set on the container; nil sets nothing, so the pod's or the
	// cluster's choice holds.
	UID, GID *int64
	// Root: UID is 0 and the agent gets the capability to read every file.
	Root bool
	// SELinux options of the container whose files are read; nil: the pod's.
	SELinux *corev1.SELinuxOptions
	// EffectiveUID is what the agent will run as, nil where the cluster chooses.
	EffectiveUID *int64
	// Why, for people.
	Why string
}

// runAs walks the ladder; the first rung that knows a user wins:
//
//  1. the annotation run-as
//  2. runAsUser of the container that mounts the volumes
//  3. runAsUser of the pod: nothing is set, the agent inherits it
//  4. OpenShift: nothing is set, the cluster chooses a user of the namespace's range
//  5. root, where the namespace allows it
//  6. DefaultUID
//
// Root never comes from 1 to 3 unless the namespace allows it: such a rung is
// left for 6, with an explicit user, since the pod's would be inherited.
func runAs(pod *corev1.Pod, ns Namespace, mirrored []string, p params) RunAs {
	rootOK, rootWhy := RootAllowed(ns)
	owner := dataOwner(pod, mirrored)
	r := RunAs{SELinux: owner.seLinux}

	refused := ""
	if p.uid != nil {
		gid := p.gid
		if gid == nil {
			gid = owner.gid
		}
		switch {
		case *p.uid != 0:
			return r.with(p.uid, gid, "annotation "+names.RunAsAnnotation)
		case rootOK:
			return r.root(gid, "annotation "+names.RunAsAnnotation+"; "+rootWhy)
		default:
			refused = "annotation " + names.RunAsAnnotation + " asks for root, ignored: " + rootWhy
		}
	}

	_, openShift := ns.Annotations[openShiftUIDRange]
	switch {
	case owner.uid != nil && *owner.uid != 0 && owner.inherited:
		// Only a group that the container has for itself is not inherited.
		r.GID, r.EffectiveUID, r.Why = owner.ownGID, owner.uid, joined(refused, owner.why)
		return r
	case owner.uid != nil && *owner.uid != 0:
		return r.with(owner.uid, owner.gid, joined(refused, owner.why))
	case owner.uid != nil && rootOK:
		return r.root(owner.gid, owner.why+", which is root; "+rootWhy)
	case owner.uid != nil:
		return r.with(new(DefaultUID), owner.gid, joined(refused, "the default instead of "+owner.why+", which is root: "+rootWhy))
	case openShift:
		r.Why = joined(refused, "OpenShift chooses a user of the namespace's range")
		return r
	case rootOK:
		return r.root(nil, "no user is set in the pod; "+rootWhy)
	default:
		return r.with(new(DefaultUID), owner.ownGID, joined(refused, "the default, since no user is set in the pod"))
	}
}

func (r RunAs) with(uid, gid *int64, why string) RunAs {
	r.UID, r.GID, r.EffectiveUID, r.Why = uid, gid, uid, why
	return r
}

func (r RunAs) root(gid *int64, why string) RunAs {
	r = r.with(new(int64(0)), gid, why)
	r.Root = true
	return r
}

// RootAllowed says whether agents of a namespace may run as root: a cluster admin
// annotates it, and Pod Security would not refuse the pod for the agent's capabilities.
func RootAllowed(ns Namespace) (ok bool, why string) {
	if ns.Annotations[names.PrivilegedAgentsAnnotation] != "true" {
		return false, "namespace " + ns.Name + " has no annotation " + names.PrivilegedAgentsAnnotation + "=true"
	}
	if level := ns.Labels[podSecurityEnforce]; slices.Contains([]string{"baseline", "restricted"}, level) {
		return false, fmt.Sprintf("namespace %s enforces Pod Security %s, which refuses root agents", ns.Name, level)
	}
	return true, "namespace annotation " + names.PrivilegedAgentsAnnotation + " allows root"
}

// owner is who the pod's data belongs to, as far as the pod says.
type owner struct {
	// uid and gid in force, nil where unknown; inherited: the uid is the pod's.
	uid, gid  *int64
	inherited bool
	// ownGID is set on the container itself.
	ownGID  *int64
	seLinux *corev1.SELinuxOptions
	why     string
}

func dataOwner(pod *corev1.Pod, mirrored []string) owner {
	o := owner{inherited: true, why: "the user of the pod"}
	if s := pod.Spec.SecurityContext; s != nil {
		o.uid, o.gid = s.RunAsUser, s.RunAsGroup
	}
	c := mountingContainer(pod, mirrored, o.uid != nil)
	if c == nil || c.SecurityContext == nil {
		return o
	}
	s := c.SecurityContext
	o.seLinux = s.SELinuxOptions
	if s.RunAsGroup != nil {
		o.gid, o.ownGID = s.RunAsGroup, s.RunAsGroup
	}
	if s.RunAsUser != nil {
		o.uid, o.inherited, o.why = s.RunAsUser, false, "the user of container "+c.Name
	}
	return o
}

// mountingContainer is the container whose user the data belongs to: the first
// that mounts a mirrored volume or has its device, but one whose user is known before one whose
// user is not, and then one that writes before one that only reads.
func mountingContainer(pod *corev1.Pod, mirrored []string, podHasUser bool) *corev1.Container {
	var best *corev1.Container
	bestScore := 0
	for _, c := range volumes.Containers(&pod.Spec) {
		score := 0
		for i := range c.VolumeMounts {
			m := &c.VolumeMounts[i]
			switch {
			case !slices.Contains(mirrored, m.Name):
			case m.ReadOnly:
				score = max(score, 1)
			default:
				score = 2
			}
		}
		for i := range c.VolumeDevices {
			if slices.Contains(mirrored, c.VolumeDevices[i].Name) {
				score = 2
			}
		}
		if score > 0 && (podHasUser || c.SecurityContext != nil && c.SecurityContext.RunAsUser != nil) {
			score += 2
		}
		if score > bestScore {
			best, bestScore = c, score
		}
	}
	return best
}

func joined(parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), "; ")
}
