// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/client"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
	"github.com/kanister-kopia/kanister-kopia/repositoryserver"
)

// What the containers get by default: three quarters of their limits.
const (
	agentMemory  = "GOMEMLIMIT=384MiB"
	serverMemory = "GOMEMLIMIT=576MiB"
)

// ours is an agent as in a pod, and a repository server. An operation is all that
// the data functions let them do: a session, the data, the record.
type ours struct {
	*meter
	bench         *bench
	agent, server *client.Client
	process       *testenv.Process // of the agent
	url, ca       string
	operations    int
	record        api.Record
}

func (o *ours) setup(s *scope, b *bench) (*meter, error) {
	*o = ours{bench: b, meter: &meter{gateway: b.s3.Gateway.Cmd.Process.Pid}}
	plane := testenv.NewControlPlane(s)
	if err := o.serve(s, plane); err != nil {
		return nil, err
	}
	a, err := startAgent(s, b.programs.agent, b.volumes, plane)
	if err != nil {
		return nil, err
	}
	o.agent, o.process, o.meter.agent = a.client, a.process, a.process.Cmd.Process.Pid
	return o.meter, nil
}

// serve starts the repository server.
func (o *ours) serve(s *scope, plane *testenv.ControlPlane) error {
	dir, s3 := s.TempDir(), o.bench.s3
	raw, err := json.Marshal(repositoryserver.Config{
		RepositoryID: "bench", Password: password, AllowCreate: true,
		Storage: repositoryserver.StorageConfig{
			Type: "s3", Bucket: s3.Bucket, Endpoint: s3.Endpoint, Prefix: "ours/", Region: "us-east-1",
			AccessKeyID: s3.AccessKey, SecretAccessKey: s3.SecretKey, CABundle: string(s3.CA.PEM),
		},
	})
	if err != nil {
		return err
	}
	config, tls := filepath.Join(dir, "config.json"), filepath.Join(dir, "tls")
	if err := os.WriteFile(config, raw, 0o600); err != nil {
		return err
	}
	plane.CA.IssueTo(s, tls, testenv.Leaf{IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Usage: x509.ExtKeyUsageServerAuth})
	loopback := func(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }
	listen, agent, health := loopback(testenv.Port(s)), testenv.Port(s), loopback(testenv.Port(s))
	p := testenv.Start(s, func(c *exec.Cmd) { c.Env = append(os.Environ(), serverMemory) }, o.bench.programs.server, "serve",
		"--config", config, "--tls-dir", tls, "--ca-dir", plane.CADir,
		"--state-dir", filepath.Join(dir, "state"),
		"--listen", listen, "--agent-listen", loopback(agent), "--kopia-listen", loopback(testenv.Port(s)), "--health-listen", health)
	testenv.Eventually(s, time.Minute, "the repository server is ready", func() bool {
		if ended(p) {
			s.Fatalf("it ended: %s", testenv.LastLine(p.Log()))
		}
		return testenv.Healthy(health, "/readyz")
	})
	o.server, o.meter.server = plane.Client(s, p, agent), p.Cmd.Process.Pid
	o.url, o.ca = "https://"+listen, string(plane.CA.PEM)
	return nil
}

const (
	dataUser = "pvc.data"
	dataHost = "bench"
	prefix   = "backups/bench"
)

// session runs one operation of the agent with a password of its own.
func (o *ours) session(ctx context.Context, user string, req api.StartRequest) (*api.Result, error) {
	o.operations++
	req.ID = fmt.Sprintf("bench-%d", o.operations)
	session, err := o.server.StartSession(ctx, api.SessionRequest{ID: req.ID, Username: user, Hostname: dataHost, ReadOnly: req.Kind == api.KindRestore})
	if err != nil {
		return nil, err
	}
	req.Credentials = &api.Credentials{URL: o.url, CA: o.ca, Username: user, Hostname: dataHost, Password: session.Password}
	result, err := o.agent.Run(ctx, req, func(api.Progress) {})
	if err != nil {
		return nil, err
	}
	return result, o.server.EndSession(ctx, req.ID)
}

