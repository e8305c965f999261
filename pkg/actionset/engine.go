// SPDX-License-Identifier: Apache-2.0

package actionset

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	agentclient "github.com/kanister-kopia/kanister-kopia/agent/client"
	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/blueprint"
	"github.com/kanister-kopia/kanister-kopia/pkg/function"
	"github.com/kanister-kopia/kanister-kopia/pkg/kube"
)

// Engine runs the ActionSets of one namespace.
type Engine struct {
	// Client reads without a cache: a status is decided on what is there now.
	Client client.Client
	// Namespace is watched; ActionSets elsewhere are a stock Kanister's.
	Namespace string
	Functions *function.Registry
	Events    record.EventRecorder
	Log       *slog.Logger
	Clock     clock.WithTicker
	Metrics   *Metrics
	// RefuseSecretsInCommands fails an ActionSet whose Blueprint renders a secret into
	// a command; otherwise it gets a Warning Event.
	RefuseSecretsInCommands bool

	base context.Context // of all runs; ends with agentclient.ErrDetached
	mu   sync.Mutex      // protects the following
	runs map[types.NamespacedName]*running
	wg   sync.WaitGroup
}

type running struct {
	uid    types.UID
	cancel context.CancelCauseFunc
}

// drain bounds how long runs may take to let go when the controller ends.
const drain = 10 * time.Second

// SetupWithManager starts it with the manager, on its leader.
func (e *Engine) SetupWithManager(mgr ctrl.Manager) error {
	base, detach := context.WithCancelCause(context.Background())
	e.base, e.runs = base, map[types.NamespacedName]*running{}
	// What runs on agents goes on when this controller ends; the next one asks how
	// it went.
	if err := mgr.Add(manager.RunnableFunc(func(ctx context.Context) error {
		<-ctx.Done()
		detach(agentclient.ErrDetached)
		done := make(chan struct{})
		go func() { defer close(done); e.wg.Wait() }()
		select {
		case <-done:
		case <-e.Clock.After(drain):
		}
		return nil
	})); err != nil {
		return fmt.Errorf("add the engine: %w", err)
	}
	here := func(o client.Object) bool { return o.GetNamespace() == e.Namespace }
	return ctrl.NewControllerManagedBy(mgr).
		Named("actionset").
		For(&crv1alpha1.ActionSet{}, builder.WithPredicates(predicate.NewPredicateFuncs(here), predicate.Funcs{UpdateFunc: e.isNews})).
		Watches(&crv1alpha1.Blueprint{}, handler.Funcs{CreateFunc: e.blueprintAdded}, builder.WithPredicates(predicate.NewPredicateFuncs(here))).
		// Many at once start about as fast as one.
		WithOptions(controller.Options{MaxConcurrentReconciles: 4}).
		Complete(e)
}

// isNews is false for the engine's own writes to the status of what it runs.
func (e *Engine) isNews(u event.UpdateEvent) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.runs[client.ObjectKeyFromObject(u.ObjectNew)]
	return now == nil || now.uid != u.ObjectNew.GetUID() || u.ObjectNew.GetDeletionTimestamp() != nil
}

// blueprintAdded tells what the admission webhook would have told, had it answered.
func (e *Engine) blueprintAdded(_ context.Context, c event.CreateEvent, _ workqueue.TypedRateLimitingInterface[reconcile.Request]) {
	b, ok := c.Object.(*crv1alpha1.Blueprint)
	if !ok {
		return
	}
	e.event(corev1.EventTypeNormal, "Added", "Added blueprint "+b.Name, b)
	if err := blueprint.Validate(b, e.Functions); err != nil {
		e.event(corev1.EventTypeWarning, "Invalid", "Invalid blueprint, "+err.Error(), b)
	}
}

