// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/kube"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// Two maintenances of one repository at once destroy it, and Kopia's own lock is a
// file of one machine. Three things keep them apart. The pod has a fixed name, so the
// API server refuses a second one before the first object is gone. The run holds the
// repository's Lease from before its pod is made until the kubelet has said that the
// container ended; if nobody said so (the pod was removed by force from a node that
// is out of reach) the Lease runs out only when the kubelet, wherever it is, has
// ended the container by its deadline. And Kopia refuses whoever is not the owner.
//
// A controller may die between any two of these steps. So the Lease is taken for
// minutes, and the pod is made with a gate that keeps it from every node. Then the
// Lease is prolonged to as long as the run may take, and only then the gate is opened.
// A Lease that was not prolonged is one whose run never started, and runs out soon.

// maintenanceComponent is the value of names.ComponentLabel of maintenance pods.
const maintenanceComponent = "repository-maintenance"

const (
	// runDeadline bounds one maintenance; the kubelet enforces it.
	runDeadline = 12 * time.Hour
	// leaseDuration is longer: by then no container of the run is left.
	leaseDuration = runDeadline + 30*time.Minute
	// takeDuration is for making the pod: until it is over, or the Lease prolonged.
	takeDuration = 5 * time.Minute
	// mostRuns is how many repositories are maintained at once.
	mostRuns = 2
	// nodePatience is how long a run's pod waits for a node.
	nodePatience = 15 * time.Minute
	// runPause is when a run that found no room, or met a Lease, is tried again.
	runPause = time.Minute
)

// modeAnnotation on a maintenance pod says which maintenance it does, admittedAnnotation
// when nodes were let take it.
const (
	modeAnnotation     = names.Group + "/maintenance"
	admittedAnnotation = names.Group + "/admitted"
)

const (
	modeQuick = "quick"
	modeFull  = "full"
)

// Intervals of maintenance whose spec has none. Nothing of the indexes can be
// compacted before an epoch of six hours ends.
const (
	defaultQuick  = 6 * time.Hour
	defaultFull   = 24 * time.Hour
	defaultVerify = 1
)

func maintenanceName(rs *kopiav1alpha1.RepositoryServer) string { return rs.Name + "-maintenance" }

func maintenanceLabels(rs *kopiav1alpha1.RepositoryServer) map[string]string {
	l := labels(rs)
	l[names.ComponentLabel] = maintenanceComponent
	return l
}

func isSuspended(rs *kopiav1alpha1.RepositoryServer) bool {
	return rs.Spec.Maintenance != nil && rs.Spec.Maintenance.Suspend
}

// due says which maintenance is to run now, or after which pause one is. "" and 0:
// none ever.
func due(rs *kopiav1alpha1.RepositoryServer, now time.Time) (mode string, pause time.Duration) {
	m := rs.Spec.Maintenance
	if m == nil {
		m = &kopiav1alpha1.Maintenance{}
	}
	if rs.Status.Initialized == nil || rs.Spec.External != nil || isSuspended(rs) {
		return "", 0
	}
	var s kopiav1alpha1.MaintenanceStatus
	if rs.Status.Maintenance != nil {
		s = *rs.Status.Maintenance
	}
	last := func(times ...*metav1.Time) time.Time {
		latest := rs.Status.Initialized.Time
		for _, t := range times {
			if t != nil && t.After(latest) {
				latest = t.Time
			}
		}
		return latest
	}
	fullAt := latest(last(s.LastFull).Add(orDefault(m.FullInterval, defaultFull)), retryAt(s.LastFullAttempt, s.FullFailures))
	quickAt := latest(last(s.LastQuick, s.LastFull).Add(orDefault(m.QuickInterval, defaultQuick)), retryAt(s.LastQuickAttempt, s.QuickFailures))
	// An unused repository has no new indexes.
	if used := rs.Status.LastUsed; used == nil || used.Time.Before(last(s.LastQuick, s.LastFull)) {
		quickAt = fullAt
	}
	switch {
	case !now.Before(fullAt):
		return modeFull, 0
	case !now.Before(quickAt): // while a full one that failed waits, too
		return modeQuick, 0
	}
	return "", min(fullAt.Sub(now), quickAt.Sub(now))
}

