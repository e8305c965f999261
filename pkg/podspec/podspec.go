// SPDX-License-Identifier: Apache-2.0

// Package podspec applies Kanister's podOverride.
package podspec

import (
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

// Override patches a pod's spec with a Blueprint's podOverride, then with the
// ActionSet's, so that the ActionSet wins. Both are strategic merge patches:
// containers are found by their names. Nil ones change nothing.
func Override(spec corev1.PodSpec, blueprint, actionSet map[string]any) (corev1.PodSpec, error) {
	for _, o := range []struct {
		whose string
		patch map[string]any
	}{{"Blueprint", blueprint}, {"ActionSet", actionSet}} {
		if len(o.patch) == 0 {
			continue
		}
		patched, err := override(spec, o.patch)
		if err != nil {
			return spec, fmt.Errorf("apply podOverride of the %s: %w", o.whose, err)
		}
		spec = patched
	}
	return spec, nil
}

func override(spec corev1.PodSpec, patch map[string]any) (corev1.PodSpec, error) {
	original, err := json.Marshal(spec)
	if err != nil {
		return spec, err
	}
	change, err := json.Marshal(patch)
	if err != nil {
		return spec, err
	}
	merged, err := strategicpatch.StrategicMergePatch(original, change, corev1.PodSpec{})
	if err != nil {
		return spec, err
	}
	var out corev1.PodSpec
	return out, json.Unmarshal(merged, &out)
}
