// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent"
	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/client"
	"github.com/kanister-kopia/kanister-kopia/agent/operation"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// stepRunner reports a file each time it is told to, and ends after the last.
type stepRunner struct {
	steps chan struct{}
	runs  atomic.Int64
	// tenant of the last run.
	tenant atomic.Value
}

func (r *stepRunner) Run(ctx context.Context, req api.StartRequest, _ <-chan int64, report func(api.Progress)) (*api.Result, *api.Problem) {
	r.runs.Add(1)
	r.tenant.Store(req.Tenant)
	files := int64(0)
	report(api.Progress{})
	for {
		select {
		case _, more := <-r.steps:
			if !more {
				return &api.Result{Snapshot: &api.SnapshotResult{ID: "saved", Files: files}}, nil
			}
			files++
			report(api.Progress{Files: files})
		case <-ctx.Done():
			return nil, &api.Problem{Code: api.CodeCancelled, Title: "cancelled"}
		}
	}
}

type running struct {
	*client.Client
	ca     *testenv.CA
	caFile string
	runner *stepRunner
	pin    string
	state  string
	// address of the server.
	address string
	// prepared counts how often an operation was expected.
	prepared atomic.Int64
	ahead    atomic.Int64 // of the agent's clock, in nanoseconds
	log      testenv.Buffer

	mu    sync.Mutex
	conns []net.Conn
	dial  func(context.Context) (net.Conn, error)
}

// trust replaces the CA bundle, as a kubelet does.
func (r *running) trust(t *testing.T, bundle []byte) {
	t.Helper()
	if err := errors.Join(os.WriteFile(r.caFile+".new", bundle, 0o600), os.Rename(r.caFile+".new", r.caFile)); err != nil {
		t.Fatal(err)
	}
}

// cut breaks every connection that was made.
func (r *running) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		c.Close()
	}
	r.conns = nil
}

func (r *running) client(t *testing.T, cert testenv.Leaf) *client.Client {
	c := client.New(client.Options{Dial: r.dial, Pin: r.pin, Certificate: r.ca.Certificate(t, cert)})
	t.Cleanup(c.Close)
	return c
}

// raw is a client of HTTP alone, with the controller's certificate.
func (r *running) raw(t *testing.T) *http.Client {
	t.Helper()
	certificate := r.ca.Certificate(t, controller)
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return r.dial(ctx) },
		TLSClientConfig: &tls.Config{
			InsecureSkipVerify:   true,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return certificate() },
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

var controller = testenv.Leaf{DNS: []string{names.ControllerDNSName}, Usage: x509.ExtKeyUsageClientAuth}

func serve(t *testing.T) *running {
	t.Helper()
	must := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	r := &running{ca: testenv.NewCA(t), caFile: filepath.Join(t.TempDir(), names.CAKey), runner: &stepRunner{steps: make(chan struct{})}}
	must(os.WriteFile(r.caFile, r.ca.PEM, 0o600))
	r.state = t.TempDir()
	now := func() time.Time { return time.Now().Add(time.Duration(r.ahead.Load())) }
	operations, err := operation.New(operation.Options{Runner: r.runner, Kinds: []api.Kind{api.KindSnapshot}, StateDir: r.state, Now: now, Prepare: func() { r.prepared.Add(1) }})
	must(err)
	volumes := t.TempDir()
	out := agent.NewLog(&r.log, now)
	server, err := agent.NewServer(agent.Config{
		Operations: operations, Info: (&agent.Volumes{Dir: volumes, Devices: t.TempDir()}).Info,
		StateDir: r.state, CADir: filepath.Dir(r.caFile), Log: slog.New(slog.NewJSONHandler(out, nil)), Out: out, Now: now,
	})
	must(err)
	r.pin, err = client.PinFromLog(strings.NewReader(r.log.String()))
	must(err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	r.address = l.Addr().String()
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	t.Cleanup(func() {
		if err := errors.Join(server.Close(), <-ended, operations.Close(context.Background())); err != nil {
			t.Error(err)
		}
	})
	r.dial = func(ctx context.Context) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String())
		if err == nil {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.conns = append(r.conns, c)
		}
		return c, err
	}
	r.Client = r.client(t, controller)
	return r
}

var request = api.StartRequest{
	ID: "op", Kind: api.KindSnapshot, Snapshot: &api.SnapshotRequest{Volume: "data", Path: "/", SourcePath: "/"},
	Credentials: &api.Credentials{Password: "p"},
}

