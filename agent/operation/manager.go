// SPDX-License-Identifier: Apache-2.0

// Package operation keeps an agent's operations: started once whatever the caller
// does, queued, run in a child process, and told truly after any restart.
package operation

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

// Runner runs one operation to its end. What comes from limits replaces the
// request's rate limit.
type Runner interface {
	Run(ctx context.Context, req api.StartRequest, limits <-chan int64, report func(api.Progress)) (*api.Result, *api.Problem)
}

// Options of a Manager.
type Options struct {
	Runner Runner
	// Kinds are accepted; others are refused as unsupported.
	Kinds []api.Kind
	// StateDir keeps operations over a restart; credentials are never written there.
	StateDir string
	// Credentials, if set, fills the credentials of requests that have none.
	Credentials func() *api.Credentials
	// Parallel is how many operations run at once; default DefaultParallel, others are queued,
	// fairly by tenant.
	Parallel int
	// Long kinds may take hours: so few of them run at once, and leave room for others.
	Long     []api.Kind
	MostLong int
	// Prepare, if set, is called when an operation is about to be asked for.
	Prepare func()
	// Admit, if set, may refuse a new operation. It is called with the lock held.
	Admit func(api.Kind) error
	// Keep is how many finished operations are remembered; default 200.
	Keep int
	Now  func() time.Time
	// Log is told of the beginning and the end of operations; nil: nobody is.
	Log *slog.Logger
}

// DefaultParallel lets a small operation pass one that takes hours; they share the
// container's memory.
const DefaultParallel = 2

// Manager keeps operations. Its methods may be called from many goroutines.
type Manager struct {
	opt Options
	wg  sync.WaitGroup

	mu     sync.Mutex // protects the following
	turns  turns
	ops    map[string]*op
	totals map[Outcome]Total
	begun  int       // operations so far
	ended  time.Time // when the last one did
	closed bool
}

// Outcome is how operations of a kind ended.
type Outcome struct {
	Kind  api.Kind
	State api.State
}

// Total of the operations that had an outcome, since this agent began.
type Total struct {
	Operations int64
	// Seconds that they ran.
	Seconds float64
	// Files and Bytes that were read or written, and Moved bytes that went to the
	// server or came from it.
	Files, Bytes, Moved int64
}

type op struct {
	number  int              // in the order they were begun, whatever the clock said
	deaths  int              // of the agent, one after the other, while it ran
	request api.StartRequest // credentials included; never written
	state   api.Operation
	cancel  context.CancelFunc
	limits  chan int64    // the newest rate limit that the runner has not taken yet
	changed chan struct{} // closed and replaced at each change
	unsaved bool          // on disk is nothing of it

	// said is the last of its times, looked the clock's reading then.
	said, looked time.Time
}

func newOp(req api.StartRequest, state api.Operation) *op {
	return &op{request: req, state: state, limits: make(chan int64, 1), changed: make(chan struct{})}
}

// stored is what is kept on disk.
type stored struct {
	Request   api.StartRequest `json:"request"`
	Operation api.Operation    `json:"operation"`
	Deaths    int              `json:"deaths,omitempty"`
}

// maxDeaths of an agent while an operation ran are taken for its fault. Where the
// kernel ends a whole container for want of memory, the agent goes with the
// operation: asked for again and again, it would never come to an end.
const maxDeaths = 2

// New returns a manager with the operations that an earlier one left in StateDir:
// those that had not ended need credentials.
func New(opt Options) (*Manager, error) {
	if opt.Parallel == 0 {
		opt.Parallel = DefaultParallel
	}
	if opt.Keep == 0 {
		opt.Keep = 200
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	m := &Manager{
		opt: opt, turns: turns{room: opt.Parallel, longRoom: opt.MostLong, running: map[string]int{}},
		ops: map[string]*op{}, totals: map[Outcome]Total{},
	}
	if err := os.MkdirAll(m.dir(), 0o700); err != nil {
		return nil, fmt.Errorf("make state folder: %w", err)
	}
	files, err := filepath.Glob(filepath.Join(m.dir(), "*.json"))
	if err != nil {
		return nil, err
	}
	parts, err := filepath.Glob(filepath.Join(m.dir(), "*"+partSuffix))
	if err != nil {
		return nil, err
	}
	for _, part := range parts { // the agent was killed while it wrote
		_ = os.Remove(part)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read state: %w", err)
		}
		var s stored
		if err := json.Unmarshal(raw, &s); err != nil {
			// A full disk may have left it; whoever asks for the operation starts it again.
			_ = os.Remove(file)
			continue
		}
		o := newOp(s.Request, s.Operation)
		o.deaths = s.Deaths
		o.said = s.Operation.Created
		if started := s.Operation.Started; started != nil {
			o.said = *started
		}
		o.looked = o.said
		m.ops[s.Operation.ID] = o
		m.survive(o)
	}
	kept := slices.SortedFunc(maps.Values(m.ops), func(a, b *op) int { return a.state.Created.Compare(b.state.Created) })
	for i, o := range kept {
		o.number = i
	}
	m.begun = len(kept)
	return m, nil
}

