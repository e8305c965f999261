// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repository_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/clock"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/pkg/repository"
)

// Of two controllers that work at the same time, whatever one does between two steps of the
// other, one starts one maintenance, and the Lease is that one's.
func TestIntegrationMaintenanceRace(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.make("shop")
	ctx := t.Context()
	w.must(w.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: shared + "-config"}}))
	long := metav1.NewTime(time.Now().Add(-48 * time.Hour))
	maintenance := client.ObjectKey{Namespace: w.namespace, Name: shared + "-maintenance"}

	pods, err := w.Watch(ctx, &corev1.PodList{}, client.InNamespace(w.namespace))
	w.must(err)
	var mu sync.Mutex
	let, gone := map[types.UID]bool{}, map[types.UID]bool{} // pods that a node may start, and those deleted
	go func() {
		for event := range pods.ResultChan() {
			pod, ok := event.Object.(*corev1.Pod)
			if !ok {
				continue
			}
			mu.Lock()
			if event.Type == watch.Deleted {
				gone[pod.UID] = true
			} else if len(pod.Spec.SchedulingGates) == 0 {
				let[pod.UID] = true
			}
			mu.Unlock()
		}
	}()
	t.Cleanup(pods.Stop)

	for round := range 20 {
		rs := w.get()
		rs.Status = kopiav1alpha1.RepositoryServerStatus{Initialized: &long}
		w.must(w.Status().Update(ctx, rs))
		mu.Lock()
		clear(let)
		mu.Unlock()
		begin := make(chan struct{})
		var both sync.WaitGroup
		for range 2 {
			r := &repository.Reconciler{
				Client: w, Manager: &repository.Manager{Client: w, Namespace: w.namespace, Clock: clock.RealClock{}},
				Namespace: w.namespace, Clock: clock.RealClock{}, Image: repository.Image{Name: "server:test"},
			}
			both.Go(func() {
				<-begin
				for range 4 {
					_, err := r.Reconcile(ctx, ctrl.Request{NamespacedName: w.key()})
					if err != nil && !apierrors.IsConflict(err) {
						t.Errorf("reconcile: %v", err)
					}
				}
			})
		}
		close(begin)
		both.Wait()

		var pod corev1.Pod
		w.must(w.Get(ctx, maintenance, &pod))
		var lease coordinationv1.Lease
		w.must(w.Get(ctx, maintenance, &lease))
		if run := pod.Annotations[names.Group+"/run"]; len(pod.Spec.SchedulingGates) > 0 || run == "" || ptr.Deref(lease.Spec.HolderIdentity, "") != run {
			t.Errorf("round %d: gates %v, run %q, the Lease is of %q", round, pod.Spec.SchedulingGates, run, ptr.Deref(lease.Spec.HolderIdentity, ""))
		}
		w.must(w.Delete(ctx, &pod, client.GracePeriodSeconds(0)))
		w.must(w.Delete(ctx, &lease))
		testenv.Eventually(t, time.Minute, "all of the round was seen", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return gone[pod.UID]
		})
		mu.Lock()
		if len(let) > 1 {
			t.Errorf("round %d: %d maintenances were started", round, len(let))
		}
		mu.Unlock()
	}
}

