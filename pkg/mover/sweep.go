// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// Component of a temporary pod that runs a command of a Blueprint.
const TaskComponent = "task"

// sweepInterval is how often leftovers are looked for. Most are deleted by the
// phase that made them: what is left is from a controller that was killed, or
// could not reach the API server.
const sweepInterval = 10 * time.Minute

// Sweeper deletes temporary pods whose operation no longer runs.
type Sweeper struct {
	// Client is not the one that phases wait for: there may be many namespaces.
	Client client.Client
	// Running returns whether an operation still runs, by its id, as of now.
	Running func(ctx context.Context) (func(operation string) bool, error)
	Clock   clock.WithTicker
	Log     *slog.Logger
}

// SetupWithManager starts it with the manager, on its leader: at once, then every
// sweepInterval.
func (s *Sweeper) SetupWithManager(mgr ctrl.Manager) error {
	return mgr.Add(manager.RunnableFunc(func(ctx context.Context) error {
		ticker := s.Clock.NewTicker(sweepInterval)
		defer ticker.Stop()
		for {
			if err := s.Sweep(ctx); err != nil && ctx.Err() == nil {
				s.Log.Warn("leftover pods not swept", "error", err)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-ticker.C():
			}
		}
	}))
}

// Sweep looks once, in every namespace that the controller has its rights in.
func (s *Sweeper) Sweep(ctx context.Context) error {
	var namespaces metav1.PartialObjectMetadataList
	namespaces.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("NamespaceList"))
	if err := s.Client.List(ctx, &namespaces); err != nil {
		return fmt.Errorf("list namespaces: %w", err)
	}
	var pods []corev1.Pod
	for i := range namespaces.Items {
		var list corev1.PodList
		err := s.Client.List(ctx, &list, client.InNamespace(namespaces.Items[i].Name), client.MatchingLabels{names.ManagedByLabel: names.ManagedByValue})
		if apierrors.IsForbidden(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("list temporary pods of namespace %s: %w", namespaces.Items[i].Name, err)
		}
		for _, pod := range list.Items {
			c := pod.Labels[names.ComponentLabel]
			if (c == Component || c == TaskComponent) && pod.Annotations[names.OperationAnnotation] != "" {
				pods = append(pods, pod)
			}
		}
	}
	if len(pods) == 0 {
		return nil
	}
	// Asked after the pods were listed: the operation of a pod that is younger than
	// the answer would look as if it did not run.
	running, err := s.Running(ctx)
	if err != nil {
		return fmt.Errorf("find out what runs: %w", err)
	}
	for i := range pods {
		pod := &pods[i]
		if pod.DeletionTimestamp != nil || running(pod.Annotations[names.OperationAnnotation]) {
			continue
		}
		err := s.Client.Delete(ctx, pod, client.Preconditions{UID: &pod.UID})
		if client.IgnoreNotFound(err) != nil && !apierrors.IsConflict(err) {
			return fmt.Errorf("delete leftover pod %s/%s: %w", pod.Namespace, pod.Name, err)
		}
		s.Log.Info("leftover pod deleted: nothing runs that it was made for", "namespace", pod.Namespace, "pod", pod.Name)
	}
	return nil
}
