// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"testing"
	"time"

	certmanagerv1 "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

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
	if again, stopped, err := r.giveUp(ctx, rs, noon); again != 6*time.Minute || stopped || err != nil {
		t.Errorf("it may be tried yet: again after %s, stopped %t, %v", again, stopped, err)
	}
	m.hold("id", 1)
	if _, stopped, err := r.giveUp(ctx, rs, noon.Add(6*time.Minute)); stopped || err != nil {
		t.Errorf("somebody waits for it: stopped %t, %v", stopped, err)
	}
	m.release("id", 1)
	r.IdleTimeout = 0
	if again, stopped, err := r.giveUp(ctx, rs, noon.Add(time.Hour)); again != 0 || stopped || err != nil {
		t.Errorf("one that never stops: again after %s, stopped %t, %v", again, stopped, err)
	}
	r.IdleTimeout = time.Minute
	if _, stopped, err := r.giveUp(ctx, rs, noon.Add(6*time.Minute)); !stopped || err != nil {
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