// A pod that no node takes is told with what to do, is in no other repository's way, and
// ends after a while: with its Lease, unless a node takes it at that very moment.
func TestIntegrationMaintenanceFindsNoNode(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.make("shop")
	ctx := t.Context()
	w.must(w.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: shared + "-config"}}))
	const words = "0/3 nodes are available: 3 Insufficient memory."
	refuse := func(pod *corev1.Pod) {
		t.Helper()
		pod.Status.Conditions = []corev1.PodCondition{{
			Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable, Message: words,
		}}
		w.must(w.Status().Update(ctx, pod))
	}
	for _, other := range []string{"one", "two"} {
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: other + "-maintenance", Labels: map[string]string{names.ComponentLabel: "repository-maintenance"}},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
		}
		w.must(w.Create(ctx, pod))
		refuse(pod)
	}
	rs, long := w.get(), metav1.NewTime(time.Now().Add(-48*time.Hour))
	rs.Status.Initialized = &long
	w.must(w.Status().Update(ctx, rs))
	r := w.reconciler()
	now := time.Now()
	at := clocktesting.NewFakePassiveClock(now)
	r.Clock = at
	key := client.ObjectKey{Namespace: w.namespace, Name: shared + "-maintenance"}
	pod := func() *corev1.Pod {
		var p corev1.Pod
		if err := w.Get(ctx, key, &p); apierrors.IsNotFound(err) {
			return nil
		} else {
			w.must(err)
		}
		return &p
	}
	holder := func() string {
		var l coordinationv1.Lease
		w.must(w.Get(ctx, key, &l))
		return ptr.Deref(l.Spec.HolderIdentity, "")
	}
	starts := func() *corev1.Pod {
		t.Helper()
		w.turn(r, "a maintenance starts", func() bool { return pod() != nil && len(pod().Spec.SchedulingGates) == 0 })
		return pod()
	}

	first := starts()
	refuse(first)
	w.looks(r)
	if c := w.condition(kopiav1alpha1.ConditionMaintained); c.Status != metav1.ConditionFalse || c.Reason != "Unschedulable" ||
		!strings.Contains(c.Message, words) || !strings.Contains(c.Message, "spec.maintenance.resources") {
		t.Errorf("no node takes it: %+v", c)
	}
	at.SetTime(now.Add(14 * time.Minute))
	w.looks(r)
	if p := pod(); p == nil || p.UID != first.UID || w.get().Status.Maintenance.FullFailures != 0 {
		t.Fatalf("it was not waited for: %+v", p)
	}
	at.SetTime(now.Add(16 * time.Minute))
	w.turn(r, "it ends", func() bool { return pod() == nil })
	if s, c := w.get().Status.Maintenance, w.condition(kopiav1alpha1.ConditionMaintained); s.FullFailures != 1 || c.Reason != "Unschedulable" || holder() != "" {
		t.Errorf("after it: %+v, %+v, the Lease is of %q", s, c, holder())
	}

	// The next one is taken by a node when its time is over.
	at.SetTime(now.Add(time.Hour))
	second := starts()
	refuse(second)
	at.SetTime(now.Add(2 * time.Hour))
	r.Client = interceptor.NewClient(w, interceptor.Funcs{
		Delete: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
			if p := pod(); o.GetUID() == second.UID && p.Spec.NodeName == "" {
				w.must(w.SubResource("binding").Create(ctx, p, &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: "node-9"}}))
			}
			return c.Delete(ctx, o, opts...)
		},
	})
	w.looks(r)
	if p := pod(); p == nil || p.UID != second.UID || p.Spec.NodeName == "" || p.DeletionTimestamp != nil || holder() != second.Annotations[names.Group+"/run"] {
		t.Fatalf("it has a node, and was ended: %+v, the Lease is of %q", p, holder())
	}
	w.looks(r)
	if c := w.condition(kopiav1alpha1.ConditionMaintained); c.Reason == "Unschedulable" {
		t.Errorf("it has a node: %+v", c)
	}
	if s := w.get().Status.Maintenance; s.FullFailures != 1 {
		t.Errorf("it has a node, and failed: %+v", s)
	}

	// It fails there, and its pod is not removed at once: it failed once.
	refused := 0
	r.Client = interceptor.NewClient(w, interceptor.Funcs{
		Delete: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
			if o.GetUID() == second.UID && refused < 2 {
				refused++
				return apierrors.NewConflict(corev1.Resource("pods"), o.GetName(), errors.New("not now"))
			}
			return c.Delete(ctx, o, append(opts, client.GracePeriodSeconds(0))...) // there is no kubelet
		},
	})
	failed := pod()
	failed.Status.Phase = corev1.PodFailed
	failed.Status.ContainerStatuses = []corev1.ContainerStatus{{
		Name: repository.Container, State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 1, Reason: "Error", Message: "it broke"}},
	}}
	w.must(w.Status().Update(ctx, failed))
	w.turn(r, "its pod goes", func() bool { return pod() == nil })
	if s := w.get().Status.Maintenance; s.FullFailures != 2 || refused != 2 || holder() != "" {
		t.Errorf("it failed once, and its pod was not removed %d times: %+v, the Lease is of %q", refused, s, holder())
	}
}
