// SPDX-License-Identifier: Apache-2.0

//go:build integration

package coverage_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
	"github.com/kanister-kopia/kanister-kopia/pkg/coverage"
	"github.com/kanister-kopia/kanister-kopia/pkg/hold"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/webhook/decide"
	"github.com/kanister-kopia/kanister-kopia/webhook/render"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// recorder keeps Events as lines.
type recorder struct {
	mu    sync.Mutex
	lines []string
}

func (r *recorder) Eventf(about, _ runtime.Object, kind, reason, _, note string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := about.(*corev1.ObjectReference)
	r.lines = append(r.lines, fmt.Sprintf("%s %s %s/%s (%s): ", kind, reason, o.Kind, o.Name, o.UID)+fmt.Sprintf(note, args...))
}

func (r *recorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	lines := r.lines
	r.lines = nil
	return lines
}

// What an operator sees of a namespace over time: metric, Events and holds.
func TestIntegrationDetector(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	c, err := client.New(testenv.StartAPIServer(t), client.Options{})
	must(t, err)
	for name, mode := range map[string]string{names.ControlPlaneNamespace: "", "shop": "enabled", "everything": "all", "aside": ""} {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if mode != "" {
			ns.Labels = map[string]string{names.InjectionLabel: mode}
		}
		must(t, c.Create(ctx, ns))
	}
	clk := clocktesting.NewFakeClock(time.Now())
	events := &recorder{}
	d := &coverage.Detector{
		Client: c, ControlPlane: names.ControlPlaneNamespace, Events: events, Clock: clk,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	sweep := func() { t.Helper(); must(t, d.Sweep(ctx)) }
	held := func() *hold.Hold {
		t.Helper()
		var m corev1.ConfigMap
		must(t, client.IgnoreNotFound(c.Get(ctx, client.ObjectKey{Namespace: names.ControlPlaneNamespace, Name: names.HoldConfigMap}, &m)))
		return hold.Active(m.Data, "shop", clk.Now())
	}
	metric := func(want string) {
		t.Helper()
		head := "# HELP kanister_kopia_pods_without_agent Pods that opted in to backups and have no healthy agent, and workloads whose label is misplaced, by owner and reason.\n" +
			"# TYPE kanister_kopia_pods_without_agent gauge\n"
		if want == "" {
			head = ""
		}
		if err := testutil.CollectAndCompare(d.Collector(), strings.NewReader(head+want), "kanister_kopia_pods_without_agent"); err != nil {
			t.Error(err)
		}
	}

	// All is well, and what did not opt in is not looked at.
	must(t, c.Create(ctx, onServer("aside", "db-0", true)))
	must(t, c.Create(ctx, onServer("shop", "unlabelled", false)))
	sweep()
	metric("")
	if lines := events.take(); len(lines) != 0 || held() != nil {
		t.Fatalf("%q, %+v", lines, held())
	}

	// A Deployment whose two pods were made before the namespace opted in.
	deployment, replicaSet := workload(t, c, "web", nil)
	for _, name := range []string{"web-1", "web-2"} {
		pod := onServer("shop", name, true)
		owned(pod, replicaSet, "ReplicaSet")
		must(t, c.Create(ctx, pod))
	}
	// In the other mode a pod needs no label.
	must(t, c.Create(ctx, onServer("everything", "db-0", false)))
	sweep()
	metric(`kanister_kopia_pods_without_agent{namespace="everything",owner="db-0",owner_kind="Pod",reason="agent-missing"} 1
kanister_kopia_pods_without_agent{namespace="shop",owner="web",owner_kind="Deployment",reason="agent-missing"} 2
`)
	lines := events.take()
	if len(lines) != 2 || !contains(lines, "Warning BackupAgentMissing Deployment/web ("+string(deployment.UID)+"): each of 2 pods (web-1, …) has no backup agent") ||
		!contains(lines, "kubectl rollout restart -n shop deployment/web") || !contains(lines, "Pod/db-0") {
		t.Errorf("events %q", lines)
	}
	// The same again is not said again, until the first Event is about to be forgotten.
	sweep()
	if lines := events.take(); len(lines) != 0 {
		t.Errorf("said again: %q", lines)
	}
	clk.Step(31 * time.Minute)
	sweep()
	if lines := events.take(); len(lines) != 2 {
		t.Errorf("not said again: %q", lines)
	}

	// A label in the wrong place.
	workload(t, c, "misled", map[string]string{names.InjectLabel: "true"})
	sweep()
	if lines := events.take(); len(lines) != 0 {
		t.Errorf("labels are looked at each time: %q", lines)
	}
	clk.Step(5 * time.Minute)
	sweep()
	if lines := events.take(); len(lines) != 1 || !contains(lines, "Warning BackupLabelMisplaced Deployment/misled") || !contains(lines, "put it into the labels of its pod template") {
		t.Errorf("events %q", lines)
	}
	must(t, c.Delete(ctx, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "misled"}}))
	for _, name := range []string{"web-1", "web-2"} {
		must(t, c.Delete(ctx, onServer("shop", name, true), client.GracePeriodSeconds(0)))
	}
	must(t, c.Delete(ctx, onServer("everything", "db-0", false), client.GracePeriodSeconds(0)))
	clk.Step(5 * time.Minute)
	sweep()
	metric("")

	// An agent whose image is not there holds injection, and says so once.
	stuck := withAgent(t, "stuck")
	must(t, c.Create(ctx, stuck))
	setStatus(t, c, stuck, corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "no such image"}})
	sweep()
	if h := held(); h == nil || !strings.Contains(h.Reason, "pod stuck: ImagePullBackOff: no such image") {
		t.Fatalf("hold %+v", h)
	}
	if lines := events.take(); len(lines) != 1 || !contains(lines, "BackupAgentNotStarting Pod/stuck") || !contains(lines, "ImagePullBackOff") {
		t.Errorf("events %q", lines)
	}
	metric(`kanister_kopia_pods_without_agent{namespace="shop",owner="stuck",owner_kind="Pod",reason="agent-not-starting"} 1
`)
	// Its successor has no agent because of the hold, and says that.
	must(t, c.Delete(ctx, stuck, client.GracePeriodSeconds(0)))
	must(t, c.Create(ctx, onServer("shop", "successor", true)))
	clk.Step(time.Minute)
	sweep()
	if held() == nil {
		t.Error("the hold ended with its first pod: the next one would be stuck again")
	}
	metric(`kanister_kopia_pods_without_agent{namespace="shop",owner="successor",owner_kind="Pod",reason="on-hold"} 1
`)
	var successor corev1.Pod
	must(t, c.Get(ctx, client.ObjectKey{Namespace: "shop", Name: "successor"}, &successor))
	why, err := coverage.Explain(ctx, c, names.ControlPlaneNamespace, &successor, shop(nil), clk.Now())
	must(t, err)
	if !strings.Contains(why, "injection is on hold") || !strings.Contains(why, "no such image") || !strings.Contains(why, "create the pod anew") {
		t.Errorf("why: %q", why)
	}
	// Another pod gets its agent started: injection goes on.
	lucky := withAgent(t, "lucky")
	must(t, c.Create(ctx, lucky))
	setStatus(t, c, lucky, corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(clk.Now())}})
	sweep()
	if h := held(); h != nil {
		t.Errorf("still on hold: %+v", h)
	}
	events.take()

	// Our own policy refuses pods without an agent: no reason to leave agents out.
	refused := func(name, message string) {
		must(t, c.Create(ctx, &corev1.Event{
			ObjectMeta:     metav1.ObjectMeta{Namespace: "shop", Name: name},
			InvolvedObject: corev1.ObjectReference{APIVersion: "apps/v1", Kind: "ReplicaSet", Namespace: "shop", Name: replicaSet.Name, UID: replicaSet.UID},
			Reason:         "FailedCreate", Type: corev1.EventTypeWarning, LastTimestamp: metav1.NewTime(clk.Now()), Message: message,
		}))
	}
	refused("strict", `Error creating: pods "web-1" is forbidden: ValidatingAdmissionPolicy 'kanister-kopia-agent' with binding 'kanister-kopia-agent-strict' denied request: the pod has no Kopia agent`)
	sweep()
	if h := held(); h != nil {
		t.Errorf("held because an agent is missing: %+v", h)
	}
	// Somebody else's policy refuses them for our container.
	refused("other", `Error creating: admission webhook "policy" denied the request: container kopia-agent has no digest`)
	sweep()
	if h := held(); h == nil || !strings.Contains(h.Reason, "has no digest") {
		t.Errorf("hold %+v", h)
	}
	if lines := events.take(); !contains(lines, "BackupAgentRefused Deployment/web") {
		t.Errorf("events %q", lines)
	}
	clk.Step(hold.Length + time.Second)
	sweep()
	if h := held(); h != nil {
		t.Errorf("an old Event holds for ever: %+v", h)
	}
}

