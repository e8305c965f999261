// SPDX-License-Identifier: Apache-2.0

package blueprint

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/util/validation"

	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/function"
)

// Validate returns the error that `kanctl validate blueprint` has for a Blueprint,
// in its order and with its texts; nil if it is accepted. Of several errors it is
// always the same one.
func Validate(b *crv1alpha1.Blueprint, functions *function.Registry) error {
	for _, name := range slices.Sorted(maps.Keys(b.Actions)) {
		action := b.Actions[name]
		if action == nil {
			return fmt.Errorf("Failed to validate action %s: it is empty", name) // Kanister's manner: it crashes here
		}
		for _, p := range Phases(action) {
			if _, err := functions.Get(p.Func); err != nil {
				return fmt.Errorf("Failed to validate action %s: %w", name, err) // Kanister's text
			}
		}
		// The deferPhase comes first, as in Kanister.
		phases := action.Phases
		if action.DeferPhase != nil {
			phases = append([]crv1alpha1.BlueprintPhase{*action.DeferPhase}, phases...)
		}
		for _, p := range phases {
			f, err := functions.Get(p.Func)
			if err == nil {
				err = checkWritten(f, p.Args)
			}
			if err != nil {
				return fmt.Errorf("Failed to validate phase %s in action %s: %w", p.Name, name, err) // Kanister's text
			}
		}
	}
	var all []crv1alpha1.BlueprintPhase
	for _, name := range slices.Sorted(maps.Keys(b.Actions)) {
		all = append(all, Phases(b.Actions[name])...)
	}
	return distinct(all)
}

// ValidateAction returns why one action of a Blueprint cannot run here at all. It is
// less than Validate: a Blueprint that `kanctl validate` refuses for another action,
// or for a name that two actions share, runs in Kanister.
func ValidateAction(b *crv1alpha1.Blueprint, name, kind string, functions *function.Registry) error {
	action := b.Actions[name]
	if action == nil {
		return fmt.Errorf("Action %s for object kind %s not found in blueprint %s", name, kind, b.Name) // Kanister's text
	}
	for _, p := range Phases(action) {
		if _, err := functions.Get(p.Func); err != nil {
			return err
		}
	}
	// Outputs and states are kept by name.
	return distinct(Phases(action))
}

// Phases are those of an action in the order they run, the deferPhase last.
func Phases(action *crv1alpha1.BlueprintAction) []crv1alpha1.BlueprintPhase {
	phases := slices.Clone(action.Phases)
	if action.DeferPhase != nil {
		phases = append(phases, *action.DeferPhase)
	}
	return phases
}

func distinct(phases []crv1alpha1.BlueprintPhase) error {
	seen := map[string]bool{}
	for _, p := range phases {
		if seen[p.Name] {
			return fmt.Errorf("Failed to validate: Duplicated phase name is not allowed. Violating phase '%s'", p.Name) // Kanister's text
		}
		seen[p.Name] = true
	}
	return nil
}

// CheckArgs is Kanister's check of rendered arguments: required first, then
// unsupported.
func CheckArgs(f function.Func, args map[string]any) error {
	if err := required(f, args); err != nil {
		return fmt.Errorf("Required args missing for function %s: %w", f.Name(), err) // Kanister's text
	}
	if err := supported(f, args); err != nil {
		return fmt.Errorf("Checking supported args for function %s.: %w", f.Name(), err) // Kanister's text
	}
	return nil
}

// checkWritten is Kanister's check of arguments as they are written: labels and
// annotations first, then unsupported, then required.
func checkWritten(f function.Func, args map[string]any) error {
	if slices.Contains(f.Arguments(), "podLabels") {
		if err := checkMetadata(args); err != nil {
			return fmt.Errorf("Kanister function validation failed, while %w", err) // Kanister's text
		}
	}
	if err := supported(f, args); err != nil {
		return err
	}
	return required(f, args)
}

// required: a null counts as given.
func required(f function.Func, args map[string]any) error {
	for _, name := range f.RequiredArgs() {
		if _, ok := args[name]; !ok {
			return fmt.Errorf("Required arg missing: %s", name) // Kanister's text
		}
	}
	return nil
}

func supported(f function.Func, args map[string]any) error {
	for _, name := range slices.Sorted(maps.Keys(args)) {
		if !slices.Contains(f.Arguments(), name) {
			return fmt.Errorf("argument %s is not supported", name) // Kanister's text
		}
	}
	return nil
}

// checkMetadata has Kanister's texts. A value that is a template is judged as it is
// written, so `{{ .Options.team }}` as a label's value is refused, as there.
func checkMetadata(args map[string]any) error {
	labels, err := texts(args["podLabels"])
	if err != nil {
		return errors.New("getting pod labels from function args: podLabels are not in correct format. Expected format is map[string]interface{}.") // Kanister's text
	}
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		if errs := validation.IsQualifiedName(key); len(errs) > 0 {
			return fmt.Errorf("validating labels: label key '%s' failed validation. %s", key, errs)
		}
		if errs := validation.IsValidLabelValue(labels[key]); len(errs) > 0 {
			return fmt.Errorf("validating labels: label value '%s' failed validation. %s", labels[key], errs)
		}
	}
	annotations, err := texts(args["podAnnotations"])
	if err != nil {
		return errors.New("getting pod annotations from function args: podAnnotations are not in correct format. expected format is map[string]string.") // Kanister's text
	}
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		if errs := validation.IsQualifiedName(key); len(errs) > 0 {
			return fmt.Errorf("validating annotations: annotation key '%s' failed validation. %s", key, errs)
		}
	}
	return nil
}

// texts are the values of a map that are text; others are not looked at.
func texts(v any) (map[string]string, error) {
	if v == nil {
		return nil, nil
	}
	m, ok := v.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("%T is no map", v)
	}
	out := map[string]string{}
	for k, v := range m {
		if s, ok := v.(string); ok {
			out[k] = s
		}
	}
	return out, nil
}
