// SPDX-License-Identifier: Apache-2.0

//go:build integration

package function_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	agentclient "github.com/kanister-kopia/kanister-kopia/agent/client"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/function"
	"github.com/kanister-kopia/kanister-kopia/pkg/mover"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/pkg/param"
	"github.com/kanister-kopia/kanister-kopia/pkg/repository"
)

// control is the control plane's namespace, shop the application's.
const (
	control = names.ControlPlaneNamespace
	shop    = "shop"
)

// world is a real API server in which pods never run: the test plays kubelet and
// the repository controller, and scripted agents answer behind the Connector. What
// the agents really do is tested in repositoryserver.
type world struct {
	*testenv.API
	data      *function.Data
	functions *function.Registry
	records   *records
	profile   *param.Profile

	mu *sync.Mutex // protects the following
	// scripts of agents by pod name; a mover's is found by the beginning of its name.
	scripts map[string]script
	agents  map[string]*agent
}

// script is what an agent does with an operation. A problem that is a conflict: it does
// not begin it.
type script func(api.StartRequest) (*api.Result, *api.Problem)

func newWorld(t *testing.T) *world {
	t.Helper()
	c := testenv.NewAPI(t, control, shop)
	w := &world{
		API: c, records: &records{}, mu: &sync.Mutex{}, scripts: map[string]script{}, agents: map[string]*agent{},
		profile: &param.Profile{
			Location:   param.Location{Type: param.LocationTypeS3Compliant, Bucket: "bucket", Endpoint: "https://s3.example"},
			Credential: param.Credential{Type: param.CredentialTypeKeyPair, KeyPair: &param.KeyPair{ID: "id", Secret: "secret"}},
		},
	}
	log := slog.New(slog.DiscardHandler)
	movers := &mover.Movers{Client: c, Agents: w, CA: w, Image: "agent", PullPolicy: corev1.PullNever, Log: log}
	w.data = &function.Data{
		Client: c, Movers: movers, Agents: w, Clock: clock.RealClock{}, Log: log,
		Repositories: &repository.Manager{Client: c, Namespace: control, Agents: w, Clock: clock.RealClock{}, CA: func() ([]byte, error) { return []byte("CA"), nil }},
	}
	clientset, err := kubernetes.NewForConfig(c.Config)
	w.Must(err)
	companion := &function.Companion{Client: c, Kube: clientset, Config: c.Config, Movers: movers, Namespace: control}
	w.functions = function.NewRegistry(append(w.data.Functions(), companion.Functions()...)...)
	for _, list := range []client.ObjectList{&kopiav1alpha1.RepositoryServerList{}, &corev1.PodList{}} {
		w.play(list)
	}
	return w
}

// sub is the same world in a subtest.
func (w *world) sub(t *testing.T) *world {
	out := *w
	out.API = w.In(t)
	return &out
}

// Publish is the CA's.
func (w *world) Publish(context.Context, string) error { return nil }

// stuck is the annotation of a pod that never runs: an image that is not there, a node
// that is not there, a volume that is not there, or without a reason.
const (
	stuck       = "stuck"
	stuckImage  = "image"
	stuckNode   = "node"
	stuckVolume = "volume"
)

// hinder says what a kubelet or a scheduler says of a pod that does not run.
func (w *world) hinder(p *corev1.Pod) {
	ctx := context.Background()
	switch p.Annotations[stuck] {
	case stuckImage:
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{
			Name:  names.MoverContainer,
			State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "no such image"}},
		}}
	case stuckNode:
		p.Status.Conditions = []corev1.PodCondition{{
			Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable, Message: "0/3 nodes are available",
		}}
	case stuckVolume:
		_ = w.Create(ctx, &corev1.Event{ // another look at the pod finds it there
			ObjectMeta:     metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name},
			InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID},
			Type:           corev1.EventTypeWarning, Reason: "FailedMount", Message: "no such disk", LastTimestamp: metav1.Now(),
		})
		return
	default:
		return
	}
	_ = w.Status().Update(ctx, p) // it may be gone
}

