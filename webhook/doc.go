// SPDX-License-Identifier: Apache-2.0

// Package webhook documents the injector, which gives pods of opted-in namespaces
// the agent as a native sidecar. It is three packages:
//
//   - webhook/decide: a pod and its namespace in, a typed decision out. Pure.
//   - webhook/render: a pod and a decision's plan in, our own edits out. Pure.
//   - webhook/serve: the admission server, a thin shell around the two.
//
// What holds for all of it:
//
//   - Pods are touched on CREATE only.
//   - No pod fails because of us, except one with a malformed parameter, whose
//     author asked for something that cannot be given.
//   - Injecting twice is injecting once, also when another webhook changed the
//     pod in between: our container, our volumes and our annotation are put back
//     as they should be, in place, and nothing else is touched.
package webhook