// Reconcile starts what is to be started and cancels what was deleted.
func (e *Engine) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	// Before it is read: a run that ends in between has written its end, and what was
	// read may be older.
	e.mu.Lock()
	now := e.runs[req.NamespacedName]
	e.mu.Unlock()
	var as crv1alpha1.ActionSet
	err := e.Client.Get(ctx, req.NamespacedName, &as)
	if client.IgnoreNotFound(err) != nil {
		return ctrl.Result{}, fmt.Errorf("read ActionSet %s: %w", req.NamespacedName, err)
	}
	gone := apierrors.IsNotFound(err) || as.DeletionTimestamp != nil
	if now != nil {
		switch {
		case gone:
			now.cancel(errDeleted)
		case now.uid != as.UID:
			// Made anew under the old name: its turn comes when the old one let go.
			now.cancel(errDeleted)
			return ctrl.Result{RequeueAfter: time.Second}, nil
		}
		return ctrl.Result{}, nil
	}
	if gone {
		return ctrl.Result{}, nil
	}
	return ctrl.Result{}, e.start(ctx, &as)
}

// start validates an ActionSet and starts its run. That it runs is written with its
// first phase.
func (e *Engine) start(ctx context.Context, as *crv1alpha1.ActionSet) error {
	// A status without a state is none: others may write one.
	if as.Status != nil && as.Status.State != "" && !unfinished(as.Status) {
		return nil
	}
	blueprints, err := e.blueprints(ctx, as)
	if err != nil {
		return e.refuse(ctx, as, err)
	}
	if as.Status == nil || as.Status.State == "" {
		as.Status = initialStatus(as.Spec, blueprints)
	}
	if err := fits(as, blueprints); err != nil {
		return e.refuse(ctx, as, err)
	}
	if as.Status.State == crv1alpha1.StatePending {
		as.Status.State = crv1alpha1.StateRunning
	}

	e.mu.Lock()
	defer e.mu.Unlock()
	if e.base.Err() != nil {
		return nil
	}
	key := client.ObjectKeyFromObject(as)
	runCtx, cancel := context.WithCancelCause(e.base)
	e.runs[key] = &running{uid: as.UID, cancel: cancel}
	log := e.Log.With(logFields(as)...)
	r := &run{
		Engine: e, actionSet: as, blueprints: blueprints, log: log,
		store: newStore(e.Client, as, e.Clock, log),
	}
	e.Metrics.running.Inc()
	e.wg.Go(func() {
		defer func() {
			e.mu.Lock()
			delete(e.runs, key)
			e.mu.Unlock()
			e.Metrics.running.Dec()
			cancel(nil)
		}()
		r.execute(runCtx)
	})
	return nil
}

// conflictIsNews: somebody changed the object, so it will be reconciled again.
func conflictIsNews(err error) error {
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil
	}
	return fmt.Errorf("write the status: %w", err)
}

// blueprints reads and checks the Blueprint of every action.
func (e *Engine) blueprints(ctx context.Context, as *crv1alpha1.ActionSet) ([]*crv1alpha1.Blueprint, error) {
	if as.Spec == nil {
		return nil, errors.New("Spec must be non-nil") // Kanister's text
	}
	var out []*crv1alpha1.Blueprint
	for _, a := range as.Spec.Actions {
		if err := checkSpec(a); err != nil {
			return nil, err
		}
		var b crv1alpha1.Blueprint
		if err := e.Client.Get(ctx, client.ObjectKey{Namespace: as.Namespace, Name: a.Blueprint}, &b); err != nil {
			return nil, fmt.Errorf("Failed to query blueprint: %s in namespace %s: %w", a.Blueprint, as.Namespace, err) // Kanister's text
		}
		if err := blueprint.ValidateAction(&b, a.Name, a.Object.Kind, e.Functions); err != nil {
			return nil, err
		}
		if _, err := fallsBack(a.PreferredVersion); err != nil {
			return nil, err
		}
		if shown := blueprint.SecretsInCommands(b.Actions[a.Name], e.Functions); e.RefuseSecretsInCommands && len(shown) > 0 {
			return nil, fmt.Errorf("refuse secrets in commands: %s", shown[0])
		}
		out = append(out, &b)
	}
	return out, nil
}

