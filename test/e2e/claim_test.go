// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// onClaim is the namespace of these specs, and the name of their repository and of its claim.
const onClaim = "e2e-claim"

var _ = Describe("a repository on a claim", Ordered, func() {
	repo := &kopiav1alpha1.RepositoryServer{
		ObjectMeta: metav1.ObjectMeta{Namespace: names.ControlPlaneNamespace, Name: onClaim},
		Spec: kopiav1alpha1.RepositoryServerSpec{
			Namespaces: []string{onClaim},
			Storage:    kopiav1alpha1.Storage{Filesystem: &kopiav1alpha1.FilesystemStorage{Claim: onClaim, Path: "backups"}},
		},
	}
	bound := claim(names.ControlPlaneNamespace)
	bound.Name = onClaim

	BeforeAll(func(ctx SpecContext) {
		DeferCleanup(func(ctx SpecContext) {
			Expect(cluster.DeleteNamespace(ctx, onClaim)).To(Succeed())
			for _, o := range []client.Object{repo, bound} {
				Expect(client.IgnoreNotFound(cluster.Delete(ctx, o))).To(Succeed())
			}
		}, NodeTimeout(short))
		keys, err := cluster.StartS3(ctx)
		Expect(err).NotTo(HaveOccurred())
		// Its bucket is not used: the storage is the claim's.
		Expect(cluster.PutProfile(ctx, onClaim, keys, onClaim)).To(Succeed())
		Expect(cluster.Blueprint(ctx, filesBlueprint)).To(Succeed())
		Expect(cluster.DeleteNamespace(ctx, onClaim)).To(Succeed())
		Expect(cluster.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
			Name: onClaim, Labels: map[string]string{names.InjectionLabel: names.InjectionEnabled},
			Annotations: map[string]string{names.RepositoryAnnotation: onClaim},
		}})).To(Succeed())
		Expect(cluster.Bind(ctx, onClaim, "kanister-kopia-namespace")).To(Succeed())
		Expect(cluster.Create(ctx, claim(onClaim))).To(Succeed())
		Expect(cluster.Put(ctx, bound)).To(Succeed())
		Expect(cluster.Put(ctx, repo)).To(Succeed())
	}, NodeTimeout(long))

	It("takes a backup, gives it back, and is maintained beside its server", func(ctx SpecContext) {
		var saved *crv1alpha1.ActionSet
		const tree = "cd /data && find . -path ./back -prune -o -type f -exec md5sum {} + | sort"
		insidePod(ctx, filesPod(onClaim, "app", labelled), func(shell func(string) string) {
			shell("mkdir -p /data/in/here && echo kept > /data/in/file && dd if=/dev/urandom of=/data/in/here/noise bs=1M count=3")
			want := shell(tree)
			var err error
			saved, err = files(ctx, "backup", onClaim, onClaim, map[string]string{"pod": "app", "path": "/data"}, nil)
			Expect(err).NotTo(HaveOccurred())
			shell("rm -rf /data/in")
			Expect(shell(tree)).To(BeEmpty())
			_, err = files(ctx, "restore", onClaim, onClaim, map[string]string{"to": "/data/back"}, saved)
			Expect(err).NotTo(HaveOccurred())
			Expect(shell("cd /data/back/data && find . -type f -exec md5sum {} + | sort")).To(Equal(want))
		})

		// Both mount the claim, which one node has.
		now := &kopiav1alpha1.RepositoryServer{}
		Expect(cluster.Get(ctx, client.ObjectKeyFromObject(repo), now)).To(Succeed())
		Expect(now.Status.Phase).To(Equal(kopiav1alpha1.PhaseReady))
		before := now.DeepCopy()
		// As if it were of the day before yesterday.
		old := metav1.NewTime(time.Now().Add(-48 * time.Hour))
		now.Status.Initialized = &old
		Expect(cluster.Status().Patch(ctx, now, client.MergeFrom(before))).To(Succeed())
		Eventually(func(g Gomega) {
			g.Expect(cluster.Get(ctx, client.ObjectKeyFromObject(repo), now)).To(Succeed())
			g.Expect(now.Status.Maintenance).NotTo(BeNil())
			g.Expect(now.Status.Maintenance.LastFull).NotTo(BeNil(), "conditions %+v", now.Status.Conditions)
			g.Expect(now.Status.Maintenance.VerifiedSnapshots).To(BeEquivalentTo(1))
		}).WithContext(ctx).WithTimeout(short).WithPolling(time.Second).Should(Succeed())
	}, SpecTimeout(long))
})
