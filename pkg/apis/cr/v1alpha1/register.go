// SPDX-License-Identifier: Apache-2.0

// Package v1alpha1 holds Kanister's ActionSet, Blueprint and Profile. Names, JSON
// shapes and the lack of a status subresource are Kanister's, so that existing
// objects and kanctl work unchanged; the code is not.
//
// +kubebuilder:object:generate=true
// +kubebuilder:validation:Optional
// +groupName=cr.kanister.io
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is Kanister's.
var GroupVersion = schema.GroupVersion{Group: "cr.kanister.io", Version: "v1alpha1"}

// AddToScheme makes the types known to a scheme.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion,
		&ActionSet{}, &ActionSetList{}, &Blueprint{}, &BlueprintList{}, &Profile{}, &ProfileList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
