// SPDX-License-Identifier: Apache-2.0

// Package names holds every label, annotation, port, path and object name that
// two parts of the system must agree on. It imports nothing, so the smallest
// binary can use it.
package names

// Group is the API group and the prefix of every key of ours.
const Group = "kopia.kanister.io"

// ControlPlaneNamespace is the default namespace of the controller, the webhook
// and the repository servers, and the only one that holds storage keys.
const ControlPlaneNamespace = "kanister-kopia"

// Opting in.
const (
	// InjectionLabel on a Namespace opts it in; see InjectionEnabled and InjectionAll.
	InjectionLabel = Group + "/injection"
	// InjectionEnabled injects pods that carry InjectLabel=true.
	InjectionEnabled = "enabled"
	// InjectionAll injects every pod that mounts a persistent volume, unless InjectLabel=false.
	InjectionAll = "all"
	// InjectLabel on a pod (in the workload's pod template) is the switch: "true" or "false".
	InjectLabel = Group + "/inject"
	// StrictLabel on a Namespace ("true") refuses opted-in pods without an agent.
	StrictLabel = Group + "/strict"
	// RepositoryAnnotation on a Namespace names the RepositoryServer that it shares with
	// others; the RepositoryServer must list the namespace too.
	RepositoryAnnotation = Group + "/repository"
	// PrivilegedAgentsAnnotation on a Namespace lets agents there run as root.
	PrivilegedAgentsAnnotation = Group + "/privileged-agents"
)

// Pod annotations. All but StatusAnnotation are parameters written by the user.
const (
	// RunAsAnnotation is "<uid>" or "<uid>:<gid>" of the agent's container.
	RunAsAnnotation = Group + "/run-as"
	// VolumesAnnotation is a comma-separated list of the volumes to mirror; absent: all that can be.
	VolumesAnnotation = Group + "/volumes"
	// CPURequestAnnotation, MemoryRequestAnnotation and MemoryLimitAnnotation are resource quantities.
	CPURequestAnnotation    = Group + "/cpu-request"
	MemoryRequestAnnotation = Group + "/memory-request"
	MemoryLimitAnnotation   = Group + "/memory-limit"
	// HealthAnnotation is "false" for an agent without a port on the pod network.
	HealthAnnotation = Group + "/health"
	// IgnoreAnnotation, CompressionAnnotation and RateLimitAnnotation are about the pod's
	// backups: patterns of what is left out, one a line; how contents are compressed;
	// a quantity of bytes a second.
	IgnoreAnnotation      = Group + "/ignore"
	CompressionAnnotation = Group + "/compression"
	RateLimitAnnotation   = Group + "/rate-limit"
	// StatusAnnotation is written by the webhook: JSON with version, volumes, skipped volumes and uid.
	StatusAnnotation = Group + "/status"
)

// DeletionsAllowedAnnotation on a RepositoryServer is a time (RFC 3339) until which
// backups may be deleted beyond its limit.
const DeletionsAllowedAnnotation = Group + "/deletions-allowed-until"

// ReplacesAnnotation on a RepositoryServer names another one, gone for ever, whose repository
// it works with from now on.
const ReplacesAnnotation = Group + "/replaces"

// The agent's container and what is mounted into it.
const (
	// AgentContainer is the name of the injected native sidecar.
	AgentContainer = "kopia-agent"
	// MoverContainer is the agent's container in a temporary pod: Kanister's
	// podOverride patches containers by this name.
	MoverContainer = "container"
	// StateVolume is the agent's private emptyDir (TLS key, operation state, scratch files), at StateDir.
	StateVolume = "kopia-agent-state"
	StateDir    = "/var/lib/kopia-agent"
	// CAVolume mounts ConfigMap CAConfigMap (optional, no subPath) at CADir.
	CAVolume = "kopia-agent-ca"
	CADir    = "/etc/kopia-agent/ca"
	// CAConfigMap exists in every opted-in namespace; key CAKey is a PEM bundle, public data.
	CAConfigMap = "kanister-kopia-ca"
	CAKey       = "ca.crt"
	// NoTokenVolume is an empty volume over the service account path of the agent's container only.
	NoTokenVolume = "kopia-agent-no-token"
	// VolumesDir is where volumes are mirrored: VolumesDir/<volume name>.
	VolumesDir = "/volumes"
	// DevicesDir is where volumes that are block devices are: DevicesDir/<volume name>.
	DevicesDir = "/devices"
)

// MetricsLabel on a Namespace ("true") lets its pods come to the repository servers'
// AgentHealthPort: manifests/policies.
const MetricsLabel = Group + "/metrics"

// AgentPolicy is the ValidatingAdmissionPolicy about opted-in pods without an agent:
// manifests/policies.
const AgentPolicy = "kanister-kopia-agent"

// HoldConfigMap of the control plane lists the namespaces in which injection is on
// hold: pkg/hold.
const HoldConfigMap = "kanister-kopia-injection-holds"

// Ports. The agent API is bound to 127.0.0.1 inside the pod and reached by
// pods/portforward; only AgentHealthPort and RepositoryPort are on the pod network.
const (
	AgentPort       = 51510
	AgentHealthPort = 51511
	RepositoryPort  = 51515
)

// ControllerDNSName is the DNS name that the controller's client certificate
// carries. An agent accepts a certificate of the right CA only with this name.
const ControllerDNSName = "controller." + ControlPlaneNamespace + ".svc"

// Labels on objects that the controller makes.
const (
	// ManagedByLabel = ManagedByValue marks everything the controller may sweep.
	ManagedByLabel = "app.kubernetes.io/managed-by"
	ManagedByValue = "kanister-kopia"
	// RepositoryLabel names the RepositoryServer an object belongs to.
	RepositoryLabel = Group + "/repository"
	// ActionSetLabel names the ActionSet a temporary pod works for.
	ActionSetLabel = Group + "/actionset"
	// OperationAnnotation of a temporary pod is the operation it was made for.
	OperationAnnotation = Group + "/operation"
	// ComponentLabel is "repository-server", "mover", "task", ….
	ComponentLabel = "app.kubernetes.io/component"
)

// What a repository server says when its repository cannot be opened for good. The
// controller reads it as text: it is the server's last word.
const (
	WrongPassword     = "the repository's password is wrong"
	RepositoryMissing = "the storage is empty, but the repository existed before"
)
