// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	certmanagerv1 "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
)

// clusterOf is an API server that has objects.
func clusterOf(t *testing.T, objects ...client.Object) client.WithWatch {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, certmanagerv1.AddToScheme, kopiav1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	return fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(&kopiav1alpha1.RepositoryServer{}).WithObjects(objects...).Build()
}

// A server that does not start is tried again after a growing pause, which a success ends;
// and one that nobody waits for is given up.
func TestStartPauses(t *testing.T) {
	rs := &kopiav1alpha1.RepositoryServer{ObjectMeta: metav1.ObjectMeta{Namespace: "control", Name: "id", Annotations: map[string]string{revisionAnnotation: "r"}}}
	c := clusterOf(t, rs)
	now := clocktesting.NewFakePassiveClock(noon)
	m := &Manager{Client: c, Namespace: "control", CA: func() ([]byte, error) { return nil, nil }}
	r := &Reconciler{Manager: m, Clock: now, IdleTimeout: time.Minute}
	ctx := t.Context()
	if err := c.Get(ctx, client.ObjectKeyFromObject(rs), rs); err != nil {
		t.Fatal(err)
	}
	failed := verdict{kopiav1alpha1.PhaseFailed, "Exited", "the signature does not match"}
	starting := verdict{kopiav1alpha1.PhaseStarting, reasonStarting, "starting"}
	for i, want := range []time.Duration{0, 10 * time.Second, 30 * time.Second, time.Minute, 2 * time.Minute, 5 * time.Minute, 5 * time.Minute} {
		r.judged(ctx, rs, "r", starting)
		r.judged(ctx, rs, "r", failed)
		r.judged(ctx, rs, "r", failed) // still the same failure
		if s := rs.Status; s.Failures != int32(i+1) || s.NextTry.Sub(noon) != want {
			t.Errorf("failure %d: counted as %d, the next try is after %s, want %s", i+1, s.Failures, s.NextTry.Sub(noon), want)
		}
	}
	if d := meta.FindStatusCondition(rs.Status.Conditions, kopiav1alpha1.ConditionDegraded); d == nil || d.Status != metav1.ConditionTrue || d.Message != failed.message {
		t.Errorf("condition %+v", d)
	}

	// It may be tried in five minutes; the idle timeout after that it is given up.
	if again, stopped, err := r.giveUp(ctx, rs, failed, noon); again != 6*time.Minute || stopped || err != nil {
		t.Errorf("it may be tried yet: again after %s, stopped %t, %v", again, stopped, err)
	}
	m.hold("id", 1)
	if _, stopped, err := r.giveUp(ctx, rs, failed, noon.Add(6*time.Minute)); stopped || err != nil {
		t.Errorf("somebody waits for it: stopped %t, %v", stopped, err)
	}
	m.release("id", 1)
	r.IdleTimeout = 0
	if again, stopped, err := r.giveUp(ctx, rs, failed, noon.Add(time.Hour)); again != 0 || stopped || err != nil {
		t.Errorf("one that never stops: again after %s, stopped %t, %v", again, stopped, err)
	}
	r.IdleTimeout = time.Minute
	if _, stopped, err := r.giveUp(ctx, rs, failed, noon.Add(6*time.Minute)); !stopped || err != nil {
		t.Errorf("nobody waits for it: stopped %t, %v", stopped, err)
	}
	var after kopiav1alpha1.RepositoryServer
	if err := c.Get(ctx, client.ObjectKeyFromObject(rs), &after); err != nil || after.Annotations[revisionAnnotation] != "" {
		t.Errorf("it was given up, and has revision %q, %v", after.Annotations[revisionAnnotation], err)
	}

	stopped := verdict{kopiav1alpha1.PhaseStopped, reasonStopped, "stopped"}
	if r.judged(ctx, rs, "", stopped); !meta.IsStatusConditionTrue(rs.Status.Conditions, kopiav1alpha1.ConditionDegraded) {
		t.Error("why it does not start is not told any more")
	}
	r.judged(ctx, rs, "r", verdict{kopiav1alpha1.PhaseReady, reasonReady, "serving"})
	if s := rs.Status; s.Failures != 0 || s.NextTry != nil || !meta.IsStatusConditionFalse(s.Conditions, kopiav1alpha1.ConditionDegraded) {
		t.Errorf("after a success: %+v", s)
	}
	r.degraded(rs, true, reasonStorage, "operations are refused")
	if r.judged(ctx, rs, "r", verdict{kopiav1alpha1.PhaseReady, reasonReady, "serving"}); !meta.IsStatusConditionTrue(rs.Status.Conditions, kopiav1alpha1.ConditionDegraded) {
		t.Error("that its storage does not answer is not told any more")
	}
	if r.judged(ctx, rs, "", stopped); !meta.IsStatusConditionFalse(rs.Status.Conditions, kopiav1alpha1.ConditionDegraded) {
		t.Error("it is stopped and refuses operations")
	}
}