// play answers to objects as the controllers do that do not run here.
func (w *world) play(list client.ObjectList) {
	watcher, err := w.Watch(context.Background(), list)
	w.Must(err)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for event := range watcher.ResultChan() {
			switch o := event.Object.(type) {
			case *kopiav1alpha1.RepositoryServer:
				w.serve(o)
			case *corev1.Pod:
				temporary := o.Labels[names.ComponentLabel] == mover.Component || o.Spec.NodeName == kubeletNode
				switch {
				case o.Status.Phase != corev1.PodPending || o.DeletionTimestamp != nil:
				case o.Annotations[stuck] != "":
					w.hinder(o)
				case temporary:
					o.Status.Phase = corev1.PodRunning
					for _, c := range o.Spec.Containers {
						o.Status.ContainerStatuses = append(o.Status.ContainerStatuses, corev1.ContainerStatus{
							Name: c.Name, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
						})
					}
					_ = w.Status().Update(context.Background(), o) // it may be gone
				}
			}
		}
	}()
	w.Cleanup(func() { watcher.Stop(); <-ended })
}

// serve makes a repository server ready.
func (w *world) serve(rs *kopiav1alpha1.RepositoryServer) {
	revision := rs.Annotations[names.Group+"/revision"]
	if revision == "" || rs.Status.Revision == revision {
		return
	}
	ctx := context.Background()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: control, Name: rs.Name + "-" + strings.ToLower(revision)[:8],
			Labels:      map[string]string{names.ManagedByLabel: names.ManagedByValue, names.ComponentLabel: "repository-server", names.RepositoryLabel: rs.Name},
			Annotations: map[string]string{names.Group + "/revision": revision},
		},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: repository.Container, Image: "server"}}},
	}
	if err := w.Create(ctx, pod); err != nil {
		w.Error(err)
		return
	}
	pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
	if err := w.Status().Update(ctx, pod); err != nil {
		w.Error(err)
	}
	before := rs.DeepCopy()
	rs.Status.Revision, rs.Status.Phase = revision, kopiav1alpha1.PhaseReady
	if now := metav1.Now(); rs.Status.Initialized == nil && rs.Spec.External == nil {
		rs.Status.Initialized = &now
	}
	if err := w.Status().Patch(ctx, rs, client.MergeFrom(before)); err != nil {
		w.Error(err)
	}
}

// Connect reaches a scripted agent.
func (w *world) Connect(_ context.Context, _, pod, container string) (*agentclient.Client, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if container == repository.Container {
		return w.agentOf("repository-server", w.records.run).client(), nil
	}
	best := ""
	for name := range w.scripts {
		if (name == pod || strings.HasSuffix(name, "-") && strings.HasPrefix(pod, name)) && len(name) > len(best) {
			best = name
		}
	}
	if best == "" {
		return nil, fmt.Errorf("no agent is scripted for pod %s", pod)
	}
	return w.agentOf(pod, w.scripts[best]).client(), nil
}

func (w *world) agentOf(pod string, s script) *agent {
	if w.agents[pod] == nil {
		w.agents[pod] = newAgent(w, s)
	}
	return w.agents[pod]
}

// script sets what the agent of a pod does, from now on and with no memory.
func (w *world) script(pod string, s script) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.scripts[pod] = s
	for name := range w.agents {
		if name == pod || strings.HasSuffix(pod, "-") && strings.HasPrefix(name, pod) {
			delete(w.agents, name)
		}
	}
}

// saves is the script of an agent whose snapshots succeed; files is how many each
// has. Requests are written down.
func saves(files int64, seen func(api.StartRequest)) script {
	return func(req api.StartRequest) (*api.Result, *api.Problem) {
		seen(req)
		return &api.Result{Snapshot: &api.SnapshotResult{
			ID: "snapshot-of-" + req.ID, RootObject: "kroot", Root: api.RootEntry{Mode: 0o755, UID: 70, GID: 71},
			Files: files, Bytes: 10570, NewBytes: 1 << 20, End: time.Unix(1700000000, 0).UTC(),
		}}, nil
	}
}