// retryAt is when one that failed is tried again: soon, then less and less often.
func retryAt(attempt *metav1.Time, failures int32) time.Time {
	if failures == 0 || attempt == nil {
		return time.Time{}
	}
	return attempt.Add(min(5*time.Minute<<min(failures, 10), 6*time.Hour))
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

func orDefault(d *metav1.Duration, otherwise time.Duration) time.Duration {
	if d == nil {
		return otherwise
	}
	return d.Duration
}

// maintain takes the next step of a repository's maintenance, and says when to look
// again; 0: when its pod changes. What it learns goes into the status; before is rs as
// it is stored.
func (r *Reconciler) maintain(ctx context.Context, before, rs *kopiav1alpha1.RepositoryServer) (time.Duration, error) {
	var pod corev1.Pod
	err := r.Client.Get(ctx, client.ObjectKey{Namespace: rs.Namespace, Name: maintenanceName(rs)}, &pod)
	switch {
	case apierrors.IsNotFound(err):
		r.suspended(rs)
		mode, pause := due(rs, r.Clock.Now())
		if mode == "" {
			return pause, nil
		}
		return r.startMaintenance(ctx, rs, mode)
	case err != nil:
		return 0, fmt.Errorf("read the maintenance pod of repository %s: %w", rs.Name, err)
	case pod.DeletionTimestamp != nil:
		if hasRun(&pod) {
			if err := r.takeOutcome(ctx, before, rs, &pod); err != nil {
				return 0, err
			}
		}
		return r.buryMaintenance(ctx, rs, &pod)
	case pod.Spec.NodeName == "" && isSuspended(rs):
		_, err := r.withdraw(ctx, rs, &pod)
		return runPause, err
	case len(pod.Spec.SchedulingGates) > 0:
		return r.admitMaintenance(ctx, rs, &pod)
	case pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed && pod.Spec.NodeName == "":
		return r.awaitNode(ctx, rs, &pod)
	case pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed:
		forgetCondition(rs, reasonUnschedulable)
		if f := kube.Failure(&pod, Container); f == nil || f.Reason != "ImageUnavailable" && f.Reason != "ContainerRefused" {
			return 0, nil
		}
		// It never ran, and waiting does not change it.
	}
	return 0, r.endMaintenance(ctx, before, rs, &pod)
}

// awaitNode waits for a node that takes the pod, and ends it when that takes too long: it
// keeps the Lease, and the next try may ask for less.
func (r *Reconciler) awaitNode(ctx context.Context, rs *kopiav1alpha1.RepositoryServer, pod *corev1.Pod) (time.Duration, error) {
	why := kube.Unschedulable(pod)
	problem := fmt.Sprintf("no node takes its pod: %s: give the cluster room for what it requests, or let spec.maintenance.resources request less",
		cmp.Or(why, "no scheduler has said why"))
	if left := admittedAt(pod).Add(nodePatience).Sub(r.Clock.Now()); left > 0 {
		if why != "" {
			r.unmaintained(rs, pod, reasonUnschedulable, problem)
		}
		return left, nil
	}
	gone, err := r.withdraw(ctx, rs, pod)
	if err != nil || !gone {
		return runPause, err
	}
	r.failed(rs, pod, reasonUnschedulable, problem)
	return runPause, nil
}

// withdraw removes the pod of a run that no node has, and gives its Lease back; false: the
// pod has changed. Its gate may be opened, or a node take it, at this very moment: then the
// run has its Lease as long as it may take.
func (r *Reconciler) withdraw(ctx context.Context, rs *kopiav1alpha1.RepositoryServer, pod *corev1.Pod) (bool, error) {
	err := r.Client.Delete(ctx, pod, client.Preconditions{UID: &pod.UID, ResourceVersion: &pod.ResourceVersion})
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("remove the maintenance pod of repository %s, which no node has: %w", rs.Name, err)
	}
	return true, r.giveLease(ctx, rs, pod.Annotations[runAnnotation])
}

// admittedAt is when a pod's gate was opened.
func admittedAt(pod *corev1.Pod) time.Time {
	if at, err := time.Parse(time.RFC3339, pod.Annotations[admittedAnnotation]); err == nil {
		return at
	}
	return pod.CreationTimestamp.Time
}

// Reasons of the Maintained condition.
const (
	reasonNoKeys    = "NoStorageKeys"
	reasonSuspended = "Suspended"
	reasonFailed    = "Failed"
)

