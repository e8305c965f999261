// SPDX-License-Identifier: Apache-2.0

package decide_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/kanister-kopia/kanister-kopia/webhook/decide"
)

func rules(t *testing.T, limits, quota string) decide.Namespace {
	t.Helper()
	ns := namespace("enabled")
	if err := yaml.UnmarshalStrict([]byte(limits), &ns.Limits); err != nil {
		t.Fatal(err)
	}
	if quota != "" {
		q := corev1.ResourceQuota{}
		q.Name = "team"
		if err := yaml.UnmarshalStrict([]byte(quota), &q); err != nil {
			t.Fatal(err)
		}
		ns.Quotas = append(ns.Quotas, q)
	}
	return ns
}

// container is one that uses the volume, with resources.
func container(resources string) string {
	return "containers: [{name: app, volumeMounts: [{name: data, mountPath: /data}], resources: " + resources + "}]"
}

const (
	burstable  = `{requests: {cpu: 100m, memory: 128Mi}, limits: {cpu: "1", memory: 1Gi}}`
	guaranteed = `{requests: {cpu: "1", memory: 1Gi}, limits: {cpu: "1", memory: 1Gi}}`
)

func TestRoom(t *testing.T) {
	for _, tc := range []struct {
		name                string
		limits, quota, spec string
		annotations         string
		want                decide.Reason
		detail              string
		cpu, memory         string // requests/limits; a part that is not there is "-"
		ephemeral           string
		memoryLimit         int64 // MiB
		warns               string
	}{
		{
			name: "the defaults, where nothing is demanded", spec: container(burstable),
			limits: `[{type: PersistentVolumeClaim, max: {storage: 1Gi}}]`,
			want:   decide.Injected, cpu: "10m/1", memory: "48Mi/512Mi", memoryLimit: 512,
		},
		{
			name: "a minimum lifts the request", spec: container(burstable),
			limits: `[{type: Container, min: {cpu: 50m, memory: 100Mi}}]`,
			want:   decide.Injected, cpu: "50m/1", memory: "100Mi/512Mi", memoryLimit: 512,
		},
		{
			name: "a maximum lowers the limit, and GOMEMLIMIT with it", spec: container(burstable),
			limits: `[{type: Container, max: {cpu: 500m, memory: 256Mi}}]`,
			want:   decide.Injected, cpu: "10m/500m", memory: "48Mi/256Mi", memoryLimit: 256,
		},
		{
			name: "what was asked for is lowered with a warning", spec: container(burstable), annotations: "kopia.kanister.io/memory-limit: 1Gi",
			limits: `[{type: Container, max: {memory: 256Mi}}]`,
			want:   decide.Injected, cpu: "10m/1", memory: "48Mi/256Mi", memoryLimit: 256, warns: "256Mi",
		},
		{
			name: "a maximum of the CPU gives a limit where the pod has none", spec: container(`{requests: {cpu: 100m}}`),
			limits: `[{type: Container, max: {cpu: "2"}, default: {cpu: 500m}, defaultRequest: {cpu: 200m}}]`,
			want:   decide.Injected, cpu: "10m/500m", memory: "48Mi/512Mi", memoryLimit: 512,
		},
		{
			name: "defaults of other resources are taken", spec: container(burstable),
			limits: `[{type: Container, default: {ephemeral-storage: 1Gi}, defaultRequest: {ephemeral-storage: 10Mi}}]`,
			want:   decide.Injected, cpu: "10m/1", memory: "48Mi/512Mi", ephemeral: "10Mi/1Gi", memoryLimit: 512,
		},
		{
			name: "a ratio lifts the request", spec: container(burstable),
			limits: `[{type: Container, maxLimitRequestRatio: {cpu: "4", memory: "3"}}]`,
			want:   decide.Injected, cpu: "250m/1", memory: "178956971/512Mi", memoryLimit: 512,
		},
		{
			name: "Guaranteed stays so", spec: container(guaranteed),
			limits: `[{type: Container, min: {cpu: 300m}, max: {memory: 128Mi}}]`,
			want:   decide.Injected, cpu: "300m/300m", memory: "128Mi/128Mi", memoryLimit: 128,
		},
		{
			name: "less than an agent needs", spec: container(burstable),
			limits: `[{type: Container, max: {memory: 16Mi}}]`,
			want:   decide.LimitRange, detail: "16Mi of memory and needs 32Mi",
		},
		{
			name: "rules that no container can keep", spec: container(burstable),
			limits: `[{type: Container, min: {memory: 1Gi}}, {type: Container, max: {memory: 512Mi}}]`,
			want:   decide.LimitRange, detail: "at least 1Gi of memory per Container",
		},
		{
			name: "the pod's maximum has no room for the agent", spec: container(`{requests: {memory: 900Mi}, limits: {memory: 900Mi}}`),
			limits: `[{type: Pod, max: {memory: 1Gi}}]`,
			want:   decide.LimitRange, detail: "the pod with the agent: at most 1Gi of memory per Pod",
		},
		{
			name: "the pod alone is too large: that is not our doing", spec: container(`{requests: {memory: 2Gi}, limits: {memory: 2Gi}}`),
			limits: `[{type: Pod, max: {memory: 1Gi}}]`,
			want:   decide.Injected, cpu: "10m/-", memory: "48Mi/512Mi", memoryLimit: 512,
		},
		{
			name: "the agent that is there does not count twice", spec: `{` + `initContainers: [{name: kopia-agent, restartPolicy: Always, resources: {requests: {memory: 48Mi}, limits: {memory: 512Mi}}}], ` + container(`{limits: {memory: 500Mi}}`) + `}`,
			limits: `[{type: Pod, max: {memory: 1012Mi}}]`,
			want:   decide.Injected, cpu: "10m/-", memory: "48Mi/512Mi", memoryLimit: 512,
		},
		{
			name: "a quota with room", spec: container(burstable),
			quota: `{status: {hard: {requests.memory: 1Gi, limits.memory: 4Gi}, used: {requests.memory: 512Mi, limits.memory: 2Gi}}}`,
			want:  decide.Injected, cpu: "10m/1", memory: "48Mi/512Mi", memoryLimit: 512,
		},
		{
			name: "a quota with room for the pod only", spec: container(burstable),
			quota: `{status: {hard: {limits.memory: 3Gi}, used: {limits.memory: 2Gi}}}`,
			want:  decide.QuotaExceeded, detail: "ResourceQuota team has 1Gi of limits.memory left, the pod needs 1Gi and with the agent 1536Mi",
		},
		{
			name: "a quota without room for the pod either", spec: container(burstable),
			quota: `{status: {hard: {limits.memory: 3Gi}, used: {limits.memory: 2500Mi}}}`,
			want:  decide.Injected, cpu: "10m/1", memory: "48Mi/512Mi", memoryLimit: 512,
		},
		{
			name: "a quota whose use is not known yet", spec: container(burstable),
			quota: `{spec: {hard: {limits.memory: 1Gi}}}`,
			want:  decide.QuotaExceeded, detail: "limits.memory",
		},
		{
			name: "a quota that makes every container say its CPU limit", quota: `{status: {hard: {limits.cpu: "10", cpu: "10"}}}`,
			spec: "initContainers: [{name: setup, resources: {limits: {cpu: 100m}}}]\n" + container(`{limits: {cpu: "1"}}`),
			want: decide.Injected, cpu: "10m/1", memory: "48Mi/512Mi", memoryLimit: 512,
		},
		{
			name: "a quota for other pods", spec: container(burstable),
			quota: `{spec: {scopes: [Terminating]}, status: {hard: {limits.memory: 1Gi}}}`,
			want:  decide.Injected, cpu: "10m/1", memory: "48Mi/512Mi", memoryLimit: 512,
		},
		{
			name: "a quota for the pod's priority", spec: "priorityClassName: gold\n" + container(burstable),
			quota: `{spec: {scopeSelector: {matchExpressions: [{scopeName: PriorityClass, operator: In, values: [gold]}]}}, status: {hard: {limits.memory: 1Gi}}}`,
			want:  decide.QuotaExceeded, detail: "limits.memory",
		},
		{
			name: "a quota for another priority", spec: "priorityClassName: iron\n" + container(burstable),
			quota: `{spec: {scopeSelector: {matchExpressions: [{scopeName: PriorityClass, operator: In, values: [gold]}]}}, status: {hard: {limits.memory: 1Gi}}}`,
			want:  decide.Injected, cpu: "10m/1", memory: "48Mi/512Mi", memoryLimit: 512,
		},
		{
			name: "a pod that has its resources as a whole shares them", spec: "resources: {requests: {memory: 1Gi}, limits: {memory: 1Gi}}\n" + container("{}"),
			quota: `{status: {hard: {limits.memory: 1Gi, requests.cpu: "10"}}}`,
			want:  decide.Injected, cpu: "-/-", memory: "-/-", memoryLimit: 512,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			metadata := on
			if tc.annotations != "" {
				metadata += "\nannotations: {" + strings.Replace(tc.annotations, ": ", `: "`, 1) + `"}`
			}
			d := decide.Decide(podWith(t, metadata, tc.spec), rules(t, tc.limits, tc.quota))
			if d.Reason != tc.want || !strings.Contains(d.Detail, tc.detail) {
				t.Fatalf("%s: %s, want %s with %q", d.Reason, d.Detail, tc.want, tc.detail)
			}
			if d.Plan == nil {
				if len(d.Warnings) != 1 || !strings.HasPrefix(d.Warnings[0], "no backup agent: ") {
					t.Errorf("whoever made the pod is not told: %q", d.Warnings)
				}
				return
			}
			pair := func(name corev1.ResourceName) string {
				one := func(list corev1.ResourceList) string {
					if q, ok := list[name]; ok {
						return q.String()
					}
					return "-"
				}
				return one(d.Plan.Resources.Requests) + "/" + one(d.Plan.Resources.Limits)
			}
			if tc.ephemeral == "" {
				tc.ephemeral = "-/-"
			}
			if cpu, memory, ephemeral := pair("cpu"), pair("memory"), pair("ephemeral-storage"); cpu != tc.cpu || memory != tc.memory || ephemeral != tc.ephemeral {
				t.Errorf("cpu %s, memory %s, ephemeral-storage %s; want %s, %s, %s", cpu, memory, ephemeral, tc.cpu, tc.memory, tc.ephemeral)
			}
			if d.Plan.MemoryLimit != tc.memoryLimit<<20 {
				t.Errorf("the agent may use %d MiB, want %d", d.Plan.MemoryLimit>>20, tc.memoryLimit)
			}
			if got := strings.Join(d.Warnings, "\n"); (got == "") != (tc.warns == "") || !strings.Contains(got, tc.warns) {
				t.Errorf("warnings %q", got)
			}
		})
	}
}

// Agents that do not start keep applications from starting: no more of them.
func TestOnHold(t *testing.T) {
	ns := namespace("enabled")
	ns.Hold = "pod db-0: ImagePullBackOff"
	d := decide.Decide(podWith(t, on, ""), ns)
	if d.Reason != decide.OnHold || d.Inject() || d.Deny() || !strings.Contains(d.Message(), "pod db-0: ImagePullBackOff") || len(d.Warnings) != 1 {
		t.Errorf("%+v", d)
	}
	// A pod that would not get the agent anyway is told its own reason.
	if d := decide.Decide(podWith(t, on, "hostNetwork: true"), ns); d.Reason != decide.HostNetwork {
		t.Errorf("%+v", d)
	}
}