// A server that does not come up, whatever of, is stopped when nobody waits for it any more: no
// cluster buys a node for it. One that may have work is left alone.
func TestNeverUp(t *testing.T) {
	ctx := t.Context()
	const patience = StartTimeout + time.Minute
	waiting := func(reason string) corev1.PodStatus {
		return corev1.PodStatus{Phase: corev1.PodPending, ContainerStatuses: []corev1.ContainerStatus{{
			Name: Container, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}},
		}}}
	}
	running := func(ready corev1.ConditionStatus, byKubelet bool) corev1.PodStatus {
		return corev1.PodStatus{
			Phase:      corev1.PodRunning,
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}},
			ContainerStatuses: []corev1.ContainerStatus{{
				Name: Container, Ready: byKubelet, Started: ptr.To(true), State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
			}},
		}
	}
	homeless := corev1.PodStatus{Phase: corev1.PodPending, Conditions: []corev1.PodCondition{{
		Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable, Message: "0/1 nodes",
	}}}
	creating, pulls, pullsLater := waiting("ContainerCreating"), waiting("ErrImagePull"), waiting("ImagePullBackOff")
	ready, paused, lost := running(corev1.ConditionTrue, true), running(corev1.ConditionFalse, false), running(corev1.ConditionFalse, true)
	type step struct {
		at     time.Duration
		status corev1.PodStatus
		again  time.Duration // 0: it is not waited for
		stops  bool
	}
	const next = "next" // the step from which on it is another revision
	for name, steps := range map[string][]step{
		"no node takes it":          {{0, homeless, patience, false}, {patience - time.Second, homeless, time.Second, false}, {patience, homeless, 0, true}},
		"its volume is elsewhere":   {{0, creating, patience, false}, {patience, creating, 0, true}},
		"its readiness pauses":      {{0, paused, 0, false}, {24 * time.Hour, paused, 0, false}},
		"its node is out of reach":  {{0, lost, 0, false}, {24 * time.Hour, lost, 0, false}},
		"it comes up, late":         {{0, homeless, patience, false}, {patience - time.Second, ready, leastPause, false}},
		"it comes up, and has gone": {{0, creating, patience, false}, {time.Minute, ready, leastPause, false}, {time.Hour, creating, patience, false}, {2 * time.Hour, creating, 0, true}},
		"it comes up, and pauses":   {{0, creating, patience, false}, {time.Minute, paused, 0, false}, {time.Hour, creating, patience, false}},
		next:                        {{0, homeless, patience, false}, {StartTimeout, homeless, patience, false}, {patience, homeless, StartTimeout, false}},
		"its image is tried again":  {{0, creating, patience, false}, {time.Minute, pullsLater, time.Minute, false}, {patience, pulls, 0, true}},
	} {
		rs := &kopiav1alpha1.RepositoryServer{
			ObjectMeta: metav1.ObjectMeta{Namespace: "control", Name: "id", Annotations: map[string]string{revisionAnnotation: "r"}},
			Spec:       kopiav1alpha1.RepositoryServerSpec{Storage: kopiav1alpha1.Storage{S3: &kopiav1alpha1.S3Storage{Bucket: "b", Prefix: "p/"}}},
		}
		cert := buildCertificate(rs, "plane")
		cert.Status.Conditions = []certmanagerv1.CertificateCondition{{Type: certmanagerv1.CertificateConditionReady, Status: cmmeta.ConditionTrue}}
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "control", Name: "id-x", Labels: labels(rs), Annotations: map[string]string{revisionAnnotation: "r"}}}
		cluster, now := clusterOf(t, rs, cert, pod), clocktesting.NewFakePassiveClock(noon)
		m := &Manager{Client: cluster, Namespace: "control", CA: func() ([]byte, error) { return nil, nil }, Clock: now}
		r := &Reconciler{Client: cluster, Manager: m, Namespace: "control", Issuer: "plane", Clock: now, IdleTimeout: time.Minute}
		look := func(s step) (again time.Duration, revision string) {
			t.Helper()
			now.SetTime(noon.Add(s.at))
			pod.Status = s.status
			if err := cluster.Status().Update(ctx, pod); err != nil {
				t.Fatal(err)
			}
			result, err := r.Reconcile(ctx, ctrl.Request{NamespacedName: client.ObjectKeyFromObject(rs)})
			var is kopiav1alpha1.RepositoryServer
			if err := errors.Join(err, cluster.Get(ctx, client.ObjectKeyFromObject(rs), &is)); err != nil {
				t.Fatal(err)
			}
			return result.RequeueAfter, is.Annotations[revisionAnnotation]
		}
		for i, s := range steps {
			if name == next && i == 1 {
				for _, o := range []client.Object{rs, pod} {
					if err := cluster.Get(ctx, client.ObjectKeyFromObject(o), o); err != nil {
						t.Fatal(err)
					}
					o.GetAnnotations()[revisionAnnotation] = next
					if err := cluster.Update(ctx, o); err != nil {
						t.Fatal(err)
					}
				}
			}
			if s.stops {
				m.hold("id", 1)
				if again, revision := look(s); revision == "" || again != lookPeriod {
					t.Errorf("%s, step %d, while somebody waits for it: revision %q, again after %s", name, i, revision, again)
				}
				m.release("id", 1)
			}
			if again, revision := look(s); again != s.again || (revision == "") != s.stops {
				t.Errorf("%s, step %d: revision %q, again after %s, want %s; stops: %t", name, i, revision, again, s.again, s.stops)
			}
		}
	}
}

