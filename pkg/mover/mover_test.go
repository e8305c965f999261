// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"context"
	"errors"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	agentclient "github.com/kanister-kopia/kanister-kopia/agent/client"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

func statefulSet() *appsv1.StatefulSet {
	return &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db"},
		Spec: appsv1.StatefulSetSpec{
			Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
				SecurityContext: &corev1.PodSecurityContext{RunAsUser: new(int64(999)), FSGroup: new(int64(998))},
				Containers: []corev1.Container{
					{Name: "proxy", SecurityContext: &corev1.SecurityContext{RunAsUser: new(int64(1))}},
					{Name: "db", SecurityContext: &corev1.SecurityContext{RunAsGroup: new(int64(5))},
						VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}},
				},
			}},
			VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}}},
		},
	}
}

func TestIdentity(t *testing.T) {
	set := statefulSet()
	name, ok := podOfClaim(set, "data-db-3")
	if !ok || name != "db-3" {
		t.Fatalf("pod of the claim: %s, %v", name, ok)
	}
	for _, other := range []string{"data-db-x", "data-db", "data-dbb-0", "logs-db-0", "data-db--1"} {
		if name, ok := podOfClaim(set, other); ok {
			t.Errorf("claim %s is taken for that of %s", other, name)
		}
	}
	id := identityOf([]*corev1.Pod{PodOfStatefulSet(set, "db-3")}, "data-db-3")
	if *id.UID != 999 || *id.GID != 5 || *id.FSGroup != 998 {
		t.Errorf("identity %d:%d fsGroup %d, want the pod's user, the mounting container's group, the pod's fsGroup", *id.UID, *id.GID, *id.FSGroup)
	}
	// Root is never inherited, neither from a template nor from the data.
	set.Spec.Template.Spec.SecurityContext.RunAsUser = new(int64(0))
	if id := identityOf([]*corev1.Pod{PodOfStatefulSet(set, "db-3")}, "data-db-3"); id.UID != nil {
		t.Errorf("uid %d is inherited from a root template", *id.UID)
	}
	if id := FromOwner(0, 0); id.UID != nil || id.GID != nil {
		t.Errorf("identity %+v is inherited from root's data", id)
	}
	if id := FromOwner(70, 71); *id.UID != 70 || *id.FSGroup != 71 {
		t.Errorf("identity %+v of data of 70:71", id)
	}
}

