// SPDX-License-Identifier: Apache-2.0

package operation

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

// fakeRunner runs what it is told to, and remembers the passwords it was given.
type fakeRunner struct {
	limited chan int64    // what it was limited to
	release chan struct{} // an operation ends when it can receive from here

	mu        sync.Mutex
	passwords []string
}

func (r *fakeRunner) Run(ctx context.Context, req api.StartRequest, limits <-chan int64, report func(api.Progress)) (*api.Result, *api.Problem) {
	r.mu.Lock()
	r.passwords = append(r.passwords, req.Credentials.Password)
	r.mu.Unlock()
	report(api.Progress{Files: 1})
	for {
		select {
		case limit := <-limits:
			r.limited <- limit
			continue
		case <-r.release:
		case <-ctx.Done():
			return nil, &api.Problem{Code: api.CodeCancelled, Title: "cancelled"}
		}
		return &api.Result{Snapshot: &api.SnapshotResult{ID: req.ID}}, nil
	}
}

func (r *fakeRunner) started() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.passwords...)
}

func newManager(t *testing.T, dir string, r Runner) *Manager {
	t.Helper()
	m, err := New(Options{Runner: r, Kinds: []api.Kind{api.KindSnapshot, api.KindRestore}, StateDir: dir, Parallel: 1, Keep: 3, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := m.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return m
}

func backup(id, path, password string) api.StartRequest {
	return api.StartRequest{
		ID: id, Kind: api.KindSnapshot, Snapshot: &api.SnapshotRequest{Volume: "data", Path: path, SourcePath: path},
		Credentials: &api.Credentials{Password: password},
	}
}

// awaitRunner watches an operation until its runner has it: it is running a moment before.
func awaitRunner(t *testing.T, m *Manager, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	reached := errors.New("reached")
	err := m.Watch(ctx, id, func(op api.Operation) error {
		if op.Progress.Files > 0 {
			return reached
		}
		return nil
	})
	if !errors.Is(err, reached) {
		t.Fatalf("wait for the runner of %s: %v", id, err)
	}
}

// await watches an operation until it is in a state.
func await(t *testing.T, m *Manager, id string, want api.State) api.Operation {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	reached := errors.New("reached")
	var last api.Operation
	err := m.Watch(ctx, id, func(op api.Operation) error {
		if last = op; op.State == want {
			return reached
		}
		return nil
	})
	if !errors.Is(err, reached) {
		t.Fatalf("operation %s is %s (%v), want %s", id, last.State, err, want)
	}
	return last
}

func code(err error) api.Code {
	var p *api.Problem
	if errors.As(err, &p) {
		return p.Code
	}
	return ""
}

func start(t *testing.T, m *Manager, req api.StartRequest) api.Operation {
	t.Helper()
	op, err := m.Start(req)
	if err != nil {
		t.Fatal(err)
	}
	return op
}

func TestStartTwiceIsOnce(t *testing.T) {
	r := &fakeRunner{release: make(chan struct{})}
	m := newManager(t, t.TempDir(), r)
	start(t, m, backup("a", "/a", "one"))
	awaitRunner(t, m, "a")
	start(t, m, backup("a", "/a", "two"))
	if _, err := m.Start(backup("a", "/other", "one")); code(err) != api.CodeConflict {
		t.Errorf("another body: %v, want a conflict", err)
	}
	if _, err := m.Start(backup("b", "/a", "one")); code(err) != api.CodeBusy {
		t.Errorf("the same source: %v, want busy", err)
	}
	// Queued behind a: it runs with the credentials that it was given last.
	start(t, m, backup("c", "/c", "old"))
	if op := start(t, m, backup("c", "/c", "new")); op.State != api.StateQueued {
		t.Errorf("state %s, want queued", op.State)
	}
	r.release <- struct{}{}
	r.release <- struct{}{}
	if op := await(t, m, "a", api.StateSucceeded); op.Result.Snapshot.ID != "a" || op.Started == nil || op.Finished == nil {
		t.Errorf("operation %+v", op)
	}
	await(t, m, "c", api.StateSucceeded)
	if op := start(t, m, backup("a", "/a", "three")); op.State != api.StateSucceeded {
		t.Errorf("state %s, want succeeded: it is over", op.State)
	}
	if got := fmt.Sprint(r.started()); got != "[one new]" {
		t.Errorf("ran with %s, want [one new]", got)
	}
}

// Who writes is alone with what he writes to, and with all above and below it.
func TestClash(t *testing.T) {
	snapshot := func(volume, path string) api.StartRequest {
		return api.StartRequest{Kind: api.KindSnapshot, Snapshot: &api.SnapshotRequest{Volume: volume, Path: path}}
	}
	restore := func(path string, verify api.RestoreVerify) api.StartRequest {
		return api.StartRequest{Kind: api.KindRestore, Restore: &api.RestoreRequest{Volume: "data", Path: path, Verify: verify}}
	}
	for name, c := range map[string]struct {
		a, b api.StartRequest
		want bool
	}{
		"one source":                      {snapshot("data", "/a"), snapshot("data", "/a"), true},
		"a source in another":             {snapshot("data", "/"), snapshot("data", "/a"), false},
		"sources of two volumes":          {snapshot("data", "/a"), snapshot("logs", "/a"), false},
		"one target":                      {restore("/a", ""), restore("/a", ""), true},
		"a target in the whole volume":    {restore("/", ""), restore("/a", ""), true},
		"a target in another":             {restore("/a", ""), restore("/a/b/c", ""), true},
		"targets side by side":            {restore("/a", ""), restore("/b", ""), false},
		"names that begin alike":          {restore("/a", ""), restore("/ab", ""), false},
		"a source in a target":            {restore("/", ""), snapshot("data", "/a"), true},
		"a target in a source":            {restore("/a/b", ""), snapshot("data", "/a"), true},
		"a source beside a target":        {restore("/a", ""), snapshot("data", "/b"), false},
		"a target of another volume":      {restore("/", ""), snapshot("logs", "/a"), false},
		"compared in a source":            {restore("/a", api.VerifyOnly), snapshot("data", "/"), false},
		"compared in a target":            {restore("/a", api.VerifyOnly), restore("/", api.VerifyAfter), true},
		"compared twice":                  {restore("/a", api.VerifyOnly), restore("/a", api.VerifyOnly), true},
		"a path that is not written well": {restore("/a/", ""), snapshot("data", "//a/b/"), true},
		"not of a volume":                 {api.StartRequest{Kind: api.KindFind, Find: &api.FindRequest{}}, api.StartRequest{Kind: api.KindFind, Find: &api.FindRequest{}}, false},
	} {
		if clash(c.a, c.b) != c.want || clash(c.b, c.a) != c.want {
			t.Errorf("%s: clash is %t and %t, want %t", name, clash(c.a, c.b), clash(c.b, c.a), c.want)
		}
	}
}

// What takes hours, however much of it is asked for, leaves room for what others wait for.
func TestLongOperationsLeaveRoom(t *testing.T) {
	r := &fakeRunner{release: make(chan struct{})}
	m, err := New(Options{
		Runner: r, Kinds: []api.Kind{api.KindFind, api.KindVerify}, StateDir: t.TempDir(),
		Parallel: 3, Long: []api.Kind{api.KindVerify}, MostLong: 2, Now: time.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close(context.Background()) })
	ask := func(id string, kind api.Kind) {
		t.Helper()
		req := api.StartRequest{ID: id, Kind: kind, Credentials: &api.Credentials{}}
		if kind == api.KindVerify {
			req.Verify = &api.VerifyRequest{KeyID: "default"}
		} else {
			req.Find = &api.FindRequest{BackupID: "shop-x", KeyID: "default"}
		}
		if _, err := m.Start(req); err != nil {
			t.Fatal(err)
		}
	}
	long := []string{"long-1", "long-2", "long-3", "long-4"}
	for _, id := range long {
		ask(id, api.KindVerify)
	}
	ask("short", api.KindFind)
	awaitRunner(t, m, "short")
	running := 0
	for _, id := range long {
		if op, err := m.Get(id); err != nil {
			t.Error(err)
		} else if op.State != api.StateQueued {
			running++
		}
	}
	if running > 2 {
		t.Errorf("%d long operations run, want 2 at most", running)
	}
	for range 1 + len(long) {
		r.release <- struct{}{}
	}
	for _, id := range append(long, "short") {
		await(t, m, id, api.StateSucceeded)
	}
}

// A tenant with many operations does not keep another's one waiting.
func TestTurnsAreFair(t *testing.T) {
	r := &fakeRunner{release: make(chan struct{})}
	m := newManager(t, t.TempDir(), r)
	ask := func(tenant, id string) api.Operation {
		t.Helper()
		req := backup(id, "/"+id, id)
		req.Tenant = tenant
		return start(t, m, req)
	}
	ask("a", "a0")
	awaitRunner(t, m, "a0")
	want := []string{"a0", "b"}
	for i := range 9 {
		id := fmt.Sprintf("a%d", i+1)
		ask("a", id)
		want = append(want, id)
	}
	ask("b", "b")
	// Whoever asks for it again, it is the same operation, and keeps its turn.
	if op := ask("c", "a9"); op.State != api.StateQueued {
		t.Errorf("the same request for another tenant is %s", op.State)
	}
	if op := ask("", "a0"); op.State != api.StateRunning {
		t.Errorf("the same request for nobody in particular is %s", op.State)
	}
	for range want {
		r.release <- struct{}{}
	}
	await(t, m, "a9", api.StateSucceeded)
	if got := r.started(); !slices.Equal(got, want) {
		t.Errorf("they ran as %v, want %v", got, want)
	}
}

// A limit reaches the operation that runs, is not part of what makes it, and holds
// over a restart of the agent.
func TestLimit(t *testing.T) {
	dir := t.TempDir()
	runner := &fakeRunner{limited: make(chan int64), release: make(chan struct{})}
	m := newManager(t, dir, runner)
	req := backup("a", "/", "p")
	req.RateLimit = 1 << 20
	op, err := m.Start(req)
	must(t, err)
	if op.RateLimit != 1<<20 {
		t.Errorf("it starts with a limit of %d, want that of its request", op.RateLimit)
	}
	_, err = m.Limit("a", 2<<20)
	must(t, err)
	if got := <-runner.limited; got != 2<<20 {
		t.Errorf("the operation is limited to %d, want what was asked for", got)
	}
	if op, err = m.Start(req); err != nil || op.RateLimit != 2<<20 {
		t.Errorf("asked for again: limit %d, %v, want the same operation with its new limit", op.RateLimit, err)
	}
	must(t, m.Close(t.Context()))
	again := newManager(t, dir, runner)
	if op, err = again.Start(req); err != nil || op.RateLimit != 2<<20 {
		t.Errorf("after a restart: limit %d, %v, want the patched one", op.RateLimit, err)
	}
	runner.release <- struct{}{}
	must(t, again.Watch(t.Context(), "a", func(api.Operation) error { return nil }))
	if op, err = again.Limit("a", 0); err != nil || op.State != api.StateSucceeded || op.RateLimit != 2<<20 {
		t.Errorf("when it has ended: %+v, %v, want nothing changed", op, err)
	}
}

func TestRefusedRequests(t *testing.T) {
	m := newManager(t, t.TempDir(), &fakeRunner{})
	good := backup("a", "/", "p")
	for name, c := range map[string]struct {
		change func(*api.StartRequest)
		want   api.Code
	}{
		"no id":                     {func(r *api.StartRequest) { r.ID = "" }, api.CodeBadRequest},
		"a path":                    {func(r *api.StartRequest) { r.ID = "../a" }, api.CodeBadRequest},
		"long":                      {func(r *api.StartRequest) { r.ID = strings.Repeat("a", 129) }, api.CodeBadRequest},
		"not served":                {func(r *api.StartRequest) { r.Kind = api.KindFind }, api.CodeUnsupported},
		"no kind":                   {func(r *api.StartRequest) { r.Kind = "" }, api.CodeUnsupported},
		"another's body":            {func(r *api.StartRequest) { r.Kind = api.KindRestore }, api.CodeBadRequest},
		"two bodies":                {func(r *api.StartRequest) { r.Restore = &api.RestoreRequest{} }, api.CodeBadRequest},
		"no body":                   {func(r *api.StartRequest) { r.Snapshot = nil }, api.CodeBadRequest},
		"negative limit":            {func(r *api.StartRequest) { r.RateLimit = -1 }, api.CodeBadRequest},
		"a limit that stands still": {func(r *api.StartRequest) { r.RateLimit = 1 }, api.CodeBadRequest},
		"a tenant that is a text":   {func(r *api.StartRequest) { r.Tenant = "a\nb" }, api.CodeBadRequest},
		"a long tenant":             {func(r *api.StartRequest) { r.Tenant = strings.Repeat("a", 254) }, api.CodeBadRequest},
		"no credentials":            {func(r *api.StartRequest) { r.Credentials = nil }, api.CodeBadRequest},
	} {
		req := good
		c.change(&req)
		if _, err := m.Start(req); code(err) != c.want {
			t.Errorf("%s: %v, want code %s", name, err, c.want)
		}
	}
	if len(m.List()) != 0 {
		t.Errorf("operations %+v, want none", m.List())
	}
	for what, err := range map[string]error{
		"get":    func() error { _, err := m.Get("x"); return err }(),
		"limit":  func() error { _, err := m.Limit("x", 0); return err }(),
		"cancel": func() error { _, err := m.Cancel("x"); return err }(),
		"watch":  m.Watch(t.Context(), "x", func(api.Operation) error { return nil }),
	} {
		if code(err) != api.CodeNotFound {
			t.Errorf("%s: %v, want not found", what, err)
		}
	}
}

func TestCancel(t *testing.T) {
	r := &fakeRunner{release: make(chan struct{})}
	m := newManager(t, t.TempDir(), r)
	start(t, m, backup("a", "/a", "p"))
	awaitRunner(t, m, "a")
	start(t, m, backup("b", "/b", "p"))
	for _, id := range []string{"b", "a", "a"} {
		if _, err := m.Cancel(id); err != nil {
			t.Errorf("cancel %s: %v", id, err)
		}
	}
	for _, id := range []string{"a", "b"} {
		if op := await(t, m, id, api.StateCancelled); op.Failure == nil || op.Failure.Code != api.CodeCancelled {
			t.Errorf("operation %+v", op)
		}
	}
	if n := len(r.started()); n != 1 {
		t.Errorf("%d operations ran, want the first only", n)
	}
}

// An operation outlives its agent: it is asked for again, not lost and not cancelled.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	r := &fakeRunner{release: make(chan struct{}, 1)}
	m := newManager(t, dir, r)
	r.release <- struct{}{}
	start(t, m, backup("done", "/done", "first-password"))
	await(t, m, "done", api.StateSucceeded)
	start(t, m, backup("a", "/a", "first-password"))
	awaitRunner(t, m, "a")
	start(t, m, backup("queued", "/b", "first-password"))
	if err := m.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Start(backup("late", "/late", "p")); err == nil || code(err) != "" {
		t.Errorf("start after the end: %v, want an error that is worth a retry", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "operations", "half.json"), []byte(`{"requ`), 0o600); err != nil {
		t.Fatal(err)
	}

	again := newManager(t, dir, r)
	if op, err := again.Get("done"); err != nil || op.State != api.StateSucceeded || op.Result == nil {
		t.Errorf("what was done: %+v, %v", op, err)
	}
	for _, id := range []string{"a", "queued"} {
		await(t, again, id, api.StateNeedsCredentials)
	}
	if _, err := again.Start(backup("a", "/other", "p")); code(err) != api.CodeConflict {
		t.Errorf("another body after the restart: %v, want a conflict", err)
	}
	start(t, again, backup("a", "/a", "second-password"))
	r.release <- struct{}{}
	await(t, again, "a", api.StateSucceeded)
	if _, err := again.Cancel("queued"); err != nil {
		t.Error(err)
	}
	await(t, again, "queued", api.StateCancelled)
	if got := fmt.Sprint(r.started()); got != "[first-password first-password second-password]" {
		t.Errorf("ran with %s", got)
	}
	files, err := filepath.Glob(filepath.Join(dir, "operations", "*"))
	if err != nil || len(files) != 3 {
		t.Errorf("kept files %v, %v, want 3", files, err)
	}
	for _, file := range files {
		if raw, err := os.ReadFile(file); err != nil || strings.Contains(string(raw), "password") {
			t.Errorf("%s holds a password, or is not read: %v", filepath.Base(file), err)
		}
	}
}

// An operation during which its agent is killed again and again comes to an end, with
// a word about the likely reason. An agent that ends in peace says nothing of it.
func TestAgentIsKilled(t *testing.T) {
	dir := t.TempDir()
	r := &fakeRunner{release: make(chan struct{})}
	// A killed agent leaves the state that is on disk while its operation runs.
	killed := func(m *Manager) {
		t.Helper()
		file := filepath.Join(dir, "operations", "a.json")
		kept, err := os.ReadFile(file)
		must(t, err)
		must(t, m.Close(t.Context()))
		must(t, os.WriteFile(file, kept, 0o600))
	}
	run := func() *Manager {
		t.Helper()
		m := newManager(t, dir, r)
		if op := start(t, m, backup("a", "/", "p")); op.State != api.StateQueued {
			t.Fatalf("state %s: %v, want it started again", op.State, op.Failure)
		}
		awaitRunner(t, m, "a")
		return m
	}
	killed(run())
	must(t, run().Close(t.Context())) // in peace: what was before does not count any more
	killed(run())
	killed(run())
	for range 2 { // the outcome holds over restarts
		m := newManager(t, dir, r)
		op, err := m.Start(backup("a", "/", "p"))
		must(t, err)
		if op.State != api.StateFailed || op.Finished == nil || op.Failure == nil || op.Failure.Code != api.CodeOutOfMemory ||
			!strings.Contains(op.Failure.Error(), "killed 2 times") || !strings.Contains(op.Failure.Error(), "kopia.kanister.io/memory-limit") {
			t.Errorf("operation %+v, failure %v", op, op.Failure)
		}
		must(t, m.Close(t.Context()))
	}
	m := newManager(t, dir, r)
	start(t, m, backup("b", "/", "p"))
	r.release <- struct{}{}
	await(t, m, "b", api.StateSucceeded)
}

// What the disk does not take is true while the agent lives, is kept as soon as the disk
// takes it, and otherwise forgotten: nothing else is ever told of it.
func TestDiskTakesNothing(t *testing.T) {
	dir := t.TempDir()
	r := &fakeRunner{release: make(chan struct{})}
	file := filepath.Join(dir, "operations", "a.json")
	heal := func() {
		t.Helper()
		must(t, os.RemoveAll(file+".new"))
	}
	fill := func() { // nothing can be written beside a.json
		t.Helper()
		must(t, os.MkdirAll(filepath.Join(file+".new", "full"), 0o700))
	}
	// again is what the next agent knows, as if this one had been killed.
	again := func() (api.Operation, error) {
		t.Helper()
		heal() // what the next one writes does not count
		return newManager(t, dir, r).Get("a")
	}
	ended := func(m *Manager) {
		t.Helper()
		r.release <- struct{}{}
		await(t, m, "a", api.StateSucceeded)
	}
	for range maxDeaths + 1 {
		m := newManager(t, dir, r)
		start(t, m, backup("a", "/", "p"))
		awaitRunner(t, m, "a")
		fill()
		ended(m)
		if op, err := m.Get("a"); err != nil || op.State != api.StateSucceeded || op.Result == nil {
			t.Errorf("while the disk is full: %+v, %v", op, err)
		}
		if op, err := again(); code(err) != api.CodeNotFound {
			t.Errorf("after a restart, where the end could not be kept: %+v, failure %v, %v", op, op.Failure, err)
		}
	}
	for what, ask := range map[string]func(*Manager){
		"Get":  func(m *Manager) { _, err := m.Get("a"); must(t, err) },
		"List": func(m *Manager) { m.List() },
		"the change of another": func(m *Manager) {
			start(t, m, backup("b", "/b", "p"))
			r.release <- struct{}{}
			await(t, m, "b", api.StateSucceeded)
		},
	} {
		must(t, os.RemoveAll(dir))
		m := newManager(t, dir, r)
		start(t, m, backup("a", "/", "p"))
		awaitRunner(t, m, "a")
		fill()
		ended(m)
		heal()
		ask(m)
		if op, err := again(); err != nil || op.State != api.StateSucceeded || op.Result == nil {
			t.Errorf("kept by %s: %+v, %v", what, op, err)
		}
	}

	// An agent that was killed while it wrote leaves a part.
	must(t, os.WriteFile(file+".new", []byte(`{"requ`), 0o600))
	newManager(t, dir, r)
	if _, err := os.Stat(file + ".new"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the part of a file is left: %v", err)
	}
}

func TestForgetsTheOldest(t *testing.T) {
	dir := t.TempDir()
	r := &fakeRunner{release: make(chan struct{})}
	m := newManager(t, dir, r)
	for i := range 6 {
		id := fmt.Sprintf("op-%d", i)
		start(t, m, backup(id, "/", "p"))
		r.release <- struct{}{}
		await(t, m, id, api.StateSucceeded)
	}
	var ids []string
	for _, op := range m.List() {
		ids = append(ids, op.ID)
	}
	// Three that were done when the last one began.
	if got := fmt.Sprint(ids); got != "[op-2 op-3 op-4 op-5]" {
		t.Errorf("remembers %s", got)
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "operations", "*")); len(files) != len(ids) {
		t.Errorf("keeps %d files of %d operations", len(files), len(ids))
	}
}