// forgetCondition takes the Maintained condition away if it has a reason that has gone.
func forgetCondition(rs *kopiav1alpha1.RepositoryServer, reason string) {
	if c := meta.FindStatusCondition(rs.Status.Conditions, kopiav1alpha1.ConditionMaintained); c != nil && c.Reason == reason {
		meta.RemoveStatusCondition(&rs.Status.Conditions, kopiav1alpha1.ConditionMaintained)
	}
}

// suspended warns of locks that nobody extends, and takes back what no run will mend here.
func (r *Reconciler) suspended(rs *kopiav1alpha1.RepositoryServer) {
	c := meta.FindStatusCondition(rs.Status.Conditions, kopiav1alpha1.ConditionMaintained)
	switch {
	case !isSuspended(rs):
		forgetCondition(rs, reasonSuspended)
	case rs.Spec.Format != nil && rs.Spec.Format.ObjectLock != nil:
		r.condition(rs, kopiav1alpha1.ConditionMaintained, false, reasonSuspended, fmt.Sprintf(
			"spec.maintenance.suspend is set: unless another cluster maintains the repository, its object locks end %s after they were last extended: "+
				"remove the field when no other cluster does", rs.Spec.Format.ObjectLock.Period.Duration))
	case c != nil && c.Status == metav1.ConditionFalse:
		meta.SetStatusCondition(&rs.Status.Conditions, metav1.Condition{
			Type: kopiav1alpha1.ConditionMaintained, Status: metav1.ConditionUnknown, Reason: reasonSuspended, ObservedGeneration: rs.Generation,
			Message: "spec.maintenance.suspend is set: another cluster maintains the repository, or nobody does",
		})
	}
}

// startMaintenance takes the Lease and makes the pod.
func (r *Reconciler) startMaintenance(ctx context.Context, rs *kopiav1alpha1.RepositoryServer, mode string) (time.Duration, error) {
	// Without the storage's keys its pod would wait for them until its deadline, in
	// another repository's place.
	keys, err := r.secretExists(ctx, rs, configSecretName(rs))
	if err != nil {
		return 0, err
	}
	if !keys {
		r.condition(rs, kopiav1alpha1.ConditionMaintained, false, reasonNoKeys, fmt.Sprintf(
			"%s maintenance is due, but Secret %s, which holds the keys of the storage, is not there, as after an import: "+
				"the first action that uses the repository makes it: run one, such as a backup or a restore", mode, configSecretName(rs)))
		return 0, nil // who brings them changes the RepositoryServer
	}
	var pods corev1.PodList
	if err := r.Client.List(ctx, &pods, client.InNamespace(rs.Namespace), client.MatchingLabels{names.ComponentLabel: maintenanceComponent}); err != nil {
		return 0, fmt.Errorf("list maintenance pods: %w", err)
	}
	// One that is about to end, for hours if its node is gone, takes no other repository's
	// place, nor does one that no node takes.
	runs := slices.DeleteFunc(pods.Items, func(p corev1.Pod) bool {
		return p.DeletionTimestamp != nil || p.Spec.NodeName == "" && kube.Unschedulable(&p) != ""
	})
	if len(runs) >= mostRuns {
		return runPause, nil
	}
	run := rand.Text()
	left, err := r.takeLease(ctx, rs, run)
	if err != nil || left > 0 {
		return max(left, runPause), err
	}
	err = r.Client.Create(ctx, buildMaintenancePod(rs, r.Image, mode, run))
	if apierrors.IsAlreadyExists(err) {
		return runPause, nil // a cache that was behind
	}
	if err != nil {
		r.condition(rs, kopiav1alpha1.ConditionMaintained, false, reasonRefused, fmt.Sprintf(
			"%s maintenance is due, but the API server does not take its pod: %s", mode, err))
		return 0, fmt.Errorf("start maintenance of repository %s: %w", rs.Name, err)
	}
	tried(rs, mode, metav1.NewTime(r.Clock.Now()))
	forgetCondition(rs, reasonNoKeys)
	forgetCondition(rs, reasonRefused)
	return 0, nil
}

// tried keeps when a maintenance was last begun.
func tried(rs *kopiav1alpha1.RepositoryServer, mode string, at metav1.Time) {
	if s := maintenanceStatus(rs); mode == modeFull {
		s.LastFullAttempt = &at
	} else {
		s.LastQuickAttempt = &at
	}
}