func TestBuild(t *testing.T) {
	spec := Spec{
		Prefix: "restore-data-", OperationID: "op-1", Namespace: "shop", ActionSet: "restore-x",
		Claims: []string{"data-db-0"}, Identity: Identity{UID: new(int64(999)), FSGroup: new(int64(998))},
		Labels: map[string]string{"team": "a", "createdBy": "me", names.ManagedByLabel: "mine", names.InjectLabel: "true"},
	}
	pod, err := Build(spec, "agent:1", corev1.PullIfNotPresent)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Build(spec, "agent:1", corev1.PullIfNotPresent)
	if err != nil || !reflect.DeepEqual(pod, again) {
		t.Error("the same operation has two pods")
	}
	other := spec
	other.OperationID = "op-2"
	if other.Name() == spec.Name() {
		t.Error("two operations have one pod")
	}
	c, p := pod.Spec.Containers[0], pod.Spec
	switch {
	case c.Name != names.MoverContainer || len(p.Containers) != 1:
		t.Errorf("containers %+v: podOverride finds %q", p.Containers, names.MoverContainer)
	case *p.SecurityContext.RunAsUser != 999 || *p.SecurityContext.RunAsGroup != 998 || *p.SecurityContext.FSGroup != 998:
		t.Errorf("security context %+v", p.SecurityContext)
	case !*p.SecurityContext.RunAsNonRoot || p.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault:
		t.Errorf("security context %+v is not restricted", p.SecurityContext)
	case *c.SecurityContext.AllowPrivilegeEscalation || !*c.SecurityContext.ReadOnlyRootFilesystem || c.SecurityContext.Capabilities.Drop[0] != "ALL":
		t.Errorf("the container's security context %+v is not restricted", c.SecurityContext)
	case *p.AutomountServiceAccountToken:
		t.Error("it gets a token")
	case p.RestartPolicy != corev1.RestartPolicyNever:
		t.Errorf("restart policy %s", p.RestartPolicy)
	case pod.Labels["team"] != "a" || pod.Labels["createdBy"] != "me":
		t.Errorf("labels %v: the Blueprint's are kept", pod.Labels)
	case pod.Labels[names.ManagedByLabel] != names.ManagedByValue || pod.Labels[names.InjectLabel] != "false":
		t.Errorf("labels %v: those that the system goes by are the system's", pod.Labels)
	}
	mounted := false
	for _, m := range c.VolumeMounts {
		if m.MountPath == "/volumes/"+spec.VolumeOf("data-db-0") {
			mounted = !m.ReadOnly
		}
	}
	if !mounted {
		t.Errorf("mounts %+v: the claim is not there, or not writable", c.VolumeMounts)
	}

	raw := spec
	raw.Claims, raw.Devices = append([]string{"raw-db-0"}, spec.Claims...), []string{"raw-db-0"}
	pod, err = Build(raw, "agent:1", corev1.PullIfNotPresent)
	if err != nil {
		t.Fatal(err)
	}
	if d := pod.Spec.Containers[0].VolumeDevices; len(d) != 1 || d[0].Name != raw.VolumeOf("raw-db-0") || d[0].DevicePath != "/devices/"+d[0].Name {
		t.Errorf("devices %+v", d)
	}
	for _, m := range pod.Spec.Containers[0].VolumeMounts {
		if m.Name == raw.VolumeOf("raw-db-0") {
			t.Errorf("a device is mounted: %+v", m)
		}
	}

	unknown := Spec{Prefix: "restore-data-", OperationID: "op", Claims: []string{"c"}}
	pod, err = Build(unknown, "agent:1", corev1.PullIfNotPresent)
	if err != nil || *pod.Spec.SecurityContext.RunAsUser != NonRoot || *pod.Spec.SecurityContext.FSGroup != NonRoot {
		t.Errorf("nothing known: %+v, %v, want uid and groups %d", pod.Spec.SecurityContext, err, NonRoot)
	}
	overridden := spec
	overridden.Override = func(p corev1.PodSpec) (corev1.PodSpec, error) {
		p.SecurityContext.RunAsUser = new(int64(7))
		return p, nil
	}
	pod, err = Build(overridden, "agent:1", corev1.PullIfNotPresent)
	if err != nil || *pod.Spec.SecurityContext.RunAsUser != 7 {
		t.Errorf("podOverride has not the last word: %+v, %v", pod.Spec.SecurityContext, err)
	}
	long := spec
	long.ActionSet = strings.Repeat("a", 70) + "."
	if pod, err = Build(long, "agent:1", corev1.PullIfNotPresent); err != nil || len(pod.Labels[names.ActionSetLabel]) > 63 {
		t.Errorf("label %q, %v", pod.Labels[names.ActionSetLabel], err)
	}
}