// clock is set by hand.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) time() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) jump(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// A clock that is set in the midst of an operation changes no outcome: no span is
// negative, and what has just ended is not what is forgotten as the oldest.
func TestClockJumps(t *testing.T) {
	r := &fakeRunner{release: make(chan struct{})}
	var log bytes.Buffer
	c := &clock{now: time.Date(2026, 3, 29, 2, 0, 0, 0, time.UTC)}
	dir := t.TempDir()
	options := Options{
		Runner: r, Kinds: []api.Kind{api.KindSnapshot}, StateDir: dir, Parallel: 1, Keep: 2, Now: c.time,
		Log: slog.New(slog.NewJSONHandler(&log, nil)),
	}
	m, err := New(options)
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for i, by := range []time.Duration{time.Hour, -time.Hour, -time.Hour, time.Hour, -time.Hour, -time.Hour} {
		id := fmt.Sprintf("op-%d", i)
		ids = append(ids, id)
		start(t, m, backup(id, "/", "p"))
		awaitRunner(t, m, id)
		c.jump(by)
		r.release <- struct{}{}
		op := await(t, m, id, api.StateSucceeded)
		if op.Started.Before(op.Created) || op.Finished.Before(*op.Started) || by > 0 && op.Finished.Sub(*op.Started) != by {
			t.Errorf("%s, clock set by %s: created %s, started %s, finished %s", id, by, op.Created, op.Started, op.Finished)
		}
		if again := start(t, m, backup(id, "/", "p")); again.State != api.StateSucceeded {
			t.Errorf("%s, asked for again, is %s", id, again.State)
		}
		c.jump(by / 2)
	}
	listed := func(m *Manager) (got []string) {
		for _, op := range m.List() {
			got = append(got, op.ID)
		}
		return got
	}
	if got := listed(m); !slices.Equal(got, ids[3:]) {
		t.Errorf("remembers %v, want the last ones of %v", got, ids)
	}

	start(t, m, backup("cut", "/", "p"))
	awaitRunner(t, m, "cut")
	if err := m.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.jump(-2 * time.Hour)
	if m, err = New(options); err != nil {
		t.Fatal(err)
	}
	await(t, m, "cut", api.StateNeedsCredentials)
	start(t, m, backup("cut", "/", "p"))
	awaitRunner(t, m, "cut")
	r.release <- struct{}{}
	if op := await(t, m, "cut", api.StateSucceeded); op.Started.Before(op.Created) || op.Finished.Before(*op.Started) {
		t.Errorf("after a restart: created %s, started %s, finished %s", op.Created, op.Started, op.Finished)
	}
	if err := m.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(log.String(), `"seconds":-`) || !strings.Contains(log.String(), `"seconds":0`) {
		t.Errorf("logged:\n%s", log.String())
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