// restores is the script of an agent whose restores succeed.
func restores(seen func(api.StartRequest)) script {
	return func(req api.StartRequest) (*api.Result, *api.Problem) {
		seen(req)
		return &api.Result{Restore: &api.RestoreResult{Files: 3, Bytes: 2048}}, nil
	}
}

func fails(title string) script {
	return func(api.StartRequest) (*api.Result, *api.Problem) {
		return nil, &api.Problem{Code: api.CodeInternal, Title: title}
	}
}

// storageGone is the problem of an agent whose server has lost its storage.
func storageGone(api.StartRequest) (*api.Result, *api.Problem) {
	return nil, &api.Problem{
		Code: api.CodeStorage, Title: "snapshot: flush data: unable to write pack blob",
		Details: []string{"error flushing: connection refused", "giving up on PutBlob(p1)"}, Hint: "look at the storage of the repository",
	}
}

// saysStorageGone are the words of that problem, all of which a function's error has.
var saysStorageGone = []string{"unable to write pack blob", "connection refused", "PutBlob(p1)", "look at the storage of the repository"}

// seen collects requests.
type seen struct {
	mu  sync.Mutex
	all []api.StartRequest
}

func (s *seen) add(req api.StartRequest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, req)
}

// agent is one scripted agent: it speaks the real API over TLS.
type agent struct {
	server *httptest.Server
	script script
	mu     sync.Mutex // protects the following
	known  map[string]*operation
	// deleted are the paths of the operations and sessions that were ended.
	deleted []string
}

type operation struct {
	body string // of the request that began it
	once sync.Once
	api.Operation
}

// readOnlyPassword is the password of sessions that may read contents only.
const readOnlyPassword = "read-only"

func newAgent(t testing.TB, s script) *agent {
	a := &agent{script: s, known: map[string]*operation{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/info", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, api.Info{Protocol: api.ProtocolVersion, OldestProtocol: api.OldestProtocol})
	})
	mux.HandleFunc("POST /v1/operations", func(w http.ResponseWriter, r *http.Request) {
		var req api.StartRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			t.Error(err)
		}
		op, problem := a.run(req)
		if problem != nil {
			w.WriteHeader(problem.Status)
			answer(w, problem)
			return
		}
		answer(w, op)
	})
	deleted := func(_ http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.deleted = append(a.deleted, r.URL.Path)
	}
	mux.HandleFunc("DELETE /v1/operations/{id}", deleted)
	mux.HandleFunc("GET /v1/operations/{id}", func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		op := a.known[r.PathValue("id")]
		a.mu.Unlock()
		if op == nil {
			w.WriteHeader(http.StatusNotFound)
			answer(w, &api.Problem{Status: http.StatusNotFound, Code: api.CodeNotFound, Title: "there is no such operation"})
			return
		}
		answer(w, api.Operation{ID: r.PathValue("id")})
	})
	mux.HandleFunc("GET /v1/operations/{id}/events", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("POST /v1/sessions", func(w http.ResponseWriter, r *http.Request) {
		var req api.SessionRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			t.Error(err)
		}
		password := "password"
		if req.ReadOnly {
			password = readOnlyPassword
		}
		answer(w, api.Session{ID: req.ID, Username: req.Username, Hostname: req.Hostname, Password: password})
	})
	mux.HandleFunc("DELETE /v1/sessions/{id}", deleted)
	mux.HandleFunc("GET /v1/activity", func(w http.ResponseWriter, _ *http.Request) { // nobody else works here
		answer(w, api.Activity{})
	})
	a.server = httptest.NewUnstartedServer(mux)
	a.server.EnableHTTP2 = true
	a.server.StartTLS()
	t.Cleanup(a.server.Close)
	return a
}

