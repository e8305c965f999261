// SPDX-License-Identifier: Apache-2.0

package coverage_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kanister-kopia/kanister-kopia/pkg/coverage"
	"github.com/kanister-kopia/kanister-kopia/webhook/decide"
	"github.com/kanister-kopia/kanister-kopia/webhook/render"
)

func plain(change func(*corev1.Pod)) *corev1.Pod {
	pod := &corev1.Pod{}
	pod.Name, pod.Namespace = "db-0", "shop"
	pod.Labels = map[string]string{"kopia.kanister.io/inject": "true"}
	pod.Spec.Containers = []corev1.Container{{Name: "db", VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}}}
	pod.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
		PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"},
	}}}
	if change != nil {
		change(pod)
	}
	return pod
}

// injected is the pod as the webhook leaves it, with the agent in a state.
func injected(t *testing.T, status corev1.ContainerStatus, change func(*corev1.Pod)) *corev1.Pod {
	t.Helper()
	pod := plain(nil)
	d := decide.Decide(pod, shop(nil))
	if !d.Inject() {
		t.Fatal(d.Message())
	}
	pod = render.Inject(pod, d.Plan, render.Options{Image: "agent"}).Apply(pod)
	status.Name = "kopia-agent"
	pod.Status.InitContainerStatuses = []corev1.ContainerStatus{status}
	if change != nil {
		change(pod)
	}
	return pod
}

func shop(change func(*decide.Namespace)) decide.Namespace {
	ns := decide.Namespace{Name: "shop", Mode: decide.ModeEnabled}
	if change != nil {
		change(&ns)
	}
	return ns
}

func waiting(reason, message string) corev1.ContainerStatus {
	return corev1.ContainerStatus{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}}
}

func afterEnd(reason string, code int32) corev1.ContainerStatus {
	s := waiting("CrashLoopBackOff", "back-off 10s")
	s.RestartCount = 3
	s.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{Reason: reason, ExitCode: code, Message: "exec /agent: no such file"}
	return s
}

