// SPDX-License-Identifier: Apache-2.0

package function

import "context"

// backupData takes a snapshot of a path of a running container, through the agent
// in its pod.
type backupData struct{ *Data }

func (*backupData) Name() string { return "BackupData" }

func (*backupData) RequiredArgs() []string {
	return []string{"namespace", "pod", "container", "includePath", "backupArtifactPrefix"}
}

func (f *backupData) Arguments() []string {
	return append(f.RequiredArgs(), "encryptionKey", "insecureTLS")
}

func (*backupData) Resumable() bool { return true }

func (f *backupData) Exec(ctx context.Context, call Call) (map[string]any, error) {
	var from podPath
	var prefix string
	if err := decodeAll(call.Args, map[string]any{
		"namespace": &from.namespace, "pod": &from.pod, "container": &from.container,
		"includePath": &from.path, "backupArtifactPrefix": &prefix,
	}); err != nil {
		return nil, err
	}
	if err := validateProfile(call.Params.Profile); err != nil {
		return nil, err
	}
	// Before a repository is made and a server started for it.
	source, err := f.resolve(ctx, from)
	if err != nil {
		return nil, err
	}
	agent, done := f.reach(ctx, from.namespace, from.pod)
	defer done()
	repo, err := f.open(ctx, call, from.namespace)
	if err != nil {
		return nil, err
	}
	defer repo.Close()
	record, err := f.takeFrom(ctx, call, repo, agent, call.OperationID, resolvePrefix(call.Params.Profile, prefix), source, call.Progress)
	if err != nil {
		return nil, err
	}
	return outputs(record), nil
}
