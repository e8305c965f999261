// SPDX-License-Identifier: Apache-2.0

package actionset

import (
	"strings"
	"testing"

	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
)

func TestFallsBack(t *testing.T) {
	for version, want := range map[string]bool{
		"": false, "v0.0.0": false, "0.0.0": false, "v1.0.0-alpha": false,
		"v1.0.0": true, "v9.9.9": true, "1.2": true,
	} {
		if got, err := fallsBack(version); err != nil || got != want {
			t.Errorf("%q: %v, %v; want %v", version, got, err, want)
		}
	}
	for _, version := range []string{"latest", "v1.x.y", "v-1"} {
		_, err := fallsBack(version)
		if err == nil || !strings.Contains(err.Error(), "Failed to parse function version {"+version+"}") {
			t.Errorf("%q: error %v", version, err)
		}
	}
}

func TestCheckSpec(t *testing.T) {
	for _, c := range []struct {
		spec crv1alpha1.ActionSpec
		want string
	}{
		{crv1alpha1.ActionSpec{Blueprint: "b", Object: crv1alpha1.ObjectReference{Kind: "StatefulSet"}}, ""},
		{crv1alpha1.ActionSpec{Blueprint: "b", Object: crv1alpha1.ObjectReference{Kind: "deploymentconfig"}}, ""},
		{crv1alpha1.ActionSpec{Blueprint: "b", Object: crv1alpha1.ObjectReference{Kind: "pvc"}}, ""},
		{crv1alpha1.ActionSpec{Blueprint: "b", Object: crv1alpha1.ObjectReference{Kind: "namespace"}}, ""},
		{crv1alpha1.ActionSpec{Blueprint: "b", Object: crv1alpha1.ObjectReference{APIVersion: "v1", Resource: "clusters"}}, ""},
		{crv1alpha1.ActionSpec{Object: crv1alpha1.ObjectReference{Kind: "pvc"}, Name: "backup"}, "Blueprint is not specified for action"},
		{crv1alpha1.ActionSpec{Blueprint: "b", Name: "backup", Object: crv1alpha1.ObjectReference{Kind: "Cluster", Resource: "clusters"}},
			"Not a known object Kind Cluster. Action backup must specify Resource name and API version"},
		{crv1alpha1.ActionSpec{Blueprint: "b", Name: "backup"}, "Not a known object Kind "},
	} {
		err := checkSpec(c.spec)
		if (c.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.spec, err, c.want)
		}
	}
}
