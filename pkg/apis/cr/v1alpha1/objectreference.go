// SPDX-License-Identifier: Apache-2.0

package v1alpha1

// ObjectReference names an object. Of a known kind (deployment, statefulset,
// deploymentconfig, pvc, namespace, in any case) only kind, name and namespace are needed; of any other
// also apiVersion and resource. References to Profiles, Secrets and ConfigMaps
// need name and namespace alone.
type ObjectReference struct {
	APIVersion string `json:"apiVersion,omitempty"`
	Group      string `json:"group,omitempty"`
	Resource   string `json:"resource,omitempty"`
	Kind       string `json:"kind,omitempty"`
	Name       string `json:"name,omitempty"`
	Namespace  string `json:"namespace,omitempty"`
}
