// SPDX-License-Identifier: Apache-2.0

// Package v1alpha1 is the API group kopia.kanister.io: what this project adds to
// Kanister's own resources.
//
// A RepositoryServer is one Kopia repository and the server that serves it. The
// controller makes one when the first phase needs it; people read it.
//
// +kubebuilder:object:generate=true
// +groupName=kopia.kanister.io
package v1alpha1
