// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/kopia/kopia/repo/logging"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

func TestClassify(t *testing.T) {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	onVolume := func(path string, err error) error {
		return fmt.Errorf("restore: %w", &fs.PathError{Op: "openat", Path: path, Err: err})
	}
	for name, c := range map[string]struct {
		ctx  context.Context
		err  error
		want api.Code
	}{
		"cancelled":                     {cancelled, io.EOF, api.CodeCancelled},
		"no space":                      {nil, onVolume("f", syscall.ENOSPC), api.CodeNoSpace},
		"quota":                         {nil, onVolume("f", syscall.EDQUOT), api.CodeNoSpace},
		"unreadable":                    {nil, onVolume("f", syscall.EACCES), api.CodeUnreadable},
		"unreadable, Kopia says":        {nil, fmt.Errorf("upload: %w", syscall.EACCES), api.CodeUnreadable},
		"not renamed":                   {nil, &os.LinkError{Op: "renameat", Old: "a", New: "b", Err: syscall.EPERM}, api.CodeUnreadable},
		"a path like a certificate's":   {nil, onVolume("x509: certificate", syscall.EACCES), api.CodeUnreadable},
		"a path like a lost connection": {nil, onVolume("eof/connection refused", syscall.EIO), api.CodeInternal},
		"unknown authority":             {nil, &connectError{errors.New("tls: failed to verify certificate: x509: certificate signed by unknown authority")}, api.CodeServerUntrusted},
		"not its time":                  {nil, &connectError{errors.New("tls: failed to verify certificate: x509: certificate has expired or is not yet valid: current time 2026-11-26T10:00:00Z is before 2026-11-28T10:00:00Z")}, api.CodeServerUntrusted},
		"skewed":                        {nil, errors.New("unable to complete GetBlob(q1,0,-1): The difference between the request time and the current time is too large."), api.CodeStorage},
		"password":                      {nil, &connectError{errors.New("rpc error: code = Unauthenticated desc = access denied")}, api.CodeAccessDenied},
		"right":                         {nil, errors.New("rpc error: code = PermissionDenied desc = access denied"), api.CodeAccessDenied},
		"refused":                       {nil, &connectError{errors.New("dial tcp: connect: connection refused")}, api.CodeServerUnreachable},
		"no name":                       {nil, &connectError{errors.New("dial tcp: lookup repo: no such host")}, api.CodeServerUnreachable},
		"lost":                          {nil, errors.New("unable to complete invoking GRPC API despite 10 retries: should retry"), api.CodeServerUnreachable},
		"cut":                           {nil, errors.New("rpc error: code = Internal desc = stream terminated by RST_STREAM with error code: INTERNAL_ERROR: EOF"), api.CodeServerUnreachable},
		"cut while it writes":           {nil, fmt.Errorf("upload: %w", &net.OpError{Op: "write", Net: "tcp", Err: syscall.EPIPE}), api.CodeServerUnreachable},
		"cut, Kopia says":               {nil, errors.New("checkpoint: connection to repository server: write tcp 10.0.0.1:1->10.0.0.2:2: write: broken pipe"), api.CodeServerUnreachable},
		"silent":                        {nil, errors.New("read tcp 10.0.0.1:1->10.0.0.2:2: read: connection timed out"), api.CodeServerUnreachable},
		"storage":                       {nil, errors.New("failed to get blob with ID q1: unable to complete GetBlob(q1,0,-1) despite 10 retries: dial tcp: connect: connection refused"), api.CodeStorage},
		"storage is full":               {nil, errors.New("flush data: unable to write pack blob: no space left on device"), api.CodeStorage},
		"a path like a storage's":       {nil, onVolume("blob", syscall.EIO), api.CodeInternal},
		"any other on the way":          {nil, &connectError{errors.New("what")}, api.CodeServerUnreachable},
		"any other":                     {nil, errors.New("what"), api.CodeInternal},
	} {
		t.Run(name, func(t *testing.T) {
			if c.ctx == nil {
				c.ctx = t.Context()
			}
			code, hint := classify(c.ctx, c.err, "https://repo.example:51515")
			if code != c.want {
				t.Errorf("code %s, want %s", code, c.want)
			}
			if code == api.CodeServerUntrusted && !strings.Contains(hint, "repo.example:51515") {
				t.Errorf("hint %q does not name the server", hint)
			}
			if clock := name == "not its time" || name == "skewed"; clock != strings.Contains(hint, "clock") {
				t.Errorf("hint %q: it names the clock: %t", hint, !clock)
			}
		})
	}
}

