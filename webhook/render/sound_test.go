// SPDX-License-Identifier: Apache-2.0

package render_test

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/kanister-kopia/kanister-kopia/internal/randompod"
	"github.com/kanister-kopia/kanister-kopia/webhook/decide"
	"github.com/kanister-kopia/kanister-kopia/webhook/render"
)

// sound asserts what holds for every injected pod, whatever it was.
func sound(t testing.TB, before, after *corev1.Pod, mayBeRoot bool) {
	t.Helper()
	agent := agentOf(after)
	if agent == nil {
		t.Fatal("no agent")
	}
	if agentOf(before) == nil && after.Spec.InitContainers[len(after.Spec.InitContainers)-1].Name != agent.Name {
		t.Error("the agent is not the last init container")
	}
	if agent.RestartPolicy == nil || *agent.RestartPolicy != corev1.ContainerRestartPolicyAlways {
		t.Error("the agent is no native sidecar: the pod would wait for it for ever")
	}
	if agent.ReadinessProbe != nil || agent.StartupProbe != nil || agent.LivenessProbe != nil {
		t.Error("the agent has a probe and could take the application out of service")
	}

	s := agent.SecurityContext
	isTrue := func(p *bool) bool { return p != nil && *p }
	isFalse := func(p *bool) bool { return p != nil && !*p }
	root := s.RunAsUser != nil && *s.RunAsUser == 0
	inheritsRoot := s.RunAsUser == nil && after.Spec.SecurityContext != nil && after.Spec.SecurityContext.RunAsUser != nil && *after.Spec.SecurityContext.RunAsUser == 0
	if inheritsRoot || root && !mayBeRoot {
		t.Error("the agent is root")
	}
	if isTrue(s.RunAsNonRoot) == root {
		t.Errorf("runAsNonRoot is wrong for root=%v", root)
	}
	wantAdd := []corev1.Capability(nil)
	if root {
		wantAdd = []corev1.Capability{"DAC_READ_SEARCH"}
	}
	if !isFalse(s.AllowPrivilegeEscalation) || !isTrue(s.ReadOnlyRootFilesystem) || isTrue(s.Privileged) ||
		s.SeccompProfile == nil || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault ||
		!slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) || !slices.Equal(s.Capabilities.Add, wantAdd) {
		t.Errorf("security context is not restricted: %+v", s)
	}

	volumes := map[string]corev1.Volume{}
	for _, v := range after.Spec.Volumes {
		if _, ok := volumes[v.Name]; ok {
			t.Errorf("volume %s is there twice", v.Name)
		}
		volumes[v.Name] = v
	}
	token, paths := false, map[string]bool{}
	for _, m := range agent.VolumeMounts {
		v, ok := volumes[m.Name]
		if !ok {
			t.Errorf("the agent mounts %s, which the pod does not have", m.Name)
		}
		if paths[m.MountPath] {
			t.Errorf("two mounts at %s", m.MountPath)
		}
		paths[m.MountPath] = true
		if m.MountPath == "/var/run/secrets/kubernetes.io/serviceaccount" {
			token = v.EmptyDir != nil && m.ReadOnly
		}
		if v.Secret != nil || v.Projected != nil || v.DownwardAPI != nil || v.HostPath != nil || v.ConfigMap != nil && v.ConfigMap.Name != "kanister-kopia-ca" {
			t.Errorf("the agent mounts %s, which holds no data", m.Name)
		}
		if !strings.HasPrefix(m.Name, "kopia-agent-") && (!m.ReadOnly || m.SubPath != "" || m.SubPathExpr != "" || m.MountPath != "/volumes/"+m.Name) {
			t.Errorf("mirror %+v is not the whole volume, read-only, in its place", m)
		}
	}
	for _, d := range agent.VolumeDevices {
		v, ok := volumes[d.Name]
		if !ok || v.PersistentVolumeClaim == nil && v.Ephemeral == nil || d.DevicePath != "/devices/"+d.Name || paths[d.DevicePath] {
			t.Errorf("device %+v is no claim of the pod in its place", d)
		}
		paths[d.DevicePath] = true
	}
	if !token {
		t.Error("nothing covers the path of the service account's token")
	}
	if before, after := qos(strip(before)), qos(after); before != after {
		t.Errorf("QoS class %s became %s", before, after)
	}
}

