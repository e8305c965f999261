// SPDX-License-Identifier: Apache-2.0

//go:build integration

package mover_test

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
	"github.com/kanister-kopia/kanister-kopia/pkg/actionset"
	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/mover"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

func TestIntegrationSweep(t *testing.T) {
	c := testenv.NewAPI(t, "control", "shop")
	ctx, must := c.Context(), c.Must
	actionSet := func(name string, status *crv1alpha1.ActionSetStatus) string {
		as := &crv1alpha1.ActionSet{ObjectMeta: metav1.ObjectMeta{Namespace: "control", Name: name}, Spec: &crv1alpha1.ActionSetSpec{}, Status: status}
		must(c.Create(ctx, as))
		return string(as.UID)
	}
	state := func(s crv1alpha1.State) *crv1alpha1.ActionSetStatus { return &crv1alpha1.ActionSetStatus{State: s} }
	cleaning := state(crv1alpha1.StateFailed)
	cleaning.Actions = []crv1alpha1.ActionStatus{{
		Phases: []crv1alpha1.Phase{{Name: "p", State: crv1alpha1.StateFailed}}, DeferPhase: crv1alpha1.Phase{Name: "d", State: crv1alpha1.StateRunning},
	}}
	const nobody = "00000000-0000-4000-8000-000000000000"
	pods := map[string]string{ // name to ActionSet's uid
		"new": actionSet("new", nil), "running": actionSet("running", state(crv1alpha1.StateRunning)), "cleaning": actionSet("cleaning", cleaning),
		"ended": actionSet("ended", state(crv1alpha1.StateComplete)), "failed": actionSet("failed", state(crv1alpha1.StateFailed)), "deleted": nobody,
	}
	create := func(name string, labels, annotations map[string]string) {
		must(c.Create(ctx, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: labels, Annotations: annotations},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
		}))
	}
	ours := func(component string) map[string]string {
		return map[string]string{names.ManagedByLabel: names.ManagedByValue, names.ComponentLabel: component}
	}
	for name, uid := range pods {
		operation := map[string]string{names.OperationAnnotation: uid + "-0-abcdef012345"}
		create("mover-"+name, ours(mover.Component), operation)
		create("task-"+name, ours(mover.TaskComponent), operation)
	}
	create("server", ours("repository-server"), nil)
	create("somebodys", map[string]string{names.ComponentLabel: mover.Component}, map[string]string{names.OperationAnnotation: nobody + "-0-x"})

	s := &mover.Sweeper{Client: c, Log: slog.New(slog.DiscardHandler), Running: func(ctx context.Context) (func(string) bool, error) {
		return actionset.Running(ctx, c, "control")
	}}
	must(s.Sweep(ctx))
	var left corev1.PodList
	must(c.List(ctx, &left, client.InNamespace("shop")))
	var got []string
	for _, p := range left.Items {
		got = append(got, p.Name)
	}
	slices.Sort(got)
	want := "mover-cleaning mover-new mover-running server somebodys task-cleaning task-new task-running"
	if strings.Join(got, " ") != want {
		t.Errorf("left: %s\nwant: %s", strings.Join(got, " "), want)
	}
}