func maintenanceStatus(rs *kopiav1alpha1.RepositoryServer) *kopiav1alpha1.MaintenanceStatus {
	if rs.Status.Maintenance == nil {
		rs.Status.Maintenance = &kopiav1alpha1.MaintenanceStatus{}
	}
	return rs.Status.Maintenance
}

// maintenanceGate keeps a maintenance pod from every node.
const maintenanceGate = names.Group + "/lease"

// admitMaintenance lets a pod start for which the Lease is held as long as it may
// take. If another run has the Lease, the pod's controller was too late: no container
// of it was ever started, and it goes.
func (r *Reconciler) admitMaintenance(ctx context.Context, rs *kopiav1alpha1.RepositoryServer, pod *corev1.Pod) (time.Duration, error) {
	held, err := r.prolongLease(ctx, rs, pod.Annotations[runAnnotation])
	if err != nil {
		return 0, err
	}
	if !held {
		_, err := r.withdraw(ctx, rs, pod)
		return runPause, err
	}
	open := pod.DeepCopy()
	open.Spec.SchedulingGates = nil
	open.Annotations[admittedAnnotation] = r.Clock.Now().UTC().Format(time.RFC3339)
	// The lock: it may be another run's pod by now.
	err = r.Client.Patch(ctx, open, client.MergeFromWithOptions(pod, client.MergeFromWithOptimisticLock{}))
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return 0, fmt.Errorf("let the maintenance of repository %s start: %w", rs.Name, err)
	}
	return 0, nil
}

// buryMaintenance removes a pod that is about to end, for ever if its node is gone: when a
// run that began as late as the order to end it would be over, wherever its kubelet is. Not
// when its Lease has run out: a pod that waited long for a node may run on after that, and
// one whose Lease was given back, as if it never started, may have started since.
func (r *Reconciler) buryMaintenance(ctx context.Context, rs *kopiav1alpha1.RepositoryServer, pod *corev1.Pod) (time.Duration, error) {
	if left := pod.DeletionTimestamp.Add(leaseDuration).Sub(r.Clock.Now()); left > 0 {
		return left, nil
	}
	err := r.Client.Delete(ctx, pod, client.GracePeriodSeconds(0), client.Preconditions{UID: &pod.UID})
	if client.IgnoreNotFound(err) != nil {
		return 0, fmt.Errorf("remove the maintenance pod of repository %s, whose node is gone: %w", rs.Name, err)
	}
	return 0, nil
}

// takeLease takes the repository's Lease for a run, for as long as it takes to make its
// pod, or says how long another run may have it. The Lease is read without a cache.
func (r *Reconciler) takeLease(ctx context.Context, rs *kopiav1alpha1.RepositoryServer, run string) (time.Duration, error) {
	now := metav1.NewMicroTime(r.Clock.Now())
	seconds := int32(takeDuration / time.Second)
	var lease coordinationv1.Lease
	err := r.Manager.Client.Get(ctx, client.ObjectKey{Namespace: rs.Namespace, Name: maintenanceName(rs)}, &lease)
	exists := err == nil
	if client.IgnoreNotFound(err) != nil {
		return 0, fmt.Errorf("read the maintenance Lease of repository %s: %w", rs.Name, err)
	}
	if exists && lease.Spec.HolderIdentity != nil && *lease.Spec.HolderIdentity != "" && lease.Spec.RenewTime != nil {
		held := leaseDuration
		if lease.Spec.LeaseDurationSeconds != nil {
			held = time.Duration(*lease.Spec.LeaseDurationSeconds) * time.Second
		}
		if left := lease.Spec.RenewTime.Add(held).Sub(now.Time); left > 0 {
			return left, nil
		}
	}
	lease.Spec = coordinationv1.LeaseSpec{HolderIdentity: &run, AcquireTime: &now, RenewTime: &now, LeaseDurationSeconds: &seconds}
	if exists {
		err = r.Manager.Client.Update(ctx, &lease) // refused if somebody else took it meanwhile
	} else {
		lease.ObjectMeta = ownedMeta(rs, maintenanceName(rs))
		err = r.Manager.Client.Create(ctx, &lease)
	}
	switch {
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err):
		return runPause, nil
	case err != nil:
		return 0, fmt.Errorf("take the maintenance Lease of repository %s: %w", rs.Name, err)
	}
	return 0, nil
}

