// SPDX-License-Identifier: Apache-2.0

// Package actionset runs ActionSets as Kanister does.
//
// Pure: validate.go (what may run), status.go (what the status says) and render.go
// (templates). params.go reads what templates see. run.go runs the phases of one
// ActionSet; engine.go starts, resumes and cancels runs as ActionSets come and go.
package actionset