// qos is kubelet's rule, by sums over all containers.
func qos(pod *corev1.Pod) corev1.PodQOSClass {
	all := slices.Concat(pod.Spec.Containers, pod.Spec.InitContainers)
	requests, limits := map[corev1.ResourceName]int64{}, map[corev1.ResourceName]int64{}
	guaranteed := true
	for _, c := range all {
		for _, name := range []corev1.ResourceName{"cpu", "memory"} {
			limit := c.Resources.Limits[name]
			request, ok := c.Resources.Requests[name]
			if !ok {
				request = limit
			}
			requests[name] += request.MilliValue()
			limits[name] += limit.MilliValue()
			guaranteed = guaranteed && !limit.IsZero()
		}
	}
	switch {
	case requests["cpu"]+requests["memory"]+limits["cpu"]+limits["memory"] == 0:
		return corev1.PodQOSBestEffort
	case guaranteed && requests["cpu"] == limits["cpu"] && requests["memory"] == limits["memory"]:
		return corev1.PodQOSGuaranteed
	default:
		return corev1.PodQOSBurstable
	}
}

// FuzzInject makes a pod from a number and injects it: the other containers stay
// as they are, twice is once, and the result is sound.
func FuzzInject(f *testing.F) {
	for seed := range uint64(300) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 1))
		ns := randomNamespace(r)
		pod := randomPod(r)
		document := marshal(t, pod)
		d, injected := inject(t, document, ns, options)
		touchesOnlyOurs(t, parse(t, document), parse(t, injected))
		if !d.Inject() {
			if diff := cmp.Diff(string(document), string(injected)); diff != "" {
				t.Errorf("%s, but the pod changed\n%s", d.Reason, diff)
			}
			return
		}
		mayBeRoot := ns.Annotations["kopia.kanister.io/privileged-agents"] == "true" && ns.Labels["pod-security.kubernetes.io/enforce"] == ""
		sound(t, pod, parse(t, injected), mayBeRoot)
		d2, twice := inject(t, injected, ns, options)
		if diff := cmp.Diff(string(injected), string(twice)); diff != "" {
			t.Errorf("twice is not once\n%s", diff)
		}
		if diff := cmp.Diff(d, d2); diff != "" {
			t.Errorf("the decision changes when the agent is there\n%s", diff)
		}
		_, other := inject(t, injected, ns, render.Options{Image: "x", Version: "y"})
		if _, back := inject(t, other, ns, options); !cmp.Equal(parse(t, injected), parse(t, back)) {
			t.Error("another version's agent is not brought to ours")
		}
	})
}

func randomNamespace(r *rand.Rand) decide.Namespace {
	ns := decide.Namespace{Name: "shop", Mode: randompod.Pick(r, decide.ModeAll, decide.ModeEnabled), Labels: map[string]string{}, Annotations: map[string]string{}}
	if randompod.Chance(r, 3) {
		ns.Annotations["kopia.kanister.io/privileged-agents"] = "true"
	}
	if randompod.Chance(r, 3) {
		ns.Labels["pod-security.kubernetes.io/enforce"] = randompod.Pick(r, "baseline", "restricted")
	}
	if randompod.Chance(r, 4) {
		ns.Annotations["openshift.io/sa.scc.uid-range"] = "1000/1000"
	}
	return ns
}

// randomPod is what may also arrive: with volumes and containers of our names, as
// an older agent, another webhook or an attacker leaves them.
func randomPod(r *rand.Rand) *corev1.Pod {
	pod := randompod.Pod(r)
	source := corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}
	if len(pod.Spec.Volumes) > 0 {
		source = pod.Spec.Volumes[0].VolumeSource
	}
	if randompod.Chance(r, 8) {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: "kopia-agent-state", VolumeSource: source})
		r.Shuffle(len(pod.Spec.Volumes), func(i, j int) {
			pod.Spec.Volumes[i], pod.Spec.Volumes[j] = pod.Spec.Volumes[j], pod.Spec.Volumes[i]
		})
	}
	if randompod.Chance(r, 6) {
		agent := *pod.Spec.Containers[0].DeepCopy()
		agent.Name = "kopia-agent"
		pod.Spec.InitContainers = slices.Insert(pod.Spec.InitContainers, r.IntN(len(pod.Spec.InitContainers)+1), agent)
	}
	return pod
}
