// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent"
	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/operation"
)

// runGateway is Run for somebody else's repository server: no repository is opened
// and nothing is served to the pod network. What is left is the server's own agent,
// which looks records up as that server's user, and sessions, which hand the user's
// lasting password to one operation at a time. It does what that server allows.
func runGateway(ctx context.Context, o Options) error {
	e := o.Config.External
	credentials := &api.Credentials{URL: e.URL, CA: e.CA, Username: e.Username, Hostname: e.Hostname, Password: e.Password}
	child := &operation.Child{Command: append(o.Child, "-foreign"), StateDir: o.StateDir, Env: agent.ChildEnv()}

	ready := newReadiness()
	ended := make(chan error, 2)
	open := newSessions(mostSessions, o.Now)
	watch := &storageWatch{now: o.Now, name: "the external server", code: api.CodeServerUnreachable}
	go func() { ended <- serveHealth(ctx, o.HealthListen, ready, &liveness{}, newMetrics(open, watch)) }()

	// A wrong password is told now, not by the first backup.
	_, problem := child.Run(ctx, api.StartRequest{
		ID: "probe", Kind: api.KindFind, Credentials: credentials, Find: &api.FindRequest{BackupID: "probe"},
	}, nil, func(api.Progress) {})
	if problem != nil {
		return o.scrubbed(fmt.Errorf("use external server %s: %w", e.URL, problem))
	}
	operations, err := operation.New(operation.Options{
		Runner: &foreignRunner{child, credentials}, Kinds: recordKinds, StateDir: o.StateDir,
		Credentials: func() *api.Credentials { return credentials },
		Parallel:    4, Long: longKinds, MostLong: 2, Now: o.Now, Log: o.Log,
		Admit: admission(open, watch),
	})
	if err != nil {
		return err
	}
	letIn := func(_ context.Context, s *api.Session) error {
		s.Username, s.Hostname, s.Password = e.Username, e.Hostname, e.Password
		return nil
	}
	own, err := agent.NewServer(agent.Config{
		Operations: operations, Info: new(agent.Volumes).Info,
		Routes: sessionRoutes(open, letIn, operations, watch), StateDir: o.StateDir, CADir: o.CADir, Log: o.Log, Out: o.Out, Now: o.Now,
	})
	if err != nil {
		return err
	}
	watch.start(ctx, answering(e))
	loopback, err := net.Listen("tcp", o.AgentListen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	go func() { ended <- own.Serve(loopback) }()
	ready.begin()
	o.Log.Info("repository is reached through an external server", "repository", o.Config.RepositoryID, "url", e.URL)
	select {
	case <-ctx.Done():
		err = nil
	case err = <-ended:
	}
	ready.end()
	bounded, stop := context.WithTimeout(context.WithoutCancel(ctx), 8*time.Second)
	defer stop()
	_ = own.Close()
	return errors.Join(o.scrubbed(err), operations.Close(bounded))
}

// answering asks an external server for any answer over HTTPS: one that serves no pages says
// so, too. Whether the user's password is still good only an operation finds out. Each
// question has a connection of its own, as each operation has: one that is kept would not see
// that the way to the server, or its certificate, has become another.
func answering(e *External) func(context.Context) error {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(e.CA))
	c := &http.Client{
		Transport: &http.Transport{
			TLSClientConfig:   &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
			ForceAttemptHTTP2: true,
			DisableKeepAlives: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.URL, nil)
		if err != nil {
			return err
		}
		resp, err := c.Do(req)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	}
}

// foreignRunner runs operations of a repository whose only user is the external one:
// all snapshots are that user's, whoever they are taken for.
type foreignRunner struct {
	operation.Runner
	as *api.Credentials
}

func (f *foreignRunner) Run(ctx context.Context, req api.StartRequest, limits <-chan int64, report func(api.Progress)) (*api.Result, *api.Problem) {
	if req.Record != nil {
		record := *req.Record
		record.Username, record.Hostname = f.as.Username, f.as.Hostname
		req.Record = &record
	}
	result, problem := f.Runner.Run(ctx, req, limits, report)
	if problem != nil && req.Kind == api.KindDelete && problem.Code == api.CodeAccessDenied {
		problem.Hint = "the external server does not let its user delete: whoever runs it deletes there"
	}
	return result, problem
}
