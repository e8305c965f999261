// SPDX-License-Identifier: Apache-2.0

package actionset

import (
	"fmt"
	"strings"

	"github.com/Masterminds/semver/v3"

	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
)

// DefaultVersion is Kanister's default version of every function.
const DefaultVersion = "v0.0.0"

// kopiaVersion is the version that Kanister's own design gave to data functions
// that use Kopia. They are the default ones here.
const kopiaVersion = "v1.0.0-alpha"

// fallsBack accepts the versions that Kanister accepts, and reports whether one is
// unknown: the default functions serve it.
func fallsBack(preferred string) (bool, error) {
	if preferred == "" {
		return false, nil
	}
	v, err := semver.NewVersion(preferred)
	if err != nil {
		return false, fmt.Errorf("Failed to get function version: Failed to parse function version {%s}: %w", preferred, err) // Kanister's text
	}
	return !v.Equal(semver.MustParse(DefaultVersion)) && !v.Equal(semver.MustParse(kopiaVersion)), nil
}

// checkSpec refuses what Kanister refuses of an action before it looks at the
// Blueprint. Kanister leaves such an ActionSet without a status.
func checkSpec(a crv1alpha1.ActionSpec) error {
	if a.Blueprint == "" {
		return fmt.Errorf("Blueprint is not specified for action %s", a.Name) // Kanister's text
	}
	switch strings.ToLower(a.Object.Kind) {
	case "statefulset", "deployment", "deploymentconfig", "pvc", "persistentvolumeclaim", "namespace":
		return nil
	}
	if a.Object.APIVersion == "" || a.Object.Resource == "" {
		return fmt.Errorf("Not a known object Kind %s. Action %s must specify Resource name and API version", a.Object.Kind, a.Name) // Kanister's text
	}
	return nil
}
