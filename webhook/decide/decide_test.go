// SPDX-License-Identifier: Apache-2.0

package decide_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/kanister-kopia/kanister-kopia/webhook/decide"
)

// podWith parses metadata and spec. Unless given, there is one container that
// mounts a claim, and an emptyDir.
func podWith(t *testing.T, metadata, spec string) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{}
	if err := yaml.UnmarshalStrict([]byte(metadata), &pod.ObjectMeta); err != nil {
		t.Fatal(err)
	}
	if err := yaml.UnmarshalStrict([]byte(spec), &pod.Spec); err != nil {
		t.Fatal(err)
	}
	if pod.Spec.Containers == nil {
		pod.Spec.Containers = []corev1.Container{{Name: "app", VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}}}
	}
	if pod.Spec.Volumes == nil {
		claim := &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}
		pod.Spec.Volumes = []corev1.Volume{
			{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: claim}},
			{Name: "tmp", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		}
	}
	return pod
}

func namespace(mode decide.Mode) decide.Namespace {
	return decide.Namespace{Name: "shop", Mode: mode}
}

const (
	on  = `labels: {kopia.kanister.io/inject: "true"}`
	off = `labels: {kopia.kanister.io/inject: "false"}`
)

func annotated(key, value string) string {
	return on + "\nannotations: {" + key + ": '" + value + "'}"
}

// The truth table of Decide.
func TestDecide(t *testing.T) {
	for _, tc := range []struct {
		name           string
		ns             decide.Namespace
		metadata, spec string
		want           decide.Reason
	}{
		{name: "enabled, labelled", ns: namespace("enabled"), metadata: on, want: decide.Injected},
		{name: "enabled, not labelled", ns: namespace("enabled"), want: decide.NotLabelled},
		{name: "enabled, opted out", ns: namespace("enabled"), metadata: off, want: decide.OptedOut},
		{name: "enabled, label is another word", ns: namespace("enabled"), metadata: `labels: {kopia.kanister.io/inject: "yes"}`, want: decide.NotLabelled},
		{name: "all, not labelled", ns: namespace("all"), want: decide.Injected},
		{name: "all, labelled", ns: namespace("all"), metadata: on, want: decide.Injected},
		{name: "all, opted out", ns: namespace("all"), metadata: off, want: decide.OptedOut},
		{name: "all, label is another word", ns: namespace("all"), metadata: `labels: {kopia.kanister.io/inject: "False"}`, want: decide.Malformed},
		{name: "no mode, labelled", ns: namespace(""), metadata: on, want: decide.NamespaceNotOptedIn},
		{name: "kube-system", ns: decide.Namespace{Name: "kube-system", Mode: "all"}, want: decide.NamespaceExcluded},
		{name: "any kube-*", ns: decide.Namespace{Name: "kube-x", Mode: "all"}, want: decide.NamespaceExcluded},
		{name: "control plane", ns: decide.Namespace{Name: "kanister-kopia", Mode: "all"}, want: decide.NamespaceExcluded},
		{name: "a name that begins alike", ns: decide.Namespace{Name: "kubernetes-shop", Mode: "all"}, want: decide.Injected},
		{name: "our own mover", ns: namespace("all"), metadata: `labels: {app.kubernetes.io/managed-by: kanister-kopia, app.kubernetes.io/component: mover}`, want: decide.OwnPod},
		{name: "host network", ns: namespace("all"), spec: `hostNetwork: true`, want: decide.HostNetwork},
		{name: "static pod", ns: namespace("all"), metadata: `annotations: {kubernetes.io/config.mirror: x}`, want: decide.MirrorPod},
		{name: "windows by os", ns: namespace("all"), spec: `os: {name: windows}`, want: decide.Windows},
		{name: "windows by node selector", ns: namespace("all"), spec: `nodeSelector: {kubernetes.io/os: windows}`, want: decide.Windows},
		{name: "linux", ns: namespace("all"), spec: "os: {name: linux}\nnodeSelector: {kubernetes.io/os: linux}", want: decide.Injected},
		{name: "only an emptyDir", ns: namespace("all"), spec: `volumes: [{name: data, emptyDir: {}}]`, want: decide.NoVolume},
		{name: "only an emptyDir, listed", ns: namespace("all"), metadata: annotated("kopia.kanister.io/volumes", "data"), spec: `volumes: [{name: data, emptyDir: {}}]`, want: decide.Injected},
		{name: "container of our name", ns: namespace("all"), spec: `containers: [{name: kopia-agent}, {name: app, volumeMounts: [{name: data, mountPath: /data}]}]`, want: decide.NameTaken},
		{name: "our volume mounted by another", ns: namespace("all"), spec: `containers: [{name: app, volumeMounts: [{name: data, mountPath: /data}, {name: kopia-agent-ca, mountPath: /ca}]}]`, want: decide.NameTaken},
		{name: "the agent is there", ns: namespace("all"), spec: `initContainers: [{name: kopia-agent, volumeMounts: [{name: kopia-agent-state, mountPath: /x}]}]`, want: decide.Injected},
		// A pod that is skipped anyway is not refused for its parameters.
		{name: "malformed but host network", ns: namespace("all"), metadata: annotated("kopia.kanister.io/run-as", "x"), spec: `hostNetwork: true`, want: decide.HostNetwork},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := decide.Decide(podWith(t, tc.metadata, tc.spec), tc.ns)
			if d.Reason != tc.want {
				t.Fatalf("got %s (%s), want %s", d.Reason, d.Message(), tc.want)
			}
			if got, want := d.Inject(), tc.want == decide.Injected; got != want {
				t.Errorf("inject: got %v, want %v", got, want)
			}
			if got, want := d.Deny(), tc.want == decide.Malformed; got != want {
				t.Errorf("deny: got %v, want %v", got, want)
			}
			if d.Reason.Text() == "" {
				t.Errorf("reason %s has no text", d.Reason)
			}
		})
	}
}

