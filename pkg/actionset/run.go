// SPDX-License-Identifier: Apache-2.0

package actionset

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	agentclient "github.com/kanister-kopia/kanister-kopia/agent/client"
	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
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
}

// execute runs all actions in parallel and writes the end down, unless ctx was
// ended because the controller goes away: then the next one continues.
func (r *run) execute(ctx context.Context) {
	var wg sync.WaitGroup
	for i := range r.actionSet.Spec.Actions {
		wg.Go(func() {
			err := r.guarded(ctx, i)
			if err == nil || errors.Is(err, agentclient.ErrDetached) {
				return
			}
			r.log.Error("action failed", "action", r.actionSet.Spec.Actions[i].Name, "error", err)
			r.fail(ctx, err)
		})
	}
	wg.Wait()
	if errors.Is(context.Cause(ctx), agentclient.ErrDetached) {
		return
	}
	complete := false
	err := r.store.update(ctx, func(s *crv1alpha1.ActionSetStatus) {
		complete = s.State != crv1alpha1.StateFailed && allComplete(s)
		if complete {
			s.State = crv1alpha1.StateComplete
		}
	})
	switch {
	case errors.Is(err, errDeleted):
		return
	case err != nil:
		r.log.Error("the end is not written down", "error", err)
	}
	if complete {
		r.event(r.actionSet, corev1.EventTypeNormal, "Update Complete", "ActionSet '%s' is complete", r.actionSet.Name)
	}
	r.Resolutions.WithLabelValues(map[bool]string{true: "success", false: "failure"}[complete]).Inc()
	r.log.Info("actionset ended", "complete", complete)
}

