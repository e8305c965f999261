// SPDX-License-Identifier: Apache-2.0

//go:build integration

package actionset_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
	"github.com/kanister-kopia/kanister-kopia/pkg/actionset"
	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/function"
)

const namespace = "control"

// scripted is a function whose behaviour a test writes.
type scripted struct {
	name      string
	resumable bool
	required  []string
	exec      func(ctx context.Context, call function.Call) (map[string]any, error)
}

func (s *scripted) Name() string           { return s.name }
func (s *scripted) RequiredArgs() []string { return s.required }
func (s *scripted) Arguments() []string    { return append(slices.Clone(s.required), "value", "step") }
func (s *scripted) Resumable() bool        { return s.resumable }
func (s *scripted) Exec(ctx context.Context, call function.Call) (map[string]any, error) {
	return s.exec(ctx, call)
}

// raw asks for its arguments as the Blueprint has them.
type raw struct{ scripted }

func (*raw) RawArgs() bool { return true }

// world is an API server with one namespace.
type world struct {
	*testenv.API
	metrics *prometheus.Registry
	mu      sync.Mutex
	steps   []string
	events  []string
	log     bytes.Buffer
}

// Event and its kin write down what the engine tells about objects.
func (w *world) Event(o runtime.Object, kind, reason, message string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, fmt.Sprintf("%T %s %s %s: %s", o, o.(client.Object).GetName(), kind, reason, message))
}

func (w *world) Eventf(o runtime.Object, kind, reason, format string, args ...any) {
	w.Event(o, kind, reason, fmt.Sprintf(format, args...))
}

func (w *world) AnnotatedEventf(o runtime.Object, _ map[string]string, kind, reason, format string, args ...any) {
	w.Event(o, kind, reason, fmt.Sprintf(format, args...))
}

// Write is the engine's log.
func (w *world) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.Write(p)
}

// told are the events about one object.
func (w *world) told(name string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for _, e := range w.events {
		if strings.Fields(e)[1] == name {
			out = append(out, e)
		}
	}
	return out
}

func newWorld(t testing.TB) *world {
	t.Helper()
	ctrl.SetLogger(logr.Discard())
	return &world{API: testenv.NewAPI(t, namespace), metrics: prometheus.NewRegistry()}
}

// did writes down that a step happened.
func (w *world) did(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.steps = append(w.steps, fmt.Sprintf(format, args...))
}

func (w *world) done() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.steps)
}

// functions: Echo returns its value, Fail fails, Block waits for its end.
func (w *world) functions(extra ...function.Func) *function.Registry {
	return function.NewRegistry(append(extra,
		&scripted{name: "Echo", required: []string{"value"}, exec: func(_ context.Context, call function.Call) (map[string]any, error) {
			w.did("echo %v", call.Args["value"])
			call.Progress(api.Progress{Bytes: 7, EstimatedBytes: 7, UploadedBytes: 5})
			return map[string]any{"value": call.Args["value"]}, nil
		}},
		&scripted{name: "Fail", exec: func(context.Context, function.Call) (map[string]any, error) {
			w.did("fail")
			return nil, errors.New("the disk is on fire")
		}},
	)...)
}

// controller runs the engine until stop is called, which waits for its end.
func (w *world) controller(functions *function.Registry, change ...func(*actionset.Engine, *ctrl.Options)) (stop func()) {
	w.Helper()
	options := ctrl.Options{
		Scheme: w.Scheme(), Metrics: metricsserver.Options{BindAddress: "0"},
		Controller: config.Controller{SkipNameValidation: new(true)},
	}
	// Metrics of an earlier controller of this test are another process's.
	w.metrics = prometheus.NewRegistry()
	engine := &actionset.Engine{
		Client: w.WithWatch, Namespace: namespace, Functions: functions, Clock: clock.RealClock{},
		Events: w, Log: slog.New(slog.NewJSONHandler(w, nil)), Metrics: actionset.NewMetrics(w.metrics),
	}
	for _, c := range change {
		c(engine, &options)
	}
	mgr, err := ctrl.NewManager(w.Config, options)
	w.Must(err)
	w.Must(engine.SetupWithManager(mgr))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- mgr.Start(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-ended; err != nil {
				w.Error(err)
			}
		})
	}
	w.Cleanup(stop)
	return stop
}

