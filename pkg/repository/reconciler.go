// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode"

	certmanagerv1 "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlcontroller "sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/kube"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// Reconciler keeps the objects of every RepositoryServer and its status, stops
// servers that nobody uses, and runs maintenance. It never reads the storage keys:
// the Manager writes them and names the configuration's revision in an annotation; a
// RepositoryServer without one is not needed now.
type Reconciler struct {
	Client client.Client
	// Manager asks servers what uses them.
	Manager *Manager
	// Namespace is the control plane's; RepositoryServers elsewhere are left alone.
	Namespace string
	// Image of the server.
	Image Image
	// Issuer is the name of the cert-manager Issuer of the control plane.
	Issuer string
	// IdleTimeout of servers whose spec has none; 0: they never stop.
	IdleTimeout time.Duration
	Clock       clock.PassiveClock

	mu    sync.Mutex
	looks map[string]time.Time // when a server is to be asked again, or given up if it is not up
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
		WithOptions(ctrlcontroller.Options{
			// A look at a server that does not answer keeps no other waiting.
			MaxConcurrentReconciles: 8,
			// What the API server refuses is tried again while phases wait for it, and keeps no
			// server that runs from being looked at.
			RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](5*time.Millisecond, lookPeriod),
		}).
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
	var all kopiav1alpha1.RepositoryServerList
	if err := r.Client.List(ctx, &all, client.InNamespace(rs.Namespace)); err != nil {
		return ctrl.Result{}, fmt.Errorf("list RepositoryServers: %w", err)
	}
	before := rs.DeepCopy()
	revision := rs.Annotations[revisionAnnotation]
	var v verdict
	var refused error
	if other := takenBy(&rs, all.Items); other != "" {
		// Two repositories that see each other's blobs delete them.
		v = verdict{kopiav1alpha1.PhaseFailed, reasonLocationTaken, fmt.Sprintf(
			"RepositoryServer %s is at this location already: delete this one, or choose a prefix beside that one's, not within it", other)}
		_, refused = r.scaleToZero(ctx, &rs)
	} else {
		v, refused = r.ensure(ctx, &rs, revision)
	}
	if v == (verdict{}) {
		return ctrl.Result{}, refused
	}
	// What is refused is tried again, after all that does not depend on it.
	r.judged(ctx, &rs, revision, v)
	if before.Status.Initialized == nil && rs.Status.Initialized != nil {
		// First: a status that says so promises it.
		if err := r.Manager.forbidCreate(ctx, &rs); err != nil {
			return ctrl.Result{}, errors.Join(refused, err)
		}
	}
	again, stopped, err := r.lookAt(ctx, before, &rs, v)
	if err != nil {
		log.FromContext(ctx).Info("repository server does not say what uses it", "repository", rs.Name, "error", err.Error())
	}
	if stopped {
		return ctrl.Result{}, refused // the object has changed, and comes again
	}
	if v.reason != reasonLocationTaken {
		due, err := r.maintain(ctx, before, &rs)
		refused = errors.Join(refused, err)
		again = sooner(again, due)
	}
	again = sooner(again, r.released(&rs))
	again = sooner(again, v.unwatched(&rs))
	if err := errors.Join(refused, r.report(ctx, before, &rs)); err != nil {
		return ctrl.Result{}, err
	}
	return ctrl.Result{RequeueAfter: again}, nil
}

