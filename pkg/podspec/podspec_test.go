// SPDX-License-Identifier: Apache-2.0

package podspec

import (
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestOverride(t *testing.T) {
	spec := corev1.PodSpec{
		ServiceAccountName: "ours",
		Containers: []corev1.Container{{
			Name: "container", Image: "agent", Args: []string{"serve"},
			VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/volumes/data"}},
		}},
	}
	got, err := Override(spec,
		map[string]any{
			"serviceAccountName": "blueprint", "priorityClassName": "low",
			"containers": []any{map[string]any{"name": "container", "securityContext": map[string]any{"runAsUser": int64(7)}}},
		},
		map[string]any{"serviceAccountName": "actionset"})
	if err != nil {
		t.Fatal(err)
	}
	c := got.Containers[0]
	switch {
	case got.ServiceAccountName != "actionset" || got.PriorityClassName != "low":
		t.Errorf("%s and %s: the ActionSet goes over the Blueprint, the rest stays", got.ServiceAccountName, got.PriorityClassName)
	case len(got.Containers) != 1 || c.Image != "agent" || len(c.VolumeMounts) != 1:
		t.Errorf("containers %+v: merged by name, not replaced", got.Containers)
	case c.SecurityContext == nil || *c.SecurityContext.RunAsUser != 7:
		t.Errorf("securityContext %+v", c.SecurityContext)
	}
	if got, err := Override(spec, nil, nil); err != nil || !reflect.DeepEqual(got, spec) {
		t.Errorf("nothing to override: %+v, %v", got, err)
	}
	_, err = Override(spec, nil, map[string]any{"containers": "none"})
	if err == nil || !strings.Contains(err.Error(), "podOverride of the ActionSet") {
		t.Errorf("a bad patch: error %v, want one that says whose", err)
	}
}
