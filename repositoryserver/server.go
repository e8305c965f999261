// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/logging"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"sigs.k8s.io/controller-runtime/pkg/certwatcher"
	crlog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/kanister-kopia/kanister-kopia/agent"
	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/operation"
)

// Options of Run.
type Options struct {
	Config Config
	// TLSDir holds tls.crt and tls.key of the Service's name; they may change.
	TLSDir string
	// CADir holds the ca.crt that the controller's client certificate comes from.
	CADir string
	// StateDir should be memory: Kopia's connection file holds the storage keys.
	StateDir string
	// Listen is the repository's address, AgentListen that of the agent API on
	// loopback, KopiaListen that of Kopia itself on loopback, HealthListen that of
	// /healthz and /readyz.
	Listen, AgentListen, KopiaListen, HealthListen string
	// Child runs the agent's operations.
	Child []string
	// Log takes what is logged, and Out is where that goes to.
	Log *slog.Logger
	Out *agent.Log
	Now func() time.Time
}

// startTimeout bounds Kopia's start, with a repository of many sources.
const startTimeout = 10 * time.Minute

// recordKinds are the operations of an agent that works on a repository alone.
var recordKinds = []api.Kind{api.KindRecord, api.KindFind, api.KindDelete, api.KindList, api.KindStats, api.KindVerify}

// longKinds read through backups. What backups and restores wait for, however many of
// them somebody asks for, goes beside them.
var longKinds = []api.Kind{api.KindStats, api.KindVerify}

// Run serves the repository until ctx ends.
func Run(ctx context.Context, o Options) error {
	if o.Config.External != nil {
		return runGateway(ctx, o)
	}
	return serveRepository(ctx, o, seed)
}

