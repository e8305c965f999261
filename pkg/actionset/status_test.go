// SPDX-License-Identifier: Apache-2.0

package actionset

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func testBlueprint() *crv1alpha1.Blueprint {
	return &crv1alpha1.Blueprint{Actions: map[string]*crv1alpha1.BlueprintAction{
		"backup": {
			Phases:          []crv1alpha1.BlueprintPhase{{Name: "one", Func: "KubeExec"}, {Name: "two", Func: "BackupData"}},
			DeferPhase:      &crv1alpha1.BlueprintPhase{Name: "clean", Func: "KubeExec"},
			OutputArtifacts: map[string]crv1alpha1.Artifact{"a": {KeyValue: map[string]string{"k": "{{ .Time }}"}}},
		},
	}}
}

func TestInitialStatus(t *testing.T) {
	s := initialStatus(&crv1alpha1.ActionSetSpec{Actions: []crv1alpha1.ActionSpec{{Name: "backup", Blueprint: "b"}}},
		[]*crv1alpha1.Blueprint{testBlueprint()})
	a := s.Actions[0]
	switch {
	case s.State != crv1alpha1.StatePending, a.Name != "backup", a.Blueprint != "b":
		t.Errorf("status %+v", s)
	case len(a.Phases) != 2, a.Phases[1].Name != "two", a.Phases[1].State != crv1alpha1.StatePending:
		t.Errorf("phases %+v", a.Phases)
	case a.DeferPhase.Name != "clean", a.DeferPhase.State != crv1alpha1.StatePending:
		t.Errorf("deferPhase %+v", a.DeferPhase)
	case a.Artifacts["a"].KeyValue["k"] != "{{ .Time }}":
		t.Errorf("artifacts %+v: want the unrendered ones", a.Artifacts)
	case !unfinished(s):
		t.Error("a pending ActionSet counts as finished")
	}
}

func TestUnfinished(t *testing.T) {
	ran := []crv1alpha1.Phase{{State: crv1alpha1.StateFailed}, {State: crv1alpha1.StatePending}}
	begun := crv1alpha1.ActionStatus{Phases: ran, DeferPhase: crv1alpha1.Phase{State: crv1alpha1.StatePending}}
	cleaned := crv1alpha1.ActionStatus{Phases: ran, DeferPhase: crv1alpha1.Phase{State: crv1alpha1.StateComplete}}
	working := crv1alpha1.ActionStatus{Phases: []crv1alpha1.Phase{{State: crv1alpha1.StateComplete}, {State: crv1alpha1.StateRunning}}}
	never := crv1alpha1.ActionStatus{Time: "now", Phases: ran[1:], DeferPhase: crv1alpha1.Phase{State: crv1alpha1.StatePending}}
	for name, c := range map[string]struct {
		state  crv1alpha1.State
		action crv1alpha1.ActionStatus
		want   bool
	}{
		"running":                              {crv1alpha1.StateRunning, begun, true},
		"complete":                             {crv1alpha1.StateComplete, cleaned, false},
		"failed, deferPhase owed":              {crv1alpha1.StateFailed, begun, true},
		"failed, deferPhase done":              {crv1alpha1.StateFailed, cleaned, false},
		"failed, another action works":         {crv1alpha1.StateFailed, working, true},
		"failed before a phase ran":            {crv1alpha1.StateFailed, never, false},
		"failed, an action without deferPhase": {crv1alpha1.StateFailed, crv1alpha1.ActionStatus{Phases: ran}, false},
	} {
		s := &crv1alpha1.ActionSetStatus{State: c.state, Actions: []crv1alpha1.ActionStatus{c.action}}
		if got := unfinished(s); got != c.want {
			t.Errorf("%s: unfinished = %v, want %v", name, got, c.want)
		}
	}
}

