// SPDX-License-Identifier: Apache-2.0

package function

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/pkg/mover"
	"github.com/kanister-kopia/kanister-kopia/pkg/param"
	"github.com/kanister-kopia/kanister-kopia/pkg/podspec"
	"github.com/kanister-kopia/kanister-kopia/pkg/volumes"
)

// restoreData writes a backup into a claim, through a temporary pod that mounts it.
type restoreData struct{ *Data }

func (*restoreData) Name() string { return "RestoreData" }

func (*restoreData) RequiredArgs() []string {
	return []string{"namespace", "image", "backupArtifactPrefix"}
}

func (f *restoreData) Arguments() []string {
	return append(append(f.RequiredArgs(), "pod", "volumes", "restorePath", "backupPath",
		"backupIdentifier", "backupTag", "encryptionKey", "insecureTLS"), podArgNames...)
}

func (*restoreData) Resumable() bool { return true }

// restoreUser reads contents and has no snapshots of its own.
const restoreUser = "restore"

func (f *restoreData) Exec(ctx context.Context, call Call) (map[string]any, error) {
	var namespace, pod, prefix, backupPath string
	var claims map[string]string
	var by api.FindRequest
	restorePath := "/"
	if err := decodeAll(call.Args, map[string]any{
		"namespace": &namespace, "pod": &pod, "volumes": &claims, "backupArtifactPrefix": &prefix,
		"restorePath": &restorePath, "backupPath": &backupPath,
		"backupIdentifier": &by.BackupID, "backupTag": &by.BackupTag,
	}); err != nil {
		return nil, err
	}
	switch {
	case (pod == "") == (len(claims) == 0):
		return nil, errors.New("Require one argument: pod or volumes") // Kanister's text
	case (by.BackupID == "") == (by.BackupTag == ""):
		return nil, errors.New("Require one argument: backupTag or backupIdentifier") // Kanister's text
	}
	if err := checkProfile(call.Params.Profile); err != nil {
		return nil, err
	}
	overrides, err := decodePod(call)
	if err != nil {
		return nil, err
	}
	repo, record, err := f.findBackup(ctx, call, namespace, resolvePrefix(call.Params.Profile, prefix), by)
	if err != nil {
		return nil, err
	}
	defer repo.Close()
	what, err := plan(record, restorePath, backupPath)
	if err != nil {
		return nil, err
	}
	claim, inside, err := f.target(ctx, call.Params, namespace, pod, claims, what.target)
	if err != nil {
		return nil, err
	}
	identity, err := f.Movers.IdentityFor(ctx, namespace, claim)
	if err != nil {
		return nil, err
	}
	m, err := f.Movers.Start(ctx, mover.Spec{
		Prefix: "restore-data-", OperationID: call.OperationID, Namespace: namespace, ActionSet: call.ActionSet,
		Claims:   []string{claim},
		Identity: identity.Or(mover.FromOwner(record.Snapshot.Root.UID, record.Snapshot.Root.GID)),
		Labels:   overrides.labels, Annotations: overrides.annotations,
		Override: func(spec corev1.PodSpec) (corev1.PodSpec, error) {
			return podspec.Override(spec, overrides.override, call.Params.PodOverride)
		},
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		if !detached(ctx) {
			if err := m.Stop(ctx); err != nil {
				f.Log.Warn("temporary pod not deleted", "error", err)
			}
		}
	}()

	var restored *api.RestoreResult
	err = f.session(ctx, repo, call.OperationID, restoreUser, repo.Tenant().NamespaceUID, func(credentials *api.Credentials) error {
		result, err := m.Agent.Run(ctx, api.StartRequest{
			ID: call.OperationID, Kind: api.KindRestore, Credentials: credentials,
			Restore: &api.RestoreRequest{
				RootObject: record.Snapshot.RootObject, Root: record.Snapshot.Root, SubPath: what.subPath,
				Volume: m.VolumeOf(claim), Path: inside, DeviceAsFile: what.deviceAsFile,
			},
		}, call.Progress)
		if err != nil {
			return fmt.Errorf("restore %s into claim %s/%s: %w", record.BackupID, namespace, claim, err)
		}
		restored = result.Restore
		return nil
	})
	if err != nil {
		return nil, err
	}
	output := map[string]any{
		"restoredTo": fmt.Sprintf("%s in claim %s", inside, claim),
		"fileCount":  strconv.FormatInt(restored.Files, 10), "size": sizeText(restored.Bytes),
	}
	if len(restored.NotKept) > 0 {
		output["notKept"] = strings.Join(restored.NotKept, "; ")
	}
	return output, nil
}

// restorePlan says what of a backup goes to which directory.
type restorePlan struct {
	// subPath below the backup's root, "" for all of it.
	subPath string
	// target directory or device, as the restorePath counts.
	target string
	// deviceAsFile: who names a place for a device's backup may name a directory.
	deviceAsFile bool
}

// plan is Kanister's rule: a backup remembers the absolute path it was taken from
// and is written below restorePath under that path; only with backupPath does what
// is there land directly in restorePath.
func plan(record api.Record, restorePath, backupPath string) (restorePlan, error) {
	p, file := restorePlan{deviceAsFile: backupPath != ""}, record.Snapshot.Root.File
	root := path.Clean(record.AbsolutePath)
	if backupPath == "" {
		p.target = path.Join("/", restorePath, root)
		if file && !record.Snapshot.Root.Device {
			p.target = path.Dir(p.target)
		}
		return p, nil
	}
	p.target = path.Join("/", restorePath)
	wanted := path.Join("/", backupPath)
	if wanted == root {
		return p, nil
	}
	below, ok := strings.CutPrefix(wanted, strings.TrimSuffix(root, "/")+"/")
	if !ok || file {
		return p, fmt.Errorf("restore backupPath %s: backup %s holds %s only", backupPath, record.BackupID, root)
	}
	p.subPath = below
	return p, nil
}

// target finds the claim behind the target directory and the place in it.
func (f *restoreData) target(ctx context.Context, params param.TemplateParams, namespace, pod string, claims map[string]string, dir string) (claim, inside string, err error) {
	if pod == "" {
		return volumes.ResolveClaims(claims, dir)
	}
	template, err := f.podOf(ctx, params, namespace, pod)
	if err != nil {
		return "", "", err
	}
	// The last container that mounts it decides, as it does in Kanister.
	for _, c := range slices.Backward(template.Spec.Containers) {
		l, lerr := volumes.Resolve(template, c.Name, dir)
		if lerr == nil && l.ClaimName != "" {
			return l.ClaimName, l.PathInVolume, nil
		}
		if err == nil {
			err = lerr
		}
	}
	if err == nil {
		err = fmt.Errorf("Failed to find volumes for the Pod: %s", pod) // Kanister's text
	}
	return "", "", fmt.Errorf("restore to %s of pod %s: %w", dir, pod, err)
}

// podOf is the pod as it is, or as its workload would make it: before a restore
// workloads are scaled down.
func (f *restoreData) podOf(ctx context.Context, params param.TemplateParams, namespace, name string) (*corev1.Pod, error) {
	var pod corev1.Pod
	err := f.Client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &pod)
	if err == nil {
		return withoutAgent(&pod), nil
	}
	if client.IgnoreNotFound(err) != nil {
		return nil, fmt.Errorf("read pod %s/%s: %w", namespace, name, err)
	}
	switch {
	case params.StatefulSet != nil:
		var set appsv1.StatefulSet
		if err := f.Client.Get(ctx, client.ObjectKey{Namespace: params.StatefulSet.Namespace, Name: params.StatefulSet.Name}, &set); err != nil {
			return nil, fmt.Errorf("read StatefulSet %s: %w", params.StatefulSet.Name, err)
		}
		return mover.PodOfStatefulSet(&set, name), nil
	case params.Deployment != nil:
		var d appsv1.Deployment
		if err := f.Client.Get(ctx, client.ObjectKey{Namespace: params.Deployment.Namespace, Name: params.Deployment.Name}, &d); err != nil {
			return nil, fmt.Errorf("read Deployment %s: %w", params.Deployment.Name, err)
		}
		return mover.PodOfDeployment(&d, name), nil
	}
	return nil, errors.New("Invalid Template Params: pod needs a Deployment or a StatefulSet as the object of the action") // Kanister's text
}

// withoutAgent lets a path be resolved on volumes that the agent does not mirror:
// a mover mounts any claim.
func withoutAgent(pod *corev1.Pod) *corev1.Pod {
	out := pod.DeepCopy()
	out.Spec.InitContainers = slices.DeleteFunc(out.Spec.InitContainers, isAgent)
	return out
}