// run runs an operation once: the same id and body again is the same operation,
// another body is refused.
func (a *agent) run(req api.StartRequest) (api.Operation, *api.Problem) {
	plain := req
	plain.Credentials = nil
	body, err := json.Marshal(plain)
	if err != nil {
		panic(err)
	}
	a.mu.Lock()
	op := a.known[req.ID]
	if op == nil {
		op = &operation{body: string(body)}
		a.known[req.ID] = op
	}
	a.mu.Unlock()
	if op.body != string(body) {
		return api.Operation{}, &api.Problem{Status: http.StatusConflict, Code: api.CodeConflict, Title: "another operation has this id"}
	}
	op.once.Do(func() {
		op.Operation = api.Operation{ID: req.ID, Kind: req.Kind, State: api.StateSucceeded}
		if op.Result, op.Failure = a.script(req); op.Failure != nil {
			op.State = api.StateFailed
		} else if s := op.Result.Snapshot; s != nil {
			op.Progress = api.Progress{Files: s.Files, Bytes: s.Bytes, UploadedBytes: s.NewBytes, EstimatedBytes: s.Bytes}
		}
	})
	if p := op.Failure; p != nil && p.Status == http.StatusConflict { // it has not begun
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.known, req.ID)
		return api.Operation{}, p
	}
	return op.Operation, nil
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

func (a *agent) client() *agentclient.Client {
	sum := sha256.Sum256(a.server.Certificate().RawSubjectPublicKeyInfo)
	return agentclient.New(agentclient.Options{
		Dial: func(ctx context.Context) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", a.server.Listener.Addr().String())
		},
		Certificate: func() (*tls.Certificate, error) { return nil, errors.New("none is asked for") },
		Pin:         hex.EncodeToString(sum[:]),
	})
}

// records are a repository's, by the rules of the real one.
type records struct {
	mu  sync.Mutex
	all []api.Record
	// before, if it is there, sees a request before anything is done.
	before atomic.Pointer[func(api.StartRequest)]
}

func (r *records) run(req api.StartRequest) (*api.Result, *api.Problem) {
	if before := r.before.Load(); before != nil {
		(*before)(req)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	anywhere := func(f *api.FindRequest) (found []api.Record) {
		for _, record := range r.all {
			if record.KeyID == f.KeyID && (f.BackupID != "" && record.BackupID == f.BackupID || f.BackupTag != "" && record.BackupTag == f.BackupTag) {
				found = append(found, record)
			}
		}
		return found
	}
	matching := func(f *api.FindRequest) []api.Record {
		return slices.DeleteFunc(anywhere(f), func(record api.Record) bool { return path.Clean(record.Prefix) != path.Clean(f.Prefix) })
	}
	switch req.Kind {
	case api.KindRecord:
		for _, old := range r.all {
			if old.BackupID == req.Record.Record.BackupID && old.Snapshot.ID != req.Record.Record.Snapshot.ID {
				return nil, &api.Problem{Code: api.CodeConflict, Title: "another snapshot already"}
			}
		}
		r.all = append(r.all, req.Record.Record)
		return &api.Result{Records: []api.Record{req.Record.Record}}, nil
	case api.KindFind:
		return &api.Result{Records: matching(req.Find)}, nil
	case api.KindList:
		result := &api.Result{}
		for _, record := range r.all {
			if record.KeyID == req.List.KeyID && (req.List.Prefix == "" || record.Prefix == req.List.Prefix) {
				result.Records = append(result.Records, record)
			}
		}
		return result, nil
	case api.KindStats:
		found := matching(&api.FindRequest{BackupID: req.Stats.BackupID, Prefix: req.Stats.Prefix, KeyID: req.Stats.KeyID})
		if len(found) == 0 {
			return nil, &api.Problem{Code: api.CodeNotFound, Title: "no such backup"}
		}
		return &api.Result{Stats: &api.StatsResult{Mode: req.Stats.Mode, Files: found[0].Snapshot.Files, Bytes: found[0].Snapshot.Bytes}}, nil
	case api.KindDelete:
		gone := matching(req.Delete)
		if len(gone) == 0 && len(anywhere(req.Delete)) > 0 {
			return nil, &api.Problem{Status: http.StatusNotFound, Code: api.CodeNotFound, Title: "no such backup under this prefix"}
		}
		for _, g := range gone {
			for i := range r.all {
				if r.all[i].BackupID == g.BackupID {
					r.all = append(r.all[:i:i], r.all[i+1:]...)
					break
				}
			}
		}
		return &api.Result{Records: gone}, nil
	default:
		return nil, &api.Problem{Code: api.CodeUnsupported, Title: string(req.Kind)}
	}
}

// deleted says whether any agent was told to end what has that path.
func (w *world) deleted(path string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range w.agents {
		a.mu.Lock()
		found := slices.Contains(a.deleted, path)
		a.mu.Unlock()
		if found {
			return true
		}
	}
	return false
}

// list is what is recorded now.
func (r *records) list() []api.Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]api.Record{}, r.all...)
}

