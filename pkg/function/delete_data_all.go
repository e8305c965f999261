// SPDX-License-Identifier: Apache-2.0

package function

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

// deleteDataAll deletes what BackupDataAll made. As in Kanister it is one after the
// other: a deletion takes a moment.
type deleteDataAll struct{ *Data }

func (*deleteDataAll) Name() string { return "DeleteDataAll" }

func (*deleteDataAll) RequiredArgs() []string {
	return []string{"namespace", "backupArtifactPrefix", "backupInfo"}
}

func (f *deleteDataAll) Arguments() []string {
	return append(append(f.RequiredArgs(), "reclaimSpace", "encryptionKey", "insecureTLS", "image"), podArgNames...)
}

func (*deleteDataAll) Resumable() bool { return true }

func (f *deleteDataAll) Exec(ctx context.Context, call Call) (map[string]any, error) {
	var namespace, prefix, info string
	var reclaim bool
	if err := decodeAll(call.Args, map[string]any{
		"namespace": &namespace, "backupArtifactPrefix": &prefix, "backupInfo": &info, "reclaimSpace": &reclaim,
	}); err != nil {
		return nil, err
	}
	if err := checkProfile(call.Params.Profile); err != nil {
		return nil, err
	}
	backups, err := decodeBackupInfo(info)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, pod := range slices.Sorted(maps.Keys(backups)) {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		id := backups[pod].BackupID
		if _, err := f.delete(ctx, call, namespace, part(call.OperationID, pod), api.DeleteRequest{
			BackupID: id, Prefix: podPrefix(call.Params.Profile, prefix, pod),
		}); err != nil {
			errs = append(errs, fmt.Errorf("pod %s: %w", pod, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		// Running it again is safe: what was deleted is no error.
		return nil, fmt.Errorf("delete %d of %d backups:\n%w", len(errs), len(backups), err)
	}
	return deleteOutputs(), nil
}