func TestMalformedParametersAreRefused(t *testing.T) {
	for _, tc := range []struct{ key, value, accepted string }{
		{"kopia.kanister.io/run-as", "root", "<uid>:<gid>"},
		{"kopia.kanister.io/run-as", "", "<uid>"},
		{"kopia.kanister.io/run-as", "-1", "<uid>"},
		{"kopia.kanister.io/run-as", "1:", "<uid>"},
		{"kopia.kanister.io/run-as", "1:2:3", "<uid>"},
		{"kopia.kanister.io/run-as", "2147483648", "2147483647"},
		{"kopia.kanister.io/volumes", " , ", "names of the pod"},
		{"kopia.kanister.io/volumes", "data,nope", "accepted: data, tmp"},
		{"kopia.kanister.io/cpu-request", "lots", "100m"},
		{"kopia.kanister.io/cpu-request", "0", "1m"},
		{"kopia.kanister.io/cpu-request", "-100m", "1m"},
		{"kopia.kanister.io/memory-request", "1Mi", "32Mi"},
		{"kopia.kanister.io/memory-limit", "256", "256Mi"},
		{"kopia.kanister.io/memory-limit", "256m", "256Mi"},
		{"kopia.kanister.io/memory-limit", "9999999Ei", "256Mi"},
		{"kopia.kanister.io/health", "off", "true, false"},
		{"kopia.kanister.io/health", "", "true, false"},
		{"kopia.kanister.io/ignore", "a[", "patterns as in a .gitignore"},
		{"kopia.kanister.io/compression", "lz4", "zstd-fastest"},
		{"kopia.kanister.io/rate-limit", "1", "16Ki"},
	} {
		t.Run(tc.key+"="+tc.value, func(t *testing.T) {
			d := decide.Decide(podWith(t, annotated(tc.key, tc.value), ""), namespace("enabled"))
			if !d.Deny() {
				t.Fatalf("got %s, want a refusal", d.Reason)
			}
			for _, part := range []string{tc.key, `"` + tc.value + `"`, "accepted: ", tc.accepted} {
				if !strings.Contains(d.Message(), part) {
					t.Errorf("%q does not contain %q", d.Message(), part)
				}
			}
		})
	}
	both := on + "\nannotations: {kopia.kanister.io/memory-request: 2Gi, kopia.kanister.io/memory-limit: 1Gi}"
	if d := decide.Decide(podWith(t, both, ""), namespace("enabled")); !d.Deny() {
		t.Errorf("request above limit: got %s, want a refusal", d.Reason)
	}
}

