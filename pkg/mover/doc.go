// SPDX-License-Identifier: Apache-2.0

// Package mover runs temporary pods that hold claims and the agent, for data that
// no running pod mounts.
//
// Build (pod.go) renders the pod, FromPodSpec and FromOwner (identity.go) choose
// the user it runs as, and Movers starts it, waits until its agent answers and
// deletes it. One claim has one mover at a time: the pod itself is the lock. The
// Sweeper (sweep.go) deletes what a killed controller left behind.
package mover