// survive decides what becomes of an operation that an earlier agent left.
func (m *Manager) survive(o *op) {
	switch o.state.State {
	case api.StateQueued, api.StateNeedsCredentials:
	case api.StateRunning, api.StateCancelling:
		o.deaths++ // an agent that ends in peace says something else of it
	default:
		return
	}
	m.set(o, func(s *api.Operation) {
		s.State = api.StateNeedsCredentials
		if o.deaths < maxDeaths {
			return
		}
		now := m.now(o)
		s.State, s.Finished = api.StateFailed, &now
		s.Failure = outOfMemory(fmt.Sprintf("%s: the agent was killed %d times while the operation ran, most likely for want of memory", s.Kind, o.deaths))
	})
}

// now is the next time of an operation: the last one and what passed since by the
// monotonic clock, which no UTC time has, so whoever reads two of them sees a true span,
// however the wall clock was set meanwhile. After a restart the wall clock is all there is;
// the span is not negative then.
func (m *Manager) now(o *op) time.Time {
	now := m.opt.Now()
	if o.looked.IsZero() {
		o.said, o.looked = now.UTC(), now
		return o.said
	}
	o.said, o.looked = o.said.Add(max(0, now.Sub(o.looked))), now
	return o.said
}

func (m *Manager) dir() string { return filepath.Join(m.opt.StateDir, "operations") }

var (
	validID     = regexp.MustCompile(`^[a-z0-9-]{1,128}$`)
	validTenant = regexp.MustCompile(`^[a-z0-9._-]{0,253}$`)
)

// Start starts an operation, or returns the one that the same request started. A
// request with the id of another one is a conflict.
func (m *Manager) Start(req api.StartRequest) (api.Operation, error) {
	if err := m.validate(req); err != nil {
		return api.Operation{}, err
	}
	if req.Credentials == nil && m.opt.Credentials != nil {
		req.Credentials = m.opt.Credentials()
	}
	if req.Credentials == nil {
		return api.Operation{}, &api.Problem{Status: 400, Code: api.CodeBadRequest, Title: "start operation: credentials are missing"}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return api.Operation{}, errors.New("start operation: the agent is ending")
	}
	o, ok := m.ops[req.ID]
	if ok && !same(o.request, req) {
		return api.Operation{}, &api.Problem{Status: 409, Code: api.CodeConflict, Title: fmt.Sprintf("start operation: %s is another operation", req.ID)}
	}
	if ok && o.state.State != api.StateNeedsCredentials {
		if o.state.State == api.StateQueued {
			o.request.Credentials = req.Credentials
		}
		return o.state, nil
	}
	if other := m.busyWith(req); other != "" {
		return api.Operation{}, &api.Problem{
			Status: 409, Code: api.CodeBusy,
			Title: fmt.Sprintf("start operation: operation %s works on the same data", other),
		}
	}
	if m.opt.Admit != nil {
		if err := m.opt.Admit(req.Kind); err != nil {
			return api.Operation{}, err
		}
	}
	if !ok {
		o = newOp(req, api.Operation{ID: req.ID, Kind: req.Kind, RateLimit: req.RateLimit})
		o.state.Created = m.now(o)
		o.number = m.begun
		m.begun++
		m.ops[req.ID] = o
		m.forgetOldest()
	}
	req.RateLimit = o.state.RateLimit // a patch holds over a restart
	o.request = req
	ctx, cancel := context.WithCancel(context.Background())
	o.cancel = cancel
	m.set(o, func(s *api.Operation) { s.State, s.Progress = api.StateQueued, api.Progress{} })
	turn := m.turns.ask(req.Tenant, slices.Contains(m.opt.Long, req.Kind))
	m.wg.Go(func() {
		defer cancel()
		m.run(ctx, o, turn)
	})
	return o.state, nil
}

// Expect says that an operation is about to be asked for. Where it would have to wait for
// its turn, nothing is prepared.
func (m *Manager) Expect() {
	m.mu.Lock()
	wanted := m.opt.Prepare != nil && !m.closed && m.turns.room > 0
	m.mu.Unlock()
	if wanted {
		m.opt.Prepare()
	}
}

