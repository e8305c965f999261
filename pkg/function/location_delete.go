// SPDX-License-Identifier: Apache-2.0

package function

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/pkg/param"
	"github.com/kanister-kopia/kanister-kopia/pkg/repository"
)

// locationDelete deletes the backups at and below a prefix. In Kanister it deletes
// every object there, which would be the repository of whoever shares the bucket:
// here no object is ever deleted by its name. The keys to do so are not the
// controller's to use either; who pushes plain objects with kando deletes them
// with kando. The artifact is what the backups' prefix was: Kanister puts the Profile's
// own prefix in front of it, where its BackupData does not; here that one says which
// repositories are meant, as everywhere.
type locationDelete struct{ *Data }

func (*locationDelete) Name() string { return "LocationDelete" }

func (*locationDelete) RequiredArgs() []string { return []string{"artifact"} }

func (f *locationDelete) Arguments() []string { return f.RequiredArgs() }

func (*locationDelete) Resumable() bool { return true }

func (f *locationDelete) Exec(ctx context.Context, call Call) (map[string]any, error) {
	var artifact string
	if err := decode(call.Args, "artifact", &artifact); err != nil {
		return nil, err
	}
	profile := call.Params.Profile
	if err := validateProfile(profile); err != nil {
		return nil, err
	}
	if profile.Location.Type == param.LocationTypeKopia {
		return nil, fmt.Errorf("delete location %s: an external server's backups are not told by their place: use DeleteData with their ids", artifact)
	}
	prefix := path.Clean(resolvePrefix(profile, strings.TrimLeft(artifact, "/")))
	if prefix == profile.Location.Bucket || strings.HasPrefix(prefix, "..") {
		return nil, fmt.Errorf("delete location: artifact %q is the whole bucket: give the prefix of the backups to delete", artifact)
	}
	ids, shared, err := f.Repositories.At(ctx, profile)
	if err != nil {
		return nil, err
	}
	hint := ""
	if len(shared) > 0 {
		call.Log.Warn("repositories of this bucket are shared: their backups are left: use DeleteData", "repositories", shared)
		hint = fmt.Sprintf("; what is in the shared repositories of this bucket (%s) is left: use DeleteData", strings.Join(shared, ", "))
	}
	deleted, opened := 0, 0
	var errs []error
	for _, id := range ids {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		n, err := f.under(ctx, call, id, prefix)
		deleted += n
		switch {
		case errors.Is(err, repository.ErrWrongKey): // the function has no argument to open it with
			call.Log.Warn("repository has an encryptionKey: its backups are left: use DeleteData", "repository", id)
		case err != nil:
			errs = append(errs, err)
		default:
			opened++
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("delete location %s: %d backups deleted: %w", artifact, deleted, err)
	}
	const plainObjects = "plain objects are not deleted here: use kando location delete in a KubeTask for what kando location push has written"
	switch {
	case opened == 0:
		return nil, fmt.Errorf("delete location %s: the Profile's location has no repository without an encryptionKey: "+
			"use DeleteData for backups with one; %s%s", artifact, plainObjects, hint)
	case deleted == 0:
		// No error, as in Kanister: an earlier try may have deleted them.
		call.Log.Warn("there is no backup to delete; "+plainObjects, "prefix", prefix)
	}
	return map[string]any{"deletedBackups": strconv.Itoa(deleted)}, nil
}

// under deletes what one repository has under the prefix. ErrWrongKey if it has an
// encryptionKey.
func (f *locationDelete) under(ctx context.Context, call Call, id, prefix string) (int, error) {
	repo, err := f.Repositories.OpenID(ctx, id, repository.Ref{Profile: call.Params.Profile})
	if err != nil {
		return 0, err
	}
	defer repo.Close()
	var found []api.Record
	for record, err := range repo.List(ctx, part(call.OperationID, id)+"-list", "") {
		if err != nil {
			return 0, err
		}
		if isUnder(record.Prefix, prefix) {
			found = append(found, record)
		}
	}
	for i, record := range found {
		if _, err := repo.Delete(ctx, part(call.OperationID, record.BackupID), api.DeleteRequest{
			BackupID: record.BackupID, Prefix: record.Prefix,
		}); err != nil {
			return i, err
		}
	}
	return len(found), nil
}