// A server whose end the API server does not take for a moment is told of, and ended later.
func TestGivenUpLater(t *testing.T) {
	ctx := t.Context()
	rs := &kopiav1alpha1.RepositoryServer{
		ObjectMeta: metav1.ObjectMeta{Namespace: "control", Name: "id", Annotations: map[string]string{revisionAnnotation: "r"}},
		Spec:       kopiav1alpha1.RepositoryServerSpec{Storage: kopiav1alpha1.Storage{S3: &kopiav1alpha1.S3Storage{Bucket: "b", Prefix: "p/"}}},
	}
	away := true
	cluster := interceptor.NewClient(clusterOf(t, rs), interceptor.Funcs{
		Patch: func(ctx context.Context, c client.WithWatch, o client.Object, patch client.Patch, opts ...client.PatchOption) error {
			if away {
				return errors.New("the API server is away")
			}
			return c.Patch(ctx, o, patch, opts...)
		},
	})
	now := clocktesting.NewFakePassiveClock(noon)
	m := &Manager{Client: cluster, Namespace: "control", Clock: now}
	r := &Reconciler{Client: cluster, Manager: m, Namespace: "control", Issuer: "plane", Clock: now, IdleTimeout: time.Minute}
	for _, c := range []struct {
		at, again time.Duration
		away      bool
		revision  string
	}{{0, StartTimeout + time.Minute, true, "r"}, {time.Hour, lookPeriod, true, "r"}, {time.Hour + lookPeriod, 0, false, ""}} {
		away = c.away
		now.SetTime(noon.Add(c.at))
		result, err := r.Reconcile(ctx, ctrl.Request{NamespacedName: client.ObjectKeyFromObject(rs)})
		var is kopiav1alpha1.RepositoryServer
		if err := errors.Join(err, cluster.Get(ctx, client.ObjectKeyFromObject(rs), &is)); err != nil {
			t.Fatal(err)
		}
		if result.RequeueAfter != c.again || is.Annotations[revisionAnnotation] != c.revision {
			t.Errorf("after %s: again after %s, want %s; revision %q", c.at, result.RequeueAfter, c.again, is.Annotations[revisionAnnotation])
		}
	}
}

