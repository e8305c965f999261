// SPDX-License-Identifier: Apache-2.0

package actionset

import (
	"math"
	"slices"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
)

// initialStatus is that of an ActionSet that is about to run: everything pending.
// blueprints has that of each action, in their order.
func initialStatus(spec *crv1alpha1.ActionSetSpec, blueprints []*crv1alpha1.Blueprint) *crv1alpha1.ActionSetStatus {
	status := &crv1alpha1.ActionSetStatus{State: crv1alpha1.StatePending}
	for i, a := range spec.Actions {
		action := blueprints[i].Actions[a.Name]
		s := crv1alpha1.ActionStatus{Name: a.Name, Object: a.Object, Blueprint: a.Blueprint, Artifacts: action.OutputArtifacts}
		for _, p := range action.Phases {
			s.Phases = append(s.Phases, crv1alpha1.Phase{Name: p.Name, State: crv1alpha1.StatePending})
		}
		if action.DeferPhase != nil {
			s.DeferPhase = crv1alpha1.Phase{Name: action.DeferPhase.Name, State: crv1alpha1.StatePending}
		}
		status.Actions = append(status.Actions, s)
	}
	return status
}

// unfinished reports whether there is something left to do. Of a failed ActionSet,
// phases of other actions may still run, and an action that had begun may owe its
// deferPhase.
func unfinished(s *crv1alpha1.ActionSetStatus) bool {
	switch s.State {
	case crv1alpha1.StatePending, crv1alpha1.StateRunning:
		return true
	case crv1alpha1.StateFailed:
		for i := range s.Actions {
			a := &s.Actions[i]
			if slices.ContainsFunc(a.Phases, runs) || began(a) && a.DeferPhase.State != "" && !a.DeferPhase.State.Done() {
				return true
			}
		}
	}
	return false
}

func runs(p crv1alpha1.Phase) bool { return p.State == crv1alpha1.StateRunning }

// leave sets the phases of an action that run to failed: nobody will follow them.
func leave(a *crv1alpha1.ActionStatus) {
	for i := range a.Phases {
		if runs(a.Phases[i]) {
			a.Phases[i].State = crv1alpha1.StateFailed
		}
	}
}

// began reports whether a phase of the action ever ran: only then is there anything
// for its deferPhase to clean up.
func began(a *crv1alpha1.ActionStatus) bool {
	for i := range a.Phases {
		if s := a.Phases[i].State; s != "" && s != crv1alpha1.StatePending {
			return true
		}
	}
	return false
}

// eachPhase calls fn with all phases, deferPhases included.
func eachPhase(s *crv1alpha1.ActionSetStatus, fn func(*crv1alpha1.Phase)) {
	for i := range s.Actions {
		a := &s.Actions[i]
		for j := range a.Phases {
			fn(&a.Phases[j])
		}
		if a.DeferPhase.State != "" {
			fn(&a.DeferPhase)
		}
	}
}

// allComplete reports whether every phase of every action is.
func allComplete(s *crv1alpha1.ActionSetStatus) bool {
	all := true
	eachPhase(s, func(p *crv1alpha1.Phase) { all = all && p.State == crv1alpha1.StateComplete })
	return all
}

// phaseProgress is an operation's progress as the status of its phase has it.
// upload says which way the bytes go.
func phaseProgress(p api.Progress, state crv1alpha1.State, now time.Time) crv1alpha1.PhaseProgress {
	at := metav1.NewTime(now.Truncate(time.Second))
	out := crv1alpha1.PhaseProgress{
		ProgressPercent:    strconv.Itoa(percent(p, state)),
		SizeUploadedB:      p.UploadedBytes,
		SizeDownloadedB:    p.DownloadedBytes,
		LastTransitionTime: &at,
	}
	if p.DownloadedBytes > 0 {
		out.EstimatedDownloadSizeB = p.EstimatedBytes
	} else {
		out.EstimatedUploadSizeB = p.EstimatedBytes
	}
	return out
}

// percent is 100 only for what is complete, however good the estimate was.
func percent(p api.Progress, state crv1alpha1.State) int {
	if state == crv1alpha1.StateComplete {
		return 100
	}
	if p.EstimatedBytes <= 0 {
		return 0
	}
	return min(99, int(math.Floor(100*float64(p.Bytes)/float64(p.EstimatedBytes))))
}

// sumUp writes the progress of the whole: the mean of the percentages, the sums of
// the sizes, the first phase that runs.
func sumUp(s *crv1alpha1.ActionSetStatus, now time.Time) {
	sum, phases := 0, 0
	p := crv1alpha1.ActionProgress{}
	eachPhase(s, func(phase *crv1alpha1.Phase) {
		phases++
		n, _ := strconv.Atoi(phase.Progress.ProgressPercent)
		sum += n
		p.SizeDownloadedB += phase.Progress.SizeDownloadedB
		p.SizeUploadedB += phase.Progress.SizeUploadedB
		p.EstimatedDownloadSizeB += phase.Progress.EstimatedDownloadSizeB
		p.EstimatedUploadSizeB += phase.Progress.EstimatedUploadSizeB
		if phase.State == crv1alpha1.StateRunning && p.RunningPhase == "" {
			p.RunningPhase = phase.Name
		}
	})
	p.PercentCompleted = "100"
	if phases > 0 {
		p.PercentCompleted = strconv.Itoa(sum / phases)
	}
	p.LastTransitionTime = s.Progress.LastTransitionTime
	if p != s.Progress {
		at := metav1.NewTime(now.Truncate(time.Second))
		p.LastTransitionTime = &at
	}
	s.Progress = p
}
