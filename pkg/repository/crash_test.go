// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
)

// A server that was up and crashes is started again by its node: who works with it, or comes
// to, waits for that, and is told why if it does not come. One that never came up fails whoever
// asked for it at once.
func TestCrash(t *testing.T) {
	const words = "spec.resources.limits.memory"
	oom := corev1.ContainerStatus{Name: Container, LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: "OOMKilled"}}}
	running := corev1.ContainerStatus{Name: Container, Started: ptr.To(true), State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		rs := &kopiav1alpha1.RepositoryServer{
			ObjectMeta: metav1.ObjectMeta{Namespace: "control", Name: "id"},
			Spec: kopiav1alpha1.RepositoryServerSpec{
				Storage: kopiav1alpha1.Storage{Filesystem: &kopiav1alpha1.FilesystemStorage{Claim: "c"}}, Namespaces: []string{"shop"}, KeyID: DefaultKeyID,
			},
		}
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "control", Name: "id-1", Labels: labels(rs)}}
		m := &Manager{Client: clusterOf(t, rs, pod), Namespace: "control", Agents: &finder{}, Clock: clocktesting.NewFakePassiveClock(noon), CA: func() ([]byte, error) { return nil, nil }}
		r := &Reconciler{Manager: m, Client: m.Client, Clock: m.Clock}
		// become has the kubelet and the controller say how the container is.
		become := func(status corev1.ContainerStatus) {
			must := func(err error) {
				if err != nil {
					t.Error(err)
				}
			}
			rs, pod := rs.DeepCopy(), pod.DeepCopy()
			must(m.Client.Get(ctx, client.ObjectKeyFromObject(rs), rs))
			must(m.Client.Get(ctx, client.ObjectKeyFromObject(pod), pod))
			pod.Annotations = map[string]string{revisionAnnotation: rs.Annotations[revisionAnnotation]}
			must(m.Client.Update(ctx, pod))
			ready := corev1.ConditionFalse
			if status.State.Running != nil {
				ready = corev1.ConditionTrue
			}
			pod.Status.ContainerStatuses, pod.Status.Conditions = []corev1.ContainerStatus{status}, []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}
			must(m.Client.Status().Update(ctx, pod))
			before := rs.DeepCopy()
			revision := rs.Annotations[revisionAnnotation]
			r.judged(ctx, rs, revision, judge([]corev1.Pod{*pod}, revision))
			must(r.report(ctx, before, rs))
		}
		open := func() (*Repository, error) { return m.start(ctx, &Repository{id: "id", key: key{id: DefaultKeyID}}) }

		began := time.Now()
		time.AfterFunc(time.Second, func() { become(oom) })
		if _, err := open(); err == nil || !strings.Contains(err.Error(), words) || time.Since(began) > 2*time.Second {
			t.Errorf("the first start fails: %v after %s", err, time.Since(began))
		}
		time.AfterFunc(time.Second, func() { become(running) })
		repo, err := open()
		if err != nil {
			t.Fatal(err)
		}
		defer repo.Close()

		become(oom)
		time.AfterFunc(10*time.Second, func() { become(running) })
		if _, _, err := repo.connect(ctx); err != nil {
			t.Errorf("it crashes and is up again: %v", err)
		}
		become(oom)
		time.AfterFunc(10*time.Second, func() { become(running) })
		other, err := open()
		if err != nil {
			t.Fatalf("it crashes, is up again, and somebody comes meanwhile: %v", err)
		}
		other.Close()

		become(oom)
		repo.agent = nil // as whoever was told that it does not answer leaves it
		if _, _, err := repo.connect(ctx); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("it crashes for good: %v", err)
		}
		if _, err := open(); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("it crashes for good, and somebody comes: %v", err)
		}
	})
}