// prolongLease holds the Lease of a run for as long as the run may take; false: it is
// not the run's any more.
func (r *Reconciler) prolongLease(ctx context.Context, rs *kopiav1alpha1.RepositoryServer, run string) (bool, error) {
	now := metav1.NewMicroTime(r.Clock.Now())
	seconds := int32(leaseDuration / time.Second)
	held, err := r.changeLease(ctx, rs, run, func(l *coordinationv1.LeaseSpec) {
		l.RenewTime, l.LeaseDurationSeconds = &now, &seconds
	})
	if err != nil {
		return false, fmt.Errorf("prolong the maintenance Lease of repository %s: %w", rs.Name, err)
	}
	return held, nil
}

// giveLease gives the Lease of a run back.
func (r *Reconciler) giveLease(ctx context.Context, rs *kopiav1alpha1.RepositoryServer, run string) error {
	_, err := r.changeLease(ctx, rs, run, func(l *coordinationv1.LeaseSpec) { l.HolderIdentity = nil })
	if err != nil {
		return fmt.Errorf("give back the maintenance Lease of repository %s: %w", rs.Name, err)
	}
	return nil
}

// changeLease changes the Lease if it is a run's; else it returns false. It fails if
// anybody changes it meanwhile.
func (r *Reconciler) changeLease(ctx context.Context, rs *kopiav1alpha1.RepositoryServer, run string, change func(*coordinationv1.LeaseSpec)) (bool, error) {
	var lease coordinationv1.Lease
	err := r.Manager.Client.Get(ctx, client.ObjectKey{Namespace: rs.Namespace, Name: maintenanceName(rs)}, &lease)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil || lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity != run {
		return false, err
	}
	change(&lease.Spec)
	return true, r.Manager.Client.Update(ctx, &lease)
}

// endMaintenance takes the outcome of a run that has ended and removes its pod. The
// status is written before the pod goes, so that a controller killed in between reads
// the outcome again, and counts it once.
func (r *Reconciler) endMaintenance(ctx context.Context, before, rs *kopiav1alpha1.RepositoryServer, pod *corev1.Pod) error {
	if err := r.takeOutcome(ctx, before, rs, pod); err != nil {
		return err
	}
	err := r.Client.Delete(ctx, pod, client.Preconditions{UID: &pod.UID})
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("remove the maintenance pod of repository %s: %w", rs.Name, err)
	}
	return nil
}

// takeOutcome counts a run that has ended and gives its Lease back, if that is certain.
func (r *Reconciler) takeOutcome(ctx context.Context, before, rs *kopiav1alpha1.RepositoryServer, pod *corev1.Pod) error {
	run := pod.Annotations[runAnnotation]
	if s := maintenanceStatus(rs); s.LastRun != run {
		r.outcome(rs, pod)
		s.LastRun = run
	}
	if err := r.report(ctx, before, rs); err != nil {
		return err
	}
	*before = *rs.DeepCopy()
	if ended(pod) {
		return r.giveLease(ctx, rs, run)
	}
	return nil
}

// hasRun says that the kubelet saw the container of a pod run to its end. For a pod that is
// about to end nothing less will do: one that waits there may have been started since, by a
// kubelet that is out of reach. The object may go between the kubelet's word and our look:
// then the Lease runs out. A finalizer would keep it, and would keep pods for ever where the
// controller was removed before them.
func hasRun(pod *corev1.Pod) bool {
	return (pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed) &&
		slices.ContainsFunc(pod.Status.ContainerStatuses, func(s corev1.ContainerStatus) bool { return s.Name == Container && s.State.Terminated != nil })
}

// ended says that the kubelet saw the container end, or never started it. That it waits is
// no word of the kubelet's where the control plane has failed the pod because its Node
// object is gone: a kubelet out of reach may have started it since.
func ended(pod *corev1.Pod) bool {
	if pod.Spec.NodeName == "" {
		return true
	}
	orphaned := slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.DisruptionTarget && c.Reason == orphanedReason
	})
	return slices.ContainsFunc(pod.Status.ContainerStatuses, func(s corev1.ContainerStatus) bool {
		return s.Name == Container &&
			(s.State.Terminated != nil || !orphaned && s.State.Waiting != nil && s.LastTerminationState.Terminated == nil && s.RestartCount == 0)
	})
}

