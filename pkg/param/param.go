// SPDX-License-Identifier: Apache-2.0

// Package param holds what a Blueprint's templates see, and renders them. Field names and JSON
// shapes are Kanister's: `{{ toJson .Profile }}` and friends are part of the contract.
package param

import (
	corev1 "k8s.io/api/core/v1"

	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
)

// TemplateParams is a snapshot taken when an action starts.
type TemplateParams struct {
	StatefulSet *StatefulSetParams
	Deployment  *DeploymentParams
	// DeploymentConfig is OpenShift's.
	DeploymentConfig *DeploymentConfigParams
	PVC              *PVCParams
	Namespace        *NamespaceParams
	ArtifactsIn      map[string]Artifact
	ConfigMaps       map[string]corev1.ConfigMap
	Secrets          map[string]corev1.Secret
	Time             string
	Profile          *Profile
	Options          map[string]string
	Object           map[string]any
	Phases           map[string]*Phase
	DeferPhase       *Phase
	CurrentPhase     string
	PodOverride      map[string]any
	// PodAnnotations and PodLabels come from the ActionSet.
	PodAnnotations map[string]string
	PodLabels      map[string]string
}

// StatefulSetParams are the Running pods of a StatefulSet.
type StatefulSetParams struct {
	Name       string
	Namespace  string
	Pods       []string
	Containers [][]string
	// PersistentVolumeClaims maps pod to claim to mount path.
	PersistentVolumeClaims map[string]map[string]string
}

// DeploymentParams are the Running pods of a Deployment's current ReplicaSet.
type DeploymentParams StatefulSetParams

// DeploymentConfigParams are the Running pods of a DeploymentConfig's latest
// version.
type DeploymentConfigParams StatefulSetParams

// PVCParams name a claim.
type PVCParams struct {
	Name      string
	Namespace string
}

// NamespaceParams name a namespace; both fields are its name, as in Kanister.
type NamespaceParams struct {
	Name      string
	Namespace string
}

// Artifact is a rendered artifact.
type Artifact struct {
	KeyValue      map[string]string
	KopiaSnapshot string
}

// Phase is what a finished (or starting) phase offers to templates.
type Phase struct {
	Secrets    map[string]corev1.Secret
	ConfigMaps map[string]corev1.ConfigMap
	Output     map[string]any
}

// Profile is the resolved Profile with its credentials.
type Profile struct {
	Location      Location
	Credential    Credential
	SkipSSLVerify bool
	// CABundle is PEM, from the Profile's annotation kopia.kanister.io/ca-configmap;
	// not part of Kanister's shape.
	CABundle []byte `json:"-"`
}

// LocationType is the API's.
type LocationType = crv1alpha1.LocationType

// The location types.
const (
	LocationTypeGCS         = crv1alpha1.LocationTypeGCS
	LocationTypeS3Compliant = crv1alpha1.LocationTypeS3Compliant
	LocationTypeAzure       = crv1alpha1.LocationTypeAzure
	LocationTypeKopia       = crv1alpha1.LocationTypeKopia
)

// Location of a Profile; lower case in JSON, unlike the rest.
type Location struct {
	Type     LocationType `json:"type"`
	Bucket   string       `json:"bucket"`
	Endpoint string       `json:"endpoint"`
	Prefix   string       `json:"prefix"`
	Region   string       `json:"region"`
}

// CredentialType is the API's.
type CredentialType = crv1alpha1.CredentialType

// The credential types.
const (
	CredentialTypeKeyPair = crv1alpha1.CredentialTypeKeyPair
	CredentialTypeSecret  = crv1alpha1.CredentialTypeSecret
	CredentialTypeKopia   = crv1alpha1.CredentialTypeKopia
)

// Credential of a Profile.
type Credential struct {
	Type              CredentialType
	KeyPair           *KeyPair
	Secret            *corev1.Secret
	KopiaServerSecret *KopiaServerCreds
}

// KopiaServerCreds reach a Kopia server; only commands (kando) use them.
type KopiaServerCreds struct {
	Username       string
	Hostname       string
	Password       string
	Cert           string
	ConnectOptions map[string]int
}

// KeyPair is an access key id and its secret.
type KeyPair struct {
	ID     string
	Secret string
}
