// SPDX-License-Identifier: Apache-2.0

package actionset

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	agentclient "github.com/kanister-kopia/kanister-kopia/agent/client"
	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/blueprint"
	"github.com/kanister-kopia/kanister-kopia/pkg/function"
	"github.com/kanister-kopia/kanister-kopia/pkg/param"
)

// run is one ActionSet on its way.
type run struct {
	*Engine
	actionSet  *crv1alpha1.ActionSet
	blueprints []*crv1alpha1.Blueprint
	store      *store
	log        *slog.Logger
	// ended counts the actions whose end is written: all phases, and the artifacts.
	ended atomic.Int32
}

// execute runs all actions in parallel and writes the end down, unless ctx was
// ended because the controller goes away: then the next one continues.
func (r *run) execute(ctx context.Context) {
	r.log.Info("Created actionset and started executing actions") // Kanister's text
	var wg sync.WaitGroup
	for i := range r.actionSet.Spec.Actions {
		wg.Go(func() { r.action(ctx, i) })
	}
	wg.Wait()
	if errors.Is(context.Cause(ctx), agentclient.ErrDetached) {
		return
	}
	var state crv1alpha1.State
	err := r.store.update(ctx, func(s *crv1alpha1.ActionSetStatus) {
		r.complete(s, r.ended.Load())
		state = s.State
	})
	switch {
	case errors.Is(err, errDeleted):
		return
	case err != nil:
		r.unwritten("the end is not written down", err)
		return
	}
	if !state.Done() {
		return // its failure is not written down
	}
	complete := state == crv1alpha1.StateComplete
	if complete {
		r.event(corev1.EventTypeNormal, "Update Complete", fmt.Sprintf("Updated ActionSet '%s' Status->%s", r.actionSet.Name, state), r.actionSet) // Kanister's text
	}
	r.Metrics.resolved(complete)
	r.log.Info("Updated ActionSet", "Status", state)
}

// complete sets the ActionSet to complete if it is, when so many actions have ended.
func (r *run) complete(s *crv1alpha1.ActionSetStatus, ended int32) {
	if s.State != crv1alpha1.StateFailed && allComplete(s) && int(ended) == len(s.Actions) {
		s.State = crv1alpha1.StateComplete
	}
}

// fail sets the ActionSet to failed at once, and says so; the first error stays.
// Nothing has failed when the controller ends, and nobody is left to tell when the
// ActionSet is gone.
func (r *run) fail(ctx context.Context, i int, what string, cause error) {
	if errors.Is(cause, agentclient.ErrDetached) || errors.Is(cause, errDeleted) {
		return
	}
	action := r.actionSet.Spec.Actions[i].Name
	r.log.Error(what, "Action", action, "error", cause.Error())
	err := r.store.update(ctx, func(s *crv1alpha1.ActionSetStatus) {
		s.State = crv1alpha1.StateFailed
		leave(&s.Actions[i])
		if s.Error.Message == "" {
			s.Error.Message = cause.Error()
		}
	})
	switch {
	case errors.Is(err, errDeleted):
		return
	case err != nil:
		r.unwritten("a failure is not written down", err)
	}
	// Reason and objects are Kanister's.
	r.event(corev1.EventTypeWarning, "ActionSetFailed Action: "+action, what+": "+cause.Error(), r.actionSet, r.blueprints[i])
}

// unwritten tells what the status cannot, because the API server refuses to write it.
// The next change of the ActionSet, or the next controller, tries again.
func (r *run) unwritten(what string, err error) {
	r.log.Error(what, "error", err.Error())
	r.event(corev1.EventTypeWarning, "Update Failed", fmt.Sprintf("Failed to update ActionSet %s: %s: %s", r.actionSet.Name, what, err), r.actionSet) // Kanister's reason
}