func phase(name, fn string, args crv1alpha1.JSONMap) crv1alpha1.BlueprintPhase {
	return crv1alpha1.BlueprintPhase{Name: name, Func: fn, Args: args}
}

func (w *world) blueprint(name string, action *crv1alpha1.BlueprintAction) {
	w.Helper()
	w.Must(w.Create(w.Context(), &crv1alpha1.Blueprint{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Actions:    map[string]*crv1alpha1.BlueprintAction{"act": action},
	}))
}

// start creates an ActionSet that runs action "act" of the Blueprints, side by side.
func (w *world) start(name string, blueprints ...string) client.ObjectKey {
	w.Helper()
	as := &crv1alpha1.ActionSet{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: &crv1alpha1.ActionSetSpec{}}
	for _, b := range blueprints {
		as.Spec.Actions = append(as.Spec.Actions, crv1alpha1.ActionSpec{
			Name: "act", Blueprint: b, Options: map[string]string{"option": "o"},
			Object: crv1alpha1.ObjectReference{Kind: "Namespace", Name: namespace, Namespace: namespace},
		})
	}
	w.Must(w.Create(w.Context(), as))
	return client.ObjectKeyFromObject(as)
}

// wait waits until the ActionSet is as it should be.
func (w *world) wait(key client.ObjectKey, what string, is func(*crv1alpha1.ActionSetStatus) bool) *crv1alpha1.ActionSetStatus {
	w.Helper()
	var as crv1alpha1.ActionSet
	testenv.Eventually(w, 2*time.Minute, what, func() bool {
		w.Must(w.Get(w.Context(), key, &as))
		return as.Status != nil && is(as.Status)
	})
	return as.Status
}

func finished(s *crv1alpha1.ActionSetStatus) bool {
	for _, a := range s.Actions {
		if a.DeferPhase.State != "" && !a.DeferPhase.State.Done() {
			return false
		}
	}
	return s.State.Done()
}

