// SPDX-License-Identifier: Apache-2.0

package function

import (
	"context"
	"errors"
	"fmt"
	"path"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	agentclient "github.com/kanister-kopia/kanister-kopia/agent/client"
	"github.com/kanister-kopia/kanister-kopia/pkg/mover"
)

// copyVolumeData takes a snapshot of a whole claim, through a temporary pod that
// mounts it. The application need not run.
type copyVolumeData struct{ *Data }

func (*copyVolumeData) Name() string { return "CopyVolumeData" }

func (*copyVolumeData) RequiredArgs() []string {
	return []string{"namespace", "volume", "dataArtifactPrefix"}
}

func (f *copyVolumeData) Arguments() []string {
	return append(append(f.RequiredArgs(), "mountPath", "encryptionKey", "insecureTLS", "image"), podArgNames...)
}

func (*copyVolumeData) Resumable() bool { return true }

func (f *copyVolumeData) Exec(ctx context.Context, call Call) (map[string]any, error) {
	var namespace, claim, prefix, mountPath string
	if err := decodeAll(call.Args, map[string]any{
		"namespace": &namespace, "volume": &claim, "dataArtifactPrefix": &prefix, "mountPath": &mountPath,
	}); err != nil {
		return nil, err
	}
	if err := validateProfile(call.Params.Profile); err != nil {
		return nil, err
	}
	if mountPath == "" {
		mountPath = path.Join("/mnt/vol_data", claim)
	}
	if !path.IsAbs(mountPath) {
		return nil, fmt.Errorf("copy volume: mountPath %q is not absolute: give one such as /mnt/data", mountPath)
	}
	overrides, err := decodePod(call)
	if err != nil {
		return nil, err
	}
	identity, err := f.Movers.IdentityFor(ctx, namespace, claim)
	if err != nil {
		return nil, err
	}
	repo, err := f.open(ctx, call, namespace)
	if err != nil {
		return nil, err
	}
	defer repo.Close()
	place := resolvePrefix(call.Params.Profile, prefix)
	var record api.Record
	err = f.withMover(ctx, call, mover.Spec{
		Prefix: "copy-vol-data-", OperationID: call.OperationID, Namespace: namespace,
		Claims: []string{claim}, Identity: identity, Reads: true,
	}, overrides, func(m *mover.Mover) error {
		agent := func() (*agentclient.Client, error) { return m.Agent, nil }
		record, err = f.take(ctx, call, repo, agent, backup{
			// As whoever backs the claim up through a sidecar: the next backup finds this one.
			operation: call.OperationID, username: claimUser(claim), volume: m.VolumeOf(claim), path: "/",
			// The claim's place in Kanister's pod is what a restore counts from.
			record: api.Record{
				Prefix: place, AbsolutePath: path.Clean(mountPath), Namespace: namespace, Claim: claim, Volume: claim,
			},
		}, call.Progress)
		return err
	})
	var used *mover.InUseError
	if errors.As(err, &used) {
		return nil, fmt.Errorf("%w: use BackupData, which reads the volume through the agent in that pod", err)
	}
	if err != nil {
		return nil, fmt.Errorf("back up claim %s/%s: %w", namespace, claim, err)
	}
	out := outputs(record)
	out["backupRoot"], out["backupArtifactLocation"] = mountPath, place
	return out, nil
}