// action runs the phases of one action, then its deferPhase whatever happened, then
// renders its artifacts. It goes on where an earlier controller stopped.
func (r *run) action(ctx context.Context, i int) {
	spec, status := r.actionSet.Spec.Actions[i], r.actionSet.Status.Actions[i]
	action := r.blueprints[i].Actions[spec.Name]
	params, err := r.begin(ctx, i)
	if err != nil {
		r.fail(ctx, i, "Failed to launch Action "+spec.Name, r.outcome(ctx, err))
		return
	}
	// end writes the end of the action, with the end of its last phase, and with that of
	// the ActionSet if this is the last one.
	ended := false
	end := func(last func(*crv1alpha1.ActionSetStatus)) error {
		artifacts, err := param.RenderArtifacts(action.OutputArtifacts, params)
		if err != nil {
			return err
		}
		if err := r.store.update(ctx, func(s *crv1alpha1.ActionSetStatus) {
			last(s)
			s.Actions[i].Artifacts = artifacts
			r.complete(s, r.ended.Load()+1)
		}); err != nil {
			return err
		}
		ended = true
		r.ended.Add(1)
		return nil
	}
	failed := false
	for j := range action.Phases {
		if before := status.Phases[j]; r.actionSet.Status.State == crv1alpha1.StateFailed && before.State != crv1alpha1.StateComplete && !runs(before) {
			// It had failed when the controller was restarted: what runs is followed to
			// its end, nothing new begins, and then it is cleaned up.
			failed = true
			break
		}
		phase := &phase{
			run: r, action: i, spec: &action.Phases[j], before: status.Phases[j], kind: "phase", title: "Phase",
			in:    func(s *crv1alpha1.ActionSetStatus) *crv1alpha1.Phase { return &s.Actions[i].Phases[j] },
			offer: func(p *param.Phase) { params.Phases[action.Phases[j].Name] = p },
		}
		if j == len(action.Phases)-1 && action.DeferPhase == nil {
			phase.ending = end
		}
		if err := phase.do(ctx, params); err != nil {
			// Now, not after the deferPhase: people wait for this.
			r.fail(ctx, i, "Failed to execute phase "+phase.spec.Name, err)
			failed = true
			break
		}
	}
	if action.DeferPhase != nil && ctx.Err() == nil {
		phase := &phase{
			run: r, action: i, spec: action.DeferPhase, before: status.DeferPhase, kind: "deferPhase", title: "deferPhase",
			in:    func(s *crv1alpha1.ActionSetStatus) *crv1alpha1.Phase { return &s.Actions[i].DeferPhase },
			offer: func(p *param.Phase) { params.DeferPhase = p },
		}
		if !failed {
			phase.ending = end
		}
		if err := phase.do(ctx, params); err != nil {
			r.fail(ctx, i, "Failed to execute defer phase "+phase.spec.Name, err)
			failed = true
		}
	}
	if failed || ended || ctx.Err() != nil {
		return
	}
	// There is no phase, or an earlier controller ran the last one, or what failed
	// together fails again and says why.
	if err := end(func(*crv1alpha1.ActionSetStatus) {}); err != nil {
		r.fail(ctx, i, "Failed to render output artifacts", err)
	}
}

// begin reads what the templates of an action see. The snapshot is written down with
// the state of the first phase, before that runs.
func (r *run) begin(ctx context.Context, i int) (*param.TemplateParams, error) {
	spec, status := r.actionSet.Spec.Actions[i], r.actionSet.Status.Actions[i]
	r.event(corev1.EventTypeNormal, "Started Action", "Executing action "+spec.Name, r.actionSet)
	if fallback, _ := fallsBack(spec.PreferredVersion); fallback {
		r.log.Info("Falling back to default version of the function", "Action", spec.Name, "PreferredVersion", spec.PreferredVersion, "FallbackVersion", DefaultVersion) // Kanister's text
	}
	for _, s := range blueprint.SecretsInCommands(r.blueprints[i].Actions[spec.Name], r.Functions) {
		r.event(corev1.EventTypeWarning, "SecretInCommand", s.String(), r.actionSet)
		r.log.Warn("secret in a command", "Phase", s.Phase, "Fields", s.Fields)
	}
	var params *param.TemplateParams
	var snapshot *crv1alpha1.WorkloadSnapshot
	if err := persist(ctx, r.Clock, r.log, func() (err error) {
		params, snapshot, err = buildParams(ctx, r.Client, spec, status, r.Clock.Now())
		return err
	}); err != nil {
		return nil, err
	}
	if job := r.actionSet.Labels[jobLabel]; job != "" && params.PodLabels[jobLabel] == "" {
		params.PodLabels = maps.Clone(params.PodLabels)
		if params.PodLabels == nil {
			params.PodLabels = map[string]string{}
		}
		params.PodLabels[jobLabel] = job
	}
	if status.Time == "" {
		r.store.later(func(s *crv1alpha1.ActionSetStatus) {
			s.Actions[i].Time, s.Actions[i].Workload = params.Time, snapshot
		})
	}
	return params, nil
}