// orphanedReason is what Kubernetes' pod garbage collection says of a pod without a node,
// which it fails first and then deletes by force.
const orphanedReason = "DeletionByPodGC"

// maintenanceResult is what the pod writes as its termination message. It mirrors
// repositoryserver.MaintenanceResult, which cannot be imported: it would link Kopia.
type maintenanceResult struct {
	Seconds             int64 `json:"seconds"`
	IndexBlobs          int64 `json:"indexBlobs"`
	Contents            int64 `json:"contents"`
	StoredBytes         int64 `json:"storedBytes"`
	Sources             int64 `json:"sources"`
	FreedBytes          int64 `json:"freedBytes"`
	IncompleteCollected int64 `json:"incompleteCollected"`
	UnrecordedCollected int64 `json:"unrecordedCollected"`
	UnusableCollected   int64 `json:"unusableCollected"`
	VerifiedSnapshots   int64 `json:"verifiedSnapshots"`
	VerifiedFiles       int64 `json:"verifiedFiles"`
}

// outcome writes a run's outcome into the status.
func (r *Reconciler) outcome(rs *kopiav1alpha1.RepositoryServer, pod *corev1.Pod) {
	result, err := resultOf(pod)
	if err != nil {
		r.failed(rs, pod, reasonFailed, err.Error())
		return
	}
	s, began := maintenanceStatus(rs), pod.CreationTimestamp
	tried(rs, pod.Annotations[modeAnnotation], began)
	s.QuickFailures = 0
	s.LastSuccess, s.LastQuick = &began, &began
	s.Duration = &metav1.Duration{Duration: time.Duration(result.Seconds) * time.Second}
	s.IndexBlobs, s.Contents, s.StoredBytes, s.Sources = result.IndexBlobs, result.Contents, result.StoredBytes, result.Sources
	r.crowded(rs)
	if pod.Annotations[modeAnnotation] == modeFull {
		s.LastFull, s.FullFailures = &began, 0
		s.FreedBytes, s.IncompleteCollected = result.FreedBytes, result.IncompleteCollected
		s.UnrecordedCollected, s.UnusableCollected = result.UnrecordedCollected, result.UnusableCollected
		s.VerifiedSnapshots, s.VerifiedFiles = result.VerifiedSnapshots, result.VerifiedFiles
	}
	c := meta.FindStatusCondition(rs.Status.Conditions, kopiav1alpha1.ConditionMaintained)
	switch {
	case s.FullFailures == 0:
		r.condition(rs, kopiav1alpha1.ConditionMaintained, true, "Succeeded", pod.Annotations[modeAnnotation]+" maintenance succeeded")
	case c == nil || c.Reason != reasonFailed:
		r.condition(rs, kopiav1alpha1.ConditionMaintained, false, reasonFailed, fmt.Sprintf(
			"quick maintenance succeeds, but full maintenance has failed %d times: the next, until %s, says why",
			s.FullFailures, retryAt(s.LastFullAttempt, s.FullFailures).UTC().Format(time.RFC3339)))
	}
}

// failed counts a run that came to nothing. What keeps the full ones from succeeding stays
// in the condition, whatever becomes of quick ones: a full one does all that they do.
func (r *Reconciler) failed(rs *kopiav1alpha1.RepositoryServer, pod *corev1.Pod, reason, problem string) {
	s, mode := maintenanceStatus(rs), pod.Annotations[modeAnnotation]
	tried(rs, mode, pod.CreationTimestamp)
	if mode == modeFull {
		s.FullFailures++
	} else {
		s.QuickFailures++
	}
	if mode == modeFull || s.FullFailures == 0 {
		r.unmaintained(rs, pod, reason, problem)
	}
}

func (r *Reconciler) unmaintained(rs *kopiav1alpha1.RepositoryServer, pod *corev1.Pod, reason, problem string) {
	r.condition(rs, kopiav1alpha1.ConditionMaintained, false, reason, fmt.Sprintf(
		"%s maintenance of %s: %s", pod.Annotations[modeAnnotation], pod.CreationTimestamp.UTC().Format(time.RFC3339), problem))
}