// A mover whose data is root's or nobody's is root where the namespace allows it, with the
// rights that it needs. Whoever is known is who it is, and nobody gets rights elsewhere.
func TestBuildAsRoot(t *testing.T) {
	override := func(uid int64) func(corev1.PodSpec) (corev1.PodSpec, error) {
		return func(p corev1.PodSpec) (corev1.PodSpec, error) {
			p.SecurityContext.RunAsUser = &uid
			return p, nil
		}
	}
	for name, c := range map[string]struct {
		spec   Spec
		uid    int64
		rights []corev1.Capability
	}{
		"restores":                     {Spec{root: true}, 0, []corev1.Capability{"CHOWN", "FOWNER", "DAC_OVERRIDE"}},
		"reads":                        {Spec{root: true, Reads: true}, 0, []corev1.Capability{"DAC_READ_SEARCH"}},
		"somebody is known":            {Spec{root: true, Identity: Identity{UID: new(int64(999))}}, 999, nil},
		"somebody is overridden":       {Spec{root: true, Identity: Identity{UID: new(int64(999))}, Override: override(0)}, 0, []corev1.Capability{"CHOWN", "FOWNER", "DAC_OVERRIDE"}},
		"overridden by somebody":       {Spec{root: true, Override: override(7)}, 7, nil},
		"not allowed":                  {Spec{}, NonRoot, nil},
		"not allowed, asked by hand":   {Spec{Override: override(0)}, 0, nil},
		"not allowed, but it is known": {Spec{Identity: Identity{UID: new(int64(999))}}, 999, nil},
	} {
		c.spec.Prefix, c.spec.OperationID, c.spec.Claims = "restore-data-", "op", []string{"c"}
		pod, err := Build(c.spec, "agent:1", corev1.PullIfNotPresent)
		if err != nil {
			t.Fatal(err)
		}
		p, s := pod.Spec.SecurityContext, pod.Spec.Containers[0].SecurityContext
		switch {
		case *p.RunAsUser != c.uid || s.RunAsUser != nil:
			t.Errorf("%s: the pod's user is %d and the container's %v, want %d, which the container inherits", name, *p.RunAsUser, s.RunAsUser, c.uid)
		case !slices.Equal(s.Capabilities.Add, c.rights) || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}):
			t.Errorf("%s: capabilities %+v, want %q alone", name, s.Capabilities, c.rights)
		case *p.RunAsNonRoot != (c.rights == nil):
			t.Errorf("%s: run as non-root: %t", name, *p.RunAsNonRoot)
		case c.uid == 0 && c.spec.root && p.FSGroup != nil && c.spec.Override == nil:
			t.Errorf("%s: fsGroup %d, which root does not need", name, *p.FSGroup)
		case *s.AllowPrivilegeEscalation || *s.Privileged || !*s.ReadOnlyRootFilesystem:
			t.Errorf("%s: security context %+v", name, s)
		}
	}
}

// namespaces are all that a cluster has.
type namespaces struct {
	client.WithWatch
	list []*corev1.Namespace
}

func (n namespaces) Get(_ context.Context, key client.ObjectKey, into client.Object, _ ...client.GetOption) error {
	i := slices.IndexFunc(n.list, func(ns *corev1.Namespace) bool { return ns.Name == key.Name })
	n.list[i].DeepCopyInto(into.(*corev1.Namespace))
	return nil
}

// Root is the namespace's to allow, and Pod Security's to refuse.
func TestRootOfTheNamespace(t *testing.T) {
	namespace := func(name, annotation, level string) *corev1.Namespace {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if annotation != "" {
			ns.Annotations = map[string]string{names.PrivilegedAgentsAnnotation: annotation}
		}
		if level != "" {
			ns.Labels = map[string]string{"pod-security.kubernetes.io/enforce": level}
		}
		return ns
	}
	c := namespaces{list: []*corev1.Namespace{
		namespace("plain", "", ""), namespace("allowed", "true", ""), namespace("privileged", "true", "privileged"),
		namespace("baseline", "true", "baseline"), namespace("restricted", "true", "restricted"), namespace("refused", "false", ""),
	}}
	for name, want := range map[string]struct {
		root bool
		why  string
	}{
		"plain": {}, "allowed": {root: true}, "privileged": {root: true},
		"baseline": {why: "enforces Pod Security baseline"}, "restricted": {why: "enforces Pod Security restricted"}, "refused": {why: "has no annotation"},
	} {
		var log strings.Builder
		m := &Movers{Client: c, Log: slog.New(slog.NewTextHandler(&log, nil))}
		spec := Spec{Namespace: name}
		if err := m.lookForRoot(t.Context(), &spec); err != nil {
			t.Fatal(err)
		}
		if spec.root != want.root || (want.why == "") != (log.Len() == 0) || !strings.Contains(log.String(), want.why) {
			t.Errorf("%s: root %t, log %q; want %t and %q", name, spec.root, log.String(), want.root, want.why)
		}
	}
}