// outcome tells an error that is the end of the controller, or of the ActionSet,
// from one of the phase.
func (r *run) outcome(ctx context.Context, err error) error {
	if err == nil || ctx.Err() == nil {
		return err
	}
	if cause := context.Cause(ctx); errors.Is(cause, agentclient.ErrDetached) || errors.Is(cause, errDeleted) {
		return cause
	}
	return err
}

// phase is one phase on its way.
type phase struct {
	*run
	action int
	spec   *crv1alpha1.BlueprintPhase
	// before is what an earlier controller knew.
	before crv1alpha1.Phase
	// in finds the phase in a status.
	in func(*crv1alpha1.ActionSetStatus) *crv1alpha1.Phase
	// offer makes the phase visible to templates.
	offer func(*param.Phase)
	// kind and title are the words that Kanister's events have for it.
	kind, title string
	// last is what the function said last of its progress.
	last api.Progress
	// ending, of the last phase of an action, writes a change with the action's end.
	ending func(change func(*crv1alpha1.ActionSetStatus)) error
}

var errRestarted = errors.New("the controller was restarted while the phase ran, and what it did cannot be known or repeated safely: look at the application, then run the action again")

// do runs the phase, or takes over what an earlier controller left.
func (p *phase) do(ctx context.Context, params *param.TemplateParams) (err error) {
	if p.before.State == crv1alpha1.StateFailed {
		return fmt.Errorf("phase %s: it failed before the controller was restarted", p.spec.Name)
	}
	seen := &param.Phase{Output: map[string]any(p.before.Output.DeepCopy())}
	if err := persist(ctx, p.Clock, p.log, func() error { return p.readObjects(ctx, params, seen) }); err != nil {
		return p.end(ctx, nil, err)
	}
	p.offer(seen)
	params.CurrentPhase = p.spec.Name
	if p.before.State == crv1alpha1.StateComplete {
		return nil
	}
	f, err := p.Functions.Get(p.spec.Func)
	if err != nil {
		return p.end(ctx, nil, err)
	}
	if p.before.State == crv1alpha1.StateRunning && !f.Resumable() {
		return p.end(ctx, nil, errRestarted)
	}
	if err := p.set(ctx, crv1alpha1.StateRunning, api.Progress{}); err != nil {
		return err
	}
	p.event(corev1.EventTypeNormal, "Started "+p.title, fmt.Sprintf("Executing %s %s", p.kind, p.spec.Name), p.actionSet) // Kanister's text
	log := p.log.With("Phase", p.spec.Name)
	log.Info("Executing "+p.kind, "func", p.spec.Func)

	args, err := renderArgs(f, p.spec.Args, params)
	if err == nil {
		err = blueprint.CheckArgs(f, args)
	}
	var output map[string]any
	if err == nil {
		began := p.Clock.Now()
		output, err = p.exec(ctx, f, function.Call{
			Params: *params, Args: args, OperationID: operationID(string(p.actionSet.UID), p.action, p.spec.Name),
			ActionSet: p.actionSet.Name, Log: log,
		})
		p.Metrics.phase(p.spec.Func, outcomeLabel(p.outcome(ctx, err)), p.Clock.Since(began), p.last)
	}
	seen.Output = output // for the artifacts
	if err := p.end(ctx, output, err); err != nil {
		seen.Output = nil
		return err
	}
	return nil
}

func outcomeLabel(err error) string {
	switch {
	case err == nil:
		return "complete"
	case errors.Is(err, agentclient.ErrDetached) || errors.Is(err, errDeleted):
		return "interrupted"
	}
	return "failed"
}

// renderArgs leaves the arguments of a function that asks for raw ones as they are.
func renderArgs(f function.Func, args crv1alpha1.JSONMap, params *param.TemplateParams) (map[string]any, error) {
	if raw, ok := f.(function.RawArgs); ok && raw.RawArgs() {
		return args.DeepCopy(), nil
	}
	return param.RenderArgs(args, params)
}

// exec calls the function and writes its progress down as it goes.
func (p *phase) exec(ctx context.Context, f function.Func, call function.Call) (map[string]any, error) {
	var mu sync.Mutex
	var latest, written api.Progress
	call.Progress = func(now api.Progress) {
		mu.Lock()
		latest = now
		mu.Unlock()
	}
	reporting, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		ticker := p.Clock.NewTicker(progressInterval)
		defer ticker.Stop()
		for {
			select {
			case <-reporting.Done():
				return
			case <-ticker.C():
			}
			mu.Lock()
			now := latest
			mu.Unlock()
			if now == written {
				continue
			}
			written = now
			if err := p.set(reporting, crv1alpha1.StateRunning, now); err != nil && !errors.Is(err, errDeleted) {
				p.log.Warn("progress is not written down", "error", err.Error())
			}
		}
	})
	output, err := guarded(ctx, f, call)
	// Before the end is written: progress must not overtake it.
	stop()
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	p.last = latest
	return output, err
}

