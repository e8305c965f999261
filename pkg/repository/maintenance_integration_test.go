// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repository_test

import (
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

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
	let := map[types.UID]bool{} // pods that a node may start
	go func() {
		for event := range pods.ResultChan() {
			if pod, ok := event.Object.(*corev1.Pod); ok && len(pod.Spec.SchedulingGates) == 0 {
				mu.Lock()
				let[pod.UID] = true
				mu.Unlock()
			}
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
		mu.Lock()
		if len(let) > 1 {
			t.Errorf("round %d: %d maintenances were started", round, len(let))
		}
		mu.Unlock()
	}
}