// sooner is the smaller of two pauses; 0 is none.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// lookAt asks a ready server what uses it when it is time to, and says when it is
// again. Its answer goes into the status. One that does not come up is given up some time.
func (r *Reconciler) lookAt(ctx context.Context, before, rs *kopiav1alpha1.RepositoryServer, v verdict) (again time.Duration, stopped bool, err error) {
	now, ready := r.Clock.Now(), rs.Status.Phase == kopiav1alpha1.PhaseReady
	turned := before.Status.Revision != rs.Status.Revision || ready != (before.Status.Phase == kopiav1alpha1.PhaseReady)
	if turned {
		r.nextLook(rs.Name, 0) // when another server was to be asked, or this one given up
	}
	if !ready {
		return r.giveUp(ctx, rs, v, now)
	}
	if turned {
		// Whoever waits for it does not wait for an answer, too.
		return r.nextLook(rs.Name, leastPause), false, nil
	}
	if left, _ := r.untilLook(rs.Name, now); left > 0 {
		return left, false, nil
	}
	timeout := r.idleTimeout(rs)
	var have appsv1.Deployment
	if err := r.Client.Get(ctx, client.ObjectKeyFromObject(rs), &have); err != nil {
		return r.nextLook(rs.Name, lookPeriod), false, fmt.Errorf("read the server of repository %s: %w", rs.Name, err)
	}
	end := r.Manager.stop
	if outdated(&have, buildDeployment(rs, r.Image, "", 1)) {
		timeout, end = leastPause, r.Manager.renew
	}
	a, stopped, err := r.Manager.look(ctx, rs, timeout, end)
	if err != nil {
		return r.nextLook(rs.Name, lookPeriod), false, err
	}
	if stopped {
		return r.nextLook(rs.Name, 0), true, nil
	}
	s := &rs.Status
	s.Users = int32(a.Users)
	if used := metav1.NewTime(a.LastUsed.Truncate(time.Second)); s.LastUsed == nil || used.Sub(s.LastUsed.Time) >= lookPeriod/2 {
		s.LastUsed = &used
	}
	if a.StorageProblem != "" {
		where := "look at the storage, at the network between, and at the Profile's keys"
		if rs.Spec.External != nil {
			where = "look at that server and its certificate, at the network between, and at url and caBundle of spec.external"
		}
		r.degraded(rs, true, reasonStorage, a.StorageProblem+": operations are refused until it answers: "+where)
	} else {
		r.degraded(rs, false, reasonReady, "")
	}
	return r.nextLook(rs.Name, nextLook(a, timeout)), false, nil
}

// giveUp stops a server that does not come up and that nobody waits for, so that it neither
// crashes for ever nor has a cluster buy a node for it. The time it gets is that of all its
// pods together: one that fails in between begins no new one.
func (r *Reconciler) giveUp(ctx context.Context, rs *kopiav1alpha1.RepositoryServer, v verdict, now time.Time) (again time.Duration, stopped bool, err error) {
	timeout := r.idleTimeout(rs)
	if timeout <= 0 || rs.Annotations[revisionAnnotation] == "" || v.mayWork() {
		return r.nextLook(rs.Name, 0), false, nil
	}
	left, known := r.untilLook(rs.Name, now)
	if !known { // by then, whoever waits for it has given up, in whatever controller
		left = r.nextLook(rs.Name, StartTimeout+timeout)
	}
	if v.phase == kopiav1alpha1.PhaseFailed && rs.Status.NextTry != nil {
		left = rs.Status.NextTry.Add(timeout).Sub(now)
	}
	if left > 0 {
		return left, false, nil
	}
	stopped, err = r.Manager.stopUnused(ctx, rs)
	return lookPeriod, stopped, err
}

// untilLook says in how long a server is to be looked at; not known: nobody has set it.
func (r *Reconciler) untilLook(name string, now time.Time) (left time.Duration, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at, known := r.looks[name]
	return at.Sub(now), known
}

// nextLook sets when a server is looked at again; 0: nothing is known of that.
func (r *Reconciler) nextLook(name string, in time.Duration) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.looks == nil {
		r.looks = map[string]time.Time{}
	}
	if delete(r.looks, name); in > 0 {
		r.looks[name] = r.Clock.Now().Add(in)
	}
	return in
}

// ensure makes what is missing and says what the pods say. With an error the verdict tells
// it, and the phase stays what they say: what runs needs nothing that is refused. No verdict:
// they could not be judged.
func (r *Reconciler) ensure(ctx context.Context, rs *kopiav1alpha1.RepositoryServer, revision string) (verdict, error) {
	if revision == "" {
		ran, err := r.scaleToZero(ctx, rs)
		v := verdict{kopiav1alpha1.PhaseStopped, reasonStopped, "no phase has needed it yet"}
		switch {
		case err != nil:
			v.reason, v.message = reasonRefused, steady(rs, "no operation uses it, but it does not stop: "+err.Error())
		case ran:
			v.message = "no operation uses it: the next phase that needs it starts it"
		}
		return v, err
	}
	var pods corev1.PodList
	if err := r.Client.List(ctx, &pods, client.InNamespace(rs.Namespace), client.MatchingLabels(labels(rs))); err != nil {
		return verdict{}, fmt.Errorf("list the pods of repository %s: %w", rs.Name, err)
	}
	v := judge(pods.Items, revision)
	missing, err := r.makeObjects(ctx, rs, revision, v)
	switch {
	case missing != "" && v.mayWork(): // with another one
		v.message += "; waiting for the certificate: " + missing
	case missing != "":
		v = verdict{kopiav1alpha1.PhaseStarting, reasonCertificate, "waiting for the certificate: " + missing}
	case err == nil:
	case v.reason == reasonStarting, v.reason == reasonUnschedulable:
		v.reason, v.message = reasonRefused, steady(rs, "the API server does not take what it needs: "+err.Error())
	default:
		v.message = steady(rs, v.message+"; the API server does not take what it would get now: "+err.Error())
	}
	return v, err
}