func TestSkippedPodThatAskedIsWarned(t *testing.T) {
	d := decide.Decide(podWith(t, on, "hostNetwork: true"), namespace("enabled"))
	if len(d.Warnings) != 1 || !strings.Contains(d.Warnings[0], "host's network") {
		t.Errorf("labelled pod: got warnings %q", d.Warnings)
	}
	d = decide.Decide(podWith(t, "", "hostNetwork: true"), namespace("all"))
	if len(d.Warnings) != 0 {
		t.Errorf("pod that asked for nothing: got warnings %q", d.Warnings)
	}
	d = decide.Decide(podWith(t, annotated("kopia.kanister.io/memorylimit", "1Gi"), ""), namespace("enabled"))
	if !d.Inject() || len(d.Warnings) != 1 || !strings.Contains(d.Warnings[0], "kopia.kanister.io/memorylimit") {
		t.Errorf("misspelt annotation: got %s, warnings %q", d.Reason, d.Warnings)
	}
}

func TestRunAs(t *testing.T) {
	const appIs = `containers: [{name: app, securityContext: %, volumeMounts: [{name: data, mountPath: /data}]}]`
	app := func(security string) string { return strings.Replace(appIs, "%", security, 1) }
	privileged := decide.Namespace{Name: "shop", Mode: "enabled", Annotations: map[string]string{"kopia.kanister.io/privileged-agents": "true"}}
	enforced := func(level string) decide.Namespace {
		ns := privileged
		ns.Labels = map[string]string{"pod-security.kubernetes.io/enforce": level}
		return ns
	}
	openShift := decide.Namespace{Name: "shop", Mode: "enabled", Annotations: map[string]string{"openshift.io/sa.scc.uid-range": "1000680000/10000"}}

	type who struct {
		UID, GID, Effective int64 // -1: not set
		Root                bool
	}
	for _, tc := range []struct {
		name           string
		ns             decide.Namespace
		metadata, spec string
		want           who
		why            string
	}{
		{"annotation", namespace("enabled"), annotated("kopia.kanister.io/run-as", "5:6"), app("{runAsUser: 999}"), who{5, 6, 5, false}, "annotation"},
		{"annotation without group follows the container", namespace("enabled"), annotated("kopia.kanister.io/run-as", "5"), app("{runAsUser: 999, runAsGroup: 998}"), who{5, 998, 5, false}, "annotation"},
		{"container", namespace("enabled"), on, app("{runAsUser: 999}"), who{999, -1, 999, false}, "container app"},
		{"container before pod", namespace("enabled"), on, app("{runAsUser: 999, runAsGroup: 998}") + "\nsecurityContext: {runAsUser: 7, runAsGroup: 8}", who{999, 998, 999, false}, "container app"},
		{"container with the pod's group", namespace("enabled"), on, app("{runAsUser: 999}") + "\nsecurityContext: {runAsGroup: 8}", who{999, 8, 999, false}, "container app"},
		{"pod is inherited", namespace("enabled"), on, "securityContext: {runAsUser: 7, runAsGroup: 8}", who{-1, -1, 7, false}, "pod"},
		{"pod's user, container's group", namespace("enabled"), on, app("{runAsGroup: 998}") + "\nsecurityContext: {runAsUser: 7, runAsGroup: 8}", who{-1, 998, 7, false}, "pod"},
		{"nothing", namespace("enabled"), on, "", who{65532, -1, 65532, false}, "default"},
		{"container is root", namespace("enabled"), on, app("{runAsUser: 0, runAsGroup: 9}"), who{65532, 9, 65532, false}, "privileged-agents"},
		{"pod is root", namespace("enabled"), on, "securityContext: {runAsUser: 0}", who{65532, -1, 65532, false}, "privileged-agents"},
		{"container is root in a pod that is not", namespace("enabled"), on, app("{runAsUser: 0}") + "\nsecurityContext: {runAsUser: 7}", who{65532, -1, 65532, false}, "container app"},
		{"annotation asks for root", namespace("enabled"), annotated("kopia.kanister.io/run-as", "0:0"), app("{runAsUser: 999}"), who{999, -1, 999, false}, "asks for root, ignored"},
		{"openshift", openShift, on, "", who{-1, -1, -1, false}, "OpenShift"},
		{"openshift, container", openShift, on, app("{runAsUser: 999}"), who{999, -1, 999, false}, "container app"},
		{"privileged, nothing", privileged, on, "", who{0, -1, 0, true}, "allows root"},
		{"privileged, container is root", privileged, on, app("{runAsUser: 0, runAsGroup: 9}"), who{0, 9, 0, true}, "container app"},
		{"privileged, pod is root", privileged, on, "securityContext: {runAsUser: 0}", who{0, -1, 0, true}, "pod"},
		{"privileged, but the owner is known", privileged, on, app("{runAsUser: 999}"), who{999, -1, 999, false}, "container app"},
		{"privileged, annotation", privileged, annotated("kopia.kanister.io/run-as", "0"), app("{runAsUser: 999}"), who{0, -1, 0, true}, "annotation"},
		{"privileged, restricted", enforced("restricted"), on, app("{runAsUser: 0}"), who{65532, -1, 65532, false}, "enforces Pod Security restricted"},
		{"privileged, baseline", enforced("baseline"), on, "", who{65532, -1, 65532, false}, "default"},
		{"privileged, enforce privileged", enforced("privileged"), on, "", who{0, -1, 0, true}, "allows root"},
		{"who has the device", namespace("enabled"), on, `containers: [{name: vm, securityContext: {runAsUser: 107}, volumeDevices: [{name: data, devicePath: /dev/x}]}]`, who{107, -1, 107, false}, "container vm"},
		{
			"the writer before the reader, the known before the unknown", namespace("enabled"), on, `containers:
  - {name: unknown, volumeMounts: [{name: data, mountPath: /data}]}
  - {name: reader, securityContext: {runAsUser: 1}, volumeMounts: [{name: data, mountPath: /data, readOnly: true}]}
  - {name: writer, securityContext: {runAsUser: 2}, volumeMounts: [{name: data, mountPath: /data}]}
  - {name: elsewhere, securityContext: {runAsUser: 3}, volumeMounts: [{name: tmp, mountPath: /data}]}`,
			who{2, -1, 2, false}, "container writer",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := decide.Decide(podWith(t, tc.metadata, tc.spec), tc.ns)
			if !d.Inject() {
				t.Fatal(d.Message())
			}
			r := d.Plan.RunAs
			val := func(p *int64) int64 {
				if p == nil {
					return -1
				}
				return *p
			}
			if diff := cmp.Diff(tc.want, who{val(r.UID), val(r.GID), val(r.EffectiveUID), r.Root}); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if !strings.Contains(r.Why, tc.why) {
				t.Errorf("why %q does not say %q", r.Why, tc.why)
			}
		})
	}
}