func TestAssess(t *testing.T) {
	running := corev1.ContainerStatus{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}
	restarted := running
	restarted.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{Reason: "Error", ExitCode: 1}
	all := shop(func(ns *decide.Namespace) { ns.Mode = decide.ModeAll })
	unlabelled := func(p *corev1.Pod) { p.Labels = nil }

	for _, tc := range []struct {
		name   string
		ns     decide.Namespace
		pod    *corev1.Pod
		want   coverage.Reason // "": nothing is wrong
		detail string
		blocks bool
	}{
		{name: "a healthy agent", ns: shop(nil), pod: injected(t, running, nil)},
		{name: "one that was restarted and runs", ns: shop(nil), pod: injected(t, restarted, nil)},
		{name: "one that is about to start", ns: shop(nil), pod: injected(t, waiting("PodInitializing", ""), nil)},
		{name: "no status yet", ns: shop(nil), pod: injected(t, running, func(p *corev1.Pod) { p.Status = corev1.PodStatus{} })},
		{name: "made before the webhook", ns: shop(nil), pod: plain(nil), want: coverage.Missing},
		{name: "namespace all, made before", ns: all, pod: plain(unlabelled), want: coverage.Missing},
		{name: "namespace all, nothing to back up", ns: all, pod: plain(func(p *corev1.Pod) { unlabelled(p); p.Spec.Volumes = nil })},
		{name: "namespace all, host network", ns: all, pod: plain(func(p *corev1.Pod) { unlabelled(p); p.Spec.HostNetwork = true })},
		{name: "not labelled", ns: shop(nil), pod: plain(unlabelled)},
		{name: "not opted in", ns: shop(func(ns *decide.Namespace) { ns.Mode = decide.ModeNone }), pod: plain(nil)},
		{name: "opted out", ns: all, pod: plain(func(p *corev1.Pod) { p.Labels["kopia.kanister.io/inject"] = "false" })},
		{name: "labelled, host network", ns: shop(nil), pod: plain(func(p *corev1.Pod) { p.Spec.HostNetwork = true }), want: "host-network"},
		{name: "labelled, no volume", ns: shop(nil), pod: plain(func(p *corev1.Pod) { p.Spec.Volumes = nil }), want: "no-volume"},
		{name: "malformed", ns: shop(nil), pod: plain(func(p *corev1.Pod) { p.Annotations = map[string]string{"kopia.kanister.io/run-as": "x"} }), want: "malformed", detail: "kopia.kanister.io/run-as"},
		{name: "on hold", ns: shop(func(ns *decide.Namespace) { ns.Hold = "pod x: ErrImagePull" }), pod: plain(nil), want: "on-hold", detail: "pod x: ErrImagePull"},
		{name: "injected before the hold", ns: shop(func(ns *decide.Namespace) { ns.Hold = "x" }), pod: injected(t, running, nil)},
		{name: "no room", ns: shop(func(ns *decide.Namespace) {
			ns.Limits = []corev1.LimitRangeItem{{Type: corev1.LimitTypeContainer, Max: corev1.ResourceList{"memory": resource.MustParse("1Mi")}}}
		}), pod: plain(nil), want: "limit-range", detail: "needs 32Mi"},
		{name: "no room in the quota, which counts the pod", ns: shop(func(ns *decide.Namespace) {
			memory := func(s string) corev1.ResourceList {
				return corev1.ResourceList{"requests.memory": resource.MustParse(s)}
			}
			ns.Quotas = []corev1.ResourceQuota{{Status: corev1.ResourceQuotaStatus{Hard: memory("330Mi"), Used: memory("320Mi")}}}
		}), pod: plain(func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{"memory": resource.MustParse("64Mi")}
		}), want: "quota-exceeded", detail: "74Mi of requests.memory left"},
		{name: "image cannot be pulled", ns: shop(nil), pod: injected(t, waiting("ImagePullBackOff", "not found"), nil), want: coverage.NotStarting, detail: "ImagePullBackOff: not found", blocks: true},
		{name: "program missing", ns: shop(nil), pod: injected(t, afterEnd("StartError", 128), nil), want: coverage.NotStarting, detail: "no such file", blocks: true},
		{name: "crashing", ns: shop(nil), pod: injected(t, afterEnd("OOMKilled", 137), nil), want: coverage.Crashing, detail: "OOMKilled, exit code 137, 3 restarts"},
		{name: "restartPolicy taken away", ns: shop(nil), pod: injected(t, running, func(p *corev1.Pod) { p.Spec.InitContainers[0].RestartPolicy = nil }), want: coverage.Broken, detail: "restartPolicy"},
		{name: "a volume taken away", ns: shop(nil), pod: injected(t, running, func(p *corev1.Pod) {
			c := &p.Spec.InitContainers[0]
			var rest []corev1.VolumeMount
			for _, m := range c.VolumeMounts {
				if m.Name != "data" {
					rest = append(rest, m)
				}
			}
			c.VolumeMounts = rest
		}), want: coverage.Broken, detail: "it does not mount data"},
		{name: "a device taken away", ns: shop(nil), pod: injected(t, running, func(p *corev1.Pod) {
			p.Spec.Containers[0].VolumeDevices = []corev1.VolumeDevice{{Name: "raw", DevicePath: "/dev/raw"}}
			p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "raw", VolumeSource: p.Spec.Volumes[0].VolumeSource})
		}), want: coverage.Broken, detail: "it does not mount raw"},
		{name: "ended", ns: shop(nil), pod: plain(func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded })},
		{name: "being deleted", ns: shop(nil), pod: plain(func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{} })},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := coverage.Assess(tc.pod, tc.ns)
			if f == nil {
				f = &coverage.Finding{}
			}
			if f.Reason != tc.want || f.Blocks != tc.blocks || !strings.Contains(f.Detail, tc.detail) {
				t.Errorf("%+v", f)
			}
		})
	}
}

// Each reason for which nothing is injected has a text of its own, and a fix.
func TestTexts(t *testing.T) {
	for _, r := range decide.Reasons() {
		if text := coverage.Reason(r).Text(); !strings.HasSuffix(text, r.Text()) {
			t.Errorf("%s: %q", r, text)
		}
	}
	owner := coverage.Owner{Kind: "Deployment", Namespace: "shop", Name: "web"}
	if got := coverage.Fix(coverage.Missing, owner); got != "kubectl rollout restart -n shop deployment/web" {
		t.Errorf("%q", got)
	}
}
