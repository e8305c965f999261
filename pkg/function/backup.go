// SPDX-License-Identifier: Apache-2.0

package function

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	agentclient "github.com/kanister-kopia/kanister-kopia/agent/client"
	"github.com/kanister-kopia/kanister-kopia/internal/pause"
	"github.com/kanister-kopia/kanister-kopia/pkg/coverage"
	"github.com/kanister-kopia/kanister-kopia/pkg/ignore"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/pkg/repository"
	"github.com/kanister-kopia/kanister-kopia/pkg/snapshotoptions"
	"github.com/kanister-kopia/kanister-kopia/pkg/volumes"
	"github.com/kanister-kopia/kanister-kopia/webhook/decide"
)

// backup is one snapshot to take through an agent, and the record that makes it one.
type backup struct {
	// operation is its id; the backup's id and tag follow from it.
	operation string
	// username of the snapshot's identity.
	username string
	// volume as the agent knows it, and the path inside it.
	volume, path string
	options      snapshotoptions.Options
	// record as far as it is known before: where the data comes from, and the prefix.
	record api.Record
}

// take takes the snapshot and records it. The agent is asked for when all else is
// ready.
func (d *Data) take(ctx context.Context, call Call, repo *repository.Repository, agentOf func() (*agentclient.Client, error), b backup, progress func(api.Progress)) (api.Record, error) {
	hostname := repo.Tenant().NamespaceUID
	sourcePath := repo.SourcePath(b.username, b.path)
	record := b.record
	record.NamespaceUID, record.KeyID = hostname, repo.KeyID()
	record.BackupID = repository.Token(repo.ID(), b.operation+"/id")
	record.BackupTag = repository.Token(repo.ID(), b.operation+"/tag")
	// When each step begins, for who wants to know where the time goes.
	step := func(what string) { call.Log.Debug(what, "operation", b.operation) }
	done, err := repo.Turn(ctx, b.username, sourcePath, func() {
		call.Log.Info("waiting for another backup of the same data to end", "operation", b.operation)
	})
	if err != nil {
		return api.Record{}, err
	}
	defer done()
	step("opening a session")
	credentials, end, err := d.session(ctx, repo, b.operation, func(ctx context.Context, id string) (*api.Credentials, error) {
		return repo.Session(ctx, id, b.username, hostname, sourcePath)
	})
	if err != nil {
		return api.Record{}, err
	}
	defer end()
	step("waiting for the agent")
	agent, err := agentOf()
	if err != nil {
		return api.Record{}, err
	}
	step("taking the snapshot")
	result, err := whenFree(ctx, call.Log, agent, api.StartRequest{
		ID: b.operation, Kind: api.KindSnapshot, Credentials: credentials, RateLimit: b.options.RateLimit,
		Snapshot: &api.SnapshotRequest{
			Volume: b.volume, Path: b.path, SourcePath: sourcePath,
			// The pod's own wish goes before the repository's.
			Ignore: b.options.Ignore, Compression: cmp.Or(b.options.Compression, repo.Compression()),
			Labels: map[string]string{"namespace": record.Namespace, "pod": record.Pod, "actionset": call.ActionSet},
		},
	}, progress)
	if err != nil {
		return api.Record{}, err
	}
	record.Snapshot = *result.Snapshot
	go end() // whatever becomes of the record; take waits for it
	step("recording the backup")
	// Not the clock's: the same phase, picked up again, writes the same record.
	record.Created = record.Snapshot.End
	stored, err := repo.Record(ctx, b.operation+"-record", api.RecordRequest{
		Username: b.username, Hostname: hostname, SourcePath: sourcePath, Record: record,
	})
	if p := (*api.Problem)(nil); errors.As(err, &p) && p.Code == api.CodeConflict {
		// The phase was picked up after its agent's pod had been replaced: the first
		// snapshot is the backup, and the second is nobody's.
		if first, ferr := repo.Find(ctx, b.operation+"-recorded", api.FindRequest{BackupID: record.BackupID, Prefix: record.Prefix}); ferr == nil {
			return first, nil
		}
	}
	return stored, err
}

// busyPause is how often it is asked whether an agent's data is free.
const busyPause = 2 * time.Second

// whenFree runs an operation when no other one of the agent works on the same data. Turns
// are in the controller's memory: after a restart one that waited may be the first.
func whenFree(ctx context.Context, log *slog.Logger, agent *agentclient.Client, req api.StartRequest, progress func(api.Progress)) (*api.Result, error) {
	for waits := false; ; waits = true {
		result, err := agent.Run(ctx, req, progress)
		// A device in use is busy, too: that is the failure of an operation that ran.
		if p := (*api.Problem)(nil); !errors.As(err, &p) || p.Code != api.CodeBusy || p.Status != http.StatusConflict {
			return result, err
		}
		if !waits {
			log.Info("waiting for what the agent does with the same data to end", "operation", req.ID, "why", err.Error())
		}
		if err := pause.For(ctx, busyPause); err != nil {
			return nil, err
		}
	}
}

// outputs are those of every function that makes a backup.
func outputs(r api.Record) map[string]any {
	out := map[string]any{
		"backupID": r.BackupID, "backupTag": r.BackupTag,
		"fileCount": strconv.FormatInt(r.Snapshot.Files, 10), "size": sizeText(r.Snapshot.Bytes),
		"phySize": sizeText(r.Snapshot.NewBytes), "version": version,
	}
	if len(r.Snapshot.Ignored) > 0 {
		out["ignored"] = strings.Join(r.Snapshot.Ignored, ", ")
	}
	return out
}

