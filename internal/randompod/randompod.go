// SPDX-License-Identifier: Apache-2.0

// Package randompod makes random pods that an API server accepts, in the variety
// that real ones come in: for tests of what must hold for every pod.
package randompod

import (
	"fmt"
	"math/rand/v2"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// Pod makes a pod from random numbers. Now and then it has a malformed annotation
// of ours, for which an injector refuses it; the API server itself does not mind.
func Pod(r *rand.Rand) *corev1.Pod {
	pod := &corev1.Pod{}
	if Chance(r, 3) {
		pod.GenerateName = "random-"
	} else {
		pod.Name = fmt.Sprintf("random-%d", r.Uint32())
	}
	pod.Labels = map[string]string{"app": "random"}
	if !Chance(r, 8) {
		pod.Labels[names.InjectLabel] = Pick(r, "true", "true", "true", "true", "true", "true", "false", "maybe")
	}
	pod.Annotations = annotations(r)
	spec := &pod.Spec

	for i := range r.IntN(7) {
		spec.Volumes = append(spec.Volumes, corev1.Volume{Name: fmt.Sprintf("v%d", i), VolumeSource: source(r)})
	}
	block := map[string]bool{}
	for _, v := range spec.Volumes {
		if v.PersistentVolumeClaim != nil && Chance(r, 6) {
			block[v.Name] = true
		}
	}
	uniform := resources(r)
	container := func(name string) corev1.Container {
		c := corev1.Container{Name: name, Image: Pick(r, "db:1", "registry.example.com/team/app@sha256:0123456789012345678901234567890123456789012345678901234567890123"), Resources: *uniform.DeepCopy()}
		if Chance(r, 3) {
			c.Resources = resources(r)
		}
		if Chance(r, 2) {
			c.SecurityContext = securityContext(r)
		}
		c.Env = []corev1.EnvVar{{Name: "POD", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}}, {Name: "DIR", Value: "one"}}
		mounts(r, &c, spec.Volumes, block)
		return c
	}
	for i := range 1 + r.IntN(3) {
		c := container(fmt.Sprintf("c%d", i))
		c.Ports = []corev1.ContainerPort{{Name: fmt.Sprintf("port%d", i), ContainerPort: int32(8000 + i)}}
		if Chance(r, 2) {
			c.ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(8000)}}}
			c.Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"true"}}}}
		}
		spec.Containers = append(spec.Containers, c)
	}
	for i := range r.IntN(3) {
		c := container(fmt.Sprintf("i%d", i))
		if Chance(r, 3) {
			always := corev1.ContainerRestartPolicyAlways
			c.RestartPolicy = &always
		}
		spec.InitContainers = append(spec.InitContainers, c)
	}
	surroundings(r, spec)
	return pod
}

func annotations(r *rand.Rand) map[string]string {
	if Chance(r, 2) {
		return nil
	}
	a := map[string]string{"example.com/note": "x"}
	for _, p := range []struct {
		key    string
		values []string
	}{
		{names.RunAsAnnotation, []string{"0", "5", "5:6", "1000:1000", "999", "bad"}},
		{names.VolumesAnnotation, []string{"v0", "v0", "v1,v0", "v99"}},
		{names.MemoryLimitAnnotation, []string{"64Mi", "1Gi", "2Gi", "1"}},
		{names.MemoryRequestAnnotation, []string{"64Mi", "2Gi"}},
		{names.CPURequestAnnotation, []string{"1", "2000m"}},
		{"cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes", []string{"", "a", "a, kopia-agent-state", "kopia-agent-no-token"}},
		{names.StatusAnnotation, []string{"", "{}"}},
	} {
		if Chance(r, 6) {
			a[p.key] = Pick(r, p.values...)
		}
	}
	return a
}

func mounts(r *rand.Rand, c *corev1.Container, volumes []corev1.Volume, block map[string]bool) {
	for j, v := range volumes {
		if Chance(r, 3) {
			continue
		}
		if block[v.Name] {
			c.VolumeDevices = append(c.VolumeDevices, corev1.VolumeDevice{Name: v.Name, DevicePath: fmt.Sprintf("/dev/x%d", j)})
			continue
		}
		m := corev1.VolumeMount{Name: v.Name, MountPath: fmt.Sprintf("/m%d", j), ReadOnly: v.Image != nil || Chance(r, 3)}
		switch r.IntN(5) {
		case 0:
			m.SubPath = "a/b"
		case 1:
			m.SubPathExpr = "$(DIR)/$(POD)"
		case 2: // below another mount
			if j > 0 {
				m.MountPath = fmt.Sprintf("/m%d/below%d", j-1, j)
			}
		}
		if v.Image != nil {
			m.SubPath, m.SubPathExpr = "", ""
		}
		c.VolumeMounts = append(c.VolumeMounts, m)
		if Chance(r, 6) && v.Image == nil {
			second := corev1.VolumeMount{Name: v.Name, MountPath: fmt.Sprintf("/second%d", j), SubPath: "c"}
			c.VolumeMounts = append(c.VolumeMounts, second)
		}
	}
}

