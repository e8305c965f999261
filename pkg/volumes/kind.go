// SPDX-License-Identifier: Apache-2.0

package volumes

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// Kind is the source of a volume, spelled as in a pod's spec.
type Kind string

// The kinds that are told apart; Other is every source that is none of them.
const (
	PersistentVolumeClaim Kind = "persistentVolumeClaim"
	Ephemeral             Kind = "ephemeral"
	CSI                   Kind = "csi"
	NFS                   Kind = "nfs"
	EmptyDir              Kind = "emptyDir"
	Secret                Kind = "secret"
	ConfigMap             Kind = "configMap"
	Projected             Kind = "projected"
	DownwardAPI           Kind = "downwardAPI"
	HostPath              Kind = "hostPath"
	Image                 Kind = "image"
	Other                 Kind = "other"
)

// credentialDrivers are CSI drivers whose inline volumes hold keys and tokens,
// not data: mirroring one would copy secrets into backups.
var credentialDrivers = []string{
	"csi.cert-manager.io",
	"csi.spiffe.io",
	"secrets-store.csi.k8s.io",
	"spiffe.csi.cert-manager.io",
}

// KindOf returns the kind of a volume. A volume without any source is an
// emptyDir, as the API server defaults it.
func KindOf(v *corev1.Volume) Kind {
	switch s := &v.VolumeSource; {
	case s.PersistentVolumeClaim != nil:
		return PersistentVolumeClaim
	case s.Ephemeral != nil:
		return Ephemeral
	case s.CSI != nil:
		return CSI
	case s.NFS != nil:
		return NFS
	case s.EmptyDir != nil:
		return EmptyDir
	case s.Secret != nil:
		return Secret
	case s.ConfigMap != nil:
		return ConfigMap
	case s.Projected != nil:
		return Projected
	case s.DownwardAPI != nil:
		return DownwardAPI
	case s.HostPath != nil:
		return HostPath
	case s.Image != nil:
		return Image
	case *s == corev1.VolumeSource{}:
		return EmptyDir
	default:
		return Other
	}
}

// mirrorable says whether a volume is ever mirrored, and why not. Whether it is
// mirrored in a given pod is decided by Choose.
func mirrorable(v *corev1.Volume) (why string, ok bool) {
	switch k := KindOf(v); k {
	case PersistentVolumeClaim, Ephemeral, NFS, EmptyDir:
		return "", true
	case CSI:
		if slices.Contains(credentialDrivers, v.CSI.Driver) {
			return "a volume of CSI driver " + v.CSI.Driver + " holds credentials, which are never mirrored", false
		}
		return "", true
	case Other:
		return "a volume of this kind is never mirrored; use a persistentVolumeClaim", false
	default:
		return "a volume of kind " + string(k) + " is never mirrored", false
	}
}

// isData is false for the kinds that nobody expects in a backup. They are left
// out without a word: each pod has one for its service account's token.
func isData(k Kind) bool {
	return !slices.Contains([]Kind{Secret, ConfigMap, Projected, DownwardAPI}, k)
}

// ClaimName returns the claim behind a volume of the named pod, "" if it has none.
func ClaimName(podName string, v *corev1.Volume) string {
	switch {
	case v.PersistentVolumeClaim != nil:
		return v.PersistentVolumeClaim.ClaimName
	case v.Ephemeral != nil:
		// The name that the ephemeral volume controller gives.
		return podName + "-" + v.Name
	default:
		return ""
	}
}

// Claims are the claims that the volumes of a pod are, in the pod's order.
func Claims(pod *corev1.Pod) []string {
	var claims []string
	for i := range pod.Spec.Volumes {
		if claim := ClaimName(pod.Name, &pod.Spec.Volumes[i]); claim != "" {
			claims = append(claims, claim)
		}
	}
	return claims
}