func (o *ours) backup(ctx context.Context) error {
	result, err := o.session(ctx, dataUser, api.StartRequest{Kind: api.KindSnapshot, Snapshot: &api.SnapshotRequest{
		Volume: filepath.Base(o.bench.source), Path: "/", SourcePath: "/", Compression: compression,
	}})
	if err != nil {
		return err
	}
	id := fmt.Sprintf("bench-%d", o.operations)
	recorded, err := o.server.Run(ctx, api.StartRequest{ID: id + "-record", Kind: api.KindRecord, Record: &api.RecordRequest{
		Username: dataUser, Hostname: dataHost, SourcePath: "/",
		Record: api.Record{
			BackupID: id, BackupTag: id, Prefix: prefix, KeyID: "default", AbsolutePath: "/data",
			NamespaceUID: dataHost, Volume: "data", Snapshot: *result.Snapshot, Created: result.Snapshot.End,
		},
	}}, func(api.Progress) {})
	if err != nil {
		return err
	}
	o.record = recorded.Records[0]
	return nil
}

func (o *ours) restore(ctx context.Context, target string) error {
	return o.restoreFile(ctx, "", target)
}

func (o *ours) restoreFile(ctx context.Context, file, target string) error {
	o.operations++
	found, err := o.server.Run(ctx, api.StartRequest{
		ID: fmt.Sprintf("bench-%d-find", o.operations), Kind: api.KindFind,
		Find: &api.FindRequest{BackupID: o.record.BackupID, Prefix: prefix, KeyID: "default"},
	}, func(api.Progress) {})
	if err != nil {
		return err
	}
	if len(found.Records) != 1 {
		return fmt.Errorf("%d records instead of one", len(found.Records))
	}
	snapshot := found.Records[0].Snapshot
	_, err = o.session(ctx, "restore", api.StartRequest{Kind: api.KindRestore, Restore: &api.RestoreRequest{
		RootObject: snapshot.RootObject, Root: snapshot.Root, SubPath: file, Volume: filepath.Base(target), Path: "/",
	}})
	return err
}

// runningAgent is an agent and how long it took to answer.
type runningAgent struct {
	client  *client.Client
	process *testenv.Process
	start   time.Duration
}

// startAgent starts an agent and waits for its first answer.
func startAgent(s *scope, program, volumes string, plane *testenv.ControlPlane) (*runningAgent, error) {
	state := filepath.Join(s.TempDir(), "state")
	if err := os.Mkdir(state, 0o700); err != nil {
		return nil, err
	}
	port := testenv.Port(s)
	address := fmt.Sprintf("127.0.0.1:%d", port)
	begin := time.Now()
	p := testenv.Start(s, func(c *exec.Cmd) { c.Env = append(os.Environ(), agentMemory) }, program, "serve",
		"-state-dir", state, "-ca-dir", plane.CADir, "-volumes-dir", volumes, "-port", fmt.Sprint(port), "-health-listen", "")
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for {
		if pin, err := client.PinFromLog(strings.NewReader(p.Log())); err == nil {
			c := client.New(client.Options{Certificate: plane.Certificate, Pin: pin, Dial: func(ctx context.Context) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "tcp", address)
			}})
			if _, err := c.Info(ctx); err == nil {
				took := time.Since(begin)
				s.Cleanup(c.Close)
				return &runningAgent{client: c, process: p, start: took}, nil
			}
			c.Close()
		}
		select {
		case <-p.Done:
			return nil, fmt.Errorf("the agent ended: %s", testenv.LastLine(p.Log()))
		case <-ctx.Done():
			return nil, fmt.Errorf("the agent does not answer: %w", context.Cause(ctx))
		case <-ticker.C:
		}
	}
}
