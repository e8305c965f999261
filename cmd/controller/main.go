// SPDX-License-Identifier: Apache-2.0

// Command controller runs ActionSets and keeps the repository servers.
//
//	controller [serve] --agent-image=… …     the controller
//	controller validate blueprint -f PATH…   what it would say of Blueprints, without a cluster
//	controller export-keys FILE              what another cluster needs besides the bucket; passwords
//	controller import-keys FILE              the other half
package main

import "github.com/kanister-kopia/kanister-kopia/pkg/controller"

func main() { controller.Main() }
