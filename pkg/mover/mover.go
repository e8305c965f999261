// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/fields"
	"sigs.k8s.io/controller-runtime/pkg/client"

	agentclient "github.com/kanister-kopia/kanister-kopia/agent/client"
	"github.com/kanister-kopia/kanister-kopia/pkg/kube"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

const (
	// startTimeout bounds how long a pod may take to run: volumes are made and
	// attached, images pulled.
	startTimeout = 10 * time.Minute
	// unschedulableGrace is how long a pod may find no node. A claim that is just
	// being bound makes the scheduler say so for a moment.
	unschedulableGrace = time.Minute
	deleteTimeout      = 30 * time.Second
)

// Movers starts movers.
type Movers struct {
	// Client reads and watches without a cache.
	Client client.WithWatch
	// Agents reaches the agent in a pod.
	Agents interface {
		Connect(ctx context.Context, namespace, pod, container string) (*agentclient.Client, error)
	}
	// CA publishes the CA in the mover's namespace; agents trust nothing without it.
	CA interface {
		Publish(ctx context.Context, namespace string) error
	}
	Image      string
	PullPolicy corev1.PullPolicy
}

// Mover is a running one.
type Mover struct {
	// Agent answers.
	Agent  *agentclient.Client
	client client.Client
	pod    *corev1.Pod
	spec   Spec
}

// VolumeOf is the name under which the agent knows a claim.
func (m *Mover) VolumeOf(claim string) string { return m.spec.VolumeOf(claim) }

// Pod is the pod's name.
func (m *Mover) Pod() string { return m.pod.Name }

// Start makes the pod, or finds the one of the same operation, and waits until
// its agent answers. Stop it, also if ctx ended meanwhile; when Start fails,
// nothing is left behind.
func (m *Movers) Start(ctx context.Context, spec Spec) (*Mover, error) {
	for _, claim := range spec.Claims {
		var pvc corev1.PersistentVolumeClaim
		if err := m.Client.Get(ctx, client.ObjectKey{Namespace: spec.Namespace, Name: claim}, &pvc); err != nil {
			return nil, fmt.Errorf("Failed to retrieve PVC. Namespace %s, Name %s: %w", spec.Namespace, claim, err) // Kanister's text
		}
		if mode := pvc.Spec.VolumeMode; mode != nil && *mode == corev1.PersistentVolumeBlock {
			spec.Devices = append(spec.Devices, claim)
		}
	}
	if spec.Node == "" {
		node, err := m.attachedNode(ctx, spec.Namespace, spec.Claims)
		if err != nil {
			return nil, err
		}
		spec.Node = node
	}
	if err := m.CA.Publish(ctx, spec.Namespace); err != nil {
		return nil, err
	}
	pod, err := Build(spec, m.Image, m.PullPolicy)
	if err != nil {
		return nil, err
	}
	mover := &Mover{client: m.Client, pod: pod, spec: spec}
	if err := m.create(ctx, pod); err != nil {
		return nil, err
	}
	err = m.awaitRunning(ctx, pod)
	if err == nil {
		mover.Agent, err = m.Agents.Connect(ctx, pod.Namespace, pod.Name, names.MoverContainer)
	}
	if err != nil {
		err = fmt.Errorf("start pod %s/%s: %w", pod.Namespace, pod.Name, err)
		return nil, errors.Join(err, mover.Stop(ctx))
	}
	return mover, nil
}

// Stop deletes the pod. It works with a context that ended: cancelled operations
// leave nothing behind either.
func (m *Mover) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), deleteTimeout)
	defer cancel()
	if m.Agent != nil {
		m.Agent.Close()
	}
	if err := m.client.Delete(ctx, m.pod); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete pod %s/%s: %w", m.pod.Namespace, m.pod.Name, err)
	}
	return nil
}

