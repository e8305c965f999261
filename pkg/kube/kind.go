// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"

	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
)

// KindOf finds the kind of a reference that names a resource.
func KindOf(mapper meta.RESTMapper, ref crv1alpha1.ObjectReference) (schema.GroupVersionKind, error) {
	// kanctl sends "apps/" for the group, and people write "apps/v1" for the version.
	group, version := strings.Trim(ref.Group, "/"), ref.APIVersion
	if g, v, ok := strings.Cut(ref.APIVersion, "/"); ok {
		group, version = g, v
	}
	return mapper.KindFor(schema.GroupVersionResource{Group: group, Version: version, Resource: ref.Resource})
}
