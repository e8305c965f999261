// SPDX-License-Identifier: Apache-2.0

//go:build e2e && soak

package e2e

import (
	"context"
	"slices"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// A server's node goes without a word. It is a Node that no kubelet stands for: what
// Kubernetes does about it, it does by itself.
var _ = Describe("a repository server whose node is gone", Ordered, Label("soak"), func() {
	const lostNode = "e2e-lost"
	a := &application{namespace: "e2e-lost"}
	var lost corev1.Pod

	BeforeAll(func(ctx SpecContext) {
		DeferCleanup(func(ctx SpecContext) {
			uncordon(ctx)
			Expect(client.IgnoreNotFound(cluster.Delete(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: lostNode}}))).To(Succeed())
			if lost.Name != "" {
				Expect(client.IgnoreNotFound(cluster.Delete(ctx, &lost, client.GracePeriodSeconds(0)))).To(Succeed())
			}
			Expect(cluster.DeleteNamespace(ctx, a.namespace)).To(Succeed())
		}, NodeTimeout(long))
		keys, err := cluster.StartS3(ctx)
		Expect(err).NotTo(HaveOccurred())
		Expect(cluster.PutProfile(ctx, trialProfile, keys, trialProfile)).To(Succeed())
		Expect(cluster.Blueprint(ctx, filesBlueprint)).To(Succeed())
		a.start(ctx, nil)
		Expect(a.backup(ctx)).To(Succeed())
		hurry(ctx, a)
		awaitPhase(ctx, a, kopiav1alpha1.PhaseStopped)
	}, NodeTimeout(long))

	It("comes up on another node", func(ctx SpecContext) {
		Expect(cluster.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: lostNode}})).To(Succeed())
		answersOnce(ctx, lostNode)
		_, err := cluster.Kubectl(ctx, "cordon", "-l", "node-role.kubernetes.io/control-plane")
		Expect(err).NotTo(HaveOccurred())
		outcome := make(chan error, 1)
		go func() {
			defer GinkgoRecover()
			outcome <- a.backup(ctx)
		}()
		rs := serversOf(ctx, a)[0]
		Eventually(func() bool {
			for _, pod := range podsOf(ctx, rs.Namespace, names.RepositoryLabel, rs.Name) {
				if pod.Spec.NodeName == lostNode {
					lost = pod
				}
			}
			return lost.Name != ""
		}).WithContext(ctx).WithTimeout(short).Should(BeTrue(), "the server's pod is on the node that will be lost")
		uncordon(ctx)
		ready := lost.DeepCopy()
		ready.Status.Phase = corev1.PodRunning
		ready.Status.Conditions = append(ready.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue})
		ready.Status.ContainerStatuses = []corev1.ContainerStatus{{
			Name: ready.Spec.Containers[0].Name, Image: ready.Spec.Containers[0].Image, Ready: true,
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}},
		}}
		Expect(cluster.Status().Patch(ctx, ready, client.MergeFrom(&lost))).To(Succeed())

		Eventually(func() string {
			rs := serversOf(ctx, a)[0]
			c := meta.FindStatusCondition(rs.Status.Conditions, kopiav1alpha1.ConditionReady)
			return c.Reason + " " + c.Message
		}).WithContext(ctx).WithTimeout(short).Should(And(HavePrefix("NodeLost "), ContainSubstring(lostNode)))
		gone := time.Now()
		Expect(<-outcome).To(HaveOccurred(), "the backup that the lost server had let in")
		// Not that the next server is ready: it stops at once if nobody needs it.
		Expect(a.backup(ctx)).To(Succeed(), "a backup that begins while the node is lost")
		GinkgoWriter.Printf("backed up %s after the node was known to be lost\n", time.Since(gone).Round(time.Second))
		stays(ctx, &lost)
	}, SpecTimeout(long))

	It("stops and starts while the pod of the lost node is still there", func(ctx SpecContext) {
		hurry(ctx, a)
		awaitPhase(ctx, a, kopiav1alpha1.PhaseStopped)
		stays(ctx, &lost)
		Expect(a.backup(ctx)).To(Succeed())
		stays(ctx, &lost)
	}, SpecTimeout(long))
})

// answersOnce says what a kubelet says, once.
func answersOnce(ctx context.Context, name string) {
	GinkgoHelper()
	var n corev1.Node
	Expect(cluster.Get(ctx, client.ObjectKey{Name: name}, &n)).To(Succeed())
	before := n.DeepCopy()
	room := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("8"), corev1.ResourceMemory: resource.MustParse("16Gi"), corev1.ResourcePods: resource.MustParse("50"),
	}
	now := metav1.Now()
	n.Status.Capacity, n.Status.Allocatable = room, room
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: now, LastTransitionTime: now, Reason: "KubeletReady"}}
	Expect(cluster.Status().Patch(ctx, &n, client.MergeFrom(before))).To(Succeed())
}

func uncordon(ctx context.Context) {
	GinkgoHelper()
	_, err := cluster.Kubectl(ctx, "uncordon", "-l", "node-role.kubernetes.io/control-plane")
	Expect(err).NotTo(HaveOccurred())
}

// stays asserts that a pod is there and about to end, as one of a lost node is for ever.
func stays(ctx context.Context, pod *corev1.Pod) {
	GinkgoHelper()
	Expect(cluster.Get(ctx, client.ObjectKeyFromObject(pod), pod)).To(Succeed())
	Expect(pod.DeletionTimestamp).NotTo(BeNil())
}

func awaitPhase(ctx context.Context, a *application, phase kopiav1alpha1.Phase) {
	GinkgoHelper()
	Eventually(func() bool {
		return !slices.ContainsFunc(serversOf(ctx, a), func(rs kopiav1alpha1.RepositoryServer) bool { return rs.Status.Phase != phase })
	}).WithContext(ctx).WithTimeout(short).Should(BeTrue(), "the server of %s is %s", a.namespace, phase)
}
