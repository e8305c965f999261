// SPDX-License-Identifier: Apache-2.0

package function

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/pkg/coverage"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/pkg/repository"
	"github.com/kanister-kopia/kanister-kopia/pkg/volumes"
	"github.com/kanister-kopia/kanister-kopia/webhook/decide"
)

// backupData takes a snapshot of a path of a running container, through the agent
// in its pod.
type backupData struct{ *Data }

func (*backupData) Name() string { return "BackupData" }

func (*backupData) RequiredArgs() []string {
	return []string{"namespace", "pod", "container", "includePath", "backupArtifactPrefix"}
}

func (f *backupData) Arguments() []string {
	return append(f.RequiredArgs(), "encryptionKey", "insecureTLS")
}

func (*backupData) Resumable() bool { return true }

func (f *backupData) Exec(ctx context.Context, call Call) (map[string]any, error) {
	var namespace, pod, container, includePath, prefix string
	if err := decodeAll(call.Args, map[string]any{
		"namespace": &namespace, "pod": &pod, "container": &container,
		"includePath": &includePath, "backupArtifactPrefix": &prefix,
	}); err != nil {
		return nil, err
	}
	if err := checkProfile(call.Params.Profile); err != nil {
		return nil, fmt.Errorf("Failed to validate Profile: %w", err) // Kanister's text
	}
	source, err := f.resolve(ctx, namespace, pod, container, includePath)
	if err != nil {
		return nil, err
	}
	r, err := ref(call, namespace)
	if err != nil {
		return nil, err
	}
	repo, err := f.Repositories.Open(ctx, r)
	if err != nil {
		return nil, err
	}
	defer repo.Close()
	agent, err := f.Agents.Connect(ctx, namespace, pod, names.AgentContainer)
	if err != nil {
		return nil, err
	}
	defer agent.Close()

	var snapshot *api.SnapshotResult
	hostname := repo.Tenant().NamespaceUID
	sourcePath := repo.SourcePath(source.username, source.PathInVolume)
	err = f.session(ctx, repo, call.OperationID, source.username, hostname, func(credentials *api.Credentials) error {
		result, err := agent.Run(ctx, api.StartRequest{
			ID: call.OperationID, Kind: api.KindSnapshot, Credentials: credentials,
			Snapshot: &api.SnapshotRequest{
				Volume: source.VolumeName, Path: source.PathInVolume, SourcePath: sourcePath, Compression: repo.Compression(),
				Labels: map[string]string{"namespace": namespace, "pod": pod, "actionset": call.ActionSet},
			},
		}, call.Progress)
		if err != nil {
			return fmt.Errorf("back up %s of container %s in pod %s/%s: %w", includePath, container, namespace, pod, err)
		}
		snapshot = result.Snapshot
		return nil
	})
	if err != nil {
		return nil, err
	}
	record, err := repo.Record(ctx, call.OperationID+"-record", api.RecordRequest{
		Username: source.username, Hostname: hostname, SourcePath: sourcePath,
		Record: api.Record{
			BackupID:  repository.Token(repo.ID(), call.OperationID+"/id"),
			BackupTag: repository.Token(repo.ID(), call.OperationID+"/tag"),
			Prefix:    resolvePrefix(call.Params.Profile, prefix), KeyID: repo.KeyID(), AbsolutePath: source.path,
			Namespace: namespace, NamespaceUID: hostname, Pod: pod, Claim: source.ClaimName, Volume: source.VolumeName,
			// Not the clock's: the same phase, picked up again, writes the same record.
			Snapshot: *snapshot, Created: snapshot.End,
		},
	})
	if err != nil {
		return nil, err
	}
	if warning := source.Warning(); warning != "" {
		f.Log.Warn("backup leaves mounts out", "actionset", call.ActionSet, "warning", warning)
	}
	return map[string]any{
		"backupID": record.BackupID, "backupTag": record.BackupTag,
		"fileCount": strconv.FormatInt(snapshot.Files, 10), "size": sizeText(snapshot.Bytes),
		"phySize": sizeText(snapshot.NewBytes), "version": version,
	}, nil
}