func TestIntegrationEngine(t *testing.T) {
	w := newWorld(t)
	release := make(chan struct{})
	var calls sync.Map
	block := func(name string, resumable bool) function.Func {
		return &scripted{name: name, resumable: resumable, exec: func(ctx context.Context, call function.Call) (map[string]any, error) {
			n, _ := calls.LoadOrStore(call.OperationID, new(int))
			w.did("%s begins", name)
			*n.(*int)++
			select {
			case <-ctx.Done():
				w.did("%s ends: %v", name, context.Cause(ctx))
				return nil, context.Cause(ctx)
			case <-release:
				return map[string]any{"operation": call.OperationID}, nil
			}
		}}
	}
	edited := make(chan struct{})
	functions := w.functions(block("Block", false), block("Resume", true),
		&raw{scripted{name: "Raw", required: []string{"value"}, exec: func(_ context.Context, call function.Call) (map[string]any, error) {
			return map[string]any{"value": call.Args["value"]}, nil
		}}},
		&scripted{name: "Edited", exec: func(ctx context.Context, _ function.Call) (map[string]any, error) {
			select {
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			case <-edited:
				return nil, nil
			}
		}},
	)
	stop := w.controller(functions)

	t.Run("outputs reach later phases and artifacts", func(t *testing.T) {
		w := &world{API: w.In(t)}
		w.Must(w.Create(w.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "of-o"}, Data: map[string]string{"k": "from-config"}}))
		w.blueprint("flow", &crv1alpha1.BlueprintAction{
			OutputArtifacts: map[string]crv1alpha1.Artifact{"a": {KeyValue: map[string]string{
				"second": "{{ .Phases.second.Output.value }}", "last": "{{ .DeferPhase.Output.value }}",
				"name": "{{ .Phases.current.Output.value }}",
			}}},
			Phases: []crv1alpha1.BlueprintPhase{
				phase("first", "Echo", crv1alpha1.JSONMap{"value": "{{ .Options.option }}1"}),
				phase("second", "Echo", crv1alpha1.JSONMap{"value": "{{ .Phases.first.Output.value }}2"}),
				phase("current", "Echo", crv1alpha1.JSONMap{"value": "{{ .CurrentPhase }}"}),
				phase("raw", "Raw", crv1alpha1.JSONMap{"value": "{{ $.status.x }}"}),
				{Name: "reads", Func: "Echo", Args: crv1alpha1.JSONMap{"value": "{{ .Phases.reads.ConfigMaps.settings.Data.k }}"},
					ObjectRefs: map[string]crv1alpha1.ObjectReference{"settings": {Kind: "ConfigMap", Namespace: namespace, Name: "of-{{ .Options.option }}"}}},
			},
			DeferPhase: &crv1alpha1.BlueprintPhase{Name: "third", Func: "Echo", Args: crv1alpha1.JSONMap{"value": "{{ .Phases.second.Output.value }}3"}},
		})
		s := w.wait(w.start("flow", "flow"), "complete", finished)
		if s.State != crv1alpha1.StateComplete || s.Error.Message != "" {
			t.Fatalf("state %s: %s", s.State, s.Error.Message)
		}
		a := s.Actions[0]
		if got := a.Artifacts["a"].KeyValue; got["second"] != "o12" || got["last"] != "o123" || got["name"] != "current" {
			t.Errorf("artifacts %v", got)
		}
		if a.Phases[0].Output["value"] != "o1" || a.Phases[1].State != crv1alpha1.StateComplete || a.DeferPhase.State != crv1alpha1.StateComplete {
			t.Errorf("phases %+v, deferPhase %+v", a.Phases, a.DeferPhase)
		}
		if got := a.Phases[3].Output["value"]; got != "{{ $.status.x }}" {
			t.Errorf("a function that asks for raw arguments got %v", got)
		}
		if got := a.Phases[4].Output["value"]; got != "from-config" {
			t.Errorf("a phase's ConfigMap gave it %v", got)
		}
		if p := s.Progress; p.PercentCompleted != "100" || p.SizeUploadedB != 25 || p.RunningPhase != "" {
			t.Errorf("progress %+v, want 100%% and 5 times 5 bytes", p)
		}
	})

	t.Run("a failure is loud, stops the phases and still runs the deferPhase", func(t *testing.T) {
		w := &world{API: w.In(t)}
		w.blueprint("fails", &crv1alpha1.BlueprintAction{
			OutputArtifacts: map[string]crv1alpha1.Artifact{"a": {KeyValue: map[string]string{"k": "{{ .Phases.never.Output.value }}"}}},
			Phases: []crv1alpha1.BlueprintPhase{
				phase("breaks", "Fail", nil), phase("never", "Echo", crv1alpha1.JSONMap{"value": "never"}),
			},
			DeferPhase: &crv1alpha1.BlueprintPhase{Name: "cleans", Func: "Echo", Args: crv1alpha1.JSONMap{"value": "cleaned"}},
		})
		s := w.wait(w.start("fails", "fails"), "failed", finished)
		a := s.Actions[0]
		if s.State != crv1alpha1.StateFailed || s.Error.Message != "phase breaks: the disk is on fire" {
			t.Errorf("state %s, error %q", s.State, s.Error.Message)
		}
		if a.Phases[0].State != crv1alpha1.StateFailed || a.Phases[1].State != crv1alpha1.StatePending || a.DeferPhase.State != crv1alpha1.StateComplete {
			t.Errorf("phases %+v, deferPhase %+v", a.Phases, a.DeferPhase)
		}
		if a.Artifacts["a"].KeyValue["k"] != "{{ .Phases.never.Output.value }}" {
			t.Errorf("artifacts of a failed action were rendered: %v", a.Artifacts)
		}
	})

	t.Run("what cannot run fails at once with a reason", func(t *testing.T) {
		w := &world{API: w.In(t)}
		w.blueprint("unknown-function", &crv1alpha1.BlueprintAction{Phases: []crv1alpha1.BlueprintPhase{phase("p", "NoSuch", nil)}})
		w.blueprint("missing-arg", &crv1alpha1.BlueprintAction{Phases: []crv1alpha1.BlueprintPhase{phase("p", "Echo", nil)}})
		w.blueprint("extra-arg", &crv1alpha1.BlueprintAction{Phases: []crv1alpha1.BlueprintPhase{phase("p", "Fail", crv1alpha1.JSONMap{"lost": "x"})}})
		w.blueprint("bad-template", &crv1alpha1.BlueprintAction{Phases: []crv1alpha1.BlueprintPhase{phase("p", "Echo", crv1alpha1.JSONMap{"value": "{{ .Options.lost }}"})}})
		w.blueprint("bad-artifact", &crv1alpha1.BlueprintAction{
			OutputArtifacts: map[string]crv1alpha1.Artifact{"a": {KeyValue: map[string]string{"k": "{{ .Phases.lost.Output.x }}"}}},
			Phases:          []crv1alpha1.BlueprintPhase{phase("p", "Echo", crv1alpha1.JSONMap{"value": "x"})},
		})
		for blueprint, want := range map[string]string{
			"no-such-blueprint": "Failed to query blueprint: no-such-blueprint",
			"unknown-function":  "Requested function {NoSuch} has not been registered",
			"missing-arg":       "Required arg missing: value",
			"extra-arg":         "argument lost is not supported",
			"bad-template":      `Failed to render template: "lost" not found`,
			"bad-artifact":      "render artifact a",
		} {
			s := w.wait(w.start("refused-"+blueprint, blueprint), "failed", finished)
			if s.State != crv1alpha1.StateFailed || !strings.Contains(s.Error.Message, want) {
				t.Errorf("%s: state %s, error %q, want %q in it", blueprint, s.State, s.Error.Message, want)
			}
		}
	})

	t.Run("a Profile that cannot be read fails it with the reason", func(t *testing.T) {
		w := &world{API: w.In(t)}
		w.blueprint("profiled", &crv1alpha1.BlueprintAction{Phases: []crv1alpha1.BlueprintPhase{phase("p", "Echo", crv1alpha1.JSONMap{"value": "x"})}})
		keys := crv1alpha1.ObjectReference{Namespace: namespace, Name: "profile-keys"}
		inKeys := func(key string) crv1alpha1.KopiaServerSecretRef {
			return crv1alpha1.KopiaServerSecretRef{Key: key, Secret: &keys}
		}
		kopia := func(ks *crv1alpha1.KopiaServerSecret) *crv1alpha1.Credential {
			return &crv1alpha1.Credential{Type: crv1alpha1.CredentialTypeKopia, KopiaServerSecret: ks}
		}
		w.Must(w.Create(w.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: keys.Name}, StringData: map[string]string{"id": "AK"}}))
		lost := crv1alpha1.ObjectReference{Namespace: namespace, Name: "lost"}
		pair := crv1alpha1.CredentialTypeKeyPair
		for name, c := range map[string]struct {
			credential *crv1alpha1.Credential
			want       string
		}{
			"profile-no-key":    {&crv1alpha1.Credential{Type: pair, KeyPair: &crv1alpha1.KeyPair{IDField: "id", SecretField: "lost", Secret: keys}}, "Key 'lost' not found in secret 'control:profile-keys'"},
			"profile-no-secret": {&crv1alpha1.Credential{Type: pair, KeyPair: &crv1alpha1.KeyPair{IDField: "id", SecretField: "key", Secret: lost}}, "read Secret control/lost"},
			"profile-no-pair":   {&crv1alpha1.Credential{Type: pair}, "KeyPair cannot be empty"},
			"profile-of-secret": {&crv1alpha1.Credential{Type: crv1alpha1.CredentialTypeSecret}, "Secret cannot be empty"},
			"profile-of-kopia":  {kopia(nil), "Kopia Secret reference cannot be nil"},
			"kopia-no-password": {kopia(&crv1alpha1.KopiaServerSecret{TLSCert: inKeys("id")}), "Kopia UserPassphrase Secret reference cannot be nil"},
			"kopia-no-cert":     {kopia(&crv1alpha1.KopiaServerSecret{UserPassphrase: inKeys("id")}), "Kopia TLS cert Secret reference cannot be nil"},
			"kopia-no-key":      {kopia(&crv1alpha1.KopiaServerSecret{UserPassphrase: inKeys("id"), TLSCert: inKeys("lost")}), "Key 'lost' not found in secret 'control:profile-keys'"},
			"profile-lost":      {nil, "read Profile control/profile-lost"},
		} {
			if c.credential != nil {
				w.Must(w.Create(w.Context(), &crv1alpha1.Profile{
					ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Credential: *c.credential,
					Location: crv1alpha1.Location{Type: crv1alpha1.LocationTypeS3Compliant, Bucket: "b"},
				}))
			}
			as := &crv1alpha1.ActionSet{
				ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
				Spec: &crv1alpha1.ActionSetSpec{Actions: []crv1alpha1.ActionSpec{{
					Name: "act", Blueprint: "profiled", Object: crv1alpha1.ObjectReference{Kind: "Namespace", Name: namespace, Namespace: namespace},
					Profile: &crv1alpha1.ObjectReference{Namespace: namespace, Name: name},
				}}},
			}
			w.Must(w.Create(w.Context(), as))
			s := w.wait(client.ObjectKeyFromObject(as), "failed", finished)
			if s.State != crv1alpha1.StateFailed || !strings.Contains(s.Error.Message, c.want) {
				t.Errorf("%s: %s, %q; want %q in it", name, s.State, s.Error.Message, c.want)
			}
		}
	})

	t.Run("a Profile of a Kopia server is handed to commands as kando reads it", func(t *testing.T) {
		w := &world{API: w.In(t)}
		w.blueprint("kopia-profiled", &crv1alpha1.BlueprintAction{Phases: []crv1alpha1.BlueprintPhase{phase("p", "Echo", crv1alpha1.JSONMap{"value": "{{ toJson .Profile }}"})}})
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "kopia-server"}, StringData: map[string]string{"pass": "p", "pem": "c"}}
		w.Must(w.Create(w.Context(), secret))
		of := func(key string) crv1alpha1.KopiaServerSecretRef {
			return crv1alpha1.KopiaServerSecretRef{Key: key, Secret: &crv1alpha1.ObjectReference{Namespace: namespace, Name: secret.Name}}
		}
		w.Must(w.Create(w.Context(), &crv1alpha1.Profile{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "kopia-server"},
			Location:   crv1alpha1.Location{Type: crv1alpha1.LocationTypeKopia, Endpoint: "https://kopia:51515"},
			Credential: crv1alpha1.Credential{Type: crv1alpha1.CredentialTypeKopia, KopiaServerSecret: &crv1alpha1.KopiaServerSecret{
				Username: "u", Hostname: "h", UserPassphrase: of("pass"), TLSCert: of("pem"), ConnectOptions: map[string]int{"cache": 1},
			}},
		}))
		as := &crv1alpha1.ActionSet{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "kopia-profiled"},
			Spec: &crv1alpha1.ActionSetSpec{Actions: []crv1alpha1.ActionSpec{{
				Name: "act", Blueprint: "kopia-profiled", Object: crv1alpha1.ObjectReference{Kind: "Namespace", Name: namespace, Namespace: namespace},
				Profile: &crv1alpha1.ObjectReference{Namespace: namespace, Name: "kopia-server"},
			}}},
		}
		w.Must(w.Create(w.Context(), as))
		s := w.wait(client.ObjectKeyFromObject(as), "complete", finished)
		if s.State != crv1alpha1.StateComplete {
			t.Fatalf("%s: %s", s.State, s.Error.Message)
		}
		const want = `{"Location":{"type":"kopia","bucket":"","endpoint":"https://kopia:51515","prefix":"","region":""},` +
			`"Credential":{"Type":"kopia","KeyPair":null,"Secret":null,` +
			`"KopiaServerSecret":{"Username":"u","Hostname":"h","Password":"p","Cert":"c","ConnectOptions":{"cache":1}}},"SkipSSLVerify":false}`
		if got := s.Actions[0].Phases[0].Output["value"]; got != want {
			t.Errorf("output %v, want %s", got, want)
		}
	})

	t.Run("actions of one ActionSet run side by side, and one failure fails it", func(t *testing.T) {
		w := &world{API: w.In(t)}
		s := w.wait(w.start("both", "flow", "fails"), "failed", func(s *crv1alpha1.ActionSetStatus) bool {
			return finished(s) && s.Actions[0].Phases[1].State.Done()
		})
		if s.State != crv1alpha1.StateFailed || s.Actions[0].Phases[1].State != crv1alpha1.StateComplete {
			t.Errorf("state %s, the good action %+v", s.State, s.Actions[0].Phases)
		}
	})

	t.Run("an empty ActionSet is complete, one elsewhere is left alone", func(t *testing.T) {
		elsewhere := &crv1alpha1.ActionSet{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "other"}, Spec: &crv1alpha1.ActionSetSpec{}}
		w.Must(w.Create(w.Context(), elsewhere))
		s := w.wait(w.start("empty"), "complete", finished)
		if s.State != crv1alpha1.StateComplete {
			t.Errorf("state %s: %s", s.State, s.Error.Message)
		}
		w.Must(w.Get(w.Context(), client.ObjectKeyFromObject(elsewhere), elsewhere))
		if elsewhere.Status != nil {
			t.Errorf("status %+v", elsewhere.Status)
		}
	})

	t.Run("what others write to one that runs stays, and changes nothing", func(t *testing.T) {
		w := &world{API: w.In(t)}
		w.blueprint("edited", &crv1alpha1.BlueprintAction{Phases: []crv1alpha1.BlueprintPhase{
			phase("slow", "Edited", nil), phase("after", "Echo", crv1alpha1.JSONMap{"value": "{{ .Options.option }}"}),
		}})
		key := w.start("edited", "edited")
		w.wait(key, "running", func(s *crv1alpha1.ActionSetStatus) bool {
			return s.Actions[0].Phases[0].State == crv1alpha1.StateRunning
		})
		var as crv1alpha1.ActionSet
		w.Must(w.Get(w.Context(), key, &as))
		as.Labels = map[string]string{"team": "a"}
		as.Spec.Actions[0].Options["option"] = "edited"
		as.Spec.Actions = append(as.Spec.Actions, as.Spec.Actions[0])
		as.Status = nil // as kubectl replace does with a file
		w.Must(w.Update(w.Context(), &as))
		close(edited)
		s := w.wait(key, "complete", finished)
		if s.State != crv1alpha1.StateComplete || len(s.Actions) != 1 || s.Actions[0].Phases[1].Output["value"] != "o" {
			t.Errorf("%s %q: actions %+v", s.State, s.Error.Message, s.Actions)
		}
		w.Must(w.Get(w.Context(), key, &as))
		if as.Labels["team"] != "a" || len(as.Spec.Actions) != 2 {
			t.Errorf("somebody's label or spec was taken back: labels %v, %d actions", as.Labels, len(as.Spec.Actions))
		}
	})

	t.Run("deleting an ActionSet cancels what it does", func(t *testing.T) {
		w.blueprint("blocks", &crv1alpha1.BlueprintAction{Phases: []crv1alpha1.BlueprintPhase{phase("p", "Block", nil)}})
		key := w.start("deleted", "blocks")
		w.wait(key, "running", func(s *crv1alpha1.ActionSetStatus) bool {
			return s.Actions[0].Phases[0].State == crv1alpha1.StateRunning
		})
		testenv.Eventually(t, time.Minute, "the function runs", func() bool { return slices.Contains(w.done(), "Block begins") })
		w.Must(w.Delete(w.Context(), &crv1alpha1.ActionSet{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}}))
		testenv.Eventually(t, time.Minute, "the function is told", func() bool {
			return slices.Contains(w.done(), "Block ends: the ActionSet was deleted")
		})
	})

	t.Run("a restart resumes what can be, and fails what cannot", func(t *testing.T) {
		w.blueprint("resumes", &crv1alpha1.BlueprintAction{
			OutputArtifacts: map[string]crv1alpha1.Artifact{"a": {KeyValue: map[string]string{"k": "{{ .Phases.before.Output.value }}"}}},
			Phases: []crv1alpha1.BlueprintPhase{
				phase("before", "Echo", crv1alpha1.JSONMap{"value": "{{ .Time }}"}), phase("during", "Resume", nil),
			},
		})
		// One that failed before it began: what it lacked comes while nobody looks.
		lost := &crv1alpha1.ObjectReference{Namespace: namespace, Name: "late"}
		early := &crv1alpha1.ActionSet{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "early"},
			Spec: &crv1alpha1.ActionSetSpec{Actions: []crv1alpha1.ActionSpec{{
				Name: "act", Blueprint: "flow", Profile: lost, Options: map[string]string{"option": "early"},
				Object: crv1alpha1.ObjectReference{Kind: "Namespace", Name: namespace, Namespace: namespace},
			}}},
		}
		w.Must(w.Create(w.Context(), early))
		w.wait(client.ObjectKeyFromObject(early), "failed", func(s *crv1alpha1.ActionSetStatus) bool { return s.State == crv1alpha1.StateFailed })

		// One that has failed and owes its deferPhase.
		w.blueprint("cleans", &crv1alpha1.BlueprintAction{
			Phases:     []crv1alpha1.BlueprintPhase{phase("breaks", "Fail", nil), phase("never", "Echo", crv1alpha1.JSONMap{"value": "never-after-a-failure"})},
			DeferPhase: &crv1alpha1.BlueprintPhase{Name: "cleans", Func: "Resume"},
		})

		good, bad, cleaning := w.start("resumed", "resumes"), w.start("not-resumed", "blocks"), w.start("cleaning", "cleans")
		running := func(i int) func(*crv1alpha1.ActionSetStatus) bool {
			return func(s *crv1alpha1.ActionSetStatus) bool {
				return s.Actions[0].Phases[i].State == crv1alpha1.StateRunning
			}
		}
		before := w.wait(good, "running", running(1))
		w.wait(bad, "running", running(0))
		w.wait(cleaning, "failed and cleaning", func(s *crv1alpha1.ActionSetStatus) bool {
			return s.State == crv1alpha1.StateFailed && s.Actions[0].DeferPhase.State == crv1alpha1.StateRunning
		})
		resumed := func() int {
			return len(slices.DeleteFunc(w.done(), func(s string) bool { return s != "Resume begins" }))
		}
		testenv.Eventually(t, time.Minute, "all functions run", func() bool {
			return resumed() == 2 && slices.Contains(w.done(), "Block begins")
		})
		stop()
		w.wait(good, "still running without a controller", running(1))
		w.Must(w.Create(w.Context(), &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "late"}, StringData: map[string]string{"id": "i", "key": "k"},
		}))
		w.Must(w.Create(w.Context(), &crv1alpha1.Profile{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "late"},
			Credential: crv1alpha1.Credential{Type: crv1alpha1.CredentialTypeKeyPair, KeyPair: &crv1alpha1.KeyPair{
				IDField: "id", SecretField: "key", Secret: *lost,
			}},
		}))
		w.controller(functions)
		failed := w.wait(bad, "failed", finished)
		if failed.State != crv1alpha1.StateFailed || !strings.Contains(failed.Error.Message, "the controller was restarted") {
			t.Errorf("state %s, error %q", failed.State, failed.Error.Message)
		}
		testenv.Eventually(t, time.Minute, "the phases are picked up", func() bool { return resumed() == 4 })
		close(release)
		after := w.wait(good, "complete", finished)
		if after.State != crv1alpha1.StateComplete {
			t.Fatalf("state %s: %s", after.State, after.Error.Message)
		}
		if got, want := after.Actions[0].Artifacts["a"].KeyValue["k"], before.Actions[0].Phases[0].Output["value"]; got != want || got == "" {
			t.Errorf("the finished phase's output is %q, was %q", got, want)
		}
		cleaned := w.wait(cleaning, "cleaned up", finished)
		if a := cleaned.Actions[0]; cleaned.State != crv1alpha1.StateFailed || cleaned.Error.Message != "phase breaks: the disk is on fire" ||
			a.Phases[0].State != crv1alpha1.StateFailed || a.Phases[1].State != crv1alpha1.StatePending || a.DeferPhase.State != crv1alpha1.StateComplete {
			t.Errorf("cleaned up: %s %q, phases %+v, deferPhase %+v", cleaned.State, cleaned.Error.Message, a.Phases, a.DeferPhase)
		}
		if ran := slices.ContainsFunc(w.done(), func(s string) bool {
			return strings.HasPrefix(s, "echo early") || s == "echo never-after-a-failure"
		}); ran {
			t.Error("what had failed was run after the restart")
		}
		operations := 0
		calls.Range(func(id, n any) bool {
			if id == after.Actions[0].Phases[1].Output["operation"] {
				operations = *n.(*int)
			}
			return true
		})
		if operations != 2 {
			t.Errorf("the operation's id was used %d times, want the same one before and after", operations)
		}
	})
}
