// SPDX-License-Identifier: Apache-2.0

package function

import (
	"context"
	"errors"
	"fmt"
	"path"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/pkg/param"
)

// backupDataAll is BackupData of the same path in several pods. The backup of pod P
// is under prefix <backupArtifactPrefix>/P.
type backupDataAll struct{ *Data }

func (*backupDataAll) Name() string { return "BackupDataAll" }

func (*backupDataAll) RequiredArgs() []string {
	return []string{"namespace", "container", "includePath", "backupArtifactPrefix"}
}

func (f *backupDataAll) Arguments() []string {
	return append(f.RequiredArgs(), "pods", "encryptionKey", "insecureTLS")
}

func (*backupDataAll) Resumable() bool { return true }

func (f *backupDataAll) Exec(ctx context.Context, call Call) (map[string]any, error) {
	var from podPath
	var prefix, list string
	if err := decodeAll(call.Args, map[string]any{
		"namespace": &from.namespace, "pods": &list, "container": &from.container,
		"includePath": &from.path, "backupArtifactPrefix": &prefix,
	}); err != nil {
		return nil, err
	}
	if err := validateProfile(call.Params.Profile); err != nil {
		return nil, err
	}
	pods, workload := podNames(list, call.Params)
	switch {
	case !workload:
		return nil, errors.New("Failed to get pods: give pods, or a Deployment or StatefulSet as the object of the action") // Kanister's text
	case len(pods) == 0:
		return nil, errors.New("Failed to get pods: the workload has no running pod") // Kanister's text
	}
	repo, err := f.open(ctx, call, from.namespace)
	if err != nil {
		return nil, err
	}
	defer repo.Close()
	progress := newTotals(len(pods), call.Progress)
	outcomes := each(ctx, pods, func(i int, pod string) (api.Record, error) {
		source, err := f.resolve(ctx, podPath{from.namespace, pod, from.container, from.path})
		if err != nil {
			return api.Record{}, err
		}
		agent, done := f.reach(ctx, from.namespace, pod)
		defer done()
		return f.takeFrom(ctx, call, repo, agent, part(call.OperationID, pod),
			podPrefix(call.Params.Profile, prefix, pod), source, progress.of(i))
	})
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	taken := map[string]podBackup{}
	for i, o := range outcomes {
		if o.err == nil {
			taken[pods[i]] = podBackup{PodName: pods[i], BackupID: o.value.BackupID, BackupTag: o.value.BackupTag}
		}
	}
	info, err := encodeBackupInfo(taken)
	if err != nil {
		return nil, err
	}
	if failed := failures(pods, outcomes); failed != "" {
		if len(taken) > 0 {
			failed += "\nthe other backups are kept, as BackupAllInfo: " + info
		}
		return nil, fmt.Errorf("back up %d of %d pods:\n%s", len(pods)-len(taken), len(pods), failed)
	}
	return map[string]any{"BackupAllInfo": info, "version": version}, nil
}

// podPrefix is where the backup of one pod of several is.
func podPrefix(profile *param.Profile, prefix, pod string) string {
	return path.Join(resolvePrefix(profile, prefix), pod)
}