// steady is what the Ready condition says already, if that differs in numbers alone: the
// port in an error's words is another one with each try, and a status that changes is looked
// at again at once.
func steady(rs *kopiav1alpha1.RepositoryServer, message string) string {
	words := func(s string) string {
		return strings.Map(func(c rune) rune {
			if unicode.IsDigit(c) {
				return -1
			}
			return c
		}, truncate(s, maxMessage))
	}
	if said := readyMessage(rs); words(said) == words(message) {
		return said
	}
	return message
}

// makeObjects makes what is missing, in the order in which one needs the other. It says
// what the certificate waits for, "" if nothing. The verdict is that of the pods.
func (r *Reconciler) makeObjects(ctx context.Context, rs *kopiav1alpha1.RepositoryServer, revision string, v verdict) (missing string, err error) {
	if rs.Spec.External == nil {
		if err := kube.Apply(ctx, r.Client, buildService(rs)); err != nil {
			return "", err
		}
		// A pod that mounts a Secret before it is there is tried again only after a
		// growing pause, so the Deployment waits for the certificate instead.
		if missing, err := r.certificate(ctx, rs, v); err != nil || missing != "" {
			return missing, err
		}
	}
	var have appsv1.Deployment
	err = r.Client.Get(ctx, client.ObjectKeyFromObject(rs), &have)
	if client.IgnoreNotFound(err) != nil {
		return "", fmt.Errorf("read the server of repository %s: %w", rs.Name, err)
	}
	want := buildDeployment(rs, r.Image, revision, 1)
	// What runs is left as it is, whatever image or resources it would get today: a
	// new pod would cut its operations. Manager.look replaces it when it is idle.
	runs := v.phase != kopiav1alpha1.PhaseFailed && v.reason != reasonUnschedulable
	if have.Spec.Template.Annotations[revisionAnnotation] != revision || have.Spec.Replicas == nil || *have.Spec.Replicas != 1 ||
		!runs && outdated(&have, want) {
		return "", kube.Apply(ctx, r.Client, want)
	}
	return "", nil
}

// outdated says that a Deployment's pods are not what would be made today.
func outdated(have, want *appsv1.Deployment) bool {
	return have.Annotations[templateAnnotation] != want.Annotations[templateAnnotation]
}

// scaleToZero stops the server; false if there has never been one.
func (r *Reconciler) scaleToZero(ctx context.Context, rs *kopiav1alpha1.RepositoryServer) (bool, error) {
	var have appsv1.Deployment
	err := r.Client.Get(ctx, client.ObjectKeyFromObject(rs), &have)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the server of repository %s: %w", rs.Name, err)
	}
	if have.Spec.Replicas == nil || *have.Spec.Replicas != 0 {
		return true, kube.Apply(ctx, r.Client, buildDeployment(rs, r.Image, have.Spec.Template.Annotations[revisionAnnotation], 0))
	}
	return true, nil
}

// certificate asks for one and says what it waits for; "": it is there.
func (r *Reconciler) certificate(ctx context.Context, rs *kopiav1alpha1.RepositoryServer, v verdict) (missing string, err error) {
	if own := ownSecret(rs); own != "" {
		if v.isUp() {
			return "", nil // it has come up with one
		}
		there, err := r.secretExists(ctx, rs, own)
		if err != nil || there {
			return "", err
		}
		return fmt.Sprintf("Secret %s, which spec.tls names, is not there: make it, with the keys tls.crt, tls.key and ca.crt", own), nil
	}
	var cert certmanagerv1.Certificate
	err = r.Client.Get(ctx, client.ObjectKeyFromObject(rs), &cert)
	if client.IgnoreNotFound(err) != nil {
		return "", fmt.Errorf("read the certificate of repository %s: %w", rs.Name, err)
	}
	// One that is as it should be is not written: a cert-manager that is away keeps no
	// server from starting that has its certificate.
	if want := buildCertificate(rs, r.Issuer); !equality.Semantic.DeepEqual(cert.Spec, want.Spec) {
		if err := kube.Apply(ctx, r.Client, want); err != nil {
			return "", err
		}
	}
	if ready, message := certificateReady(&cert); !ready {
		return message, nil
	}
	return "", nil
}

