// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// RepositoryServer is one Kopia repository, which belongs to one application
// namespace or to several that consent, and the server through which alone it is
// used. It lives in the control-plane namespace and holds no secret. Deleting it
// removes the server, but neither the repository's data nor its password.
//
// One is made for each namespace whose Blueprints need it. Write one by hand to
// share a repository, to keep it on a volume, or to bring a server of your own.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=repo;repos,categories=kanister-kopia
// +kubebuilder:printcolumn:name="Namespace",type=string,JSONPath=`.spec.tenant.namespace`,description="the application's namespace"
// +kubebuilder:printcolumn:name="Shared by",type=string,JSONPath=`.spec.namespaces`,priority=1
// +kubebuilder:printcolumn:name="Key",type=string,JSONPath=`.spec.keyID`,priority=1
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Users",type=integer,JSONPath=`.status.users`
// +kubebuilder:printcolumn:name="Last used",type=date,JSONPath=`.status.lastUsed`
// +kubebuilder:printcolumn:name="Last maintenance",type=date,JSONPath=`.status.maintenance.lastSuccess`
// +kubebuilder:printcolumn:name="Degraded",type=string,JSONPath=`.status.conditions[?(@.type=="Degraded")].status`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].message`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.size() <= 41 && self.metadata.name.matches('^[a-z]([a-z0-9-]*[a-z0-9])?$')",message="the name begins every backupID: at most 41 of [a-z0-9-], a letter first"
type RepositoryServer struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   RepositoryServerSpec   `json:"spec"`
	Status RepositoryServerStatus `json:"status,omitempty"`
}

