// SPDX-License-Identifier: Apache-2.0

package actionset

import (
	"errors"
	"fmt"
	"slices"

	"github.com/Masterminds/semver/v3"

	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/function"
)

// DefaultVersion is Kanister's default version of every function.
const DefaultVersion = "v0.0.0"

// checkVersion accepts what Kanister accepts. Every known version is served by the
// same functions.
func checkVersion(preferred string) error {
	if preferred == "" {
		return nil
	}
	if _, err := semver.NewVersion(preferred); err != nil {
		return fmt.Errorf("Failed to parse function version {%s}: %w", preferred, err) // Kanister's text
	}
	return nil
}

// checkAction finds out, before anything runs, what cannot work.
func checkAction(spec crv1alpha1.ActionSpec, blueprint *crv1alpha1.Blueprint, functions *function.Registry) error {
	action := blueprint.Actions[spec.Name]
	if action == nil {
		return fmt.Errorf("Action {%s} not found in blueprint {%s}", spec.Name, blueprint.Name) // Kanister's text
	}
	if err := checkVersion(spec.PreferredVersion); err != nil {
		return err
	}
	for _, p := range phasesOf(action) {
		if _, err := functions.Get(p.Func); err != nil {
			return err
		}
	}
	return checkPhaseNames(blueprint)
}

func phasesOf(action *crv1alpha1.BlueprintAction) []crv1alpha1.BlueprintPhase {
	phases := slices.Clone(action.Phases)
	if action.DeferPhase != nil {
		phases = append(phases, *action.DeferPhase)
	}
	return phases
}

// checkPhaseNames refuses two phases of one name anywhere in a Blueprint: their
// outputs could not be told apart.
func checkPhaseNames(blueprint *crv1alpha1.Blueprint) error {
	seen := map[string]bool{}
	for _, action := range blueprint.Actions {
		if action == nil {
			return errors.New("Failed to validate: an action of the blueprint is empty") // Kanister's manner
		}
		for _, p := range phasesOf(action) {
			if seen[p.Name] {
				return fmt.Errorf("Failed to validate: Duplicated phase name is not allowed. Violating phase '%s'", p.Name) // Kanister's text
			}
			seen[p.Name] = true
		}
	}
	return nil
}

// checkArgs is Kanister's check of rendered arguments: required first, then
// unsupported.
func checkArgs(f function.Func, args map[string]any) error {
	for _, name := range f.RequiredArgs() {
		if _, ok := args[name]; !ok {
			return fmt.Errorf("Required args missing for function %s: Required arg missing: %s", f.Name(), name) // Kanister's text
		}
	}
	for name := range args {
		if !slices.Contains(f.Arguments(), name) {
			return fmt.Errorf("Checking supported args for function %s.: argument %s is not supported", f.Name(), name) // Kanister's text
		}
	}
	return nil
}
