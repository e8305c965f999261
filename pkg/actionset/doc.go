// SPDX-License-Identifier: Apache-2.0

// Package actionset runs ActionSets as Kanister does.
//
// Pure: validate.go (what may run) and status.go (what the status says). params.go
// reads what templates see; pkg/param renders them. run.go runs the phases of one
// ActionSet; engine.go starts, resumes and cancels runs as ActionSets come and go.
package actionset