// guarded turns a bug in a function into the failure of its phase.
func guarded(ctx context.Context, f function.Func, call function.Call) (output map[string]any, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("function %s: %w", f.Name(), function.Bug(call.Log, v))
		}
	}()
	return f.Exec(ctx, call)
}

// progressInterval is how often progress reaches the ActionSet.
const progressInterval = 2 * time.Second

// end writes down how the phase ended.
func (p *phase) end(ctx context.Context, output map[string]any, err error) error {
	if err = p.outcome(ctx, err); err != nil {
		if errors.Is(err, agentclient.ErrDetached) || errors.Is(err, errDeleted) {
			return err
		}
		err = fmt.Errorf("phase %s: %w", p.spec.Name, err)
		if werr := p.set(ctx, crv1alpha1.StateFailed, p.last); werr != nil {
			return werr
		}
		return err
	}
	complete := p.change(crv1alpha1.StateComplete, output, p.last)
	if p.ending == nil || p.ending(complete) != nil {
		// If both cannot be written, the phase is complete and the action fails.
		err = p.store.update(ctx, complete)
	}
	if err != nil {
		if errors.Is(err, errDeleted) {
			return err
		}
		// Its outputs are too large, most likely.
		return p.end(ctx, nil, err)
	}
	p.log.Info("Completed "+p.kind, "Phase", p.spec.Name)
	p.event(corev1.EventTypeNormal, "Ended "+p.title, fmt.Sprintf("Completed %s %s", p.kind, p.spec.Name), p.actionSet) // Kanister's text
	return nil
}

// set writes state and progress.
func (p *phase) set(ctx context.Context, state crv1alpha1.State, progress api.Progress) error {
	return p.store.update(ctx, p.change(state, nil, progress))
}

// change sets state, output and progress. Sizes that are known stay.
func (p *phase) change(state crv1alpha1.State, output map[string]any, progress api.Progress) func(*crv1alpha1.ActionSetStatus) {
	return func(s *crv1alpha1.ActionSetStatus) {
		phase := p.in(s)
		next := phaseProgress(progress, state, p.Clock.Now())
		if progress == (api.Progress{}) {
			old := phase.Progress
			old.ProgressPercent, old.LastTransitionTime = next.ProgressPercent, next.LastTransitionTime
			next = old
		}
		phase.State, phase.Progress = state, next
		if output != nil {
			phase.Output = output
		}
	}
}

// readObjects reads the Secrets and ConfigMaps that the phase names.
func (p *phase) readObjects(ctx context.Context, params *param.TemplateParams, into *param.Phase) error {
	into.Secrets, into.ConfigMaps = map[string]corev1.Secret{}, map[string]corev1.ConfigMap{}
	for name, ref := range p.spec.ObjectRefs {
		ref, err := param.RenderReference(ref, params)
		if err != nil {
			return fmt.Errorf("could not render object reference {%s}: %w", name, err) // Kanister's text
		}
		switch strings.ToLower(ref.Kind) {
		case "secret":
			s, err := readSecret(ctx, p.Client, ref)
			if err == nil {
				into.Secrets[name] = *s
			} else if !p.over(err) {
				return err
			}
		case "configmap":
			m, err := readConfigMap(ctx, p.Client, ref)
			if err == nil {
				into.ConfigMaps[name] = *m
			} else if !p.over(err) {
				return err
			}
		}
	}
	return nil
}

// over: the phase is complete and what it read was removed since, or may not be read any
// more. Only a later template that asks for it fails.
func (p *phase) over(err error) bool {
	return p.before.State == crv1alpha1.StateComplete && (apierrors.IsNotFound(err) || apierrors.IsForbidden(err))
}

// operationID names what a phase does, the same after any restart.
func operationID(uid string, action int, phase string) string {
	sum := sha256.Sum256([]byte(phase))
	return fmt.Sprintf("%s-%d-%s", strings.ToLower(uid), action, hex.EncodeToString(sum[:6]))
}
