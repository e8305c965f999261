// SPDX-License-Identifier: Apache-2.0

// Package blueprint judges Blueprints as they are written, before a template is
// rendered: what Kanister would refuse (Validate), and which commands would show a
// secret (SecretsInCommands). It needs no cluster; the engine, the admission webhook
// and `controller validate blueprint` use it.
package blueprint
