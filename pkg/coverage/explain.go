// SPDX-License-Identifier: Apache-2.0

package coverage

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kanister-kopia/kanister-kopia/pkg/hold"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/webhook/decide"
)

// Explain says why a pod of an opted-in namespace has no healthy agent, and what to
// do, "" if nothing is wrong with it. It reads the rules of the namespace and the
// holds of the control plane.
func Explain(ctx context.Context, c client.Reader, controlPlane string, pod *corev1.Pod, ns decide.Namespace, now time.Time) (string, error) {
	var holds corev1.ConfigMap
	if err := client.IgnoreNotFound(c.Get(ctx, client.ObjectKey{Namespace: controlPlane, Name: names.HoldConfigMap}, &holds)); err != nil {
		return "", fmt.Errorf("read the holds: %w", err)
	}
	if h := hold.Active(holds.Data, ns.Name, now); h != nil {
		ns.Hold = h.Reason
	}
	if err := readLimits(ctx, c, &ns); err != nil {
		return "", err
	}
	f := Assess(pod, ns)
	if f == nil {
		return "", nil
	}
	owner := (&owners{client: c, known: map[Owner]Owner{}}).of(ctx, pod)
	text := "it " + f.Reason.Text()
	if f.Detail != "" {
		text += " (" + f.Detail + ")"
	}
	return text + ". Fix: " + Fix(f.Reason, owner), nil
}

// readLimits reads the namespace's rules on resources.
func readLimits(ctx context.Context, c client.Reader, ns *decide.Namespace) error {
	var ranges corev1.LimitRangeList
	if err := c.List(ctx, &ranges, client.InNamespace(ns.Name)); err != nil {
		return fmt.Errorf("list limit ranges: %w", err)
	}
	var quotas corev1.ResourceQuotaList
	if err := c.List(ctx, &quotas, client.InNamespace(ns.Name)); err != nil {
		return fmt.Errorf("list resource quotas: %w", err)
	}
	for i := range ranges.Items {
		ns.Limits = append(ns.Limits, ranges.Items[i].Spec.Limits...)
	}
	ns.Quotas = quotas.Items
	return nil
}
