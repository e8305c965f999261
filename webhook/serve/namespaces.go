// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kanister-kopia/kanister-kopia/pkg/hold"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/webhook/decide"
)

// Namespaces tells what a decision needs to know of a namespace, from memory.
type Namespaces interface {
	// Get returns all of decide.Namespace but the mode.
	Get(ctx context.Context, name string) (decide.Namespace, error)
}

// watched are the kinds that decisions read. Nothing secret is among them.
func watched() []client.Object {
	return []client.Object{namespaceObject(), &corev1.LimitRange{}, &corev1.ResourceQuota{}, &corev1.ConfigMap{}}
}

// cacheOptions keep in memory only what decisions read: of all ConfigMaps one, and
// no copies are made, since decisions change nothing.
func cacheOptions() cache.Options {
	yes := true
	return cache.Options{
		DefaultTransform:             cache.TransformStripManagedFields(),
		DefaultUnsafeDisableDeepCopy: &yes,
		ByObject: map[client.Object]cache.ByObject{
			&corev1.ConfigMap{}: {
				Namespaces: map[string]cache.Config{names.ControlPlaneNamespace: {}},
				Field:      fields.OneTermEqualSelector("metadata.name", names.HoldConfigMap),
			},
		},
	}
}

// cachedNamespaces reads from informers. A namespace that they do not know yet
// (its first pod came right after it) is read once from the API server.
type cachedNamespaces struct {
	cache, live client.Reader
	clock       clock.PassiveClock
}

// liveTimeout leaves most of the webhook's three seconds to the answer.
const liveTimeout = time.Second

func namespaceObject() *metav1.PartialObjectMetadata {
	ns := &metav1.PartialObjectMetadata{}
	ns.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Namespace"))
	return ns
}

func (n *cachedNamespaces) Get(ctx context.Context, name string) (decide.Namespace, error) {
	meta, key := namespaceObject(), client.ObjectKey{Name: name}
	err := n.cache.Get(ctx, key, meta)
	if apierrors.IsNotFound(err) {
		live, cancel := context.WithTimeout(ctx, liveTimeout)
		defer cancel()
		err = n.live.Get(live, key, meta)
	}
	if err != nil {
		return decide.Namespace{}, fmt.Errorf("read namespace %s: %w", name, err)
	}
	ns := decide.Namespace{Name: name, Labels: meta.Labels, Annotations: meta.Annotations}

	var ranges corev1.LimitRangeList
	var quotas corev1.ResourceQuotaList
	var holds corev1.ConfigMap
	if err := n.cache.List(ctx, &ranges, client.InNamespace(name)); err != nil {
		return decide.Namespace{}, fmt.Errorf("read the LimitRanges of namespace %s: %w", name, err)
	}
	if err := n.cache.List(ctx, &quotas, client.InNamespace(name)); err != nil {
		return decide.Namespace{}, fmt.Errorf("read the ResourceQuotas of namespace %s: %w", name, err)
	}
	if err := client.IgnoreNotFound(n.cache.Get(ctx, client.ObjectKey{Namespace: names.ControlPlaneNamespace, Name: names.HoldConfigMap}, &holds)); err != nil {
		return decide.Namespace{}, fmt.Errorf("read the holds: %w", err)
	}
	for i := range ranges.Items {
		ns.Limits = append(ns.Limits, ranges.Items[i].Spec.Limits...)
	}
	ns.Quotas = quotas.Items
	if h := hold.Active(holds.Data, name, n.clock.Now()); h != nil {
		ns.Hold = h.Reason
	}
	return ns, nil
}