// create makes the pod. One of the same operation that still works is taken over
// (a controller was restarted); one that ended is replaced.
func (m *Movers) create(ctx context.Context, pod *corev1.Pod) error {
	key := client.ObjectKeyFromObject(pod)
	for {
		fresh := pod.DeepCopy()
		err := m.Client.Create(ctx, fresh)
		if err == nil {
			*pod = *fresh
			return nil
		}
		if !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("make pod %s: %w%s", key, err, createHint(err, pod.Namespace))
		}
		var old corev1.Pod
		if err := m.Client.Get(ctx, key, &old); apierrors.IsNotFound(err) {
			continue
		} else if err != nil {
			return fmt.Errorf("look for pod %s: %w", key, err)
		}
		if old.Labels[names.ManagedByLabel] != names.ManagedByValue || old.Annotations[operationAnnotation] != pod.Annotations[operationAnnotation] {
			return fmt.Errorf("make pod %s: there is one of this name that is not ours: delete it", key)
		}
		done := old.Status.Phase == corev1.PodFailed || old.Status.Phase == corev1.PodSucceeded
		if old.DeletionTimestamp == nil && !done {
			*pod = old
			return nil
		}
		if err := m.Client.Delete(ctx, &old); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("replace pod %s: %w", key, err)
		}
		err = kube.Await(ctx, m.Client, key, &corev1.Pod{}, &corev1.PodList{}, func(p *corev1.Pod) (bool, error) {
			return p.UID != old.UID, nil
		})
		if err != nil && !errors.Is(err, kube.ErrGone) {
			return fmt.Errorf("replace pod %s: %w", key, err)
		}
	}
}

func createHint(err error, namespace string) string {
	if apierrors.IsForbidden(err) && strings.Contains(err.Error(), "cannot create resource") {
		return fmt.Sprintf(" (bind ClusterRole kanister-kopia-namespace to the controller in namespace %s)", namespace)
	}
	return ""
}

var errStartTimeout = fmt.Errorf("not running after %s", startTimeout)

// awaitRunning waits until the agent's container runs.
func (m *Movers) awaitRunning(ctx context.Context, pod *corev1.Pod) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timeout := time.AfterFunc(startTimeout, func() { cancel(errStartTimeout) })
	defer timeout.Stop()

	var homeless *time.Timer // runs while no node takes the pod
	defer func() {
		if homeless != nil {
			homeless.Stop()
		}
	}()
	err := kube.Await(ctx, m.Client, client.ObjectKeyFromObject(pod), &corev1.Pod{}, &corev1.PodList{},
		func(p *corev1.Pod) (bool, error) {
			if f := kube.Failure(p, names.MoverContainer); f != nil {
				return false, fmt.Errorf("%s: %s", f.Reason, f.Message)
			}
			why := kube.Unschedulable(p)
			switch {
			case why == "" && homeless != nil:
				homeless.Stop()
				homeless = nil
			case why != "" && homeless == nil:
				homeless = time.AfterFunc(unschedulableGrace, func() {
					cancel(fmt.Errorf("no node takes the pod: %s", why))
				})
			}
			return slices.ContainsFunc(p.Status.ContainerStatuses, func(s corev1.ContainerStatus) bool {
				return s.Name == names.MoverContainer && s.State.Running != nil
			}), nil
		})
	if errors.Is(err, errStartTimeout) {
		// What holds a pod up before its containers start, volumes above all, shows
		// in its events only.
		if why := m.lastWarning(context.WithoutCancel(ctx), pod); why != "" {
			err = fmt.Errorf("%w: %s", errStartTimeout, why)
		}
	}
	return err
}

func (m *Movers) lastWarning(ctx context.Context, pod *corev1.Pod) string {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var events corev1.EventList
	if err := m.Client.List(ctx, &events, client.InNamespace(pod.Namespace), client.MatchingFieldsSelector{
		Selector: fields.OneTermEqualSelector("involvedObject.uid", string(pod.UID)),
	}); err != nil {
		return ""
	}
	last := ""
	var when time.Time
	for _, e := range events.Items {
		if at := latest(e.LastTimestamp.Time, e.EventTime.Time); e.Type == corev1.EventTypeWarning && !at.Before(when) {
			last, when = e.Reason+": "+e.Message, at
		}
	}
	return last
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// attachedNode is where a pod uses one of the claims, "" if none does: most
// volumes can be attached to one node only.
func (m *Movers) attachedNode(ctx context.Context, namespace string, claims []string) (string, error) {
	var pods corev1.PodList
	if err := m.Client.List(ctx, &pods, client.InNamespace(namespace)); err != nil {
		return "", fmt.Errorf("look for pods that use the claims: %w", err)
	}
	return nodeOf(pods.Items, claims), nil
}

func nodeOf(pods []corev1.Pod, claims []string) string {
	for _, pod := range pods {
		if pod.Spec.NodeName == "" || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
			continue
		}
		for _, v := range pod.Spec.Volumes {
			if c := v.PersistentVolumeClaim; c != nil && slices.Contains(claims, c.ClaimName) {
				return pod.Spec.NodeName
			}
		}
	}
	return ""
}