// refusing is a cluster whose API server refuses what the test says, with its words.
func refusing(c client.WithWatch, refused func(kind string) string) client.WithWatch {
	say := func(kind string) error {
		if words := refused(kind); words != "" {
			return errors.New(words)
		}
		return nil
	}
	return interceptor.NewClient(c, interceptor.Funcs{
		Apply: func(ctx context.Context, c client.WithWatch, o runtime.ApplyConfiguration, opts ...client.ApplyOption) error {
			if err := say(o.(interface{ GetKind() string }).GetKind()); err != nil {
				return err
			}
			return c.Apply(ctx, o, opts...)
		},
		Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			if err := say(strings.TrimPrefix(fmt.Sprintf("%T", o), "*v1.")); err != nil {
				return err
			}
			return c.Create(ctx, o, opts...)
		},
	})
}

// What the API server refuses is told where people look, tried again, and keeps nothing
// waiting that does not need it.
func TestObjectsRefused(t *testing.T) {
	ctx := t.Context()
	s3 := kopiav1alpha1.Storage{S3: &kopiav1alpha1.S3Storage{Bucket: "b", Prefix: "p/"}}
	rs := &kopiav1alpha1.RepositoryServer{
		ObjectMeta: metav1.ObjectMeta{Namespace: "control", Name: "id", Annotations: map[string]string{revisionAnnotation: "r"}},
		Spec:       kopiav1alpha1.RepositoryServerSpec{Storage: s3},
	}
	cert := buildCertificate(rs, "plane")
	cert.Status.Conditions = []certmanagerv1.CertificateCondition{{Type: certmanagerv1.CertificateConditionReady, Status: cmmeta.ConditionTrue}}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "control", Name: "id-x", Labels: labels(rs), Annotations: map[string]string{revisionAnnotation: "r"}}}
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	keys := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "control", Name: "id-config", Annotations: map[string]string{revisionAnnotation: "r"}}, Data: map[string][]byte{configKey: []byte("{}")}}
	initialized := rs.DeepCopy()
	initialized.Status.Initialized = at(-48 * time.Hour)
	const words = "dial tcp 10.0.0.1:%d: connection refused"
	for name, c := range map[string]struct {
		refused string
		objects []client.Object
		phase   kopiav1alpha1.Phase
		reason  string
		fails   bool
		says    string // of conditions
		looks   string // what goes on nevertheless is seen by this pod
	}{
		"Service":                {"Service", []client.Object{rs}, kopiav1alpha1.PhaseStarting, reasonRefused, true, "10.0.0.1", ""},
		"Certificate":            {"Certificate", []client.Object{rs}, kopiav1alpha1.PhaseStarting, reasonRefused, true, "10.0.0.1", ""},
		"Certificate, issued":    {"Certificate", []client.Object{rs, cert}, kopiav1alpha1.PhaseStarting, reasonStarting, false, "waiting for the pod", ""},
		"Deployment":             {"Deployment", []client.Object{rs, cert}, kopiav1alpha1.PhaseStarting, reasonRefused, true, "10.0.0.1", ""},
		"Service, while it runs": {"Service", []client.Object{initialized, pod, keys}, kopiav1alpha1.PhaseReady, reasonReady, true, "serving; the API server does not take", "id-maintenance"},
		"a maintenance":          {"Pod", []client.Object{initialized, pod, keys, cert}, kopiav1alpha1.PhaseReady, reasonReady, true, "full maintenance is due, but the API server does not take its pod: dial", ""},
	} {
		port := 4000
		var objects []client.Object
		for _, o := range c.objects {
			objects = append(objects, o.DeepCopyObject().(client.Object))
		}
		cluster := refusing(clusterOf(t, objects...), func(kind string) string {
			if kind != c.refused {
				return ""
			}
			port++
			return fmt.Sprintf(words, port)
		})
		m := &Manager{Client: cluster, Namespace: "control", CA: func() ([]byte, error) { return nil, nil }, Clock: clocktesting.NewFakePassiveClock(noon)}
		r := &Reconciler{Client: cluster, Manager: m, Namespace: "control", Issuer: "plane", Clock: m.Clock}
		key := client.ObjectKeyFromObject(rs)
		look := func() kopiav1alpha1.RepositoryServer {
			t.Helper()
			if _, err := r.Reconcile(ctx, ctrl.Request{NamespacedName: key}); (err != nil) != c.fails || err != nil && !strings.Contains(err.Error(), "10.0.0.1") {
				t.Errorf("%s: error %v", name, err)
			}
			var now kopiav1alpha1.RepositoryServer
			if err := cluster.Get(ctx, key, &now); err != nil {
				t.Fatal(err)
			}
			return now
		}
		now := look()
		ready := meta.FindStatusCondition(now.Status.Conditions, kopiav1alpha1.ConditionReady)
		if ready == nil || now.Status.Phase != c.phase || ready.Reason != c.reason || !strings.Contains(fmt.Sprint(now.Status.Conditions), c.says) {
			t.Errorf("%s: phase %q, conditions %+v", name, now.Status.Phase, now.Status.Conditions)
		}
		if c.looks != "" {
			if err := cluster.Get(ctx, client.ObjectKey{Namespace: "control", Name: c.looks}, &corev1.Pod{}); err != nil {
				t.Errorf("%s: nothing else went on: %v", name, err)
			}
		}
		if c.refused == "Pod" {
			continue // its Lease bounds how often it is tried
		}
		// Another port in its words is no news, which would be looked at at once.
		if again := look(); again.ResourceVersion != now.ResourceVersion && c.fails && c.looks == "" {
			t.Errorf("%s: told again: %+v", name, again.Status.Conditions)
		}
	}
}

