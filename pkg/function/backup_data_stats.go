// SPDX-License-Identifier: Apache-2.0

package function

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/pkg/repository"
)

// backupDataStats measures a backup. No pod is needed: the repository server's own
// agent does it.
type backupDataStats struct{ *Data }

func (*backupDataStats) Name() string { return "BackupDataStats" }

func (*backupDataStats) RequiredArgs() []string {
	return []string{"namespace", "backupArtifactPrefix", "backupID"}
}

// As in Kanister there is no insecureTLS: the Profile's skipSSLVerify is honoured.
func (f *backupDataStats) Arguments() []string {
	return append(append(f.RequiredArgs(), "statsMode", "encryptionKey", "image"), podArgNames...)
}

func (*backupDataStats) Resumable() bool { return true }

func (f *backupDataStats) Exec(ctx context.Context, call Call) (map[string]any, error) {
	var namespace, prefix, id string
	mode := string(api.StatsRestoreSize)
	if err := decodeAll(call.Args, map[string]any{
		"namespace": &namespace, "backupArtifactPrefix": &prefix, "backupID": &id, "statsMode": &mode,
	}); err != nil {
		return nil, err
	}
	if err := validateProfile(call.Params.Profile); err != nil {
		return nil, err
	}
	if !slices.Contains(api.StatsModes, api.StatsMode(mode)) {
		return nil, fmt.Errorf("measure a backup: statsMode %q is not one of %q", mode, api.StatsModes)
	}
	r, err := ref(call, namespace)
	if err != nil {
		return nil, err
	}
	place := resolvePrefix(call.Params.Profile, prefix)
	repo, err := f.Repositories.OpenBackup(ctx, id, r)
	if err != nil {
		return nil, err
	}
	defer repo.Close()
	stats, err := repo.Stats(ctx, call.OperationID, api.StatsRequest{BackupID: id, Prefix: place, Mode: api.StatsMode(mode)}, call.Progress)
	if errors.Is(err, repository.ErrNotFound) {
		return nil, notFound(id, place)
	}
	if err != nil {
		return nil, err
	}
	return map[string]any{
		"mode": string(stats.Mode), "fileCount": strconv.FormatInt(stats.Files, 10), "size": sizeText(stats.Bytes), "version": version,
	}, nil
}