// IfIdle calls do while nothing is queued or runs; nothing begins before it
// returns. False: something does.
func (m *Manager) IfIdle(do func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, o := range m.ops {
		if !o.state.State.Done() && o.state.State != api.StateNeedsCredentials {
			return false
		}
	}
	do()
	return true
}

// busyWith returns the id of an operation under way on the same data.
func (m *Manager) busyWith(req api.StartRequest) string {
	for id, o := range m.ops {
		if o.state.State.Done() || o.state.State == api.StateNeedsCredentials || id == req.ID {
			continue
		}
		if clash(o.request, req) {
			return id
		}
	}
	return ""
}

// clash says whether two operations may not run together. Two snapshots of one source at
// once would each miss the other. A restore writes, and removes what restores before it
// have left, in all that is below its target: nobody else is to be there, or above.
func clash(a, b api.StartRequest) bool {
	volume, in, writes := target(a)
	other, there, alsoWrites := target(b)
	switch {
	case volume == "" || volume != other:
		return false
	case in == there:
		return true
	}
	return (writes || alsoWrites) && (below(in, there) || below(there, in))
}

// target is the volume that an operation works on, and where in it.
func target(req api.StartRequest) (volume, in string, writes bool) {
	switch {
	case req.Snapshot != nil:
		return req.Snapshot.Volume, path.Clean("/" + req.Snapshot.Path), false
	case req.Restore != nil:
		return req.Restore.Volume, path.Clean("/" + req.Restore.Path), req.Restore.Verify != api.VerifyOnly
	default:
		return "", "", false
	}
}

func below(a, b string) bool { return strings.HasPrefix(a, strings.TrimSuffix(b, "/")+"/") }

func (m *Manager) run(ctx context.Context, o *op, turn *turn) {
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.turns.giveBack(turn)
	}()
	select {
	case <-turn.begun:
	case <-ctx.Done():
	}
	m.mu.Lock()
	req, now := o.request, m.now(o)
	if ctx.Err() == nil {
		m.set(o, func(s *api.Operation) { s.State, s.Started = api.StateRunning, &now })
	}
	m.mu.Unlock()
	if ctx.Err() != nil {
		m.finish(o, nil, &api.Problem{Code: api.CodeCancelled, Title: fmt.Sprintf("%s: cancelled before it began", req.Kind)})
		return
	}
	m.opt.Log.Info("operation started", "id", req.ID, "kind", req.Kind)
	result, problem := m.opt.Runner.Run(ctx, req, o.limits, func(p api.Progress) {
		m.mu.Lock()
		defer m.mu.Unlock()
		o.state.Progress = p // told to watchers, not worth a write
		o.notify()
	})
	m.finish(o, result, problem)
}

func (m *Manager) finish(o *op, result *api.Result, problem *api.Problem) {
	m.mu.Lock()
	defer m.mu.Unlock()
	began := o.state.Created
	if o.state.Started != nil {
		began = *o.state.Started
	}
	now := m.now(o)
	m.ended = o.looked
	o.request.Credentials = nil
	if m.closed && o.state.State != api.StateCancelling && problem != nil && problem.Code == api.CodeCancelled {
		// Nobody asked for its end: it goes on when somebody asks for it again.
		o.deaths = 0
		m.set(o, func(s *api.Operation) { s.State = api.StateNeedsCredentials })
		return
	}
	m.set(o, func(s *api.Operation) {
		s.Finished, s.Result, s.Failure = &now, result, problem
		switch {
		case problem == nil:
			s.State = api.StateSucceeded
		case problem.Code == api.CodeCancelled:
			s.State = api.StateCancelled
		default:
			s.State = api.StateFailed
		}
	})
	total := m.totals[Outcome{o.state.Kind, o.state.State}]
	total.Operations++
	total.Files += o.state.Progress.Files
	total.Bytes += o.state.Progress.Bytes
	total.Moved += o.state.Progress.UploadedBytes + o.state.Progress.DownloadedBytes
	if o.state.Started != nil {
		total.Seconds += now.Sub(began).Seconds()
	}
	m.totals[Outcome{o.state.Kind, o.state.State}] = total
	log := m.opt.Log.With("id", o.state.ID, "kind", o.state.Kind)
	if o.state.Started != nil {
		log = log.With("seconds", now.Sub(*o.state.Started).Seconds())
	}
	switch {
	case problem != nil:
		log.Error("operation "+string(o.state.State), "error", problem.Error())
	case result == nil:
		log.Info("operation succeeded")
	case result.Snapshot != nil:
		log.Info("operation succeeded", "files", result.Snapshot.Files, "bytes", result.Snapshot.Bytes, "newBytes", result.Snapshot.NewBytes)
	case result.Restore != nil:
		log.Info("operation succeeded", "files", result.Restore.Files, "bytes", result.Restore.Bytes)
	case result.Stats != nil:
		log.Info("operation succeeded", "files", result.Stats.Files, "bytes", result.Stats.Bytes)
	case result.Verify != nil:
		log.Info("operation succeeded", "backups", result.Verify.Backups, "files", result.Verify.Files, "problems", result.Verify.ProblemCount)
	default:
		log.Info("operation succeeded", "records", len(result.Records))
	}
}

