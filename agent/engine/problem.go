// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"strings"
	"syscall"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

// problemOf names what went wrong, with what Kopia said and what to do.
func problemOf(ctx context.Context, req api.StartRequest, err error, logs *logTail) *api.Problem {
	var p *api.Problem
	if errors.As(err, &p) {
		return p
	}
	if errors.Is(err, errCheckpoint) {
		err = fmt.Errorf("%w: %s", err, strings.Join(logs.tail(), "; "))
	}
	p = &api.Problem{
		Code:  api.CodeInternal,
		Title: scrub(fmt.Sprintf("%s: %v", req.Kind, err), req.Credentials.Password),
	}
	for _, line := range logs.tail() {
		if !strings.Contains(p.Title, line) {
			p.Details = append(p.Details, line)
		}
	}
	p.Code, p.Hint = classify(ctx, err, req.Credentials.URL)
	return p
}

// classify finds the code of an error. Kopia flattens most errors to text on
// their way through gRPC, so text is what is left to look at.
func classify(ctx context.Context, err error, server string) (api.Code, string) {
	text := strings.ToLower(err.Error())
	has := func(parts ...string) bool {
		for _, part := range parts {
			if strings.Contains(text, part) {
				return true
			}
		}
		return false
	}
	var connect *connectError
	switch {
	case ctx.Err() != nil || errors.Is(err, context.Canceled):
		return api.CodeCancelled, ""
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return api.CodeNoSpace, "free space on the target, or give the claim more"
	case errors.Is(err, fs.ErrPermission) && !errors.As(err, &connect):
		return api.CodeUnreadable, fmt.Sprintf("the agent runs as uid %d; annotate the pod with kopia.kanister.io/run-as", os.Getuid())
	case isLocal(err):
		return api.CodeInternal, "" // whatever its path reads like
	case has("blob"):
		// The server's own trouble, told through it: a client knows no blobs.
		if has("requesttimetooskewed", "difference between the request time") {
			return api.CodeStorage, "the clock of the repository server's node and that of the storage differ: set the wrong one right"
		}
		return api.CodeStorage, "look at the storage of the repository: is it there, has it space, are its keys still valid"
	case has("certificate has expired or is not yet valid"):
		return api.CodeServerUntrusted, "look at the clock of the pod's node, and at the dates of the certificate of " + hostOf(server)
	case has("x509:", "tls: "):
		return api.CodeServerUntrusted, "the server's certificate must come from the control plane's CA and name " + hostOf(server)
	case has("permissiondenied", "permission denied", "access denied", "unauthenticated", "invalid password"):
		return api.CodeAccessDenied, "the operation's password is not, or no longer, valid for this server"
	case errors.Is(err, io.EOF) || errors.As(err, new(*net.OpError)) || has("connection refused", "connection timed out", "broken pipe", "no such host", "i/o timeout", "no route to host", "deadlineexceeded",
		"deadline exceeded", "unavailable", "connection reset", "rst_stream", "eof", "no answer within", "despite"):
		return api.CodeServerUnreachable, "the namespace needs egress to " + hostOf(server) +
			" and to DNS: if its NetworkPolicies deny that, add manifests/samples/network/egress.yaml; else look at the repository server"
	case errors.As(err, &connect):
		return api.CodeServerUnreachable, "look at the repository server's log"
	default:
		return api.CodeInternal, ""
	}
}

// isLocal says whether an error is of the volume, not of the connection.
func isLocal(err error) bool {
	var path *fs.PathError
	var link *os.LinkError
	return errors.As(err, &path) || errors.As(err, &link)
}

func hostOf(server string) string {
	if u, err := url.Parse(server); err == nil && u.Host != "" {
		return u.Host
	}
	return "the repository server"
}