// exec runs a function.
func (w *world) exec(name, operation string, params param.TemplateParams, args map[string]any) (map[string]any, error) {
	w.Helper()
	out, _, err := w.execWithProgress(name, operation, params, args)
	return out, err
}

func (w *world) execWithProgress(name, operation string, params param.TemplateParams, args map[string]any) (map[string]any, api.Progress, error) {
	w.Helper()
	return w.execLogged(slog.New(slog.DiscardHandler), name, operation, params, args)
}

func (w *world) execLogged(log *slog.Logger, name, operation string, params param.TemplateParams, args map[string]any) (map[string]any, api.Progress, error) {
	w.Helper()
	f, err := w.functions.Get(name)
	w.Must(err)
	for _, required := range f.RequiredArgs() {
		if _, ok := args[required]; !ok {
			w.Fatalf("%s needs argument %s", name, required)
		}
	}
	if params.Profile == nil {
		params.Profile = w.profile
	}
	var last api.Progress
	out, err := f.Exec(w.Context(), function.Call{
		Params: params, Args: args, OperationID: operation, ActionSet: "actionset-" + operation,
		Log: log, Progress: func(p api.Progress) { last = p },
	})
	return out, last, err
}

// claim makes a claim.
func (w *world) claim(name string, modes ...corev1.PersistentVolumeAccessMode) {
	w.Helper()
	if len(modes) == 0 {
		modes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	}
	w.Must(w.Create(w.Context(), &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: shop, Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: modes,
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		},
	}))
}

// pod makes a running pod with an agent that mounts a claim at /data.
func (w *world) pod(name, claim string, change ...func(*corev1.Pod)) {
	w.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: shop, Name: name},
		Spec: corev1.PodSpec{
			InitContainers: []corev1.Container{{
				Name: names.AgentContainer, Image: "agent", RestartPolicy: new(corev1.ContainerRestartPolicyAlways),
				VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/volumes/data"}},
			}},
			Containers: []corev1.Container{{
				Name: "app", Image: "app", VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/data"}},
			}},
			Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim},
			}}},
		},
	}
	for _, c := range change {
		c(pod)
	}
	w.Must(w.Create(w.Context(), pod))
	pod.Status.Phase = corev1.PodRunning
	w.Must(w.Status().Update(w.Context(), pod))
}

// movers are the temporary pods that are there now.
func (w *world) movers() []corev1.Pod {
	w.Helper()
	var list corev1.PodList
	w.Must(w.List(w.Context(), &list, client.InNamespace(shop), client.MatchingLabels{names.ManagedByLabel: names.ManagedByValue}))
	return list.Items
}

func with(base map[string]any, change map[string]any) map[string]any {
	out := maps.Clone(base)
	maps.Copy(out, change)
	return out
}