// set changes an operation, keeps it and tells its watchers. The lock is held.
func (m *Manager) set(o *op, change func(*api.Operation)) {
	change(&o.state)
	o.notify()
	o.unsaved = true
	m.save()
}

// save keeps what is not on disk as it is now. What a full disk did not take is tried again
// with the next change of any operation, and when somebody asks. The lock is held.
func (m *Manager) save() {
	for _, o := range m.ops {
		if o.unsaved {
			o.unsaved = m.write(o) != nil
		}
	}
}

// write keeps an operation on disk: as it is now, or not at all. An older state would be
// untrue after a restart: one that has ended would be taken for one that the agent died
// of. Without any, the agent forgets the operation, and the caller, who asks again, starts
// it anew under the same id.
func (m *Manager) write(o *op) error {
	request := o.request
	request.Credentials = nil
	raw, err := json.Marshal(stored{Request: request, Operation: o.state, Deaths: o.deaths})
	if err != nil {
		return err
	}
	file := m.file(o)
	if err := replaceFile(file, raw); err == nil {
		return nil
	}
	_ = os.Remove(file)
	return replaceFile(file, raw) // there may be room now
}

// replaceFile writes a file beside its place first: nobody reads half of one.
func replaceFile(file string, raw []byte) error {
	err := os.WriteFile(file+partSuffix, raw, 0o600)
	if err == nil {
		err = os.Rename(file+partSuffix, file)
	}
	if err != nil {
		_ = os.Remove(file + partSuffix)
	}
	return err
}

// partSuffix ends the name of a file that is being written.
const partSuffix = ".new"

func (m *Manager) file(o *op) string { return filepath.Join(m.dir(), o.state.ID+".json") }

func (o *op) notify() {
	close(o.changed)
	o.changed = make(chan struct{})
}

func (m *Manager) forgetOldest() {
	var done []*op
	for _, o := range m.ops {
		if o.state.State.Done() {
			done = append(done, o)
		}
	}
	slices.SortFunc(done, func(a, b *op) int { return cmp.Compare(a.number, b.number) })
	for i := 0; i < len(done)-m.opt.Keep; i++ {
		delete(m.ops, done[i].state.ID)
		_ = os.Remove(m.file(done[i]))
	}
}

// same compares what makes an operation: all but tenant, credentials and rate limit.
func same(a, b api.StartRequest) bool {
	a.Credentials, b.Credentials = nil, nil
	a.RateLimit, b.RateLimit = 0, 0
	a.Tenant, b.Tenant = "", ""
	return reflect.DeepEqual(normal(a), normal(b))
}

// normal gives a request the form it has after a restart.
func normal(r api.StartRequest) api.StartRequest {
	raw, err := json.Marshal(r)
	var out api.StartRequest
	if err == nil {
		err = json.Unmarshal(raw, &out)
	}
	if err != nil {
		return r
	}
	return out
}

func (m *Manager) validate(req api.StartRequest) error {
	if !validID.MatchString(req.ID) {
		return &api.Problem{Status: 400, Code: api.CodeBadRequest, Title: fmt.Sprintf("start operation: id %q is not 1 to 128 of [a-z0-9-]", req.ID)}
	}
	if !slices.Contains(m.opt.Kinds, req.Kind) {
		return &api.Problem{Status: 400, Code: api.CodeUnsupported, Title: fmt.Sprintf("start operation: kind %q is not served here", req.Kind)}
	}
	if !validTenant.MatchString(req.Tenant) {
		return &api.Problem{Status: 400, Code: api.CodeBadRequest, Title: fmt.Sprintf("start operation: tenant %q is not up to 253 of [a-z0-9._-]", req.Tenant)}
	}
	if err := validLimit(req.RateLimit); err != nil {
		return err
	}
	var set []string
	for kind, given := range map[api.Kind]bool{
		api.KindSnapshot: req.Snapshot != nil, api.KindRestore: req.Restore != nil, api.KindRecord: req.Record != nil,
		api.KindFind: req.Find != nil, api.KindDelete: req.Delete != nil, api.KindList: req.List != nil,
		api.KindStats: req.Stats != nil, api.KindVerify: req.Verify != nil,
	} {
		if given {
			set = append(set, string(kind))
		}
	}
	if len(set) != 1 || set[0] != string(req.Kind) {
		slices.Sort(set)
		return &api.Problem{Status: 400, Code: api.CodeBadRequest, Title: fmt.Sprintf("start operation: kind %q needs exactly its own field, got [%s]", req.Kind, strings.Join(set, " "))}
	}
	return nil
}

