// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// RepositoryServer is one Kopia repository, which belongs to one application
// namespace, and the server through which alone it is used. It lives in the
// control-plane namespace and holds no secret. Deleting it removes the server,
// but neither the repository's data nor its password.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=repo;repos,categories=kanister-kopia
// +kubebuilder:printcolumn:name="Namespace",type=string,JSONPath=`.spec.tenant.namespace`,description="the application's namespace"
// +kubebuilder:printcolumn:name="Key",type=string,JSONPath=`.spec.keyID`,priority=1
// +kubebuilder:printcolumn:name="Bucket",type=string,JSONPath=`.spec.storage.s3.bucket`
// +kubebuilder:printcolumn:name="Prefix",type=string,JSONPath=`.spec.storage.s3.prefix`,priority=1
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].message`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type RepositoryServer struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   RepositoryServerSpec   `json:"spec"`
	Status RepositoryServerStatus `json:"status,omitempty"`
}

// RepositoryServerSpec says where the repository is and whose it is.
//
// +kubebuilder:validation:XValidation:rule="self.tenant == oldSelf.tenant",message="a repository belongs to one namespace for ever"
// +kubebuilder:validation:XValidation:rule="self.keyID == oldSelf.keyID",message="another encryption key is another repository"
type RepositoryServerSpec struct {
	// Storage is where the repository's blobs are.
	Storage Storage `json:"storage"`
	// Tenant is the application namespace whose data the repository holds.
	Tenant Tenant `json:"tenant"`
	// KeyID names the encryption key: "default" is a generated password, kept in
	// this namespace; anything else stands for a Blueprint's encryptionKey.
	//
	// +kubebuilder:validation:Pattern=`^[a-z0-9-]{1,32}$`
	KeyID string `json:"keyID"`
	// Resources of the server's container; empty: the controller's defaults.
	//
	// +optional
	Resources corev1.ResourceRequirements `json:"resources,omitempty"`
}

// Tenant is a namespace of one cluster, by uid: a namespace made anew under an
// old name is another tenant.
type Tenant struct {
	// ClusterID is the uid of the namespace kube-system.
	//
	// +kubebuilder:validation:MinLength=1
	ClusterID string `json:"clusterID"`
	// +kubebuilder:validation:MinLength=1
	Namespace string `json:"namespace"`
	// +kubebuilder:validation:MinLength=1
	NamespaceUID string `json:"namespaceUID"`
}

// Storage is exactly one kind of storage. Its keys come from the Profile of the
// ActionSet that uses it and are kept in a Secret beside this object.
type Storage struct {
	// +optional
	S3 *S3Storage `json:"s3,omitempty"`
}

// S3Storage is a folder of a bucket.
//
// +kubebuilder:validation:XValidation:rule="self.bucket == oldSelf.bucket && self.prefix == oldSelf.prefix",message="bucket and prefix of a repository cannot change"
type S3Storage struct {
	// +kubebuilder:validation:MinLength=1
	Bucket string `json:"bucket"`
	// Endpoint is "host", "host:port", or an http or https URL; empty: AWS.
	//
	// +optional
	Endpoint string `json:"endpoint,omitempty"`
	// Prefix of every object of the repository; ends in a slash.
	//
	// +kubebuilder:validation:Pattern=`/$`
	Prefix string `json:"prefix"`
	// +optional
	Region string `json:"region,omitempty"`
}

// Phase sums the Ready condition up in one word.
type Phase string

// The phases. Stopped is a server that nobody needs at the moment.
const (
	PhaseStopped  Phase = "Stopped"
	PhaseStarting Phase = "Starting"
	PhaseReady    Phase = "Ready"
	PhaseFailed   Phase = "Failed"
)

// ConditionReady is true while a probe sees the repository's own data over TLS
// through the server, access control in force.
const ConditionReady = "Ready"

// RepositoryServerStatus is what the controller observed.
type RepositoryServerStatus struct {
	// +optional
	Phase Phase `json:"phase,omitempty"`
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// ObservedGeneration is the generation of the spec that the status describes.
	//
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Revision is the revision of the server's configuration that the status describes.
	//
	// +optional
	Revision string `json:"revision,omitempty"`
	// Initialized is when the repository was first seen ready. From then on an
	// empty storage is an error: the repository is never made a second time.
	//
	// +optional
	Initialized *metav1.Time `json:"initialized,omitempty"`
}

// RepositoryServerList is a list of them.
//
// +kubebuilder:object:root=true
type RepositoryServerList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []RepositoryServer `json:"items"`
}