// That a location is taken is said no longer than it is, though nobody touches the
// RepositoryServer that is told.
func TestLocationNoLongerTaken(t *testing.T) {
	ctx := t.Context()
	server := func(name, prefix string, age time.Duration) *kopiav1alpha1.RepositoryServer {
		return &kopiav1alpha1.RepositoryServer{
			ObjectMeta: metav1.ObjectMeta{Namespace: "control", Name: name, CreationTimestamp: *at(-age)},
			Spec:       kopiav1alpha1.RepositoryServerSpec{Storage: kopiav1alpha1.Storage{S3: &kopiav1alpha1.S3Storage{Bucket: "b", Prefix: prefix}}},
		}
	}
	older, younger := server("older", "p/", time.Hour), server("younger", "p/q/", time.Minute)
	c := clusterOf(t, older, younger)
	r := &Reconciler{Client: c, Manager: &Manager{Client: c, Namespace: "control"}, Namespace: "control", Clock: clocktesting.NewFakePassiveClock(noon)}
	look := func() (ctrl.Result, kopiav1alpha1.RepositoryServer) {
		t.Helper()
		var now kopiav1alpha1.RepositoryServer
		result, err := r.Reconcile(ctx, ctrl.Request{NamespacedName: client.ObjectKeyFromObject(younger)})
		if err := errors.Join(err, c.Get(ctx, client.ObjectKeyFromObject(younger), &now)); err != nil {
			t.Fatal(err)
		}
		return result, now
	}
	result, now := look()
	if result.RequeueAfter != time.Minute || now.Status.Phase != kopiav1alpha1.PhaseFailed || !meta.IsStatusConditionTrue(now.Status.Conditions, kopiav1alpha1.ConditionDegraded) {
		t.Errorf("taken: again after %s, %+v", result.RequeueAfter, now.Status)
	}
	if err := c.Delete(ctx, older); err != nil {
		t.Fatal(err)
	}
	if _, now = look(); now.Status.Phase != kopiav1alpha1.PhaseStopped || !meta.IsStatusConditionFalse(now.Status.Conditions, kopiav1alpha1.ConditionDegraded) {
		t.Errorf("free again: %+v", now.Status)
	}
}

