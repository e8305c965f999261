// SPDX-License-Identifier: Apache-2.0

// Package kubernetes pins the oldest API server that the product supports, for
// the integration tests. Two releases of k8s.io/kubernetes cannot share a module.
package kubernetes

import _ "k8s.io/kubernetes/cmd/kube-apiserver/app"
