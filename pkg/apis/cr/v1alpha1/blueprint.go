// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Blueprint says how to back an application up and restore it.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:path=blueprints
type Blueprint struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Actions map[string]*BlueprintAction `json:"actions,omitempty"`
}

// BlueprintAction is a sequence of phases. Kind, InputArtifactNames, ConfigMapNames
// and SecretNames are for readers: Kanister enforces none of them.
type BlueprintAction struct {
	Name               string              `json:"name,omitempty"`
	Kind               string              `json:"kind,omitempty"`
	InputArtifactNames []string            `json:"inputArtifactNames,omitempty"`
	ConfigMapNames     []string            `json:"configMapNames,omitempty"`
	SecretNames        []string            `json:"secretNames,omitempty"`
	OutputArtifacts    map[string]Artifact `json:"outputArtifacts,omitempty"`
	Phases             []BlueprintPhase    `json:"phases,omitempty"`
	// DeferPhase runs last, whether or not the phases succeeded.
	DeferPhase *BlueprintPhase `json:"deferPhase,omitempty"`
}

// BlueprintPhase calls one function. Arguments are templates.
type BlueprintPhase struct {
	Func string `json:"func,omitempty"`
	Name string `json:"name,omitempty"`
	// ObjectRefs are Secrets and ConfigMaps that templates see as
	// .Phases.<name>.Secrets and .ConfigMaps.
	ObjectRefs map[string]ObjectReference `json:"objects,omitempty"`
	// +kubebuilder:pruning:PreserveUnknownFields
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:Type=object
	Args JSONMap `json:"args,omitempty"`
}

// BlueprintList is a list of them.
//
// +kubebuilder:object:root=true
type BlueprintList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Blueprint `json:"items"`
}
