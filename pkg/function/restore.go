// SPDX-License-Identifier: Apache-2.0

package function

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/pkg/mover"
	"github.com/kanister-kopia/kanister-kopia/pkg/param"
	"github.com/kanister-kopia/kanister-kopia/pkg/podspec"
	"github.com/kanister-kopia/kanister-kopia/pkg/repository"
	"github.com/kanister-kopia/kanister-kopia/pkg/volumes"
)

// restoreUser reads contents and has no snapshots of its own.
const restoreUser = "restore"

// restoration is one backup, or a part of it, to write into a claim.
type restoration struct {
	// operation is its id, and moverPrefix begins the name of its pod.
	operation, moverPrefix string
	record                 api.Record
	// subPath below the backup's root, "" for all of it.
	subPath string
	// deviceAsFile: see restorePlan.
	deviceAsFile bool
	// claim of the namespace, and the directory inside it.
	namespace, claim, inside string
}

// restoredTo is how outputs name the place.
func (r restoration) restoredTo() string { return fmt.Sprintf("%s in claim %s", r.inside, r.claim) }

// restore writes it, through a temporary pod that mounts the claim.
func (d *Data) restore(ctx context.Context, call Call, repo *repository.Repository, r restoration, pod podArgs, progress func(api.Progress)) (*api.RestoreResult, error) {
	identity, err := d.Movers.IdentityFor(ctx, r.namespace, r.claim)
	if err != nil {
		return nil, err
	}
	var restored *api.RestoreResult
	err = d.withMover(ctx, call, mover.Spec{
		Prefix: r.moverPrefix, OperationID: r.operation, Namespace: r.namespace, Claims: []string{r.claim},
		Identity: identity.Or(mover.FromOwner(r.record.Snapshot.Root.UID, r.record.Snapshot.Root.GID)),
	}, pod, func(m *mover.Mover) error {
		credentials, end, err := d.session(ctx, repo, r.operation, func(ctx context.Context, id string) (*api.Credentials, error) {
			return repo.ReadSession(ctx, id, restoreUser, repo.Tenant().NamespaceUID)
		})
		if err != nil {
			return err
		}
		defer end()
		result, err := m.Agent.Run(ctx, api.StartRequest{
			ID: r.operation, Kind: api.KindRestore, Credentials: credentials,
			Restore: &api.RestoreRequest{
				RootObject: r.record.Snapshot.RootObject, Root: r.record.Snapshot.Root, SubPath: r.subPath,
				Volume: m.VolumeOf(r.claim), Path: r.inside, DeviceAsFile: r.deviceAsFile,
			},
		}, progress)
		if err != nil {
			return fmt.Errorf("restore %s into claim %s/%s: %w", r.record.BackupID, r.namespace, r.claim, err)
		}
		restored = result.Restore
		return nil
	})
	var used *mover.InUseError
	if errors.As(err, &used) {
		err = fmt.Errorf("%w: scale its workload down first (ScaleWorkload)", err)
	}
	return restored, err
}

// withMover runs a mover for as long as do takes. It is left alone when the
// controller goes away: the next one finds it by its operation.
func (d *Data) withMover(ctx context.Context, call Call, spec mover.Spec, pod podArgs, do func(*mover.Mover) error) error {
	spec.ActionSet, spec.Labels, spec.Annotations = call.ActionSet, pod.labels, pod.annotations
	spec.Override = func(s corev1.PodSpec) (corev1.PodSpec, error) {
		return podspec.Override(s, pod.override, call.Params.PodOverride)
	}
	m, err := d.Movers.Start(ctx, spec)
	if err != nil {
		return err
	}
	defer func() {
		if !detached(ctx) {
			if err := m.Stop(ctx); err != nil {
				call.Log.Warn("temporary pod not deleted", "error", err)
			}
		}
	}()
	return do(m)
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
	below := inside(root, wanted)
	if below == "" || file {
		return p, fmt.Errorf("restore backupPath %s: backup %s holds %s only", backupPath, record.BackupID, root)
	}
	p.subPath = below
	return p, nil
}

// target finds the claim behind the target directory and the place in it.
func (d *Data) target(ctx context.Context, params param.TemplateParams, namespace, pod string, claims map[string]string, dir string) (claim, inside string, err error) {
	if pod == "" {
		return volumes.ResolveClaims(claims, dir)
	}
	template, err := d.podOf(ctx, params, namespace, pod)
	if err != nil {
		return "", "", err
	}
	if claim, inside, err = claimAt(template, dir); err != nil {
		err = fmt.Errorf("restore to %s of pod %s: %w", dir, pod, err)
	}
	return claim, inside, err
}

// claimAt finds the claim that a pod has at a directory, and the place in it. The last
// container that mounts one there decides, as it does in Kanister.
func claimAt(pod *corev1.Pod, dir string) (claim, inside string, err error) {
	if len(volumes.Claims(pod)) == 0 {
		return "", "", fmt.Errorf("Failed to find volumes for the Pod: %s", pod.Name) // Kanister's text
	}
	for _, c := range slices.Backward(pod.Spec.Containers) {
		l, lerr := volumes.Resolve(pod, c.Name, dir)
		if lerr == nil && l.ClaimName != "" {
			return l.ClaimName, l.PathInVolume, nil
		}
		if lerr == nil {
			lerr = fmt.Errorf("%s of container %s is on volume %s, which is no claim", dir, c.Name, l.VolumeName)
		}
		err = cmp.Or(err, lerr)
	}
	return "", "", err
}

// podOf is the pod as it is, or as its workload would make it: before a restore
// workloads are scaled down.
func (d *Data) podOf(ctx context.Context, params param.TemplateParams, namespace, name string) (*corev1.Pod, error) {
	var pod corev1.Pod
	err := d.Client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &pod)
	if err == nil {
		return withoutAgent(&pod), nil
	}
	if client.IgnoreNotFound(err) != nil {
		return nil, fmt.Errorf("read pod %s/%s: %w", namespace, name, err)
	}
	switch {
	case params.StatefulSet != nil:
		var set appsv1.StatefulSet
		if err := d.Client.Get(ctx, client.ObjectKey{Namespace: params.StatefulSet.Namespace, Name: params.StatefulSet.Name}, &set); err != nil {
			return nil, fmt.Errorf("read StatefulSet %s: %w", params.StatefulSet.Name, err)
		}
		return mover.PodOfStatefulSet(&set, name), nil
	case params.Deployment != nil:
		var deployment appsv1.Deployment
		if err := d.Client.Get(ctx, client.ObjectKey{Namespace: params.Deployment.Namespace, Name: params.Deployment.Name}, &deployment); err != nil {
			return nil, fmt.Errorf("read Deployment %s: %w", params.Deployment.Name, err)
		}
		return mover.PodOfDeployment(&deployment, name), nil
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