func TestSELinuxFollowsTheContainer(t *testing.T) {
	d := decide.Decide(podWith(t, on, `containers: [{name: app, securityContext: {seLinuxOptions: {level: "s0:c1,c2"}}, volumeMounts: [{name: data, mountPath: /data}]}]`), namespace("enabled"))
	if d.Plan.RunAs.SELinux == nil || d.Plan.RunAs.SELinux.Level != "s0:c1,c2" {
		t.Errorf("got %v, want the container's level: with another one the volume would be relabelled", d.Plan.RunAs.SELinux)
	}
}

func TestResourcesKeepTheQoSClass(t *testing.T) {
	const guaranteed = `containers: [{name: app, resources: {limits: {cpu: "1", memory: 1Gi}}, volumeMounts: [{name: data, mountPath: /data}]}]`
	const burstable = `containers: [{name: app, resources: {requests: {cpu: "1"}}, volumeMounts: [{name: data, mountPath: /data}]}]`
	const cpuLimited = `containers: [{name: app, resources: {limits: {cpu: "1"}}, volumeMounts: [{name: data, mountPath: /data}]}]`
	type set struct {
		CPURequest, CPULimit, MemoryRequest, MemoryLimit string
		Use                                              int64
	}
	for _, tc := range []struct {
		name, annotations, spec string
		class                   corev1.PodQOSClass
		want                    set
	}{
		{"guaranteed", "", guaranteed, "Guaranteed", set{"250m", "250m", "256Mi", "256Mi", 256 << 20}},
		{"guaranteed, annotated", "kopia.kanister.io/cpu-request: '2', kopia.kanister.io/memory-limit: 1Gi", guaranteed, "Guaranteed", set{"2", "2", "1Gi", "1Gi", 1 << 30}},
		{"guaranteed, memory request", "kopia.kanister.io/memory-request: 1Gi", guaranteed, "Guaranteed", set{"250m", "250m", "1Gi", "1Gi", 1 << 30}},
		{"burstable", "", burstable, "Burstable", set{"10m", "0", "48Mi", "512Mi", 512 << 20}},
		{"burstable, all limit CPU", "", cpuLimited, "Burstable", set{"10m", "1", "48Mi", "512Mi", 512 << 20}},
		{"burstable, annotated", "kopia.kanister.io/cpu-request: 20m, kopia.kanister.io/memory-request: 64Mi, kopia.kanister.io/memory-limit: 1Gi", burstable, "Burstable", set{"20m", "0", "64Mi", "1Gi", 1 << 30}},
		{"burstable, request above the default limit", "kopia.kanister.io/memory-request: 1Gi", burstable, "Burstable", set{"10m", "0", "1Gi", "1Gi", 1 << 30}},
		{"burstable, limit below the default request", "kopia.kanister.io/memory-limit: 40Mi", burstable, "Burstable", set{"10m", "0", "40Mi", "40Mi", 40 << 20}},
		{"one of two guaranteed", "", guaranteed + "\ninitContainers: [{name: i}]", "Burstable", set{"10m", "1", "48Mi", "512Mi", 512 << 20}},
		{"best effort", "", "", "BestEffort", set{"0", "0", "0", "0", 512 << 20}},
		{"best effort, annotated", "kopia.kanister.io/cpu-request: '1', kopia.kanister.io/memory-limit: 1Gi", "", "BestEffort", set{"0", "0", "0", "0", 1 << 30}},
		{"resources of the pod", "", "resources: {limits: {cpu: '1', memory: 1Gi}, requests: {cpu: '1', memory: 1Gi}}", "Guaranteed", set{"0", "0", "0", "0", 512 << 20}},
		// The agent itself does not count, or a second call would see another class.
		{"best effort with an agent", "", "initContainers: [{name: kopia-agent, resources: {limits: {memory: 1Gi}}}]", "BestEffort", set{"0", "0", "0", "0", 512 << 20}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := decide.Decide(podWith(t, on+"\nannotations: {"+tc.annotations+"}", tc.spec), namespace("enabled"))
			if !d.Inject() {
				t.Fatal(d.Message())
			}
			r := d.Plan.Resources
			got := set{r.Requests.Cpu().String(), r.Limits.Cpu().String(), r.Requests.Memory().String(), r.Limits.Memory().String(), d.Plan.MemoryLimit}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if d.Plan.QoS != tc.class {
				t.Errorf("class: got %s, want %s", d.Plan.QoS, tc.class)
			}
		})
	}
}
