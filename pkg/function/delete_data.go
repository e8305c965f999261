// SPDX-License-Identifier: Apache-2.0

package function

import (
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
	for i, token := range tokens {
		prefix := places[0]
		if len(places) > 1 {
			prefix = places[i]
		}
		by := api.DeleteRequest{BackupID: token, Prefix: resolvePrefix(call.Params.Profile, prefix)}
		if tags != "" {
			by.BackupID, by.BackupTag = "", token
		}
		if err := f.delete(ctx, call, namespace, fmt.Sprintf("%s-%d", call.OperationID, i), token, by); err != nil {
			return nil, err
		}
	}
	return deleteOutputs(), nil
}

// deleteOutputs are the same with and without reclaimSpace: what nobody needs any
// more goes with the repository's maintenance, a day later at the earliest, as
// Kopia keeps what a running backup might still refer to.
func deleteOutputs() map[string]any { return map[string]any{"spaceFreed": "0 B"} }

// delete deletes one backup. As with restic, an id that is not there has been
// deleted and a tag that is not there is an error.
func (d *Data) delete(ctx context.Context, call Call, namespace, id, token string, by api.DeleteRequest) error {
	missing := func() error {
		if by.BackupTag == "" {
			d.Log.Warn("backup to delete is not there", "actionset", call.ActionSet, "backupID", token)
			return nil
		}
		return fmt.Errorf("Failed to forget data, could not get snapshotID from tag %s: Snapshot not found", token) // Kanister's text
	}
	r, err := ref(call, namespace)
	if err != nil {
		return err
	}
	repo, err := d.Repositories.OpenBackup(ctx, token, r)
	if errors.Is(err, repository.ErrNotFound) {
		return missing()
	}
	if err != nil {
		return err
	}
	defer repo.Close()
	deleted, err := repo.Delete(ctx, id, by)
	if err != nil {
		return err
	}
	if len(deleted) == 0 {
		return missing()
	}
	return nil
}