func TestNodeOf(t *testing.T) {
	pod := func(node, claim string, phase corev1.PodPhase) corev1.Pod {
		return corev1.Pod{
			Spec: corev1.PodSpec{NodeName: node, Volumes: []corev1.Volume{{VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim},
			}}}},
			Status: corev1.PodStatus{Phase: phase},
		}
	}
	pods := []corev1.Pod{
		pod("a", "other", corev1.PodRunning), pod("b", "data", corev1.PodSucceeded), pod("", "data", corev1.PodPending), pod("c", "data", corev1.PodRunning),
	}
	if got := nodeOf(pods, []string{"data"}); got != "c" {
		t.Errorf("node %q, want where a pod that has not ended uses the claim", got)
	}
	if got := nodeOf(pods[:3], []string{"data"}); got != "" {
		t.Errorf("node %q, want none", got)
	}
}

// TestReads: a mover that reads changes nothing: the kubelet sets the group of every
// file of a volume for an fsGroup.
func TestReads(t *testing.T) {
	spec := Spec{Prefix: "copy-vol-data-", OperationID: "op", Claims: []string{"data", "many"}, Reads: true, readOnly: []string{"many"}}
	pod, err := Build(spec, "agent:1", corev1.PullIfNotPresent)
	if err != nil {
		t.Fatal(err)
	}
	if s := pod.Spec.SecurityContext; s.FSGroup != nil || s.FSGroupChangePolicy != nil || *s.RunAsUser != NonRoot {
		t.Errorf("security context %+v, want no fsGroup", s)
	}
	for claim, readOnly := range map[string]bool{"data": false, "many": true} {
		name := spec.VolumeOf(claim)
		for _, v := range pod.Spec.Volumes {
			if v.Name == name && v.PersistentVolumeClaim.ReadOnly != readOnly {
				t.Errorf("claim %s is attached read-only: %v", claim, v.PersistentVolumeClaim.ReadOnly)
			}
		}
		for _, m := range pod.Spec.Containers[0].VolumeMounts {
			if m.Name == name && !m.ReadOnly {
				t.Errorf("claim %s can be written to", claim)
			}
		}
	}
	spec.Identity.FSGroup = new(int64(5))
	if pod, err = Build(spec, "agent:1", corev1.PullIfNotPresent); err != nil || *pod.Spec.SecurityContext.FSGroup != 5 {
		t.Errorf("the workload's fsGroup is not kept: %+v, %v", pod.Spec.SecurityContext, err)
	}
}

// connects fails to reach an agent, but ends a context first.
type connects func()

func (c connects) Connect(context.Context, string, string, string) (*agentclient.Client, error) {
	c()
	return nil, errors.New("out of reach")
}

func (connects) Publish(context.Context, string) error { return nil }

// A controller that goes away while it takes a mover over leaves it to the next one: it
// may have worked for hours.
func TestStartDetached(t *testing.T) {
	for _, c := range []struct {
		cause error
		left  bool
	}{{agentclient.ErrDetached, true}, {errors.New("cancelled"), false}, {nil, false}} {
		spec := Spec{Prefix: "restore-data-", OperationID: "op-1", Namespace: "shop"}
		pod, err := Build(spec, "agent", corev1.PullNever)
		if err != nil {
			t.Fatal(err)
		}
		pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{{
			Name: names.MoverContainer, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
		}}}
		api := fake.NewClientBuilder().WithObjects(pod, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}).Build()
		ctx, cancel := context.WithCancelCause(t.Context())
		agents := connects(func() {
			if c.cause != nil {
				cancel(c.cause)
			}
		})
		m := &Movers{Client: api, Agents: agents, CA: agents, Image: "agent", Log: slog.New(slog.DiscardHandler)}
		if _, err := m.Start(ctx, spec); err == nil || !strings.Contains(err.Error(), "out of reach") {
			t.Fatalf("%v: error %v", c.cause, err)
		}
		err = api.Get(t.Context(), client.ObjectKeyFromObject(pod), &corev1.Pod{})
		if left := err == nil; left != c.left {
			t.Errorf("%v: its pod is there: %t, want %t", c.cause, left, c.left)
		}
		cancel(nil)
	}
}
