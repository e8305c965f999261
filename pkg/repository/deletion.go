// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/kube"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// deletionWindow is what a repository's deletion limit counts over. It begins with the first
// deletion and ends as a whole.
const deletionWindow = time.Hour

// defaultDeletionLimit is for objects made before the field was there.
const defaultDeletionLimit = 200

// judgeDeletion counts one more deletion. If it is beyond the limit, wait is how long
// until the next window begins.
func judgeDeletion(rs *kopiav1alpha1.RepositoryServer, now time.Time) (next kopiav1alpha1.Deletions, wait time.Duration) {
	limit := int32(defaultDeletionLimit)
	if rs.Spec.DeletionLimit != nil {
		limit = *rs.Spec.DeletionLimit
	}
	next = kopiav1alpha1.Deletions{Since: metav1.NewTime(now)}
	if d := rs.Status.Deletions; d != nil && now.Sub(d.Since.Time) < deletionWindow {
		next = *d
	}
	next.Count++
	if limit == 0 || next.Count <= limit {
		return next, 0
	}
	// A text that is no time allows nothing.
	if until, err := time.Parse(time.RFC3339, rs.Annotations[names.DeletionsAllowedAnnotation]); err == nil && now.Before(until) {
		return next, 0
	}
	return next, next.Since.Add(deletionWindow).Sub(now)
}

// mayDelete counts a deletion, and waits while it is beyond the repository's limit:
// for the hour to pass, for another limit, or for somebody to say that it is meant. The count is in the
// status, so that a restart of the controller does not begin it anew.
func (m *Manager) mayDelete(ctx context.Context, id string) error {
	key := client.ObjectKey{Namespace: m.Namespace, Name: id}
	for {
		var rs kopiav1alpha1.RepositoryServer
		if err := m.Client.Get(ctx, key, &rs); err != nil {
			return fmt.Errorf("read RepositoryServer %s: %w", id, err)
		}
		next, wait := judgeDeletion(&rs, m.Clock.Now())
		err := m.countDeletion(ctx, &rs, next, wait)
		switch {
		case apierrors.IsConflict(err):
			continue
		case err != nil:
			return fmt.Errorf("count deletions of RepositoryServer %s: %w", id, err)
		case wait == 0:
			return nil
		}
		if err := m.awaitLeave(ctx, &rs, wait); err != nil {
			return err
		}
	}
}

// countDeletion writes the count, or that a deletion is held.
func (m *Manager) countDeletion(ctx context.Context, rs *kopiav1alpha1.RepositoryServer, next kopiav1alpha1.Deletions, wait time.Duration) error {
	before := rs.DeepCopy()
	held := metav1.Condition{
		Type: kopiav1alpha1.ConditionDeletionsHeld, Status: metav1.ConditionFalse, Reason: "WithinLimit", ObservedGeneration: rs.Generation,
	}
	if wait == 0 {
		rs.Status.Deletions = &next
	} else {
		held.Status, held.Reason = metav1.ConditionTrue, "LimitReached"
		held.Message = fmt.Sprintf("%d backups were deleted since %s: further deletions wait until %s, for a higher spec.deletionLimit, or for annotation %s with a time until which they are meant, such as %s",
			next.Count-1, next.Since.UTC().Format(time.RFC3339), next.Since.Add(deletionWindow).UTC().Format(time.RFC3339),
			names.DeletionsAllowedAnnotation, m.Clock.Now().Add(deletionWindow).UTC().Format(time.RFC3339))
	}
	if wait > 0 || meta.FindStatusCondition(rs.Status.Conditions, held.Type) != nil {
		meta.SetStatusCondition(&rs.Status.Conditions, held)
	}
	return m.Client.Status().Patch(ctx, rs, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
}

// released takes back that deletions are held when the hour is over, and says how long
// until then: who waited may have been cancelled.
func (r *Reconciler) released(rs *kopiav1alpha1.RepositoryServer) time.Duration {
	if !meta.IsStatusConditionTrue(rs.Status.Conditions, kopiav1alpha1.ConditionDeletionsHeld) {
		return 0
	}
	if d := rs.Status.Deletions; d != nil {
		if left := d.Since.Add(deletionWindow).Sub(r.Clock.Now()); left > 0 {
			return left
		}
	}
	r.condition(rs, kopiav1alpha1.ConditionDeletionsHeld, false, "WithinLimit", "")
	return 0
}

var errWindowOver = errors.New("the hour is over")

// awaitLeave waits until the annotation or the limit changes, or wait is over.
func (m *Manager) awaitLeave(ctx context.Context, rs *kopiav1alpha1.RepositoryServer, wait time.Duration) error {
	said, limit := rs.Annotations[names.DeletionsAllowedAnnotation], rs.Spec.DeletionLimit
	bounded, cancel := context.WithTimeoutCause(ctx, wait, errWindowOver)
	defer cancel()
	err := kube.Await(bounded, m.Client, client.ObjectKeyFromObject(rs),
		&kopiav1alpha1.RepositoryServer{}, &kopiav1alpha1.RepositoryServerList{},
		func(now *kopiav1alpha1.RepositoryServer) (bool, error) {
			return now.Annotations[names.DeletionsAllowedAnnotation] != said || !ptr.Equal(now.Spec.DeletionLimit, limit), nil
		})
	if errors.Is(err, errWindowOver) {
		return nil
	}
	return err
}
