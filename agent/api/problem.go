// SPDX-License-Identifier: Apache-2.0

package api

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
)

// Code is a stable, machine-readable reason.
type Code string

// The codes. A new one may be added; an old one never changes its meaning.
const (
	CodeBadRequest        Code = "bad-request"
	CodeNotFound          Code = "not-found"
	CodeConflict          Code = "conflict"
	CodeBusy              Code = "busy"
	CodeUnsupported       Code = "unsupported"
	CodeProtocol          Code = "protocol-mismatch"
	CodeUnknownVolume     Code = "unknown-volume"
	CodePathNotFound      Code = "path-not-found"
	CodePathRefused       Code = "path-refused"
	CodeUnreadable        Code = "unreadable"
	CodeEmpty             Code = "unexpectedly-empty"
	CodeServerUnreachable Code = "server-unreachable"
	CodeServerUntrusted   Code = "server-untrusted"
	CodeAccessDenied      Code = "access-denied"
	CodeStorage           Code = "storage"
	CodeNoSpace           Code = "no-space"
	CodeDiffers           Code = "differs"
	CodeStalled           Code = "stalled"
	CodeOutOfMemory       Code = "out-of-memory"
	CodeKilled            Code = "killed"
	CodeCancelled         Code = "cancelled"
	CodeInternal          Code = "internal"
	// CodeDraining is a repository server that is about to be stopped.
	CodeDraining Code = "draining"
)

// Problem is an RFC 9457 problem document, and the failure of an operation.
type Problem struct {
	// Status is the HTTP status; 0 in an operation's failure.
	Status int  `json:"status,omitempty"`
	Code   Code `json:"code"`
	// Title is one line: what failed and why.
	Title string `json:"title"`
	// Details are Kopia's own last errors or the first paths concerned, scrubbed of secrets.
	Details []string `json:"details,omitempty"`
	// Hint tells the user what to do.
	Hint string `json:"hint,omitempty"`
}

// Error renders the problem as one line.
func (p *Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.Title)
	if len(p.Details) > 0 {
		b.WriteString(": ")
		b.WriteString(strings.Join(p.Details, "; "))
	}
	if p.Hint != "" {
		b.WriteString(" (")
		b.WriteString(p.Hint)
		b.WriteString(")")
	}
	return b.String()
}

// OwnFolder is the problem of an agent that cannot write what it keeps for itself.
func OwnFolder(what string, err error) *Problem {
	p := &Problem{Code: CodeInternal, Title: fmt.Sprintf("%s: %v", what, err)}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		p.Code, p.Hint = CodeNoSpace, "the agent's own folder is full, not the volume; a new pod begins with an empty one"
	}
	return p
}