// podPath is a path of a container of a pod.
type podPath struct{ namespace, pod, container, path string }

func (p podPath) String() string {
	return fmt.Sprintf("%s of container %s in pod %s/%s", p.path, p.container, p.namespace, p.pod)
}

// reach begins to reach the agent in a pod and returns what waits for it, so that
// other things may be done meanwhile. Call done.
func (d *Data) reach(ctx context.Context, namespace, pod string) (agent func() (*agentclient.Client, error), done func()) {
	ctx, cancel := context.WithCancel(ctx)
	agent = sync.OnceValues(func() (*agentclient.Client, error) {
		return d.Agents.Connect(ctx, namespace, pod, names.AgentContainer)
	})
	go agent()
	return agent, func() {
		cancel()
		if client, err := agent(); err == nil {
			client.Close()
		}
	}
}

// takeFrom backs a path of a running pod up through the agent in it, which is being
// reached. prefix is resolved.
func (d *Data) takeFrom(ctx context.Context, call Call, repo *repository.Repository, agentOf func() (*agentclient.Client, error), operation, prefix string, from source, progress func(api.Progress)) (api.Record, error) {
	record, err := d.take(ctx, call, repo, agentOf, backup{
		operation: operation, username: from.username, volume: from.VolumeName, path: from.PathInVolume, options: from.options,
		record: api.Record{
			Prefix: prefix, AbsolutePath: path.Clean(from.path), Namespace: from.namespace, Pod: from.pod,
			Claim: from.ClaimName, Volume: from.VolumeName,
		},
	}, progress)
	if err != nil {
		return api.Record{}, fmt.Errorf("back up %s: %w", from.podPath, err)
	}
	if warning := from.Warning(); warning != "" {
		call.Log.Warn("backup leaves mounts out", "Pod", from.pod, "warning", warning)
	}
	return record, nil
}

// source is what is backed up, and as whom.
type source struct {
	podPath
	volumes.Location
	// username of the snapshot's identity.
	username string
	options  snapshotoptions.Options
}

// resolve finds the volume behind the path, in a pod that has an agent.
func (d *Data) resolve(ctx context.Context, from podPath) (source, error) {
	namespace, name := from.namespace, from.pod
	var pod corev1.Pod
	if err := d.Client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &pod); err != nil {
		return source{}, fmt.Errorf("read pod %s/%s: %w", namespace, name, err)
	}
	location, err := volumes.Resolve(&pod, from.container, from.path)
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
	options, err := snapshotoptions.Of(pod.Annotations)
	if err != nil {
		return source{}, fmt.Errorf("back up from pod %s/%s: %w", namespace, name, err)
	}
	if err := lacksVolume(&pod, from, location, options.Ignore); err != nil {
		return source{}, fmt.Errorf("back up %s: %w", from, err)
	}
	return source{podPath: from, Location: location, username: identity(&pod, location), options: options}, nil
}

// lacksVolume is an error if a claim is mounted below the path: its data would not be in
// the backup, and nobody would notice before a restore. Who leaves it out on purpose says
// so with the pattern that it names. A place of the same claim may be in the backup.
func lacksVolume(pod *corev1.Pod, from podPath, l volumes.Location, patterns []string) error {
	rules, err := ignore.Parse(patterns)
	if err != nil {
		return err
	}
	for _, n := range l.Nested {
		i := slices.IndexFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == n.VolumeName })
		if i < 0 {
			continue
		}
		claim := volumes.ClaimName(pod.Name, &pod.Spec.Volumes[i])
		below := inside(path.Clean(from.path), n.MountPath)
		if claim == "" || leavesOut(rules, below) {
			continue
		}
		if there, err := volumes.Resolve(pod, from.container, n.MountPath); err == nil && claim == l.ClaimName && inside(l.PathInVolume, there.PathInVolume) != "" {
			continue
		}
		return fmt.Errorf("%s is another volume (%s), which this backup would lack: back it up in a phase of its own, and leave it out of this one with line /%s in annotation %s of the pod",
			n.MountPath, n.VolumeName, below, names.IgnoreAnnotation)
	}
	return nil
}

// inside is the path from dir to what is in it, "." to itself, "" to what is elsewhere.
// Both are absolute and clean.
func inside(dir, p string) string {
	if p == dir {
		return "."
	}
	rest, ok := strings.CutPrefix(p, strings.TrimSuffix(dir, "/")+"/")
	if !ok {
		return ""
	}
	return rest
}

// leavesOut says whether a directory is ignored, or one that it is in.
func leavesOut(rules ignore.Rules, dir string) bool {
	for ; dir != "."; dir = path.Dir(dir) {
		if rules.Ignored(dir, true) {
			return true
		}
	}
	return false
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

// claimUser is the user of all snapshots of a claim.
func claimUser(claim string) string { return "pvc." + claim }

// identity is the user of a snapshot: it follows the data, not the pod, so that the
// next backup finds the last one whoever takes it.
func identity(pod *corev1.Pod, l volumes.Location) string {
	if l.Kind == volumes.PersistentVolumeClaim {
		return claimUser(l.ClaimName)
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
