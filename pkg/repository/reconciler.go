// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"cmp"
	"context"
	"fmt"

	certmanagerv1 "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/kube"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// Reconciler keeps the objects of every RepositoryServer and its status. It never
// reads a Secret: the Manager writes them and names the configuration's revision
// in an annotation; a RepositoryServer without one has not been needed yet.
type Reconciler struct {
	Client client.Client
	// Namespace is the control plane's; RepositoryServers elsewhere are left alone.
	Namespace string
	// Image of the server.
	Image Image
	// Issuer is the name of the cert-manager Issuer of the control plane.
	Issuer string
	Clock  clock.PassiveClock
}

// SetupWithManager starts it with the manager.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager) error {
	ours := predicate.NewPredicateFuncs(func(o client.Object) bool {
		return o.GetNamespace() == r.Namespace && o.GetLabels()[names.RepositoryLabel] != ""
	})
	return ctrl.NewControllerManagedBy(mgr).
		Named("repositoryserver").
		For(&kopiav1alpha1.RepositoryServer{}, builder.WithPredicates(predicate.NewPredicateFuncs(func(o client.Object) bool {
			return o.GetNamespace() == r.Namespace
		}))).
		Owns(&certmanagerv1.Certificate{}).
		Owns(&appsv1.Deployment{}).
		Owns(&corev1.Service{}).
		Watches(&corev1.Pod{}, handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
			return []reconcile.Request{{NamespacedName: types.NamespacedName{
				Namespace: o.GetNamespace(), Name: o.GetLabels()[names.RepositoryLabel],
			}}}
		}), builder.WithPredicates(ours)).
		Complete(r)
}

// Reconcile makes the objects of one RepositoryServer and writes its status.
func (r *Reconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	var rs kopiav1alpha1.RepositoryServer
	if err := r.Client.Get(ctx, req.NamespacedName, &rs); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if rs.DeletionTimestamp != nil {
		return ctrl.Result{}, nil
	}
	revision := rs.Annotations[revisionAnnotation]
	v, err := r.ensure(ctx, &rs, revision)
	if err != nil {
		return ctrl.Result{}, err
	}
	return ctrl.Result{}, r.report(ctx, &rs, revision, v)
}

// ensure makes what is missing, in the order in which one needs the other.
func (r *Reconciler) ensure(ctx context.Context, rs *kopiav1alpha1.RepositoryServer, revision string) (verdict, error) {
	if revision == "" {
		return verdict{kopiav1alpha1.PhaseStopped, reasonStopped, "no phase has needed it yet"}, nil
	}
	for _, obj := range []client.Object{buildService(rs), buildCertificate(rs, r.Issuer)} {
		if err := kube.Apply(ctx, r.Client, obj); err != nil {
			return verdict{}, err
		}
	}
	// A pod that mounts a Secret before it is there is tried again only after a
	// growing pause, so the Deployment waits for the certificate instead.
	var cert certmanagerv1.Certificate
	if err := r.Client.Get(ctx, client.ObjectKeyFromObject(rs), &cert); client.IgnoreNotFound(err) != nil {
		return verdict{}, fmt.Errorf("read the certificate of repository %s: %w", rs.Name, err)
	}
	if ready, message := certificateReady(&cert); !ready {
		return verdict{kopiav1alpha1.PhaseStarting, reasonCertificate, "waiting for the certificate: " + message}, nil
	}
	if err := kube.Apply(ctx, r.Client, buildDeployment(rs, r.Image, revision, 1)); err != nil {
		return verdict{}, err
	}
	var pods corev1.PodList
	if err := r.Client.List(ctx, &pods, client.InNamespace(rs.Namespace), client.MatchingLabels(labels(rs))); err != nil {
		return verdict{}, fmt.Errorf("list the pods of repository %s: %w", rs.Name, err)
	}
	return judge(pods.Items, revision), nil
}

// certificateReady says whether a certificate was issued, for names that have not
// changed since. An expiring one stays usable while it is renewed.
func certificateReady(cert *certmanagerv1.Certificate) (bool, string) {
	for _, c := range cert.Status.Conditions {
		if c.Type == certmanagerv1.CertificateConditionReady {
			return c.Status == cmmeta.ConditionTrue, c.Message
		}
	}
	return false, "cert-manager has not answered yet"
}

func (r *Reconciler) report(ctx context.Context, rs *kopiav1alpha1.RepositoryServer, revision string, v verdict) error {
	before := rs.DeepCopy()
	s := &rs.Status
	s.Phase = v.phase
	s.Revision = revision
	s.ObservedGeneration = rs.Generation
	ready := metav1.ConditionFalse
	if v.phase == kopiav1alpha1.PhaseReady {
		ready = metav1.ConditionTrue
		if s.Initialized == nil {
			now := metav1.NewTime(r.Clock.Now())
			s.Initialized = &now
		}
	}
	meta.SetStatusCondition(&s.Conditions, metav1.Condition{
		Type:               kopiav1alpha1.ConditionReady,
		Status:             ready,
		Reason:             v.reason,
		Message:            truncate(cmp.Or(v.message, string(v.phase)), 2048),
		ObservedGeneration: rs.Generation,
	})
	if equality.Semantic.DeepEqual(before.Status, rs.Status) {
		return nil
	}
	// The lock keeps a status made from an old cache from going over a newer one.
	patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
	if err := r.Client.Status().Patch(ctx, rs, patch); err != nil {
		return fmt.Errorf("write the status of repository %s: %w", rs.Name, err)
	}
	return nil
}

// truncate cuts at a character's edge.
func truncate(s string, n int) string {
	if len(s) <= n {
		return s
	}
	cut := 0
	for i := range s {
		if i > n-len("…") {
			break
		}
		cut = i
	}
	return s[:cut] + "…"
}
