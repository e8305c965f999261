// SPDX-License-Identifier: Apache-2.0

// Package repositoryserver serves one Kopia repository to agents.
//
// The order is the point: open the repository directly, seed the access control
// that Kopia's server enforces, start Kopia's own server on loopback, prove that
// the access control is in force, and only then listen on the pod network. What
// listens there is ours (front.go): it lets a stream through to Kopia only with
// the password of an operation that is going on.
package repositoryserver