// A namespace that cannot be read once keeps what was known of it; one that may
// not be read is shown.
func TestIntegrationDetectorUnreadable(t *testing.T) {
	ctx := t.Context()
	config := testenv.StartAPIServer(t)
	base, err := client.NewWithWatch(config, client.Options{})
	must(t, err)
	for name, labels := range map[string]map[string]string{names.ControlPlaneNamespace: nil, "shop": {names.InjectionLabel: "enabled"}} {
		must(t, base.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}))
	}
	must(t, base.Create(ctx, onServer("shop", "db-0", true)))
	var fail error
	c := interceptor.NewClient(base, interceptor.Funcs{List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
		if _, pods := list.(*corev1.PodList); pods && fail != nil {
			return fail
		}
		return c.List(ctx, list, opts...)
	}})
	events := &recorder{}
	d := &coverage.Detector{
		Client: c, ControlPlane: names.ControlPlaneNamespace, Events: events, Clock: clocktesting.NewFakeClock(time.Now()),
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	for _, step := range []struct {
		fail                error
		without, unreadable int
		events              int
	}{
		{nil, 1, 0, 1},
		{errors.New("connection refused"), 1, 0, 0},
		{nil, 1, 0, 0},
		{apierrors.NewForbidden(corev1.Resource("pods"), "", nil), 1, 1, 0},
		{nil, 1, 0, 0},
	} {
		fail = step.fail
		must(t, d.Sweep(ctx))
		without := testutil.CollectAndCount(d.Collector(), "kanister_kopia_pods_without_agent")
		unreadable := testutil.CollectAndCount(d.Collector(), "kanister_kopia_namespace_unreadable")
		if n := len(events.take()); without != step.without || unreadable != step.unreadable || n != step.events {
			t.Errorf("with %v: %d without, %d unreadable, %d events; want %+v", step.fail, without, unreadable, n, step)
		}
	}
}

