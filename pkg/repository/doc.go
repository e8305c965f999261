// SPDX-License-Identifier: Apache-2.0

// Package repository runs the Kopia repository servers of the control plane: one
// repository per application namespace and encryption key, one server per
// repository, started when the first phase needs it.
//
// It has three layers. Pure functions name things (identity.go, storage.go) and
// render objects (one file per kind) and judge what a server's pod shows
// (status.go). The Reconciler keeps the objects of a RepositoryServer and its
// status. The Manager is what functions use: Open (or OpenBackup, by a backup's
// token) makes whatever is missing, waits until the server is ready or has
// failed, and returns a Repository, which mints sessions and reaches the records.
//
// Storage keys and the repository's password exist in the control-plane
// namespace only.
package repository
