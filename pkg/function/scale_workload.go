// SPDX-License-Identifier: Apache-2.0

package function

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kanister-kopia/kanister-kopia/pkg/kube"
)

// scaleWorkload sets the replicas of a Deployment or StatefulSet and waits.
type scaleWorkload struct{ *Companion }

func (*scaleWorkload) Name() string { return "ScaleWorkload" }

func (*scaleWorkload) RequiredArgs() []string { return []string{"replicas"} }

func (f *scaleWorkload) Arguments() []string {
	return append(f.RequiredArgs(), "namespace", "name", "kind", "waitForReady")
}

// A second run would report the scale that the first one set as the original.
func (*scaleWorkload) Resumable() bool { return false }

// scaleTimeout bounds how long a workload may take to follow.
const scaleTimeout = 15 * time.Minute

func (f *scaleWorkload) Exec(ctx context.Context, call Call) (map[string]any, error) {
	var namespace, name, kind string
	var replicas int32
	waitForReady := true
	switch p := call.Params; {
	case p.StatefulSet != nil:
		kind, namespace, name = "statefulset", p.StatefulSet.Namespace, p.StatefulSet.Name
	case p.Deployment != nil:
		kind, namespace, name = "deployment", p.Deployment.Namespace, p.Deployment.Name
	}
	if err := decodeAll(call.Args, map[string]any{
		"replicas": &replicas, "namespace": &namespace, "name": &name, "kind": &kind, "waitForReady": &waitForReady,
	}); err != nil {
		return nil, err
	}
	if kind == "" || namespace == "" || name == "" {
		return nil, errors.New("scale workload: give name, namespace and kind, or a Deployment or StatefulSet as the object of the action")
	}
	w, err := workloadOf(kind)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, scaleTimeout, fmt.Errorf("not done after %s", scaleTimeout))
	defer cancel()
	key := client.ObjectKey{Namespace: namespace, Name: name}
	original, err := f.scale(ctx, w, key, replicas)
	if err == nil && waitForReady {
		err = f.await(ctx, w, key, replicas)
	}
	if err != nil {
		return nil, fmt.Errorf("scale %s %s to %d: %w", strings.ToLower(kind), key, replicas, err)
	}
	return map[string]any{"originalReplicaCount": int64(original)}, nil
}

// workload is a kind that can be scaled.
type workload struct {
	object client.Object
	list   client.ObjectList
	// follows says whether an object runs as many replicas as it should, ready.
	follows func(o client.Object, replicas int32) bool
	// selector of its pods.
	selector func(client.Object) *metav1.LabelSelector
	// owns says whether a pod with these labels is one of its own, as Kanister does.
	owns func(o client.Object, p *corev1.Pod) bool
}

func workloadOf(kind string) (workload, error) {
	switch strings.ToLower(kind) {
	case "statefulset":
		return workload{
			object: &appsv1.StatefulSet{}, list: &appsv1.StatefulSetList{},
			follows: func(o client.Object, n int32) bool {
				s := o.(*appsv1.StatefulSet).Status
				return s.ObservedGeneration >= o.GetGeneration() && s.Replicas == n && s.ReadyReplicas == n
			},
			selector: func(o client.Object) *metav1.LabelSelector { return o.(*appsv1.StatefulSet).Spec.Selector },
			owns:     func(o client.Object, p *corev1.Pod) bool { return metav1.IsControlledBy(p, o) },
		}, nil
	case "deployment":
		return workload{
			object: &appsv1.Deployment{}, list: &appsv1.DeploymentList{},
			follows: func(o client.Object, n int32) bool {
				s := o.(*appsv1.Deployment).Status
				return s.ObservedGeneration >= o.GetGeneration() && s.Replicas == n && s.AvailableReplicas == n && s.UpdatedReplicas == n
			},
			selector: func(o client.Object) *metav1.LabelSelector { return o.(*appsv1.Deployment).Spec.Selector },
			// Its ReplicaSets have names of this form, and need not be read.
			owns: func(o client.Object, p *corev1.Pod) bool {
				c := metav1.GetControllerOf(p)
				return c != nil && c.Kind == "ReplicaSet" && c.Name == o.GetName()+"-"+p.Labels[appsv1.DefaultDeploymentUniqueLabelKey]
			},
		}, nil
	default:
		return workload{}, fmt.Errorf("scale workload: Unsupported workload type %q: want Deployment or StatefulSet", kind)
	}
}

// scale sets the replicas and returns what they were.
func (f *scaleWorkload) scale(ctx context.Context, w workload, key client.ObjectKey, replicas int32) (int32, error) {
	if err := f.Client.Get(ctx, key, w.object); err != nil {
		return 0, err
	}
	scale := &autoscalingv1.Scale{}
	if err := f.Client.SubResource("scale").Get(ctx, w.object, scale); err != nil {
		return 0, err
	}
	original := scale.Spec.Replicas
	if original == replicas {
		return original, nil
	}
	scale.Spec.Replicas = replicas
	return original, f.Client.SubResource("scale").Update(ctx, w.object, client.WithSubResourceBody(scale))
}

// await waits until the workload runs as it should, and until the pods that are
// too many have ended: their volumes are free only then.
func (f *scaleWorkload) await(ctx context.Context, w workload, key client.ObjectKey, replicas int32) error {
	if err := kube.Await(ctx, f.Client, key, w.object, w.list, func(o client.Object) (bool, error) {
		return w.follows(o, replicas), nil
	}); err != nil {
		return err
	}
	selector, err := metav1.LabelSelectorAsSelector(w.selector(w.object))
	if err != nil {
		return err
	}
	owns := func(p *corev1.Pod) bool { return w.owns(w.object, p) }
	return f.awaitPods(ctx, key.Namespace, selector, owns, int(replicas))
}

// awaitPods waits until at most so many pods of its own are left, whichever they are.
func (f *scaleWorkload) awaitPods(ctx context.Context, namespace string, selector labels.Selector, owns func(*corev1.Pod) bool, most int) error {
	of := []client.ListOption{client.InNamespace(namespace), client.MatchingLabelsSelector{Selector: selector}}
	for {
		ok, err := f.followPods(ctx, of, owns, most)
		if err != nil {
			err = kube.AskAgain(ctx, err)
		}
		if ok || err != nil {
			return err
		}
	}
}

// followPods is one watch. False without an error: it broke off.
func (f *scaleWorkload) followPods(ctx context.Context, of []client.ListOption, owns func(*corev1.Pod) bool, most int) (bool, error) {
	news, err := f.Client.Watch(ctx, &corev1.PodList{}, of...)
	if err != nil {
		return false, err
	}
	defer news.Stop()
	for {
		var pods corev1.PodList
		if err := f.Client.List(ctx, &pods, of...); err != nil {
			return false, err
		}
		// Others may have its labels; what has ended holds no volume.
		left := slices.DeleteFunc(pods.Items, func(p corev1.Pod) bool {
			return !owns(&p) || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
		})
		if len(left) <= most {
			return true, nil
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case event, ok := <-news.ResultChan():
			if !ok || event.Type == watch.Error {
				return false, nil
			}
		}
	}
}