func contains(lines []string, part string) bool {
	return strings.Contains(strings.Join(lines, "\n"), part)
}

func onServer(namespace, name string, labelled bool) *corev1.Pod {
	pod := plain(func(p *corev1.Pod) { p.Namespace, p.Name = namespace, name })
	if !labelled {
		pod.Labels = nil
	}
	pod.Spec.Containers[0].Image = "db"
	return pod
}

func withAgent(t *testing.T, name string) *corev1.Pod {
	t.Helper()
	pod := onServer("shop", name, true)
	d := decide.Decide(pod, shop(nil))
	return render.Inject(pod, d.Plan, render.Options{Image: "agent"}).Apply(pod)
}

func setStatus(t *testing.T, c client.Client, pod *corev1.Pod, state corev1.ContainerState) {
	t.Helper()
	pod.Status.InitContainerStatuses = []corev1.ContainerStatus{{Name: names.AgentContainer, State: state}}
	must(t, c.Status().Update(t.Context(), pod))
}

func owned(obj client.Object, by client.Object, kind string) {
	yes := true
	obj.SetOwnerReferences([]metav1.OwnerReference{{APIVersion: "apps/v1", Kind: kind, Name: by.GetName(), UID: by.GetUID(), Controller: &yes}})
}

// workload makes a Deployment and its ReplicaSet, as the controllers that do not
// run here would.
func workload(t *testing.T, c client.Client, name string, labels map[string]string) (*appsv1.Deployment, *appsv1.ReplicaSet) {
	t.Helper()
	selector := &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}
	template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: selector.MatchLabels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
	d := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: labels},
		Spec:       appsv1.DeploymentSpec{Selector: selector, Template: template},
	}
	must(t, c.Create(t.Context(), d))
	rs := &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name + "-5d"},
		Spec:       appsv1.ReplicaSetSpec{Selector: selector, Template: template},
	}
	owned(rs, d, "Deployment")
	must(t, c.Create(t.Context(), rs))
	return d, rs
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
