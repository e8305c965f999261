// SPDX-License-Identifier: Apache-2.0

package coverage

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// labelled lists the workloads of a kind that carry the pod label themselves.
// There are few, and their template is needed.
func labelled(ctx context.Context, c client.Reader, namespace string, gvk schema.GroupVersionKind) (*unstructured.UnstructuredList, error) {
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(gvk)
	if err := c.List(ctx, list, client.InNamespace(namespace), client.HasLabels{names.InjectLabel}); err != nil {
		return nil, fmt.Errorf("list %ss: %w", gvk.Kind, err)
	}
	return list, nil
}

func templateHasLabel(u *unstructured.Unstructured, template []string) bool {
	labels, _, err := unstructured.NestedStringMap(u.Object, append(template[:len(template):len(template)], "metadata", "labels")...)
	if err != nil {
		return false
	}
	_, ok := labels[names.InjectLabel]
	return ok
}