// secretExists looks without a cache, and at no more than that.
func (r *Reconciler) secretExists(ctx context.Context, rs *kopiav1alpha1.RepositoryServer, name string) (bool, error) {
	var secret metav1.PartialObjectMetadata
	secret.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Secret"))
	err := r.Manager.Client.Get(ctx, client.ObjectKey{Namespace: rs.Namespace, Name: name}, &secret)
	if client.IgnoreNotFound(err) != nil {
		return false, fmt.Errorf("look for Secret %s of repository %s: %w", name, rs.Name, err)
	}
	return err == nil, nil
}

// certificateReady says whether a certificate was issued, for names that have not
// changed since. An expiring one stays usable while it is renewed.
func certificateReady(cert *certmanagerv1.Certificate) (bool, string) {
	for _, c := range cert.Status.Conditions {
		if c.Type == certmanagerv1.CertificateConditionReady {
			return c.Status == cmmeta.ConditionTrue, c.Message
		}
	}
	return false, "cert-manager has not answered yet: look at the Certificate of this name if it does not soon"
}

// startPauses are how long the next start waits after so many failures in a row. The
// first is tried again at once: somebody has mended what was wrong.
var startPauses = []time.Duration{0, 10 * time.Second, 30 * time.Second, time.Minute, 2 * time.Minute, 5 * time.Minute}

// judged writes a verdict into the status.
func (r *Reconciler) judged(ctx context.Context, rs *kopiav1alpha1.RepositoryServer, revision string, v verdict) {
	s := &rs.Status
	now := metav1.NewTime(r.Clock.Now())
	// A server that is stopped refuses nothing, and whether the storage answers nobody knows.
	if c := meta.FindStatusCondition(s.Conditions, kopiav1alpha1.ConditionDegraded); c != nil &&
		(c.Reason == reasonLocationTaken && v.reason != reasonLocationTaken || c.Reason == reasonStorage && v.phase == kopiav1alpha1.PhaseStopped) {
		r.degraded(rs, false, v.reason, "")
	}
	switch {
	case v.phase == kopiav1alpha1.PhaseReady:
		s.Failures, s.NextTry = 0, nil
		if s.Initialized == nil && rs.Spec.External == nil {
			s.Initialized = &now
		}
		if s.Phase != v.phase || s.Revision != revision {
			s.LastUsed = &now
		}
		// Whether the storage answers is for the server to say: lookAt.
		if c := meta.FindStatusCondition(s.Conditions, kopiav1alpha1.ConditionDegraded); c == nil || c.Reason != reasonStorage {
			r.degraded(rs, false, v.reason, "")
		}
	case v.phase == kopiav1alpha1.PhaseFailed:
		if s.Phase != v.phase || s.Revision != revision {
			s.Failures++
			next := metav1.NewTime(now.Add(startPauses[min(int(s.Failures)-1, len(startPauses)-1)]))
			s.NextTry = &next
		}
		r.degraded(rs, true, v.reason, v.message)
	}
	if v.phase != kopiav1alpha1.PhaseReady {
		s.Users = 0
	}
	s.Phase = v.phase
	s.Revision = revision
	s.ObservedGeneration = rs.Generation
	if v.phase == kopiav1alpha1.PhaseReady {
		s.URL = serverURL(rs)
		if ca, err := r.Manager.caOf(ctx, rs); err == nil {
			s.CA = ca
		}
	}
	r.condition(rs, kopiav1alpha1.ConditionReady, v.phase == kopiav1alpha1.PhaseReady, v.reason, cmp.Or(v.message, string(v.phase)))
}

func (r *Reconciler) degraded(rs *kopiav1alpha1.RepositoryServer, yes bool, reason, message string) {
	r.condition(rs, kopiav1alpha1.ConditionDegraded, yes, reason, message)
}

// maxMessage is how much of an error a condition says.
const maxMessage = 2048

func (r *Reconciler) condition(rs *kopiav1alpha1.RepositoryServer, name string, yes bool, reason, message string) {
	status := metav1.ConditionFalse
	if yes {
		status = metav1.ConditionTrue
	}
	meta.SetStatusCondition(&rs.Status.Conditions, metav1.Condition{
		Type: name, Status: status, Reason: reason, Message: truncate(message, maxMessage), ObservedGeneration: rs.Generation,
	})
}

// report writes the status if it has changed.
func (r *Reconciler) report(ctx context.Context, before, rs *kopiav1alpha1.RepositoryServer) error {
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
