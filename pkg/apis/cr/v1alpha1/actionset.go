// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ActionSet runs actions of Blueprints on objects.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:path=actionsets
// +kubebuilder:printcolumn:name="Progress",type=string,JSONPath=`.status.progress.percentCompleted`
// +kubebuilder:printcolumn:name="SizeDownloadedB",type=integer,JSONPath=`.status.progress.sizeDownloadedB`,priority=1
// +kubebuilder:printcolumn:name="SizeUploadedB",type=integer,JSONPath=`.status.progress.sizeUploadedB`,priority=1
// +kubebuilder:printcolumn:name="EstimatedDownloadSizeB",type=integer,JSONPath=`.status.progress.estimatedDownloadSizeB`,priority=1
// +kubebuilder:printcolumn:name="EstimatedUploadSizeB",type=integer,JSONPath=`.status.progress.estimatedUploadSizeB`,priority=1
// +kubebuilder:printcolumn:name="Running Phase",type=string,JSONPath=`.status.progress.runningPhase`
// +kubebuilder:printcolumn:name="Last Transition Time",type=string,format=date-time,JSONPath=`.status.progress.lastTransitionTime`
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.state`
type ActionSet struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec *ActionSetSpec `json:"spec,omitempty"`
	// Status is written by the controller only.
	Status *ActionSetStatus `json:"status,omitempty"`
}

// ActionSetSpec lists the actions; they run in parallel.
type ActionSetSpec struct {
	Actions []ActionSpec `json:"actions,omitempty"`
}

// ActionSpec is one action on one object.
type ActionSpec struct {
	// Name of the action in the Blueprint.
	Name string `json:"name,omitempty"`
	// Object that the action is about.
	Object ObjectReference `json:"object,omitempty"`
	// Blueprint in the ActionSet's namespace.
	Blueprint string `json:"blueprint,omitempty"`
	// Artifacts of an earlier ActionSet; templates see them as .ArtifactsIn.
	Artifacts  map[string]Artifact        `json:"artifacts,omitempty"`
	ConfigMaps map[string]ObjectReference `json:"configMaps,omitempty"`
	Secrets    map[string]ObjectReference `json:"secrets,omitempty"`
	// Profile says where data goes and with which credentials.
	Profile *ObjectReference `json:"profile,omitempty"`
	// PodOverride patches the spec of every temporary pod of the action.
	//
	// +kubebuilder:pruning:PreserveUnknownFields
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:Type=object
	PodOverride    JSONMap           `json:"podOverride,omitempty"`
	PodLabels      map[string]string `json:"podLabels,omitempty"`
	PodAnnotations map[string]string `json:"podAnnotations,omitempty"`
	Options        map[string]string `json:"options,omitempty"`
	// PreferredVersion of the functions; unknown ones mean the default.
	PreferredVersion string `json:"preferredVersion,omitempty"`
}

// State of an ActionSet and of a phase.
type State string

// The states.
const (
	StatePending  State = "pending"
	StateRunning  State = "running"
	StateFailed   State = "failed"
	StateComplete State = "complete"
)

// Done reports whether the state is final.
func (s State) Done() bool { return s == StateFailed || s == StateComplete }

// ActionSetStatus is what became of it.
type ActionSetStatus struct {
	State    State          `json:"state,omitempty"`
	Actions  []ActionStatus `json:"actions,omitempty"`
	Error    Error          `json:"error,omitempty"`
	Progress ActionProgress `json:"progress,omitempty"`
}

// Error is why it failed: Kopia's own words included, secrets not.
type Error struct {
	Message string `json:"message,omitempty"`
}

// ActionStatus is one action's; its place in the list is that of its spec.
type ActionStatus struct {
	Name      string          `json:"name,omitempty"`
	Object    ObjectReference `json:"object,omitempty"`
	Blueprint string          `json:"blueprint,omitempty"`
	Phases    []Phase         `json:"phases,omitempty"`
	// Artifacts are the Blueprint's templates until the action is complete.
	Artifacts  map[string]Artifact `json:"artifacts,omitempty"`
	DeferPhase Phase               `json:"deferPhase,omitempty"`
	// Time is when the action started; templates see it as .Time, also after a
	// restart of the controller. Kanister does not have this field.
	Time string `json:"time,omitempty"`
	// Workload is what templates see of the pods of the action's object: a snapshot
	// of when the action started, the same after a restart of the controller.
	// Kanister does not have this field.
	Workload *WorkloadSnapshot `json:"workload,omitempty"`
}

// WorkloadSnapshot is the part of a workload that an action may change while it
// runs, and that no secret can be in.
type WorkloadSnapshot struct {
	// Replicas of the workload's spec; nil if it has none.
	Replicas *int64 `json:"replicas,omitempty"`
	// Pods that ran, in their order.
	Pods []PodSnapshot `json:"pods,omitempty"`
}

// PodSnapshot is one pod.
type PodSnapshot struct {
	Name string `json:"name"`
	// Containers in the order of the pod's status.
	Containers []string `json:"containers,omitempty"`
	// Claims maps claim to mount path.
	Claims map[string]string `json:"claims,omitempty"`
}

// Phase is the state of one phase.
type Phase struct {
	Name  string `json:"name,omitempty"`
	State State  `json:"state,omitempty"`
	// +kubebuilder:pruning:PreserveUnknownFields
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:Type=object
	Output   JSONMap       `json:"output,omitempty"`
	Progress PhaseProgress `json:"progress,omitempty"`
}

// ActionProgress sums all phases of all actions up. Sizes are bytes.
type ActionProgress struct {
	// RunningPhase, "" if none runs.
	RunningPhase string `json:"runningPhase,omitempty"`
	// PercentCompleted is the mean over all phases, "0" to "100".
	PercentCompleted       string       `json:"percentCompleted,omitempty"`
	SizeDownloadedB        int64        `json:"sizeDownloadedB,omitempty"`
	SizeUploadedB          int64        `json:"sizeUploadedB,omitempty"`
	EstimatedDownloadSizeB int64        `json:"estimatedDownloadSizeB,omitempty"`
	EstimatedUploadSizeB   int64        `json:"estimatedUploadSizeB,omitempty"`
	LastTransitionTime     *metav1.Time `json:"lastTransitionTime,omitempty"`
}

// PhaseProgress is one phase's. Sizes are bytes.
type PhaseProgress struct {
	ProgressPercent        string       `json:"progressPercent,omitempty"`
	SizeDownloadedB        int64        `json:"sizeDownloadedB,omitempty"`
	SizeUploadedB          int64        `json:"sizeUploadedB,omitempty"`
	EstimatedDownloadSizeB int64        `json:"estimatedDownloadSizeB,omitempty"`
	EstimatedUploadSizeB   int64        `json:"estimatedUploadSizeB,omitempty"`
	LastTransitionTime     *metav1.Time `json:"lastTransitionTime,omitempty"`
}

// Artifact is what an action leaves behind for a later one.
type Artifact struct {
	KeyValue map[string]string `json:"keyValue,omitempty"`
	// KopiaSnapshot is a string that names one.
	KopiaSnapshot string `json:"kopiaSnapshot,omitempty"`
}

// ActionSetList is a list of them.
//
// +kubebuilder:object:root=true
type ActionSetList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ActionSet `json:"items"`
}
