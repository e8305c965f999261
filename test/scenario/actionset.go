// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/fields"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kanister-kopia/kanister-kopia/internal/pause"
	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// Run creates an ActionSet in the control-plane namespace and follows it to its
// end. Each change is shown to watch, if given. A failed ActionSet is returned
// with its own error text.
func (c *Cluster) Run(ctx context.Context, as *crv1alpha1.ActionSet, watch func(*crv1alpha1.ActionSet)) (*crv1alpha1.ActionSet, error) {
	as.Namespace = names.ControlPlaneNamespace
	if err := c.Create(ctx, as); err != nil {
		return nil, fmt.Errorf("create ActionSet: %w", err)
	}
	return c.Follow(ctx, as, watch)
}

// Follow follows an ActionSet to its end, as Run does.
func (c *Cluster) Follow(ctx context.Context, as *crv1alpha1.ActionSet, watch func(*crv1alpha1.ActionSet)) (*crv1alpha1.ActionSet, error) {
	for {
		now, err := c.followOnce(ctx, as, watch)
		if err != nil {
			return nil, fmt.Errorf("watch ActionSet %s: %w", as.Name, err)
		}
		as = now
		switch state(as) {
		case crv1alpha1.StateComplete:
			return as, nil
		case crv1alpha1.StateFailed:
			return as, errors.New(as.Status.Error.Message)
		}
		// The API server ends a watch when it likes; a new one begins with what is now.
		if err := pause.For(ctx, time.Second); err != nil {
			return as, fmt.Errorf("wait for ActionSet %s (state %q): %w", as.Name, state(as), err)
		}
	}
}

// followOnce follows an ActionSet until it or the watch ends, and returns what it saw last.
func (c *Cluster) followOnce(ctx context.Context, as *crv1alpha1.ActionSet, watch func(*crv1alpha1.ActionSet)) (*crv1alpha1.ActionSet, error) {
	w, err := c.Watch(ctx, &crv1alpha1.ActionSetList{}, &client.ListOptions{
		Namespace:     as.Namespace,
		FieldSelector: fields.OneTermEqualSelector("metadata.name", as.Name),
	})
	if err != nil {
		return nil, err
	}
	defer w.Stop()
	for event := range w.ResultChan() {
		now, ok := event.Object.(*crv1alpha1.ActionSet)
		if !ok {
			continue
		}
		as = now
		if watch != nil {
			watch(as)
		}
		if state(as).Done() {
			break
		}
	}
	return as, nil
}

func state(as *crv1alpha1.ActionSet) crv1alpha1.State {
	if as.Status == nil {
		return ""
	}
	return as.Status.State
}

// Output returns one output of a phase, as text.
func Output(as *crv1alpha1.ActionSet, phase, key string) string {
	if as.Status == nil {
		return ""
	}
	for _, action := range as.Status.Actions {
		for _, p := range action.Phases {
			if p.Name == phase {
				if v, ok := p.Output[key]; ok {
					return fmt.Sprint(v)
				}
			}
		}
	}
	return ""
}

// Action is the spec of one action on a StatefulSet.
func Action(name, blueprint, profile, namespace, statefulSet string) crv1alpha1.ActionSpec {
	return crv1alpha1.ActionSpec{
		Name:      name,
		Blueprint: blueprint,
		Object:    crv1alpha1.ObjectReference{Kind: "statefulset", Namespace: namespace, Name: statefulSet},
		Profile:   &crv1alpha1.ObjectReference{Namespace: names.ControlPlaneNamespace, Name: profile},
	}
}

// From adds the artifacts of a finished ActionSet, as `kanctl create actionset --from` does.
func From(spec crv1alpha1.ActionSpec, parent *crv1alpha1.ActionSet) crv1alpha1.ActionSpec {
	spec.Artifacts = parent.Status.Actions[0].Artifacts
	return spec
}