func surroundings(r *rand.Rand, spec *corev1.PodSpec) {
	if Chance(r, 2) {
		spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: ID(r), FSGroup: ID(r), SupplementalGroups: []int64{7}}
		if spec.SecurityContext.RunAsUser != nil {
			spec.SecurityContext.RunAsGroup = ID(r)
		}
		if Chance(r, 3) {
			spec.SecurityContext.SELinuxOptions = &corev1.SELinuxOptions{Level: "s0:c1,c2"}
		}
	}
	spec.RestartPolicy = Pick(r, corev1.RestartPolicyAlways, corev1.RestartPolicyAlways, corev1.RestartPolicyNever, corev1.RestartPolicyOnFailure)
	if Chance(r, 4) {
		seconds := int64(600)
		spec.ActiveDeadlineSeconds = &seconds
	}
	if Chance(r, 4) {
		spec.NodeSelector = map[string]string{corev1.LabelOSStable: "linux"}
		spec.Tolerations = []corev1.Toleration{{Key: "dedicated", Operator: corev1.TolerationOpExists}}
	}
	yes := true
	switch r.IntN(12) {
	case 0:
		spec.ShareProcessNamespace = &yes
	case 1:
		spec.HostNetwork = true
		for i := range spec.Containers {
			for j := range spec.Containers[i].Ports {
				spec.Containers[i].Ports[j].HostPort = spec.Containers[i].Ports[j].ContainerPort
			}
		}
	case 2:
		spec.HostPID = true
	case 3:
		spec.OS = &corev1.PodOS{Name: corev1.Linux}
	case 4:
		spec.Subdomain, spec.Hostname = "db", "db-0"
	}
}

func securityContext(r *rand.Rand) *corev1.SecurityContext {
	yes, no := true, false
	s := &corev1.SecurityContext{RunAsUser: ID(r)}
	if s.RunAsUser != nil {
		s.RunAsGroup = ID(r)
	}
	if s.RunAsUser != nil && *s.RunAsUser != 0 && Chance(r, 2) {
		s.RunAsNonRoot = &yes
	}
	switch r.IntN(8) {
	case 0:
		s.Privileged = &yes
	case 1, 2, 3:
		s.AllowPrivilegeEscalation = &no
		s.Capabilities = &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}
		s.SeccompProfile = &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}
	case 4:
		s.SELinuxOptions = &corev1.SELinuxOptions{Level: "s0:c3,c4"}
	}
	return s
}

func source(r *rand.Rand) corev1.VolumeSource {
	claim := func(name string) corev1.VolumeSource {
		return corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name, ReadOnly: Chance(r, 8)}}
	}
	return Pick(r,
		claim("c"), claim("d"), claim("e"),
		corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		}}}},
		corev1.VolumeSource{NFS: &corev1.NFSVolumeSource{Server: "nfs.example.com", Path: "/export"}},
		corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}},
		corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}},
		corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s"}},
		corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "m"}}},
		corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/var/lib/x"}},
		corev1.VolumeSource{ISCSI: &corev1.ISCSIVolumeSource{TargetPortal: "10.0.0.1", IQN: "iqn.2001-04.com.example:storage", Lun: 1}},
		corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}}}}},
		corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "m"}}}}}},
		corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: Pick(r, "data.example.com", "secrets-store.csi.k8s.io")}},
	)
}

func resources(r *rand.Rand) corev1.ResourceRequirements {
	list := func(cpu, memory string) corev1.ResourceList {
		return corev1.ResourceList{"cpu": resource.MustParse(cpu), "memory": resource.MustParse(memory)}
	}
	return Pick(r,
		corev1.ResourceRequirements{},
		corev1.ResourceRequirements{Requests: list("1", "1Gi"), Limits: list("1", "1Gi")},
		corev1.ResourceRequirements{Requests: list("1", "1Gi"), Limits: list("2", "1Gi")},
		corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("1")}},
		corev1.ResourceRequirements{Limits: list("1", "1Gi")},
		corev1.ResourceRequirements{Requests: corev1.ResourceList{"ephemeral-storage": resource.MustParse("1Gi")}},
	)
}

// Restrict makes a pod one that Pod Security's level restricted admits.
func Restrict(r *rand.Rand, pod *corev1.Pod) *corev1.Pod {
	spec := &pod.Spec
	spec.HostNetwork, spec.HostPID = false, false
	yes, no, user := true, false, int64(1000)
	if spec.SecurityContext == nil {
		spec.SecurityContext = &corev1.PodSecurityContext{}
	}
	spec.SecurityContext.SELinuxOptions = nil
	spec.SecurityContext.RunAsNonRoot = &yes
	spec.SecurityContext.RunAsUser = Pick(r, nil, &user)
	spec.SecurityContext.SeccompProfile = &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}
	for i := range spec.Volumes {
		if v := &spec.Volumes[i]; v.HostPath != nil || v.NFS != nil || v.ISCSI != nil {
			v.VolumeSource = corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}
		}
	}
	for _, containers := range [][]corev1.Container{spec.Containers, spec.InitContainers} {
		for i := range containers {
			for j := range containers[i].Ports {
				containers[i].Ports[j].HostPort = 0
			}
			containers[i].SecurityContext = &corev1.SecurityContext{
				AllowPrivilegeEscalation: &no, RunAsUser: Pick(r, nil, &user),
				Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			}
		}
	}
	return pod
}

// ID is nothing or a user, root now and then.
func ID(r *rand.Rand) *int64 {
	if Chance(r, 3) {
		return nil
	}
	id := Pick(r, int64(0), 1000, 65532)
	return &id
}

// Chance is true once in n times.
func Chance(r *rand.Rand, n int) bool { return r.IntN(n) == 0 }

// Pick is one of the given.
func Pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }
