// SPDX-License-Identifier: Apache-2.0

package coverage

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Owner is the workload that a person knows: the Deployment and not its
// ReplicaSet, the CronJob and not its Job, an operator's own resource, or the pod
// itself.
type Owner = corev1.ObjectReference

func reference(obj metav1.Object, apiVersion, kind string) Owner {
	return Owner{APIVersion: apiVersion, Kind: kind, Namespace: obj.GetNamespace(), Name: obj.GetName(), UID: obj.GetUID()}
}

// owners finds owners. It remembers those of ReplicaSets and Jobs for one sweep.
type owners struct {
	client client.Reader
	known  map[Owner]Owner
}

// middle are the kinds that have an owner of their own, most of the time.
var middle = map[schema.GroupKind]bool{
	{Group: "apps", Kind: "ReplicaSet"}: true,
	{Group: "batch", Kind: "Job"}:       true,
}

func (o *owners) of(ctx context.Context, pod *corev1.Pod) Owner {
	ref := metav1.GetControllerOf(pod)
	if ref == nil {
		return reference(pod, "v1", "Pod")
	}
	return o.above(ctx, Owner{APIVersion: ref.APIVersion, Kind: ref.Kind, Namespace: pod.Namespace, Name: ref.Name, UID: ref.UID})
}

// above is the owner of a ReplicaSet or a Job, or what is given. One that cannot
// be read is as good as one without an owner: an Event on it is better than none.
func (o *owners) above(ctx context.Context, owner Owner) Owner {
	gvk := schema.FromAPIVersionAndKind(owner.APIVersion, owner.Kind)
	if !middle[gvk.GroupKind()] {
		return owner
	}
	if known, ok := o.known[owner]; ok {
		return known
	}
	found := owner
	meta := &metav1.PartialObjectMetadata{}
	meta.SetGroupVersionKind(gvk)
	if err := o.client.Get(ctx, client.ObjectKey{Namespace: owner.Namespace, Name: owner.Name}, meta); err == nil {
		found.UID = meta.UID
		if ref := metav1.GetControllerOf(meta); ref != nil {
			found = Owner{APIVersion: ref.APIVersion, Kind: ref.Kind, Namespace: owner.Namespace, Name: ref.Name, UID: ref.UID}
		}
	}
	o.known[owner] = found
	return found
}
