// SPDX-License-Identifier: Apache-2.0

// Package function holds the functions that a Blueprint's phases call: Kanister's
// data functions and their companions, one file each. A function decides and
// orders; an agent moves the bytes.
package function

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/pkg/param"
)

// Func is one function. Implementations hold no state of a call: two ActionSets
// run the same Func at once.
type Func interface {
	// Name as Blueprints write it; case-sensitive.
	Name() string
	// RequiredArgs must be present; Arguments are all that are accepted.
	RequiredArgs() []string
	Arguments() []string
	// Resumable says that Exec with the same Call.OperationID continues (or
	// reports) an earlier Exec that the controller's restart cut off.
	Resumable() bool
	// Exec runs the phase to its end and returns its outputs. It honours ctx:
	// a cancelled call stops its operation and removes its pods first.
	Exec(ctx context.Context, call Call) (map[string]any, error)
}

// RawArgs is what a Func also has whose arguments are not rendered before Exec:
// Wait and WaitV2, whose conditions are templates about an object that is not read
// yet. It renders with param.Render and Call.Params what it needs.
type RawArgs interface {
	RawArgs() bool
}

// Call is one execution of a phase.
type Call struct {
	Params param.TemplateParams
	// Args are rendered, but for functions that ask for raw ones.
	Args map[string]any
	// OperationID is stable over controller restarts: [a-z0-9-], at most 100
	// characters, unique to (ActionSet UID, action index, phase).
	OperationID string
	// ActionSet is the ActionSet's name, for labels on temporary pods.
	ActionSet string
	// Log has the fields of the ActionSet and the phase; never nil.
	Log *slog.Logger
	// Progress is told what is known so far; never nil, never blocks.
	Progress func(api.Progress)
}

// podLog is for the lines that a command of the Blueprint's author prints. The fields
// are Kanister's.
func (c Call) podLog(pod, container string) *slog.Logger {
	return c.Log.With("Pod", pod, "Container", container, "LogKind", "datapath")
}

// Registry maps names and versions to functions.
type Registry struct {
	funcs map[string]Func
}

// NewRegistry returns a registry of the given functions. Two of one name panic:
// that is a programming error.
func NewRegistry(funcs ...Func) *Registry {
	r := &Registry{funcs: map[string]Func{}}
	for _, f := range funcs {
		if _, ok := r.funcs[f.Name()]; ok {
			panic("function registered twice: " + f.Name())
		}
		r.funcs[f.Name()] = f
	}
	return r
}

// Get returns the function of that name, or Kanister's error text.
func (r *Registry) Get(name string) (Func, error) {
	f, ok := r.funcs[name]
	if !ok {
		err := fmt.Errorf("Requested function {%s} has not been registered", name) // Kanister's text
		if advice := elsewhere(name); advice != "" {
			err = fmt.Errorf("%w: it is one of Kanister's that are not here: %s", err, advice)
		}
		return nil, err
	}
	return f, nil
}

// Names returns the registered names, sorted.
func (r *Registry) Names() []string {
	return slices.Sorted(maps.Keys(r.funcs))
}