// serveRepository is Run for a repository of ours: seed, start Kopia, prove what was seeded,
// and only then listen.
func serveRepository(ctx context.Context, o Options, seed func(context.Context, repo.DirectRepository, time.Time) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	logs := kopiaLogs(o.Log, o.Config.secrets())
	kctx := logging.WithLogger(ctx, logs)

	ready := newReadiness()
	ended := make(chan error, 5)
	open := newSessions(mostSessions, o.Now)
	watch := newStorageWatch(o.Now)
	alive := &liveness{now: o.Now, storage: watch}
	go func() { ended <- serveHealth(ctx, o.HealthListen, ready, alive, newMetrics(open, watch)) }()

	child := &operation.Child{Command: o.Child, StateDir: o.StateDir, Env: agent.ChildEnv()}
	child.Prepare() // of the probe, meanwhile

	// Seeds, and later reads for restores.
	configFile, rep, err := openRepository(kctx, o.Config, serverUser, o.StateDir, o.Now)
	if err != nil {
		return o.scrubbed(err)
	}
	defer rep.Close(context.WithoutCancel(kctx))
	if err := own(kctx, rep, o.Config); err != nil {
		return o.scrubbed(err)
	}
	if err := seed(kctx, rep, o.Now()); err != nil {
		return o.scrubbed(err)
	}
	o.Log.Info("repository is seeded", "repository", o.Config.RepositoryID)
	manifests, err := manifestBytes(kctx, rep)
	if err != nil {
		return o.scrubbed(err)
	}
	if most := sessionsIn(debug.SetMemoryLimit(-1), manifests); most < mostSessions {
		o.Log.Warn("fewer operations than usual work at once, or there is not memory enough: spec.resources of the RepositoryServer gives more, and deleted backups take none",
			"operations", most, "of", mostSessions, "manifestBytes", manifests)
		open.fit(most)
	}

	startCtx, stopStart := context.WithTimeout(ctx, startTimeout)
	defer stopStart()
	kopia, died, err := startKopia(startCtx, configFile, o.Config.Password, o.StateDir, o.KopiaListen, logs)
	if err != nil {
		return o.scrubbed(err)
	}
	alive.watch(kopia)
	if err := probe(ctx, child, kopia); err != nil {
		return o.scrubbed(err)
	}

	crlog.SetLogger(logr.FromSlogHandler(o.Log.Handler())) // the watcher's log
	watcher, err := certwatcher.New(filepath.Join(o.TLSDir, "tls.crt"), filepath.Join(o.TLSDir, "tls.key"))
	if err != nil {
		return fmt.Errorf("load certificate: %w", err)
	}
	go func() {
		if err := watcher.Start(ctx); err != nil {
			ended <- fmt.Errorf("watch certificate: %w", err)
		}
	}()
	operations, err := operation.New(operation.Options{
		Runner: child, Kinds: recordKinds, StateDir: o.StateDir,
		Credentials: func() *api.Credentials { return kopia.credentials(adminUser, adminHost) },
		Parallel:    4, Long: longKinds, MostLong: 2, Now: o.Now, Log: o.Log, Prepare: child.Prepare,
		Admit: admission(open, watch),
	})
	if err != nil {
		return err
	}
	f := newFront(open, kopia, rep, watcher.GetCertificate, operations.Expect, o.Log)
	letIn := func(ctx context.Context, s *api.Session) error {
		_, err := kopia.password(ctx, s.Username, s.Hostname)
		return err
	}
	own, err := agent.NewServer(agent.Config{
		Operations: operations, Info: new(agent.Volumes).Info,
		Routes: sessionRoutes(open, letIn, operations, watch), StateDir: o.StateDir, CADir: o.CADir, Log: o.Log, Out: o.Out, Now: o.Now,
	})
	if err != nil {
		return err
	}
	st, err := openStorage(kctx, o.Config.Storage)
	if err != nil {
		return o.scrubbed(fmt.Errorf("watch storage: %w", err))
	}
	defer st.Close(context.WithoutCancel(kctx))
	watch.start(kctx, func(ctx context.Context) error { return o.scrubbed(readFormat(ctx, st)) })
	front, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	loopback, err := net.Listen("tcp", o.AgentListen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	go func() { ended <- f.serve(front) }()
	go func() { ended <- own.Serve(loopback) }()
	ready.begin()
	o.Log.Info("repository server serves", "repository", o.Config.RepositoryID, "listen", o.Listen)
	// What it took to make keys of passwords, slowly on purpose, is most of the memory so far.
	debug.FreeOSMemory()

	select {
	case <-ctx.Done():
		err = nil
	case err = <-ended:
	case err = <-died:
	}
	ready.end()
	bounded, stop := context.WithTimeout(context.WithoutCancel(ctx), 8*time.Second)
	defer stop()
	// The controller ends a server only when no operation uses it: nothing is waited for.
	_ = own.Close()
	_ = f.server.Close()
	return errors.Join(o.scrubbed(err), operations.Close(bounded))
}

// probe proves that the access control is in force before anybody is let in: only
// then does the probe's user see the canary. A server whose rules did not load
// looks normal otherwise.
func probe(ctx context.Context, child *operation.Child, k *kopiaServer) error {
	_, problem := child.Run(ctx, api.StartRequest{
		ID: "probe", Kind: api.KindProbe, Credentials: k.credentials(probeUser, probeHost),
	}, nil, func(api.Progress) {})
	if problem != nil {
		return fmt.Errorf("prove that access control is in force: %w", problem)
	}
	return nil
}

// admission says whether the server's own agent may begin an operation.
func admission(open *sessions, watch *storageWatch) func(api.Kind) error {
	return func(kind api.Kind) error {
		if err := open.touch(); err != nil {
			return err
		}
		return watch.admit(kind)
	}
}

// sessionRoutes are what a repository server's agent serves besides operations. letIn
// makes a session's user known, before the caller knows the password.
func sessionRoutes(open *sessions, letIn func(context.Context, *api.Session) error, operations *operation.Manager, watch *storageWatch) map[string]http.HandlerFunc {
	// Times are compared as the clock gave them: a time in UTC has lost its monotonic
	// reading, and a wall clock that is set would make a server idle, or used.
	describe := func(a api.Activity) api.Activity {
		if ended := operations.Ended(); ended.After(a.LastUsed) {
			a.LastUsed = ended
		}
		for _, op := range operations.List() {
			if !op.State.Done() && op.State != api.StateNeedsCredentials {
				a.Operations++
				a.LastUsed = open.now()
			}
		}
		a.IdleSeconds = int64(max(0, open.now().Sub(a.LastUsed)).Seconds())
		a.LastUsed = a.LastUsed.UTC()
		a.StorageProblem = watch.problem()
		return a
	}
	return map[string]http.HandlerFunc{
		"POST /v1/sessions": func(w http.ResponseWriter, r *http.Request) {
			var req api.SessionRequest
			if !agent.ReadJSON(w, r, &req) {
				return
			}
			if err := watch.refuse(r.Context()); err != nil {
				agent.WriteJSON(w, 0, nil, err)
				return
			}
			given, err := open.start(req)
			s := given
			if err == nil {
				if err = letIn(r.Context(), &s); err == nil {
					err = r.Context().Err() // who has gone is told nothing
				}
				if err != nil {
					open.giveUp(given)
				}
			}
			agent.WriteJSON(w, http.StatusOK, s, err)
		},
		"DELETE /v1/sessions/{id}": func(w http.ResponseWriter, r *http.Request) {
			open.end(r.PathValue("id"))
			w.WriteHeader(http.StatusNoContent)
		},
		"GET /v1/activity": func(w http.ResponseWriter, _ *http.Request) {
			agent.WriteJSON(w, http.StatusOK, describe(open.activity()), nil)
		},
		"POST /v1/drain": func(w http.ResponseWriter, r *http.Request) {
			var req api.DrainRequest
			if !agent.ReadJSON(w, r, &req) {
				return
			}
			idle := time.Duration(req.IdleSeconds) * time.Second
			// One lock after the other, always in this order: no operation begins while
			// the sessions decide.
			var a api.Activity
			if a = describe(open.activity()); time.Duration(a.IdleSeconds)*time.Second < idle ||
				!operations.IfIdle(func() { a = open.drain(idle) }) {
				a = open.activity()
			}
			agent.WriteJSON(w, http.StatusOK, describe(a), nil)
		},
	}
}

// scrubbed takes secrets out of an error's text, keeping its kind.
func (o Options) scrubbed(err error) error {
	if err == nil {
		return nil
	}
	return &scrubbedError{err: err, secrets: o.Config.secrets()}
}

type scrubbedError struct {
	err     error
	secrets []string
}

func (e *scrubbedError) Unwrap() error { return e.err }

func (e *scrubbedError) Error() string {
	text := hide(e.err.Error(), e.secrets)
	// In the words of object stores.
	if strings.Contains(text, "difference between the request time") || strings.Contains(text, "RequestTimeTooSkewed") {
		text += " (the clock of this node and that of the storage differ: set the wrong one right)"
	}
	return text
}

func hide(text string, secrets []string) string {
	for _, s := range secrets {
		if s != "" {
			text = strings.ReplaceAll(text, s, "[hidden]")
		}
	}
	return text
}

// kopiaLogs brings Kopia's warnings and errors into our log.
func kopiaLogs(log *slog.Logger, secrets []string) logging.LoggerFactory {
	core := zapcore.NewCore(zapcore.NewConsoleEncoder(zapcore.EncoderConfig{MessageKey: "m"}),
		zapcore.AddSync(&slogWriter{log: log, secrets: secrets}), zapcore.WarnLevel)
	logger := zap.New(core).Sugar()
	return func(string) logging.Logger { return logger }
}

type slogWriter struct {
	log     *slog.Logger
	secrets []string
}

func (w *slogWriter) Write(p []byte) (int, error) {
	w.log.Warn("kopia: " + hide(strings.TrimSpace(string(p)), w.secrets))
	return len(p), nil
}

// StateFolders makes what Run needs in its folders.
func StateFolders(dirs ...string) error {
	for _, d := range dirs {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("make folder: %w", err)
		}
	}
	return nil
}