// A server waits for its certificate in words, and whoever makes it need touch nothing else;
// one that runs has one.
func TestWaitsForCertificate(t *testing.T) {
	ctx := t.Context()
	for name, c := range map[string]struct {
		tls   *kopiav1alpha1.TLS
		words string
		again time.Duration // no watch tells of a Secret
	}{
		"a Secret":        {&kopiav1alpha1.TLS{Secret: "own"}, "Secret own, which spec.tls names, is not there", secretPause},
		"from the issuer": {nil, "cert-manager has not answered yet", 0},
	} {
		for runs, status := range map[string]corev1.PodStatus{
			"":             {},
			reasonReady:    {Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
			reasonNodeLost: {Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady}}, ContainerStatuses: []corev1.ContainerStatus{{Name: Container, Ready: true}}},
		} {
			rs := &kopiav1alpha1.RepositoryServer{
				ObjectMeta: metav1.ObjectMeta{Namespace: "control", Name: "id", Annotations: map[string]string{revisionAnnotation: "r"}},
				Spec:       kopiav1alpha1.RepositoryServerSpec{TLS: c.tls, Storage: kopiav1alpha1.Storage{S3: &kopiav1alpha1.S3Storage{Bucket: "b", Prefix: "p/"}}},
			}
			objects := []client.Object{rs}
			if runs != "" {
				template := buildDeployment(rs, Image{}, "r", 1).Spec.Template
				pod := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
				pod.Namespace, pod.Name = "control", "id-1"
				pod.Status = status
				objects = append(objects, pod)
			}
			cluster := clusterOf(t, objects...)
			m := &Manager{Client: cluster, Namespace: "control", CA: func() ([]byte, error) { return nil, nil }, Clock: clocktesting.NewFakePassiveClock(noon)}
			r := &Reconciler{Client: cluster, Manager: m, Namespace: "control", Issuer: "plane", Clock: m.Clock}
			look := func() (ctrl.Result, metav1.Condition) {
				t.Helper()
				var now kopiav1alpha1.RepositoryServer
				result, err := r.Reconcile(ctx, ctrl.Request{NamespacedName: client.ObjectKeyFromObject(rs)})
				if err := errors.Join(err, cluster.Get(ctx, client.ObjectKeyFromObject(rs), &now)); err != nil {
					t.Fatal(err)
				}
				return result, *meta.FindStatusCondition(now.Status.Conditions, kopiav1alpha1.ConditionReady)
			}
			result, ready := look()
			if runs != "" {
				if ready.Reason != runs {
					t.Errorf("%s, while it runs (%s): %+v", name, runs, ready)
				}
				continue
			}
			if ready.Reason != reasonCertificate || !strings.Contains(ready.Message, c.words) || result.RequeueAfter != c.again {
				t.Errorf("%s: %+v, again after %s", name, ready, result.RequeueAfter)
			}
			if err := cluster.Get(ctx, client.ObjectKeyFromObject(rs), &appsv1.Deployment{}); err == nil {
				t.Errorf("%s: a pod would wait for it", name)
			}
			if c.tls == nil {
				continue
			}
			if err := cluster.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "control", Name: c.tls.Secret}}); err != nil {
				t.Fatal(err)
			}
			if _, ready = look(); ready.Reason != reasonStarting || cluster.Get(ctx, client.ObjectKeyFromObject(rs), &appsv1.Deployment{}) != nil {
				t.Errorf("%s, made: %+v", name, ready)
			}
		}
	}
}