// source is what is backed up, and as whom.
type source struct {
	volumes.Location
	// path as the container sees it.
	path string
	// username of the snapshot's identity.
	username string
}

// resolve finds the volume behind the path, in a pod that has an agent.
func (d *Data) resolve(ctx context.Context, namespace, name, container, file string) (source, error) {
	var pod corev1.Pod
	if err := d.Client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &pod); err != nil {
		return source{}, fmt.Errorf("read pod %s/%s: %w", namespace, name, err)
	}
	location, err := volumes.Resolve(&pod, container, file)
	if err != nil {
		return source{}, fmt.Errorf("back up from pod %s/%s: %w", namespace, name, err)
	}
	if !hasAgent(&pod) {
		var ns metav1.PartialObjectMetadata
		ns.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Namespace"))
		if err := d.Client.Get(ctx, client.ObjectKey{Name: namespace}, &ns); err != nil {
			return source{}, fmt.Errorf("pod %s/%s has no agent; read namespace %s: %w", namespace, name, namespace, err)
		}
		return source{}, fmt.Errorf("pod %s/%s has no agent: %s", namespace, name, d.whyNoAgent(ctx, &pod, &ns))
	}
	return source{Location: location, path: path.Clean(file), username: identity(&pod, location)}, nil
}

func hasAgent(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Spec.InitContainers, isAgent)
}

func isAgent(c corev1.Container) bool { return c.Name == names.AgentContainer }

// whyNoAgent says what is missing and what to do.
func (d *Data) whyNoAgent(ctx context.Context, pod *corev1.Pod, meta *metav1.PartialObjectMetadata) string {
	ns := decide.Namespace{Name: meta.Name, Labels: meta.Labels, Annotations: meta.Annotations, Mode: decide.ModeOf(meta.Labels)}
	if why := labelsMissing(pod, ns); why != "" {
		return why
	}
	why, err := coverage.Explain(ctx, d.Client, d.Repositories.Namespace, pod, ns, d.Clock.Now())
	if err != nil {
		return "why could not be found out: " + err.Error()
	}
	return why
}

// labelsMissing says which label has to be set where, "" if all are there.
func labelsMissing(pod *corev1.Pod, ns decide.Namespace) string {
	switch {
	case ns.Mode == decide.ModeNone:
		return fmt.Sprintf("namespace %s has not opted in: label it %s=%s, then restart the workload", pod.Namespace, names.InjectionLabel, names.InjectionEnabled)
	case pod.Labels[names.InjectLabel] == "false":
		return fmt.Sprintf("it opted out with label %s=false: take the label out of the workload's pod template", names.InjectLabel)
	case ns.Mode == decide.ModeEnabled && pod.Labels[names.InjectLabel] != "true":
		return fmt.Sprintf("the workload's pod template lacks label %s=true: add it, which restarts the workload", names.InjectLabel)
	default:
		return ""
	}
}

// identity is the user of a snapshot: it follows the data, not the pod, so that the
// next backup finds the last one whoever takes it.
func identity(pod *corev1.Pod, l volumes.Location) string {
	if l.Kind == volumes.PersistentVolumeClaim {
		return "pvc." + l.ClaimName
	}
	owner := "pod." + pod.Name
	if ref := metav1.GetControllerOf(pod); ref != nil {
		switch ref.Kind {
		case "StatefulSet": // the pod's name is stable
			owner = "statefulset." + pod.Name
		case "ReplicaSet":
			owner = "deployment." + strings.TrimSuffix(ref.Name, "-"+pod.Labels["pod-template-hash"])
		default:
			owner = strings.ToLower(ref.Kind) + "." + ref.Name
		}
	}
	return owner + "." + l.VolumeName
}