// Who asks for the agent's description asks for an operation next: it is prepared.
func TestInfoPrepares(t *testing.T) {
	r := serve(t)
	if _, err := r.Info(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := r.prepared.Load(); n != 1 {
		t.Errorf("prepared %d times, want once", n)
	}
}

// For whom an operation is done goes over the wire beside its body.
func TestTenantIsTold(t *testing.T) {
	r := serve(t)
	close(r.runner.steps)
	req := request
	req.Tenant = "ns-uid"
	if _, err := r.Run(t.Context(), req, func(api.Progress) {}); err != nil {
		t.Fatal(err)
	}
	if got := r.runner.tenant.Load(); got != "ns-uid" {
		t.Errorf("it is done for %q", got)
	}
}

// A connection that breaks is not an outcome.
func TestRunSurvivesBrokenConnections(t *testing.T) {
	r := serve(t)
	seen := int64(0)
	result, err := r.Run(t.Context(), request, func(p api.Progress) {
		if p.Files < seen {
			return
		}
		seen = p.Files + 1
		switch p.Files {
		case 0, 1, 2:
			r.cut()
			go func() { r.runner.steps <- struct{}{} }()
		case 3:
			close(r.runner.steps)
		}
	})
	if err != nil || result.Snapshot.ID != "saved" || result.Snapshot.Files != 3 {
		t.Errorf("result %+v, %v", result, err)
	}
	if n := r.runner.runs.Load(); n != 1 {
		t.Errorf("%d runs, want 1", n)
	}
}

// Who asks about an operation that has ended meanwhile learns what it did.
func TestRunTellsTheLastProgress(t *testing.T) {
	r := serve(t)
	close(r.runner.steps)
	if _, err := r.Run(t.Context(), request, func(api.Progress) {}); err != nil {
		t.Fatal(err)
	}
	op, err := r.Start(t.Context(), request)
	if err != nil || !op.State.Done() {
		t.Fatalf("%+v, %v", op, err)
	}
	var last *api.Progress
	if _, err := r.Run(t.Context(), request, func(p api.Progress) { last = &p }); err != nil || last == nil || *last != op.Progress {
		t.Errorf("last progress %+v, want %+v, %v", last, op.Progress, err)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	for name, c := range map[string]struct {
		cause error
		want  []api.State
	}{
		"cancelled": {errors.New("the user said so"), []api.State{api.StateCancelled}},
		"detached":  {client.ErrDetached, []api.State{api.StateQueued, api.StateRunning}},
	} {
		t.Run(name, func(t *testing.T) {
			r := serve(t)
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			_, err := r.Run(ctx, request, func(api.Progress) { cancel(c.cause) })
			if !errors.Is(err, c.cause) {
				t.Errorf("error %v, want %v", err, c.cause)
			}
			if op, err := r.Get(t.Context(), "op"); err != nil || !slices.Contains(c.want, op.State) {
				t.Errorf("operation is %s (%v), want %s", op.State, err, c.want)
			}
		})
	}
}

// The CA is read again when it changes; without one nobody is let in.
func TestClientCertificates(t *testing.T) {
	r := serve(t)
	next := testenv.NewCA(t)
	ask := func(c *client.Client) error {
		c.Close() // a new connection
		_, err := c.Info(t.Context())
		return err
	}
	expired := controller
	expired.Expiry = time.Now().Add(-time.Minute)
	for name, c := range map[string]struct {
		leaf testenv.Leaf
		want string
	}{
		"expired": {expired, "clock"}, "no name": {testenv.Leaf{Usage: x509.ExtKeyUsageClientAuth}, "bad certificate"},
		"a server's": {testenv.Leaf{DNS: controller.DNS, Usage: x509.ExtKeyUsageServerAuth}, "bad certificate"},
	} {
		if err := ask(r.client(t, c.leaf)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	for _, step := range []struct {
		name   string
		bundle []byte
		want   bool
	}{
		{"its CA", r.ca.PEM, true},
		{"two CAs", append(bytes.Clone(next.PEM), r.ca.PEM...), true},
		{"another CA", next.PEM, false},
		{"nonsense", []byte("nonsense"), false},
		{"its CA again", r.ca.PEM, true},
		{"none", nil, false},
	} {
		var err error
		if step.bundle == nil {
			err = os.Remove(r.caFile)
		} else {
			err = os.WriteFile(r.caFile, step.bundle, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		err = ask(r.Client)
		if (err == nil) != step.want {
			t.Errorf("%s: %v, want it let in: %t", step.name, err, step.want)
		}
		if step.name == "another CA" && !strings.Contains(fmt.Sprint(err), names.CAConfigMap) {
			t.Errorf("%s: %v does not say where to look", step.name, err)
		}
	}
}

// An agent whose clock is set keeps its key and its operations. It believes a
// certificate by its own clock, and again when the clock is right again.
func TestAgentClockJumps(t *testing.T) {
	r := serve(t)
	short := controller
	short.Expiry = time.Now().Add(30 * time.Minute)
	c := r.client(t, short)
	if _, err := c.Start(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, time.Minute, "it runs", func() bool {
		op, err := c.Get(t.Context(), "op")
		return err == nil && op.State == api.StateRunning
	})
	for _, step := range []struct {
		ahead time.Duration
		want  bool
	}{{time.Hour, false}, {-time.Hour, true}, {-3 * time.Hour, false}, {0, true}} {
		r.ahead.Store(int64(step.ahead))
		c.Close() // a new connection
		op, err := c.Get(t.Context(), "op")
		if (err == nil) != step.want || errors.Is(err, client.ErrPin) {
			t.Errorf("clock set by %s: %v, want it let in: %t", step.ahead, err, step.want)
		}
		if err != nil && !strings.Contains(err.Error(), "clock") {
			t.Errorf("clock set by %s: %v does not name the clock", step.ahead, err)
		}
		if err == nil && (op.State != api.StateRunning || op.Started.Before(op.Created)) {
			t.Errorf("clock set by %s: %+v", step.ahead, op)
		}
		again, err := agent.LoadIdentity(r.state, time.Now().Add(step.ahead))
		if err != nil || again.SPKISHA256 != r.pin {
			t.Errorf("a restart while the clock is set by %s: %v, another key", step.ahead, err)
		}
	}
	close(r.runner.steps)
	if _, err := r.Run(t.Context(), request, func(api.Progress) {}); err != nil {
		t.Error(err)
	}
	if op, err := r.Get(t.Context(), "op"); err != nil || op.State != api.StateSucceeded || op.Finished.Before(*op.Started) {
		t.Errorf("%+v, %v", op, err)
	}
}

// Who comes, and be it without a certificate, finds the agent's identity in what is logged
// from then on, and nobody can fill the log by coming.
func TestIdentityIsRepeated(t *testing.T) {
	r := serve(t)
	stranger := client.New(client.Options{Dial: r.dial, Certificate: func() (*tls.Certificate, error) { return &tls.Certificate{}, nil }})
	said := func() int { return strings.Count(r.log.String(), agent.IdentityMessage) }
	want := said()
	for _, step := range []struct {
		ahead time.Duration
		more  int
	}{{0, 0}, {time.Hour, 1}, {time.Hour, 0}, {-time.Hour, 1}, {-time.Hour, 0}} {
		r.ahead.Store(int64(step.ahead))
		if _, err := stranger.Info(t.Context()); !errors.Is(err, client.ErrPin) {
			t.Fatalf("%v, want that no key is the right one", err)
		}
		if want += step.more; said() != want {
			t.Errorf("%s later the identity is logged %d times, want %d", step.ahead, said(), want)
		}
	}
	if pin, err := client.PinFromLog(strings.NewReader(r.log.String())); err != nil || pin != r.pin {
		t.Errorf("another identity: %v", err)
	}
}

// However much is logged, and wherever a new file begins, the identity is near.
func TestIdentityIsNear(t *testing.T) {
	var whole bytes.Buffer
	state, out := t.TempDir(), agent.NewLog(&whole, time.Now)
	log := slog.New(slog.NewJSONHandler(out, nil))
	for range 3000 { // before there is an identity
		log.Info("kopia: " + strings.Repeat("x", 1000))
	}
	before := whole.Len()
	if _, err := agent.NewServer(agent.Config{StateDir: state, CADir: state, Log: log, Out: out, Now: time.Now}); err != nil {
		t.Fatal(err)
	}
	for range 3000 {
		log.Info("kopia: " + strings.Repeat("x", 1000))
	}
	const near = 300 << 10
	for rest := whole.Bytes()[before:]; len(rest) > near; rest = rest[near:] {
		if _, err := client.PinFromLog(bytes.NewReader(rest[:near])); err != nil {
			t.Fatalf("none in %d bytes, with %d to come: %v", near, len(rest), err)
		}
	}
}

func TestPinFromLog(t *testing.T) {
	good := `{"msg":"agent identity","spkiSHA256":"` + string(bytes.Repeat([]byte("a"), 64)) + `"}`
	later := `{"msg":"agent identity","spkiSHA256":"` + string(bytes.Repeat([]byte("b"), 64)) + `"}`
	for name, c := range map[string]struct{ log, want string }{
		"one":               {"noise\n" + good + "\nmore", "a"},
		"the last counts":   {good + "\n" + later + "\n", "b"},
		"none":              {"noise\n", ""},
		"cut off":           {good[:60], ""},
		"another's message": {`{"msg":"hello","spkiSHA256":"` + string(bytes.Repeat([]byte("a"), 64)) + `"}`, ""},
		"too short":         {`{"msg":"agent identity","spkiSHA256":"aa"}`, ""},
	} {
		pin, err := client.PinFromLog(bytes.NewReader([]byte(c.log)))
		if c.want == "" {
			if !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%s: %q, %v, want io.ErrUnexpectedEOF", name, pin, err)
			}
		} else if err != nil || len(pin) != 64 || pin[:1] != c.want {
			t.Errorf("%s: %q, %v", name, pin, err)
		}
	}
}