func TestProblemHidesSecrets(t *testing.T) {
	logs := newLogTail("s3cret")
	_, _ = logs.Write([]byte("kopia said password s3cret twice\n"))
	req := api.StartRequest{Kind: api.KindSnapshot, Credentials: &api.Credentials{URL: "https://r", Password: "s3cret"}}
	p := problemOf(t.Context(), req, errors.New("log in with s3cret: refused"), logs)
	if text := p.Error(); strings.Contains(text, "s3cret") || !strings.Contains(text, "kopia said") || !strings.HasPrefix(text, "snapshot: log in") {
		t.Errorf("problem %q", text)
	}
}

// What Kopia ends for a checkpoint that failed was not cancelled by anybody: it failed,
// for what Kopia's log alone says.
func TestProblemOfCheckpoint(t *testing.T) {
	logs := newLogTail()
	_, _ = logs.Write([]byte("error checkpointing: error flushing: unexpected EOF\n"))
	p := problemOf(t.Context(), api.StartRequest{Kind: api.KindSnapshot, Credentials: &api.Credentials{URL: "https://r"}}, errCheckpoint, logs)
	if p.Code != api.CodeServerUnreachable || !strings.Contains(p.Title, "error flushing") {
		t.Errorf("%s: %v", p.Code, p)
	}
}

func TestScrub(t *testing.T) {
	for in, want := range map[string]string{
		"nothing to hide":                   "nothing to hide",
		"open with pw-1 and pw-1":           "open with [hidden] and [hidden]",
		"https://me:pw@host/x":              "https://[hidden]@host/x",
		"password=abc, user=me":             "password=[hidden], user=me",
		`{"secret":"abc","n":1}`:            `{"secret":[hidden]","n":1}`,
		"Token: abc":                        "Token: [hidden]",
		"mail to a@b":                       "mail to a@b",
		"x" + strings.Repeat("long ", 1000): "x" + strings.Repeat("long ", 199) + "long…",
	} {
		if got := scrub(in, "pw-1", ""); got != want {
			t.Errorf("scrub(%q) = %q, want %q", in, got, want)
		}
	}
}

// A server that does not let us in is found out also where Kopia only whispers it.
func TestLogTailHearsDenials(t *testing.T) {
	logs := newLogTail("s3cret")
	var denied []error
	logs.denied = func(err error) { denied = append(denied, err) }
	log := logging.Module(connectionModule)(logs.context(t.Context()))
	log.Debugf("%s%v", streamEnded, io.EOF)
	log.Debugf("found code = Unauthenticated in the data")
	logging.Module("kopia/other")(logs.context(t.Context())).Debugf("%srpc error: code = Unauthenticated", streamEnded)
	log.Warn("loud")
	if len(denied) > 0 || fmt.Sprint(logs.tail()) != "[loud]" {
		t.Errorf("denied %v, tail %v", denied, logs.tail())
	}
	log.Debugf("%s%v", streamEnded, errors.New("rpc error: code = Unauthenticated desc = access denied with s3cret"))
	if len(denied) != 1 || denied[0].Error() != "rpc error: code = Unauthenticated desc = access denied with [hidden]" {
		t.Errorf("denied %v", denied)
	}
}

func TestLogTailKeepsTheLast(t *testing.T) {
	logs := newLogTail()
	for i := range 20 {
		for range 2 { // a line said again at once is one line
			_, _ = fmt.Fprintf(logs, "line %d\n", i)
		}
	}
	if got := strings.Join(logs.tail(), ","); got != "line 15,line 16,line 17,line 18,line 19" {
		t.Errorf("tail %s", got)
	}
}
