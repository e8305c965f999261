// SPDX-License-Identifier: Apache-2.0

package volumes

import (
	"cmp"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// Location is where a path of a container is.
type Location struct {
	// VolumeName is the pod's volume, mirrored at MirrorPath(VolumeName).
	VolumeName string
	Kind       Kind
	// ClaimName is the persistent volume claim, "" for a volume without one.
	ClaimName string
	// Device: the volume is a block device, at DevicePath(VolumeName).
	Device bool
	// PathInVolume is absolute and clean; "/" is the whole volume. Symbolic links
	// are not known here: the agent refuses a path that goes through one.
	PathInVolume string

	// MountPath is where the container mounts the volume, and MountRoot the
	// directory of the volume seen there: "/" without a subPath.
	MountPath string
	MountRoot string
	// ReadOnly is how the container mounts it.
	ReadOnly bool

	// Nested are mounts of the container below the path. What they show is not in
	// this volume and so not in a backup of the path.
	Nested []Nested
}

// Nested is a mount below a resolved path.
type Nested struct {
	MountPath  string
	VolumeName string
}

// Warning says what a backup of the path leaves out, "" if nothing.
func (l Location) Warning() string {
	if len(l.Nested) == 0 {
		return ""
	}
	var list []string
	for _, n := range l.Nested {
		list = append(list, n.MountPath+" (volume "+n.VolumeName+")")
	}
	return "not included, because they are other mounts: " + strings.Join(list, ", ")
}

// Reason says why a path was refused.
type Reason string

// The reasons.
const (
	BadPath          Reason = "bad-path"
	UnknownContainer Reason = "unknown-container"
	NoVolume         Reason = "no-volume"
	NotMirrored      Reason = "not-mirrored"
	BlockDevice      Reason = "block-device"
	UnknownSubPath   Reason = "unknown-sub-path"
	Ambiguous        Reason = "ambiguous"
)

// Error is a refused path. Its text is complete and meant for the user.
type Error struct {
	Reason Reason
	text   string
}

func (e *Error) Error() string { return e.text }

func refuse(r Reason, format string, args ...any) error {
	return &Error{Reason: r, text: fmt.Sprintf(format, args...)}
}

// Resolve finds the volume behind an absolute path of a container: the mount with
// the longest path above it decides, its subPath (or expanded subPathExpr) comes
// first inside the volume. Init containers and native sidecars count too. Errors
// are *Error.
//
// If the pod has the agent, only volumes that the agent mounts are accepted;
// otherwise those of a kind that it would mount, so that the caller can say first
// that the agent is missing.
func Resolve(pod *corev1.Pod, container, file string) (Location, error) {
	file, err := cleanPath(file)
	if err != nil {
		return Location{}, err
	}
	c, err := findContainer(&pod.Spec, container)
	if err != nil {
		return Location{}, err
	}

	var mount *corev1.VolumeMount
	mountPath := ""
	for i := range c.VolumeMounts {
		m := &c.VolumeMounts[i]
		if p := absolute(m.MountPath); isWithin(p, file) && (mount == nil || len(p) > len(mountPath)) {
			mount, mountPath = m, p
		}
	}
	for i := range c.VolumeDevices {
		if d := &c.VolumeDevices[i]; isWithin(absolute(d.DevicePath), file) && len(d.DevicePath) > len(mountPath) {
			return resolveDevice(pod, c, d, file)
		}
	}
	if mount == nil {
		return Location{}, refuse(NoVolume, "%s of container %s is on no volume; the agent reads volumes only", file, container)
	}

	volume := findVolume(&pod.Spec, mount.Name)
	if volume == nil {
		return Location{}, refuse(NoVolume, "%s of container %s is on volume %s, which the pod does not have", file, container, mount.Name)
	}
	if why, ok := mirrored(pod, volume); !ok {
		return Location{}, refuse(NotMirrored, "%s of container %s is on volume %s, which the agent does not mirror: %s", file, container, volume.Name, why)
	}
	root, err := mountRoot(pod, c, mount)
	if err != nil {
		return Location{}, err
	}

	return Location{
		VolumeName:   volume.Name,
		Kind:         KindOf(volume),
		ClaimName:    ClaimName(pod.Name, volume),
		PathInVolume: path.Join(root, below(mountPath, file)),
		MountPath:    mountPath,
		MountRoot:    root,
		ReadOnly:     mount.ReadOnly,
		Nested:       nested(c, file, mount),
	}, nil
}

// resolveDevice is Resolve for a path of a block device: there is nothing below it.
func resolveDevice(pod *corev1.Pod, c *corev1.Container, d *corev1.VolumeDevice, file string) (Location, error) {
	if file != absolute(d.DevicePath) {
		return Location{}, refuse(BlockDevice, "%s of container %s is below block device %s (%s), which is backed up as a whole", file, c.Name, d.DevicePath, d.Name)
	}
	volume := findVolume(&pod.Spec, d.Name)
	if volume == nil {
		return Location{}, refuse(NoVolume, "%s of container %s is volume %s, which the pod does not have", file, c.Name, d.Name)
	}
	if why, ok := mirrored(pod, volume); !ok {
		return Location{}, refuse(NotMirrored, "%s of container %s is volume %s, which the agent does not see: %s", file, c.Name, volume.Name, why)
	}
	return Location{
		VolumeName: volume.Name, Kind: KindOf(volume), ClaimName: ClaimName(pod.Name, volume), Device: true,
		PathInVolume: "/", MountPath: file, MountRoot: "/",
	}, nil
}

// ResolveClaims is Resolve for a pod that is still to be made: mounts maps claim
// to mount path. It returns the claim and the path inside it.
func ResolveClaims(mounts map[string]string, file string) (claim, inside string, err error) {
	file, err = cleanPath(file)
	if err != nil {
		return "", "", err
	}
	best := ""
	for _, name := range slices.Sorted(maps.Keys(mounts)) {
		p, err := cleanPath(mounts[name])
		if err != nil {
			return "", "", refuse(BadPath, "mount path of claim %s: %v", name, err)
		}
		switch {
		case !isWithin(p, file):
		case claim != "" && p == best:
			return "", "", refuse(Ambiguous, "claims %s and %s have the same mount path %s", claim, name, p)
		case claim == "" || len(p) > len(best):
			claim, best = name, p
		}
	}
	if claim == "" {
		var list []string
		for _, name := range slices.Sorted(maps.Keys(mounts)) {
			list = append(list, mounts[name]+" ("+name+")")
		}
		return "", "", refuse(NoVolume, "%s is on no volume; the volumes are mounted at: %s", file, quoteAll(list))
	}
	return claim, absolute(below(best, file)), nil
}

func cleanPath(p string) (string, error) {
	switch {
	case p == "":
		return "", refuse(BadPath, "path is empty; give an absolute path such as /data")
	case !path.IsAbs(p):
		return "", refuse(BadPath, "path %q is not absolute; give one such as /data", p)
	case strings.ContainsRune(p, 0):
		return "", refuse(BadPath, "path %q contains a zero byte", p)
	}
	return path.Clean(p), nil
}

func findContainer(spec *corev1.PodSpec, name string) (*corev1.Container, error) {
	var list []string
	for _, c := range Containers(spec) {
		if c.Name == name {
			return c, nil
		}
		list = append(list, c.Name)
	}
	return nil, refuse(UnknownContainer, "the pod has no container %q; it has: %s", name, quoteAll(list))
}

func findVolume(spec *corev1.PodSpec, name string) *corev1.Volume {
	for i := range spec.Volumes {
		if spec.Volumes[i].Name == name {
			return &spec.Volumes[i]
		}
	}
	return nil
}

func mirrored(pod *corev1.Pod, v *corev1.Volume) (why string, ok bool) {
	if why, ok := mirrorable(v); !ok {
		return why, false
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if c.Name != names.AgentContainer {
			continue
		}
		for j := range c.VolumeMounts {
			if m := &c.VolumeMounts[j]; m.Name == v.Name && m.MountPath == MirrorPath(v.Name) {
				return "", true
			}
		}
		for j := range c.VolumeDevices {
			if d := &c.VolumeDevices[j]; d.Name == v.Name && d.DevicePath == DevicePath(v.Name) {
				return "", true
			}
		}
		return "list it in annotation " + names.VolumesAnnotation + " of the pod template and let the pod be made anew", false
	}
	return "", true
}

// mountRoot returns the directory of the volume that the mount shows.
func mountRoot(pod *corev1.Pod, c *corev1.Container, m *corev1.VolumeMount) (string, error) {
	sub := m.SubPath
	if m.SubPathExpr != "" {
		var err error
		if sub, err = expand(m.SubPathExpr, containerEnv(pod, c)); err != nil {
			return "", refuse(UnknownSubPath, "mount %s of container %s has subPathExpr %q, which cannot be known from the pod: %v",
				m.MountPath, c.Name, m.SubPathExpr, err)
		}
	}
	if path.IsAbs(sub) || slices.Contains(strings.Split(sub, "/"), "..") {
		return "", refuse(UnknownSubPath, "mount %s of container %s has sub-path %q, which leaves its volume", m.MountPath, c.Name, sub)
	}
	return absolute(sub), nil
}

// nested returns the other mounts of the container below file. A mount of the
// same volume counts as well: its place in the volume is another one.
func nested(c *corev1.Container, file string, self *corev1.VolumeMount) []Nested {
	var list []Nested
	for i := range c.VolumeMounts {
		m := &c.VolumeMounts[i]
		if p := absolute(m.MountPath); m != self && p != file && isWithin(file, p) {
			list = append(list, Nested{MountPath: p, VolumeName: m.Name})
		}
	}
	slices.SortFunc(list, func(a, b Nested) int { return cmp.Compare(a.MountPath, b.MountPath) })
	return list
}

// absolute cleans a path and roots it, as kubelet does with relative mount paths.
func absolute(p string) string { return path.Join("/", p) }

// isWithin reports whether p is dir or below it; both are absolute and clean.
func isWithin(dir, p string) bool {
	return dir == "/" || p == dir || strings.HasPrefix(p, dir+"/")
}

// below returns p relative to dir, "" if they are the same.
func below(dir, p string) string {
	return strings.TrimPrefix(strings.TrimPrefix(p, dir), "/")
}