func validLimit(limit int64) error {
	if limit < 0 || limit > 0 && limit < api.LeastRateLimit {
		return &api.Problem{
			Status: 400, Code: api.CodeBadRequest,
			Title: fmt.Sprintf("limit operation: %d bytes a second is neither 0, for no limit, nor at least %d", limit, api.LeastRateLimit),
		}
	}
	return nil
}

func notFound(id string) error {
	return &api.Problem{Status: 404, Code: api.CodeNotFound, Title: fmt.Sprintf("operation %q is not known to this agent", id)}
}

// Get returns an operation as it is now.
func (m *Manager) Get(id string) (api.Operation, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.save()
	if o, ok := m.ops[id]; ok {
		return o.state, nil
	}
	return api.Operation{}, notFound(id)
}

// List returns all operations, oldest first.
func (m *Manager) List() []api.Operation {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.save()
	out := []api.Operation{}
	for _, o := range slices.SortedFunc(maps.Values(m.ops), func(a, b *op) int { return cmp.Compare(a.number, b.number) }) {
		out = append(out, o.state)
	}
	return out
}

// Ended is when the last operation of this manager ended, with the monotonic clock's
// reading; zero: none did.
func (m *Manager) Ended() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ended
}

// Totals are those of all outcomes that there were.
func (m *Manager) Totals() map[Outcome]Total {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.totals)
}

// Watch calls fn with the operation now and at each change, until it is done, it
// needs credentials, fn fails or ctx ends.
func (m *Manager) Watch(ctx context.Context, id string, fn func(api.Operation) error) error {
	for {
		m.mu.Lock()
		o, ok := m.ops[id]
		if !ok {
			m.mu.Unlock()
			return notFound(id)
		}
		state, changed := o.state, o.changed
		m.mu.Unlock()
		if err := fn(state); err != nil {
			return err
		}
		if state.State.Done() || state.State == api.StateNeedsCredentials {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// Limit changes the rate limit of an operation, in bytes a second; 0 is none. One
// that is done stays as it is.
func (m *Manager) Limit(id string, limit int64) (api.Operation, error) {
	if err := validLimit(limit); err != nil {
		return api.Operation{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.ops[id]
	if !ok {
		return api.Operation{}, notFound(id)
	}
	if o.state.State.Done() {
		return o.state, nil
	}
	o.request.RateLimit = limit
	m.set(o, func(s *api.Operation) { s.RateLimit = limit })
	select {
	case <-o.limits: // an older one that nobody took
	default:
	}
	o.limits <- limit
	return o.state, nil
}

// Cancel asks an operation to end. One that is done stays as it is.
func (m *Manager) Cancel(id string) (api.Operation, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.ops[id]
	switch {
	case !ok:
		return api.Operation{}, notFound(id)
	case o.state.State.Done():
	case o.state.State == api.StateNeedsCredentials:
		now := m.now(o)
		m.set(o, func(s *api.Operation) {
			s.State, s.Finished = api.StateCancelled, &now
			s.Failure = &api.Problem{Code: api.CodeCancelled, Title: fmt.Sprintf("%s: cancelled", s.Kind)}
		})
	default:
		m.set(o, func(s *api.Operation) { s.State = api.StateCancelling })
		o.cancel()
	}
	return o.state, nil
}

// Close ends what runs and waits for that, or for ctx. What it ends needs
// credentials when the next manager finds it.
func (m *Manager) Close(ctx context.Context) error {
	m.mu.Lock()
	m.closed = true
	for _, o := range m.ops {
		if o.cancel != nil {
			o.cancel()
		}
	}
	m.mu.Unlock()
	done := make(chan struct{})
	go func() { m.wg.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return errors.New("close operations: some children did not end in time")
	}
}
