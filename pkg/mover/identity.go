// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// NonRoot is the user of a mover about whose data nothing is known: that of our images.
const NonRoot int64 = 65532

// Identity is whom a mover runs as. A nil field is not known.
type Identity struct {
	UID, GID, FSGroup   *int64
	FSGroupChangePolicy *corev1.PodFSGroupChangePolicy
	SupplementalGroups  []int64
	SELinux             *corev1.SELinuxOptions
}

// FromPodSpec is the identity that an application uses a volume with: that of the
// first container that mounts it, over that of its pod. Root is not inherited: a
// pod like ours may not run as root.
func FromPodSpec(spec *corev1.PodSpec, volume string) Identity {
	var id Identity
	if sc := spec.SecurityContext; sc != nil {
		id = Identity{
			UID: sc.RunAsUser, GID: sc.RunAsGroup,
			FSGroup: sc.FSGroup, FSGroupChangePolicy: sc.FSGroupChangePolicy,
			SupplementalGroups: sc.SupplementalGroups, SELinux: sc.SELinuxOptions,
		}
	}
	for i := range spec.Containers {
		if sc := spec.Containers[i].SecurityContext; sc != nil && mounts(&spec.Containers[i], volume) {
			id = Identity{UID: sc.RunAsUser, GID: sc.RunAsGroup, SELinux: sc.SELinuxOptions}.Or(id)
			break
		}
	}
	if id.UID != nil && *id.UID == 0 {
		id.UID = nil
	}
	return id
}

// FromOwner is the owner of a snapshot's root directory. Root's is nobody's.
func FromOwner(uid, gid uint32) Identity {
	var id Identity
	if uid != 0 {
		id.UID = new(int64(uid))
	}
	if gid != 0 {
		id.GID, id.FSGroup = new(int64(gid)), new(int64(gid))
	}
	return id
}

// Or fills what is not known from another identity.
func (id Identity) Or(other Identity) Identity {
	if id.UID == nil {
		id.UID = other.UID
	}
	if id.GID == nil {
		id.GID = other.GID
	}
	if id.FSGroup == nil {
		id.FSGroup, id.FSGroupChangePolicy = other.FSGroup, other.FSGroupChangePolicy
	}
	if id.SupplementalGroups == nil {
		id.SupplementalGroups = other.SupplementalGroups
	}
	if id.SELinux == nil {
		id.SELinux = other.SELinux
	}
	return id
}

func mounts(c *corev1.Container, volume string) bool {
	for _, m := range c.VolumeMounts {
		if m.Name == volume {
			return true
		}
	}
	return slices.ContainsFunc(c.VolumeDevices, func(d corev1.VolumeDevice) bool { return d.Name == volume })
}
