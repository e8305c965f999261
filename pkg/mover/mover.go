// SPDX-License-Identifier: Apache-2.0

package mover

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/fields"
	"sigs.k8s.io/controller-runtime/pkg/client"

	agentclient "github.com/kanister-kopia/kanister-kopia/agent/client"
	"github.com/kanister-kopia/kanister-kopia/pkg/kube"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/pkg/volumes"
	"github.com/kanister-kopia/kanister-kopia/webhook/decide"
)

const (
	// defaultStartTimeout is how long a temporary pod may take to run: volumes are
	// made and attached, images pulled, a node added to the cluster. Kanister's.
	defaultStartTimeout = 15 * time.Minute
	deleteTimeout       = 30 * time.Second
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
	// StartTimeout is how long a temporary pod, also one of a companion, may take to run;
	// 0: 15 minutes.
	StartTimeout time.Duration
	Log          *slog.Logger

	// mu keeps two movers from looking for each other at the same time.
	mu sync.Mutex
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
// nothing is left behind, but for the next controller when this one goes away.
func (m *Movers) Start(ctx context.Context, spec Spec) (*Mover, error) {
	if err := m.look(ctx, &spec); err != nil {
		return nil, err
	}
	if err := m.lookForRoot(ctx, &spec); err != nil {
		return nil, err
	}
	if err := m.CA.Publish(ctx, spec.Namespace); err != nil {
		return nil, err
	}
	pod, err := Build(spec, m.Image, m.PullPolicy)
	if err != nil {
		return nil, err
	}
	mover := &Mover{client: m.Client, pod: pod, spec: spec}
	if err := m.create(ctx, pod, spec.Claims); err != nil {
		return nil, err
	}
	err = m.awaitRunning(ctx, pod)
	if err == nil {
		mover.Agent, err = m.Agents.Connect(ctx, pod.Namespace, pod.Name, names.MoverContainer)
	}
	if err != nil {
		err = fmt.Errorf("start pod %s/%s: %w", pod.Namespace, pod.Name, err)
		if errors.Is(context.Cause(ctx), agentclient.ErrDetached) {
			// It may have been found at work: it goes on.
			return nil, err
		}
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
// (a controller was restarted); one that ended is replaced. While another mover
// holds one of the claims, it waits.
func (m *Movers) create(ctx context.Context, pod *corev1.Pod, claims []string) error {
	key := client.ObjectKeyFromObject(pod)
	for {
		before, err := m.tryCreate(ctx, pod, claims)
		if err != nil {
			return err
		}
		if before == nil {
			return nil
		}
		if err := m.awaitEnd(ctx, key, before); err != nil {
			return err
		}
	}
}

// tryCreate makes the pod, or takes over the one that is there, or returns the pod
// that must end before. What it looks at and what it makes of it is one step: the
// pod itself is what keeps others from its claims.
func (m *Movers) tryCreate(ctx context.Context, pod *corev1.Pod, claims []string) (before *corev1.Pod, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := client.ObjectKeyFromObject(pod)
	var movers corev1.PodList
	if err := m.Client.List(ctx, &movers, client.InNamespace(pod.Namespace), client.MatchingLabels{
		names.ManagedByLabel: names.ManagedByValue, names.ComponentLabel: Component,
	}); err != nil {
		return nil, fmt.Errorf("look for other movers: %w", err)
	}
	for i := range movers.Items {
		other := &movers.Items[i]
		if other.Name == pod.Name {
			if other.Annotations[names.OperationAnnotation] != pod.Annotations[names.OperationAnnotation] {
				break
			}
			if other.DeletionTimestamp != nil {
				return other, nil
			}
			if ended(other) {
				if err := m.Client.Delete(ctx, other); client.IgnoreNotFound(err) != nil {
					return nil, fmt.Errorf("replace pod %s: %w", key, err)
				}
				return other, nil
			}
			*pod = *other
			return nil, nil
		}
	}
	if i := slices.IndexFunc(movers.Items, func(p corev1.Pod) bool { return uses(&p, claims) }); i >= 0 {
		return &movers.Items[i], nil
	}
	fresh := pod.DeepCopy()
	err = m.Client.Create(ctx, fresh)
	switch {
	case apierrors.IsAlreadyExists(err):
		return nil, fmt.Errorf("make pod %s: there is one of this name that is not ours: delete it", key)
	case err != nil:
		return nil, fmt.Errorf("make pod %s: %w%s", key, err, createHint(err, pod.Namespace))
	}
	*pod = *fresh
	return nil, nil
}

// turnTimeout bounds how long a mover waits for another that holds its claim.
const turnTimeout = 15 * time.Minute

// awaitEnd waits until a pod that is in the way of another one has ended.
func (m *Movers) awaitEnd(ctx context.Context, key client.ObjectKey, before *corev1.Pod) error {
	whose := cmp.Or(before.Labels[names.ActionSetLabel], "unknown")
	m.Log.Info("a claim is in use by another temporary pod: waiting for its end", "pod", before.Name, "namespace", before.Namespace, "actionset", whose)
	ctx, cancel := context.WithTimeoutCause(ctx, turnTimeout, fmt.Errorf(
		"pod %s of ActionSet %s has the same claim and has not ended within %s: run the action again when it has", before.Name, whose, turnTimeout))
	defer cancel()
	err := kube.Await(ctx, m.Client, client.ObjectKeyFromObject(before), &corev1.Pod{}, &corev1.PodList{}, func(p *corev1.Pod) (bool, error) {
		return p.UID != before.UID || ended(p) && p.DeletionTimestamp == nil && p.Name != key.Name, nil
	})
	if err != nil && !errors.Is(err, kube.ErrGone) {
		return fmt.Errorf("make pod %s: %w", key, err)
	}
	return nil
}

func createHint(err error, namespace string) string {
	if apierrors.IsForbidden(err) && strings.Contains(err.Error(), "cannot create resource") {
		return fmt.Sprintf(" (bind ClusterRole kanister-kopia-namespace to the controller in namespace %s)", namespace)
	}
	return ""
}

// awaitRunning waits until the agent's container runs.
func (m *Movers) awaitRunning(ctx context.Context, pod *corev1.Pod) error {
	return m.AwaitStart(ctx, pod, names.MoverContainer, func(p *corev1.Pod) bool {
		return slices.ContainsFunc(p.Status.ContainerStatuses, func(s corev1.ContainerStatus) bool {
			return s.Name == names.MoverContainer && s.State.Running != nil
		})
	})
}

func (m *Movers) startLimit() time.Duration { return cmp.Or(m.StartTimeout, defaultStartTimeout) }

// AwaitStart waits until a temporary pod, also one of a companion, has started, which
// started says. It fails early where a container of it cannot run.
func (m *Movers) AwaitStart(ctx context.Context, pod *corev1.Pod, container string, started func(*corev1.Pod) bool) error {
	limit := m.startLimit()
	tooLate := fmt.Errorf("not running after %s", limit)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, tooLate)
	defer cancel()
	homeless := "" // why no node takes it
	err := kube.Await(ctx, m.Client, client.ObjectKeyFromObject(pod), &corev1.Pod{}, &corev1.PodList{}, func(p *corev1.Pod) (bool, error) {
		if started(p) {
			return true, nil
		}
		if why := kube.Unschedulable(p); why != homeless {
			homeless = why
			if why != "" {
				m.Log.Info("no node takes a temporary pod: waiting for one", "pod", p.Name, "namespace", p.Namespace, "why", why, "limit", limit.String())
			}
		}
		if f := kube.Failure(p, container); f != nil {
			return false, fmt.Errorf("%s: %s", f.Reason, f.Message)
		}
		return false, nil
	})
	if errors.Is(err, tooLate) {
		// What holds a pod up before its containers start, volumes above all, shows
		// in its events only.
		if why := cmp.Or(m.lastWarning(context.WithoutCancel(ctx), pod), homeless); why != "" {
			err = fmt.Errorf("%w: %s", tooLate, why)
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

// InUseError is a claim that only one pod may use, and another one does.
type InUseError struct {
	Namespace, Claim, Pod string
}

func (e *InUseError) Error() string {
	return fmt.Sprintf("claim %s/%s is ReadWriteOncePod and pod %s uses it", e.Namespace, e.Claim, e.Pod)
}

// look fills what the claims say of the pod: how they may be mounted, and the node
// where one is attached, if it can be on one only.
func (m *Movers) look(ctx context.Context, spec *Spec) error {
	var pods corev1.PodList
	if err := m.Client.List(ctx, &pods, client.InNamespace(spec.Namespace)); err != nil {
		return fmt.Errorf("look for pods that use the claims: %w", err)
	}
	// Not its own, from before a restart of the controller.
	users := slices.DeleteFunc(pods.Items, func(p corev1.Pod) bool { return p.Name == spec.Name() })
	var single []string
	for _, claim := range spec.Claims {
		var pvc corev1.PersistentVolumeClaim
		if err := m.Client.Get(ctx, client.ObjectKey{Namespace: spec.Namespace, Name: claim}, &pvc); err != nil {
			return fmt.Errorf("Failed to retrieve PVC. Namespace %s, Name %s: %w", spec.Namespace, claim, err) // Kanister's text
		}
		if mode := pvc.Spec.VolumeMode; mode != nil && *mode == corev1.PersistentVolumeBlock {
			spec.Devices = append(spec.Devices, claim)
		}
		modes := pvc.Spec.AccessModes
		if slices.Contains(modes, corev1.ReadOnlyMany) {
			spec.readOnly = append(spec.readOnly, claim)
		}
		if !slices.Contains(modes, corev1.ReadOnlyMany) && !slices.Contains(modes, corev1.ReadWriteMany) {
			single = append(single, claim)
		}
		if slices.Contains(modes, corev1.ReadWriteOncePod) {
			// A mover of ours ends by itself: that one is waited for.
			i := slices.IndexFunc(users, func(p corev1.Pod) bool {
				return uses(&p, []string{claim}) && p.Labels[names.ComponentLabel] != Component
			})
			if i >= 0 {
				return &InUseError{spec.Namespace, claim, users[i].Name}
			}
		}
	}
	if spec.Node == "" {
		spec.Node = nodeOf(users, single)
	}
	return nil
}

// lookForRoot asks whether the namespace allows root. Where it asks for it in vain, the
// log says why.
func (m *Movers) lookForRoot(ctx context.Context, spec *Spec) error {
	var ns corev1.Namespace
	if err := m.Client.Get(ctx, client.ObjectKey{Name: spec.Namespace}, &ns); err != nil {
		return fmt.Errorf("look whether namespace %s allows root: %w", spec.Namespace, err)
	}
	var why string
	spec.root, why = decide.RootAllowed(decide.Namespace{Name: ns.Name, Labels: ns.Labels, Annotations: ns.Annotations})
	if _, asked := ns.Annotations[names.PrivilegedAgentsAnnotation]; asked && !spec.root {
		m.Log.Warn("temporary pods do not run as root", "namespace", ns.Name, "why", why)
	}
	return nil
}

// nodeOf is where a pod uses one of the claims, "" if none does.
func nodeOf(users []corev1.Pod, claims []string) string {
	for i := range users {
		if users[i].Spec.NodeName != "" && uses(&users[i], claims) {
			return users[i].Spec.NodeName
		}
	}
	return ""
}

// uses says whether a pod holds one of the claims.
func uses(pod *corev1.Pod, claims []string) bool {
	return !ended(pod) && slices.ContainsFunc(volumes.Claims(pod), func(c string) bool { return slices.Contains(claims, c) })
}

// ended says that a pod holds no volume any more.
func ended(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}