// RepositoryServerSpec says where the repository is and whose it is.
//
// +kubebuilder:validation:XValidation:rule="[has(self.storage) && has(self.storage.s3), has(self.storage) && has(self.storage.gcs), has(self.storage) && has(self.storage.azure), has(self.storage) && has(self.storage.filesystem), has(self.external)].filter(x, x).size() == 1",message="exactly one of storage.s3, storage.gcs, storage.azure, storage.filesystem and external is needed"
// +kubebuilder:validation:XValidation:rule="has(self.tenant) != has(self.namespaces)",message="a repository belongs to one namespace (tenant), or is shared by those that it lists (namespaces)"
// +kubebuilder:validation:XValidation:rule="has(self.tenant) == has(oldSelf.tenant) && (!has(self.tenant) || self.tenant == oldSelf.tenant)",message="a repository belongs to one namespace for ever"
// +kubebuilder:validation:XValidation:rule="self.keyID == oldSelf.keyID",message="another encryption key is another repository"
// +kubebuilder:validation:XValidation:rule="[has(self.storage) && has(self.storage.s3), has(self.storage) && has(self.storage.gcs), has(self.storage) && has(self.storage.azure), has(self.storage) && has(self.storage.filesystem)] == [has(oldSelf.storage) && has(oldSelf.storage.s3), has(oldSelf.storage) && has(oldSelf.storage.gcs), has(oldSelf.storage) && has(oldSelf.storage.azure), has(oldSelf.storage) && has(oldSelf.storage.filesystem)]",message="a repository stays in the kind of storage that it is in"
// +kubebuilder:validation:XValidation:rule="(has(self.format) && has(self.format.splitter) ? [self.format.splitter] : []) == (has(oldSelf.format) && has(oldSelf.format.splitter) ? [oldSelf.format.splitter] : [])",message="the splitter of a repository cannot change"
// +kubebuilder:validation:XValidation:rule="(has(self.format) && has(self.format.objectLock) ? [self.format.objectLock] : []) == (has(oldSelf.format) && has(oldSelf.format.objectLock) ? [oldSelf.format.objectLock] : [])",message="the object lock of a repository cannot change"
// +kubebuilder:validation:XValidation:rule="has(self.tenant) || self.keyID == 'default'",message="a shared repository has a password of its own: keyID is default"
// +kubebuilder:validation:XValidation:rule="!has(self.format) || !has(self.format.objectLock) || has(self.storage) && has(self.storage.s3)",message="object lock needs an S3 bucket"
// +kubebuilder:validation:XValidation:rule="!has(self.format) || !has(self.format.objectLock) || !has(self.maintenance) || !has(self.maintenance.fullInterval) || duration(self.maintenance.fullInterval) + duration('24h') <= duration(self.format.objectLock.period)",message="maintenance.fullInterval is at least 24h shorter than format.objectLock.period: full maintenance is what extends the locks"
// +kubebuilder:validation:XValidation:rule="!has(self.external) || !(has(self.format) || has(self.maintenance) || has(self.tls))",message="format, maintenance and tls of an external server are not ours to set"
// +kubebuilder:validation:XValidation:rule="!has(self.idleTimeout) || duration(self.idleTimeout) >= duration('0s')",message="idleTimeout is 0 (never stop) or positive"
type RepositoryServerSpec struct {
	// Storage is where the repository's blobs are.
	//
	// +optional
	Storage Storage `json:"storage,omitempty"`
	// External is somebody else's server: none is started, and only what it allows
	// is done.
	//
	// +optional
	External *External `json:"external,omitempty"`
	// Tenant is the application namespace whose data the repository holds.
	//
	// +optional
	Tenant *Tenant `json:"tenant,omitempty"`
	// Namespaces may use this repository together. Each must also ask for it, with
	// the annotation kopia.kanister.io/repository. They trust each other: who
	// knows the id of a content can read it.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=1000
	Namespaces []string `json:"namespaces,omitempty"`
	// KeyID names the encryption key: "default" is a generated password, kept in
	// this namespace; anything else stands for a Blueprint's encryptionKey.
	//
	// +optional
	// +kubebuilder:default=default
	// +kubebuilder:validation:Pattern=`^[a-z0-9-]{1,32}$`
	KeyID string `json:"keyID,omitempty"`
	// IdleTimeout is how long the server stays up when no operation uses it; 0: for
	// ever. Empty: the controller's default, some minutes.
	//
	// +optional
	IdleTimeout *metav1.Duration `json:"idleTimeout,omitempty"`
	// Resources of the server's container; empty: the controller's defaults. A
	// change holds when the server is idle, or with its next start.
	//
	// +optional
	Resources corev1.ResourceRequirements `json:"resources,omitempty"`
	// Format of the repository, fixed when it is made.
	//
	// +optional
	Format *Format `json:"format,omitempty"`
	// +optional
	Maintenance *Maintenance `json:"maintenance,omitempty"`
	// TLS is where the server's certificate comes from; empty: the control plane's
	// issuer.
	//
	// +optional
	TLS *TLS `json:"tls,omitempty"`
	// DeletionLimit is how many backups may be deleted within the hour that begins with
	// the first of them. Further deletions wait until that hour is over, for a higher limit,
	// or for the annotation kopia.kanister.io/deletions-allowed-until (a time, RFC 3339).
	// 0: no limit.
	//
	// +optional
	// +kubebuilder:default=200
	// +kubebuilder:validation:Minimum=0
	DeletionLimit *int32 `json:"deletionLimit,omitempty"`
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

// Storage is exactly one kind of storage. The keys of an object store come from the
// Profile of the ActionSet that uses it and are kept in a Secret beside this object.
type Storage struct {
	// +optional
	S3 *S3Storage `json:"s3,omitempty"`
	// +optional
	GCS *GCSStorage `json:"gcs,omitempty"`
	// +optional
	Azure *AzureStorage `json:"azure,omitempty"`
	// +optional
	Filesystem *FilesystemStorage `json:"filesystem,omitempty"`
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

// GCSStorage is a folder of a bucket of Google Cloud Storage.
//
// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="bucket and prefix of a repository cannot change"
type GCSStorage struct {
	// +kubebuilder:validation:MinLength=1
	Bucket string `json:"bucket"`
	// Prefix of every object of the repository; ends in a slash.
	//
	// +kubebuilder:validation:Pattern=`/$`
	Prefix string `json:"prefix"`
}

// AzureStorage is a folder of a container of Azure Blob Storage.
//
// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="account, domain, container and prefix of a repository cannot change"
type AzureStorage struct {
	// Account is the storage account that the container is of.
	//
	// +kubebuilder:validation:MinLength=1
	Account string `json:"account"`
	// Domain is where the account is: blob.core.windows.net, if it is empty.
	//
	// +optional
	Domain string `json:"domain,omitempty"`
	// +kubebuilder:validation:MinLength=1
	Container string `json:"container"`
	// Prefix of every object of the repository; ends in a slash.
	//
	// +kubebuilder:validation:Pattern=`/$`
	Prefix string `json:"prefix"`
}

// FilesystemStorage is a folder of a volume. The volume must outlive what it is to
// protect: a disk of the same node is no backup.
//
// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="claim and path of a repository cannot change"
type FilesystemStorage struct {
	// Claim is a PersistentVolumeClaim of this namespace.
	//
	// +kubebuilder:validation:MinLength=1
	Claim string `json:"claim"`
	// Path inside the volume; no part of it begins with a dot.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:Pattern=`^/?([A-Za-z0-9_-][A-Za-z0-9._-]*/?)*$`
	Path string `json:"path,omitempty"`
}

// External is a Kopia repository server that somebody else runs. A pod of ours that
// has this user's password looks backups up; data goes to the server directly.
type External struct {
	// URL, https://host:port.
	//
	// +kubebuilder:validation:Pattern=`^https://[^/@]+$`
	URL string `json:"url"`
	// CABundle is PEM: the only roots that are trusted for URL.
	//
	// +kubebuilder:validation:MinLength=1
	CABundle string `json:"caBundle"`
	// UserSecret is a Secret of this namespace with the keys username, hostname and
	// password: a user of that server.
	//
	// +kubebuilder:validation:MinLength=1
	UserSecret string `json:"userSecret"`
}

// Format of a new repository. Hash and encryption are always BLAKE3-256-128 and
// AES256-GCM.
type Format struct {
	// Splitter cuts files into contents: the default, DYNAMIC-1M-BUZHASH, finds what is
	// common also behind an insertion. Larger pieces keep the index small, and a fixed size
	// is faster and fits block images.
	//
	// +optional
	// +kubebuilder:validation:Enum=DYNAMIC-1M-BUZHASH;DYNAMIC-4M-BUZHASH;DYNAMIC-8M-BUZHASH;FIXED-1M;FIXED-2M;FIXED-4M;FIXED-8M
	Splitter string `json:"splitter,omitempty"`
	// Compression of new backups; it may change at any time.
	//
	// +optional
	// +kubebuilder:validation:Enum=none;zstd-fastest;zstd;zstd-better-compression;s2-default;s2-better;pgzip-best-speed;pgzip
	Compression string `json:"compression,omitempty"`
	// ObjectLock keeps every object from being deleted or overwritten for a while,
	// by anybody. The bucket must have been made with object lock.
	//
	// +optional
	ObjectLock *ObjectLock `json:"objectLock,omitempty"`
}

// ObjectLock is a retention of the object store.
//
// +kubebuilder:validation:XValidation:rule="duration(self.period) >= duration('48h')",message="the period is at least 48h: maintenance, which extends it, runs once a day"
type ObjectLock struct {
	// +kubebuilder:validation:Enum=Governance;Compliance
	Mode string `json:"mode"`
	// Period is how long an object is kept after it was written or its lock extended.
	Period metav1.Duration `json:"period"`
}

// Maintenance of the repository, in a pod of its own.
//
// +kubebuilder:validation:XValidation:rule="!has(self.quickInterval) || duration(self.quickInterval) >= duration('1h')",message="quickInterval is at least 1h"
// +kubebuilder:validation:XValidation:rule="!has(self.fullInterval) || duration(self.fullInterval) >= duration('1h')",message="fullInterval is at least 1h"
type Maintenance struct {
	// Suspend stops it, for example while another cluster maintains the same
	// repository. Two at once destroy a repository.
	//
	// +optional
	Suspend bool `json:"suspend,omitempty"`
	// QuickInterval is how often indexes are compacted, if the repository was used;
	// default 6h.
	//
	// +optional
	QuickInterval *metav1.Duration `json:"quickInterval,omitempty"`
	// FullInterval is how often also the space of deleted backups is given back;
	// default 24h. Space comes back after two of them at the earliest. With an object
	// lock it is at least 24h shorter than the lock's period.
	//
	// +optional
	FullInterval *metav1.Duration `json:"fullInterval,omitempty"`
	// VerifyPercent of the files of each source's latest backup are read with each
	// full maintenance; default 1.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100
	VerifyPercent *int32 `json:"verifyPercent,omitempty"`
	// Resources of the pod; empty: the controller's defaults. Memory grows with the
	// number of contents.
	//
	// +optional
	Resources corev1.ResourceRequirements `json:"resources,omitempty"`
}

// TLS says where a certificate comes from.
//
// +kubebuilder:validation:XValidation:rule="has(self.secret) != has(self.issuer)",message="exactly one of secret and issuer is needed"
type TLS struct {
	// Secret of this namespace with tls.crt, tls.key and ca.crt, for the name
	// <repository>.<namespace>.svc.
	//
	// +optional
	Secret string `json:"secret,omitempty"`
	// Issuer of cert-manager.
	//
	// +optional
	Issuer *Issuer `json:"issuer,omitempty"`
}

// Issuer is a cert-manager issuer. Certificates of it must come with their CA.
type Issuer struct {
	// +kubebuilder:validation:MinLength=1
	Name string `json:"name"`
	// +optional
	// +kubebuilder:default=Issuer
	Kind string `json:"kind,omitempty"`
	// +optional
	// +kubebuilder:default=cert-manager.io
	Group string `json:"group,omitempty"`
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

// The conditions.
const (
	// ConditionReady is true while the server serves. Before it began to, it proved that its
	// access control was in force; whether the storage answers is Degraded's to say.
	ConditionReady = "Ready"
	// ConditionDegraded is true while the server does not start or its storage does
	// not answer; the message says why.
	ConditionDegraded = "Degraded"
	// ConditionMaintained is true if the last maintenance succeeded.
	ConditionMaintained = "Maintained"
	// ConditionDeletionsHeld is true while deletions wait for an acknowledgement.
	ConditionDeletionsHeld = "DeletionsHeld"
	// ConditionCrowded is true if the repository holds backups of so many sources that
	// its server starts slowly.
	ConditionCrowded = "Crowded"
)

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
	// URL and CA are what an agent is given to reach the server.
	//
	// +optional
	URL string `json:"url,omitempty"`
	// +optional
	CA string `json:"ca,omitempty"`
	// Users of the server at the controller's last look, by their operations.
	//
	// +optional
	Users int32 `json:"users,omitempty"`
	// LastUsed is about when an operation last used the repository.
	//
	// +optional
	LastUsed *metav1.Time `json:"lastUsed,omitempty"`
	// Failures in a row to start the server; the next is tried at NextTry.
	//
	// +optional
	Failures int32 `json:"failures,omitempty"`
	// +optional
	NextTry *metav1.Time `json:"nextTry,omitempty"`
	// +optional
	Deletions *Deletions `json:"deletions,omitempty"`
	// +optional
	Maintenance *MaintenanceStatus `json:"maintenance,omitempty"`
}

// Deletions are the backups deleted within the present hour, for the limit. The hour begins
// with the first of them, and the next one with the first after it.
type Deletions struct {
	// Since is the beginning of the hour that is counted.
	Since metav1.Time `json:"since"`
	Count int32       `json:"count"`
}

// MaintenanceStatus is what the last maintenance found.
type MaintenanceStatus struct {
	// LastQuickAttempt and LastFullAttempt are when a pod was last started for it,
	// LastQuick and LastFull when it last succeeded, LastSuccess the later of the two.
	//
	// +optional
	LastQuickAttempt *metav1.Time `json:"lastQuickAttempt,omitempty"`
	// +optional
	LastFullAttempt *metav1.Time `json:"lastFullAttempt,omitempty"`
	// +optional
	LastSuccess *metav1.Time `json:"lastSuccess,omitempty"`
	// +optional
	LastQuick *metav1.Time `json:"lastQuick,omitempty"`
	// +optional
	LastFull *metav1.Time `json:"lastFull,omitempty"`
	// LastRun is the run whose outcome was counted last.
	//
	// +optional
	LastRun string `json:"lastRun,omitempty"`
	// QuickFailures and FullFailures are failures in a row. A full one that fails keeps
	// no quick one from its turn.
	//
	// +optional
	QuickFailures int32 `json:"quickFailures,omitempty"`
	// +optional
	FullFailures int32 `json:"fullFailures,omitempty"`
	// Duration of the last success.
	//
	// +optional
	Duration *metav1.Duration `json:"duration,omitempty"`
	// IndexBlobs, Contents and StoredBytes after it. More than some hundred index
	// blobs make a repository slow to open.
	//
	// +optional
	IndexBlobs int64 `json:"indexBlobs,omitempty"`
	// +optional
	Contents int64 `json:"contents,omitempty"`
	// +optional
	StoredBytes int64 `json:"storedBytes,omitempty"`
	// Sources have backups: volumes, or paths of them. More than 500 make the server
	// slow to start.
	//
	// +optional
	Sources int64 `json:"sources,omitempty"`
	// FreedBytes were given back by the last full one.
	//
	// +optional
	FreedBytes int64 `json:"freedBytes,omitempty"`
	// IncompleteCollected are unfinished snapshots that it removed, UnrecordedCollected
	// complete ones that have not become backups for days, and UnusableCollected those
	// that are no backups and that nobody could restore.
	//
	// +optional
	IncompleteCollected int64 `json:"incompleteCollected,omitempty"`
	// +optional
	UnrecordedCollected int64 `json:"unrecordedCollected,omitempty"`
	// +optional
	UnusableCollected int64 `json:"unusableCollected,omitempty"`
	// VerifiedFiles of VerifiedSnapshots were read by the last full one.
	//
	// +optional
	VerifiedSnapshots int64 `json:"verifiedSnapshots,omitempty"`
	// +optional
	VerifiedFiles int64 `json:"verifiedFiles,omitempty"`
}

// RepositoryServerList is a list of them.
//
// +kubebuilder:object:root=true
type RepositoryServerList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []RepositoryServer `json:"items"`
}
