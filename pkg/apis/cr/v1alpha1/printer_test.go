// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"os"
	"slices"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"
)

// TestPrinterColumns: what kubectl get prints of an ActionSet, Kanister's names in
// Kanister's order.
func TestPrinterColumns(t *testing.T) {
	content, err := os.ReadFile("../../../../manifests/crds/cr.kanister.io_actionsets.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var crd apiextensionsv1.CustomResourceDefinition
	if err := yaml.Unmarshal(content, &crd); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range crd.Spec.Versions[0].AdditionalPrinterColumns {
		got = append(got, c.Name+" "+c.JSONPath)
	}
	want := []string{
		"Progress .status.progress.percentCompleted",
		"SizeDownloadedB .status.progress.sizeDownloadedB",
		"SizeUploadedB .status.progress.sizeUploadedB",
		"EstimatedDownloadSizeB .status.progress.estimatedDownloadSizeB",
		"EstimatedUploadSizeB .status.progress.estimatedUploadSizeB",
		"Running Phase .status.progress.runningPhase",
		"Last Transition Time .status.progress.lastTransitionTime",
		"State .status.state",
	}
	if !slices.Equal(got, want) {
		t.Errorf("columns\n%q, want\n%q", got, want)
	}
}