// guarded turns a bug in one function into the failure of its ActionSet.
func (r *run) guarded(ctx context.Context, i int) (err error) {
	defer func() {
		if p := recover(); p != nil {
			r.log.Error("panic", "value", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = fmt.Errorf("run the action: internal error: %v: please report it with the controller's log", p)
		}
	}()
	return r.action(ctx, i)
}

// fail sets the ActionSet to failed at once; the first error stays.
func (r *run) fail(ctx context.Context, cause error) {
	err := r.store.update(ctx, func(s *crv1alpha1.ActionSetStatus) {
		s.State = crv1alpha1.StateFailed
		if s.Error.Message == "" {
			s.Error.Message = cause.Error()
		}
	})
	if err != nil {
		if !errors.Is(err, errDeleted) {
			r.log.Error("a failure is not written down", "error", err, "failure", cause)
		}
		return
	}
	r.event(r.actionSet, corev1.EventTypeWarning, "ActionSetFailed", "%s", cause)
}

// action runs the phases of one action, then its deferPhase whatever happened, then
// renders its artifacts. It goes on where an earlier controller stopped.
func (r *run) action(ctx context.Context, i int) error {
	spec, status := r.actionSet.Spec.Actions[i], r.actionSet.Status.Actions[i]
	blueprint := r.blueprints[i]
	action := blueprint.Actions[spec.Name]
	started := status.Time
	if started == "" {
		started = r.Clock.Now().UTC().Format(time.RFC3339Nano)
		if err := r.store.update(ctx, func(s *crv1alpha1.ActionSetStatus) { s.Actions[i].Time = started }); err != nil {
			return err
		}
	}
	r.event(r.actionSet, corev1.EventTypeNormal, "Started Action", "Executing action %s", spec.Name)
	params, err := buildParams(ctx, r.Client, spec, started)
	if err != nil {
		return r.outcome(ctx, err)
	}

	var failure error
	for j := range action.Phases {
		if r.actionSet.Status.State == crv1alpha1.StateFailed && status.Phases[j].State != crv1alpha1.StateComplete {
			// It had failed when the controller was restarted: nothing new begins, and
			// what is left to do is to clean up.
			failure = errors.New(r.actionSet.Status.Error.Message)
			break
		}
		phase := r.phaseOf(i, &action.Phases[j], status.Phases[j], func(s *crv1alpha1.ActionSetStatus) *crv1alpha1.Phase { return &s.Actions[i].Phases[j] })
		phase.offer = func(p *param.Phase) { params.Phases[phase.spec.Name] = p }
		if failure = phase.do(ctx, params); failure != nil {
			if errors.Is(failure, agentclient.ErrDetached) || errors.Is(failure, errDeleted) {
				return failure
			}
			if action.DeferPhase != nil {
				// Now, not after the deferPhase: people wait for this.
				r.fail(ctx, failure)
			}
			break
		}
	}
	if action.DeferPhase != nil {
		phase := r.phaseOf(i, action.DeferPhase, status.DeferPhase, func(s *crv1alpha1.ActionSetStatus) *crv1alpha1.Phase { return &s.Actions[i].DeferPhase })
		phase.offer = func(p *param.Phase) { params.DeferPhase = p }
		if ctx.Err() == nil {
			if err := phase.do(ctx, params); failure == nil {
				failure = err
			} else if err != nil && !errors.Is(err, agentclient.ErrDetached) {
				r.log.Error("deferPhase failed as well", "error", err)
			}
		}
	}
	if failure != nil {
		return failure
	}
	artifacts, err := param.RenderArtifacts(action.OutputArtifacts, params)
	if err != nil {
		return err
	}
	return r.store.update(ctx, func(s *crv1alpha1.ActionSetStatus) { s.Actions[i].Artifacts = artifacts })
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
	// last is what the function said last of its progress.
	last api.Progress
}

func (r *run) phaseOf(action int, spec *crv1alpha1.BlueprintPhase, before crv1alpha1.Phase, in func(*crv1alpha1.ActionSetStatus) *crv1alpha1.Phase) *phase {
	return &phase{run: r, action: action, spec: spec, before: before, in: in}
}

var errRestarted = errors.New("the controller was restarted while the phase ran, and what it did cannot be known or repeated safely: look at the application, then run the action again")

// do runs the phase, or takes over what an earlier controller left.
func (p *phase) do(ctx context.Context, params *param.TemplateParams) (err error) {
	if p.before.State == crv1alpha1.StateFailed {
		return errors.New("the phase failed before the controller was restarted")
	}
	seen := &param.Phase{Output: map[string]any(p.before.Output.DeepCopy())}
	if err := p.readObjects(ctx, params, seen); err != nil {
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
	if err := p.set(ctx, crv1alpha1.StateRunning, nil, api.Progress{}); err != nil {
		return err
	}
	p.event(p.actionSet, corev1.EventTypeNormal, "Started Phase", "Executing phase %s", p.spec.Name)
	p.log.Info("phase started", "phase", p.spec.Name, "function", p.spec.Func)

	args, err := renderArgs(f, p.spec.Args, params)
	if err == nil {
		err = checkArgs(f, args)
	}
	var output map[string]any
	if err == nil {
		output, err = p.exec(ctx, f, function.Call{
			Params: *params, Args: args, OperationID: operationID(string(p.actionSet.UID), p.action, p.spec.Name), ActionSet: p.actionSet.Name,
		})
	}
	if err := p.end(ctx, output, err); err != nil {
		return err
	}
	seen.Output = output
	return nil
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
			if err := p.set(reporting, crv1alpha1.StateRunning, nil, now); err != nil && !errors.Is(err, errDeleted) {
				p.log.Warn("progress is not written down", "error", err)
			}
		}
	})
	output, err := f.Exec(ctx, call)
	// Before the end is written: progress must not overtake it.
	stop()
	wg.Wait()
	p.last = latest
	return output, err
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
		if werr := p.set(ctx, crv1alpha1.StateFailed, nil, p.last); werr != nil {
			return werr
		}
		return err
	}
	p.log.Info("phase ended", "phase", p.spec.Name)
	if err := p.set(ctx, crv1alpha1.StateComplete, output, p.last); err != nil {
		return err
	}
	p.event(p.actionSet, corev1.EventTypeNormal, "Ended Phase", "Completed phase %s", p.spec.Name)
	return nil
}

// set writes state, output and progress. Sizes that are known stay.
func (p *phase) set(ctx context.Context, state crv1alpha1.State, output map[string]any, progress api.Progress) error {
	return p.store.update(ctx, func(s *crv1alpha1.ActionSetStatus) {
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
	})
}

// readObjects reads the Secrets and ConfigMaps that the phase names.
func (p *phase) readObjects(ctx context.Context, params *param.TemplateParams, into *param.Phase) error {
	into.Secrets, into.ConfigMaps = map[string]corev1.Secret{}, map[string]corev1.ConfigMap{}
	for name, ref := range p.spec.ObjectRefs {
		ref, err := param.RenderReference(ref, params)
		if err != nil {
			return err
		}
		switch strings.ToLower(ref.Kind) {
		case "secret":
			s, err := readSecret(ctx, p.Client, ref)
			if err != nil {
				return err
			}
			into.Secrets[name] = *s
		case "configmap":
			m, err := readConfigMap(ctx, p.Client, ref)
			if err != nil {
				return err
			}
			into.ConfigMaps[name] = *m
		}
	}
	return nil
}

// operationID names what a phase does, the same after any restart.
func operationID(uid string, action int, phase string) string {
	sum := sha256.Sum256([]byte(phase))
	return fmt.Sprintf("%s-%d-%s", strings.ToLower(uid), action, hex.EncodeToString(sum[:6]))
}