// fits refuses to go on with a status that is not of this spec and these Blueprints:
// they were changed while the controller was away.
func fits(as *crv1alpha1.ActionSet, blueprints []*crv1alpha1.Blueprint) error {
	changed := func(what string) error {
		return fmt.Errorf("go on with the ActionSet: its status is not that of its %s, which was changed since: run the action again", what)
	}
	if len(as.Status.Actions) != len(as.Spec.Actions) {
		return changed("spec")
	}
	for i, a := range as.Spec.Actions {
		action, status := blueprints[i].Actions[a.Name], as.Status.Actions[i]
		if a.Name != status.Name || a.Blueprint != status.Blueprint || a.Object != status.Object {
			return changed("spec")
		}
		if len(action.Phases) != len(status.Phases) || (action.DeferPhase != nil) != (status.DeferPhase.State != "") {
			return changed("blueprint")
		}
		if action.DeferPhase != nil && action.DeferPhase.Name != status.DeferPhase.Name {
			return changed("blueprint")
		}
		for j, p := range action.Phases {
			if p.Name != status.Phases[j].Name {
				return changed("blueprint")
			}
		}
	}
	return nil
}

// refuse fails an ActionSet that cannot run. An API server that does not answer is
// not its fault: that is tried again.
func (e *Engine) refuse(ctx context.Context, as *crv1alpha1.ActionSet, cause error) error {
	if kube.Unanswered(cause) || errors.Is(cause, context.Canceled) {
		return cause
	}
	if status := apierrors.APIStatus(nil); errors.As(cause, &status) && !apierrors.IsNotFound(cause) && !apierrors.IsForbidden(cause) {
		return cause
	}
	if as.Status == nil {
		as.Status = &crv1alpha1.ActionSetStatus{}
	}
	as.Status.State = crv1alpha1.StateFailed
	// The first error stays.
	as.Status.Error.Message = cmp.Or(as.Status.Error.Message, cause.Error())
	// Nothing of it will run: not even what a deferPhase would clean up.
	for i := range as.Status.Actions {
		leave(&as.Status.Actions[i])
		if d := &as.Status.Actions[i].DeferPhase; d.State != "" && !d.State.Done() {
			d.State = crv1alpha1.StateFailed
		}
	}
	if err := e.Client.Update(ctx, as); err != nil {
		return conflictIsNews(err)
	}
	e.Metrics.resolved(false)
	e.event(corev1.EventTypeWarning, "Error", "Could not start ActionSet: "+cause.Error(), as)
	e.Log.With(logFields(as)...).Error("ActionSet refused", "error", cause.Error())
	return nil
}

// Source of the engine's Events is Kanister's.
const Source = "Kanister Controller"

// eventLimit keeps a long error from making the event too large to be kept.
const eventLimit = 1024

// event tells about objects. It is for people: who waits for it loses nothing when
// the API server drops it.
func (e *Engine) event(kind, reason, message string, about ...runtime.Object) {
	if len(message) > eventLimit {
		message = strings.ToValidUTF8(message[:eventLimit-len(" …")], "") + " …"
	}
	for _, o := range about {
		e.Events.Event(o, kind, reason, message)
	}
}

// jobLabel on an ActionSet is copied to the pods that are made for it, as in Kanister.
const jobLabel = labelPrefix + "JobID"

// labelPrefix is Kanister's: such labels of an ActionSet are fields of its log lines.
const labelPrefix = "kanister.io/"

// logFields are Kanister's.
func logFields(as *crv1alpha1.ActionSet) []any {
	fields := []any{"ActionSet", as.Name}
	for _, key := range slices.Sorted(maps.Keys(as.Labels)) {
		if strings.HasPrefix(key, labelPrefix) {
			fields = append(fields, key, as.Labels[key])
		}
	}
	return fields
}
