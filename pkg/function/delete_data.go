// SPDX-License-Identifier: Apache-2.0

package function

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/pkg/repository"
)

// deleteData deletes backups. No pod of the application is needed: the repository
// server's own agent does it.
type deleteData struct{ *Data }

func (*deleteData) Name() string { return "DeleteData" }

func (*deleteData) RequiredArgs() []string { return []string{"namespace", "backupArtifactPrefix"} }

func (f *deleteData) Arguments() []string {
	return append(append(f.RequiredArgs(), "backupID", "backupTag", "reclaimSpace", "encryptionKey", "insecureTLS", "image"), podArgNames...)
}

func (*deleteData) Resumable() bool { return true }

func (f *deleteData) Exec(ctx context.Context, call Call) (map[string]any, error) {
	var namespace, prefixes, ids, tags string
	var reclaim bool
	if err := decodeAll(call.Args, map[string]any{
		"namespace": &namespace, "backupArtifactPrefix": &prefixes, "backupID": &ids, "backupTag": &tags, "reclaimSpace": &reclaim,
	}); err != nil {
		return nil, err
	}
	if (ids == "") == (tags == "") {
		return nil, errors.New("Require one argument: backupID or backupTag") // Kanister's text
	}
	if err := checkProfile(call.Params.Profile); err != nil {
		return nil, err
	}
	tokens, places := strings.Fields(ids+tags), strings.Fields(prefixes)
	if len(places) != 1 && len(places) != len(tokens) {
		return nil, fmt.Errorf("delete backups: %d ids or tags and %d prefixes: give one prefix, or one for each", len(tokens), len(places))
	}
	deleted, missing := 0, []string{}
	var errs []error
	for i, token := range tokens {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		prefix := places[0]
		if len(places) > 1 {
			prefix = places[i]
		}
		by := api.DeleteRequest{BackupID: token, Prefix: resolvePrefix(call.Params.Profile, prefix)}
		if tags != "" {
			by.BackupID, by.BackupTag = "", token
		}
		there, err := f.delete(ctx, call, namespace, fmt.Sprintf("%s-%d", call.OperationID, i), by)
		switch {
		case err != nil:
			errs = append(errs, err)
		case there:
			deleted++
		default:
			missing = append(missing, token)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	// As with restic. But of several, those that an earlier try has deleted do not fail
	// the one that deletes the rest.
	if tags != "" && deleted == 0 {
		return nil, fmt.Errorf("%s %s: Snapshot not found", noSuchTag, strings.Join(missing, " ")) // Kanister's text
	}
	return deleteOutputs(), nil
}

// deleteOutputs are the same with and without reclaimSpace: what nobody needs any
// more goes with the repository's maintenance, a day later at the earliest, as
// Kopia keeps what a running backup might still refer to.
func deleteOutputs() map[string]any { return map[string]any{"spaceFreed": "0 B"} }

const noSuchTag = "Failed to forget data, could not get snapshotID from tag" // Kanister's text

// delete deletes one backup and says whether it was there. That it was not means that
// it has been deleted: a repository, a key or a prefix that is not the backup's is an
// error.
func (d *Data) delete(ctx context.Context, call Call, namespace, operation string, by api.DeleteRequest) (bool, error) {
	r, err := ref(call, namespace)
	if err != nil {
		return false, err
	}
	token := cmp.Or(by.BackupID, by.BackupTag)
	repo, err := d.Repositories.OpenBackup(ctx, token, r)
	if err == nil {
		defer repo.Close()
		var deleted []api.Record
		deleted, err = repo.Delete(ctx, operation, by)
		if err == nil && len(deleted) > 0 {
			return true, nil
		}
		if errors.Is(err, repository.ErrNotFound) {
			err = notFound(token, by.Prefix)
		}
	}
	switch {
	case err == nil:
		call.Log.Warn("backup to delete is not there", "backup", token)
	case by.BackupTag != "" && errors.Is(err, repository.ErrNotFound):
		err = fmt.Errorf("%s %s: %w", noSuchTag, token, err)
	}
	return false, err
}