func TestFits(t *testing.T) {
	for name, c := range map[string]struct {
		change func(as *crv1alpha1.ActionSet, action *crv1alpha1.BlueprintAction)
		want   string // "" if it may go on
	}{
		"as it was": {func(*crv1alpha1.ActionSet, *crv1alpha1.BlueprintAction) {}, ""},
		"other arguments": {func(as *crv1alpha1.ActionSet, a *crv1alpha1.BlueprintAction) {
			a.Phases[0].Args = crv1alpha1.JSONMap{"pod": "x"}
			as.Spec.Actions[0].Options = map[string]string{"k": "v"}
		}, ""},
		"an action more": {func(as *crv1alpha1.ActionSet, _ *crv1alpha1.BlueprintAction) {
			as.Spec.Actions = append(as.Spec.Actions, as.Spec.Actions[0])
		}, "spec"},
		"no action":         {func(as *crv1alpha1.ActionSet, _ *crv1alpha1.BlueprintAction) { as.Spec.Actions = nil }, "spec"},
		"another Blueprint": {func(as *crv1alpha1.ActionSet, _ *crv1alpha1.BlueprintAction) { as.Spec.Actions[0].Blueprint = "c" }, "spec"},
		"another object":    {func(as *crv1alpha1.ActionSet, _ *crv1alpha1.BlueprintAction) { as.Spec.Actions[0].Object.Name = "web" }, "spec"},
		"another action":    {func(as *crv1alpha1.ActionSet, _ *crv1alpha1.BlueprintAction) { as.Spec.Actions[0].Name = "restore" }, "spec"},
		"a phase more": {func(_ *crv1alpha1.ActionSet, a *crv1alpha1.BlueprintAction) {
			a.Phases = append(a.Phases, crv1alpha1.BlueprintPhase{Name: "three"})
		}, "blueprint"},
		"a phase less":         {func(_ *crv1alpha1.ActionSet, a *crv1alpha1.BlueprintAction) { a.Phases = a.Phases[:1] }, "blueprint"},
		"a renamed phase":      {func(_ *crv1alpha1.ActionSet, a *crv1alpha1.BlueprintAction) { a.Phases[1].Name = "zwei" }, "blueprint"},
		"phases in turn":       {func(_ *crv1alpha1.ActionSet, a *crv1alpha1.BlueprintAction) { slices.Reverse(a.Phases) }, "blueprint"},
		"no deferPhase":        {func(_ *crv1alpha1.ActionSet, a *crv1alpha1.BlueprintAction) { a.DeferPhase = nil }, "blueprint"},
		"a renamed deferPhase": {func(_ *crv1alpha1.ActionSet, a *crv1alpha1.BlueprintAction) { a.DeferPhase.Name = "tidy" }, "blueprint"},
		"a deferPhase since": {func(as *crv1alpha1.ActionSet, _ *crv1alpha1.BlueprintAction) {
			as.Status.Actions[0].DeferPhase = crv1alpha1.Phase{}
		}, "blueprint"},
	} {
		b := testBlueprint()
		b.Actions["restore"] = b.Actions["backup"].DeepCopy()
		as := &crv1alpha1.ActionSet{Spec: &crv1alpha1.ActionSetSpec{Actions: []crv1alpha1.ActionSpec{{
			Name: "backup", Blueprint: "b", Object: crv1alpha1.ObjectReference{Kind: "statefulset", Namespace: "shop", Name: "db"},
		}}}}
		as.Status = initialStatus(as.Spec, []*crv1alpha1.Blueprint{b})
		c.change(as, b.Actions["backup"])
		err := fits(as, []*crv1alpha1.Blueprint{b, b})
		if (c.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), "its status is not that of its "+c.want+", which was changed since") {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestPercent(t *testing.T) {
	for _, c := range []struct {
		bytes, estimated int64
		state            crv1alpha1.State
		want             int
	}{
		{0, 0, crv1alpha1.StateRunning, 0},
		{50, 0, crv1alpha1.StateRunning, 0},
		{1, 3, crv1alpha1.StateRunning, 33},
		{3, 3, crv1alpha1.StateRunning, 99},
		{9, 3, crv1alpha1.StateRunning, 99},
		{0, 0, crv1alpha1.StateComplete, 100},
	} {
		if got := percent(api.Progress{Bytes: c.bytes, EstimatedBytes: c.estimated}, c.state); got != c.want {
			t.Errorf("%d of %d, %s: %d%%, want %d%%", c.bytes, c.estimated, c.state, got, c.want)
		}
	}
}

func TestSumUp(t *testing.T) {
	s := &crv1alpha1.ActionSetStatus{Actions: []crv1alpha1.ActionStatus{
		{Phases: []crv1alpha1.Phase{
			{Name: "one", State: crv1alpha1.StateComplete, Progress: crv1alpha1.PhaseProgress{ProgressPercent: "100", SizeUploadedB: 5}},
			{Name: "two", State: crv1alpha1.StateRunning, Progress: crv1alpha1.PhaseProgress{ProgressPercent: "40", SizeUploadedB: 7, EstimatedUploadSizeB: 10}},
		}, DeferPhase: crv1alpha1.Phase{Name: "clean", State: crv1alpha1.StatePending}},
		{Phases: []crv1alpha1.Phase{{Name: "three", State: crv1alpha1.StatePending}}},
	}}
	sumUp(s, epoch)
	p := s.Progress
	if p.PercentCompleted != "35" || p.SizeUploadedB != 12 || p.EstimatedUploadSizeB != 10 || p.RunningPhase != "two" {
		t.Errorf("progress %+v, want 35%% = (100+40+0+0)/4, 12 of 10 bytes, running two", p)
	}
	if !p.LastTransitionTime.Time.Equal(epoch) {
		t.Errorf("time %v, want %v", p.LastTransitionTime, epoch)
	}
	sumUp(s, epoch.Add(time.Hour))
	if !s.Progress.LastTransitionTime.Time.Equal(epoch) {
		t.Error("the time moved although nothing changed")
	}
}

func TestOperationID(t *testing.T) {
	a := operationID("5b1d0c0e-0000-4000-8000-000000000000", 0, "saveBase")
	if a != operationID("5b1d0c0e-0000-4000-8000-000000000000", 0, "saveBase") {
		t.Error("the same phase has two ids")
	}
	for _, other := range []string{
		operationID("5b1d0c0e-0000-4000-8000-000000000001", 0, "saveBase"),
		operationID("5b1d0c0e-0000-4000-8000-000000000000", 1, "saveBase"),
		operationID("5b1d0c0e-0000-4000-8000-000000000000", 0, "savebase"),
	} {
		if other == a {
			t.Errorf("%s names two phases", a)
		}
	}
	if len(a) > 100 || strings.Trim(a, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		t.Errorf("%q is not of at most 100 [a-z0-9-]", a)
	}
}
