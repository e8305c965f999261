// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Profile says where data goes and with which credentials. Annotation
// kopia.kanister.io/ca-configmap names a ConfigMap of the Profile's namespace whose
// key ca.crt is trusted for the endpoint.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:path=profiles
type Profile struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Location      Location   `json:"location,omitempty"`
	Credential    Credential `json:"credential,omitempty"`
	SkipSSLVerify bool       `json:"skipSSLVerify,omitempty"`
}

// LocationType is a kind of object store.
//
// +kubebuilder:validation:Enum=gcs;s3Compliant;azure;kopia
type LocationType string

// The location types.
const (
	LocationTypeGCS         LocationType = "gcs"
	LocationTypeS3Compliant LocationType = "s3Compliant"
	LocationTypeAzure       LocationType = "azure"
	LocationTypeKopia       LocationType = "kopia"
)

// Location is a folder of a bucket.
type Location struct {
	Type     LocationType `json:"type,omitempty"`
	Bucket   string       `json:"bucket,omitempty"`
	Endpoint string       `json:"endpoint,omitempty"`
	Prefix   string       `json:"prefix,omitempty"`
	Region   string       `json:"region,omitempty"`
}

// CredentialType is a way to keep credentials.
//
// +kubebuilder:validation:Enum=keyPair;secret;kopia
type CredentialType string

// The credential types.
const (
	CredentialTypeKeyPair CredentialType = "keyPair"
	CredentialTypeSecret  CredentialType = "secret"
	CredentialTypeKopia   CredentialType = "kopia"
)

// Credential of a Location.
type Credential struct {
	Type              CredentialType     `json:"type,omitempty"`
	KeyPair           *KeyPair           `json:"keyPair,omitempty"`
	Secret            *ObjectReference   `json:"secret,omitempty"`
	KopiaServerSecret *KopiaServerSecret `json:"kopiaServerSecret,omitempty"`
}

// KeyPair is two keys of a Secret.
type KeyPair struct {
	IDField     string          `json:"idField,omitempty"`
	SecretField string          `json:"secretField,omitempty"`
	Secret      ObjectReference `json:"secret,omitempty"`
}

// KopiaServerSecret is what kando uses to reach a Kopia server; the functions
// refuse it, as Kanister's do.
type KopiaServerSecret struct {
	Username       string               `json:"username,omitempty"`
	Hostname       string               `json:"hostname,omitempty"`
	UserPassphrase KopiaServerSecretRef `json:"userPassphrase,omitempty"`
	TLSCert        KopiaServerSecretRef `json:"tlsCert,omitempty"`
	ConnectOptions map[string]int       `json:"connectOptions,omitempty"`
}

// KopiaServerSecretRef is a key of a Secret.
type KopiaServerSecretRef struct {
	Key    string           `json:"key,omitempty"`
	Secret *ObjectReference `json:"secret,omitempty"`
}

// ProfileList is a list of them.
//
// +kubebuilder:object:root=true
type ProfileList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Profile `json:"items"`
}