// mostSources of a repository are known to be fine. A server's start looks through all
// snapshots once for each source: with 1,000 sources of 20 snapshots it takes a quarter
// of a minute, with twice as many sources four times as long.
const mostSources = 500

// crowded warns of a repository whose server starts slowly.
func (r *Reconciler) crowded(rs *kopiav1alpha1.RepositoryServer) {
	n := rs.Status.Maintenance.Sources
	if n <= mostSources {
		r.condition(rs, kopiav1alpha1.ConditionCrowded, false, "WithinLimit", "")
		return
	}
	r.condition(rs, kopiav1alpha1.ConditionCrowded, true, "TooManySources", fmt.Sprintf(
		"it holds backups of %d sources (volumes, or paths of them), and its server starts more slowly with each beyond %d: "+
			"delete the backups of what is gone, let fewer namespaces share it, or give some Blueprints a Profile with another prefix", n, mostSources))
}

// resultOf reads what a pod that has ended says.
func resultOf(pod *corev1.Pod) (maintenanceResult, error) {
	var result maintenanceResult
	if pod.Status.Phase != corev1.PodSucceeded {
		if pod.Status.Reason == "DeadlineExceeded" && !hasBegun(pod) {
			return result, fmt.Errorf("its container did not start within %s: look at what it mounts, such as a volume that another node has", runDeadline)
		}
		if pod.Status.Reason == "DeadlineExceeded" {
			return result, fmt.Errorf("it took longer than %s: raise spec.maintenance.resources", runDeadline)
		}
		f := kube.Failure(pod, Container)
		switch {
		case f == nil:
			return result, errors.New("its pod failed without a reason")
		case f.Reason == "OutOfMemory":
			return result, errors.New("it ran out of memory: raise spec.maintenance.resources.limits.memory")
		}
		return result, errors.New(f.Message)
	}
	for _, s := range pod.Status.ContainerStatuses {
		if s.Name == Container && s.State.Terminated != nil {
			if err := json.Unmarshal([]byte(s.State.Terminated.Message), &result); err != nil {
				return result, fmt.Errorf("read its result: %w", err)
			}
			return result, nil
		}
	}
	return result, errors.New("its pod succeeded without a result")
}

// hasBegun says that the container was ever started. The kubelet says of one that was not
// that it waits, or that it ended without having begun.
func hasBegun(pod *corev1.Pod) bool {
	return !slices.ContainsFunc(pod.Status.ContainerStatuses, func(s corev1.ContainerStatus) bool {
		return s.Name == Container && (s.State.Waiting != nil || s.State.Terminated != nil && s.State.Terminated.StartedAt.IsZero())
	})
}

// runAnnotation on a maintenance pod names the holder of the Lease.
const runAnnotation = names.Group + "/run"

// defaultMaintenanceResources are for repositories of some million contents.
func defaultMaintenanceResources() corev1.ResourceRequirements {
	return corev1.ResourceRequirements{
		Requests: corev1.ResourceList{
			corev1.ResourceCPU:    resource.MustParse("50m"),
			corev1.ResourceMemory: resource.MustParse("128Mi"),
		},
		Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi")},
	}
}

func buildMaintenancePod(rs *kopiav1alpha1.RepositoryServer, image Image, mode, run string) *corev1.Pod {
	resources, verify := defaultMaintenanceResources(), int32(defaultVerify)
	if m := rs.Spec.Maintenance; m != nil {
		if len(m.Resources.Requests) > 0 || len(m.Resources.Limits) > 0 {
			resources = m.Resources
		}
		if m.VerifyPercent != nil {
			verify = *m.VerifyPercent
		}
	}
	if mode != modeFull {
		verify = 0
	}
	deadline := int64(runDeadline / time.Second)
	spec := podSpec(rs, image, resources)
	spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: maintenanceGate}}
	spec.RestartPolicy = corev1.RestartPolicyNever
	spec.ActiveDeadlineSeconds = &deadline
	spec.Containers[0].Args = []string{"maintain", "--mode", mode, "--verify-percent", strconv.Itoa(int(verify))}
	meta := ownedMeta(rs, maintenanceName(rs))
	meta.Labels = maintenanceLabels(rs)
	meta.Annotations = map[string]string{modeAnnotation: mode, runAnnotation: run}
	return &corev1.Pod{ObjectMeta: meta, Spec: spec}
}
