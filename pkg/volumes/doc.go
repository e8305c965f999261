// SPDX-License-Identifier: Apache-2.0

// Package volumes answers, from the text of a pod alone, the two questions that
// the injector and the data functions must answer alike:
//
//   - [Choose]: which volumes of a pod does the agent mirror, and why not the others?
//   - [Resolve]: on which volume, and where inside it, is a path of a container?
//
// [ResolveClaims] is the second question for a temporary pod, whose volumes are a
// map of claim to mount path. Everything here is pure.
package volumes
