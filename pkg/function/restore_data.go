// SPDX-License-Identifier: Apache-2.0

package function

import (
	"context"
	"errors"
	"strconv"
	"strings"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
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
	repo, record, err := f.findBackup(ctx, call, call.OperationID, namespace, resolvePrefix(call.Params.Profile, prefix), by)
	if err != nil {
		return nil, err
	}
	defer repo.Close()
	what, err := plan(record, restorePath, backupPath)
	if err != nil {
		return nil, err
	}
	r := restoration{operation: call.OperationID, moverPrefix: "restore-data-", record: record, subPath: what.subPath, deviceAsFile: what.deviceAsFile, namespace: namespace}
	if r.claim, r.inside, err = f.target(ctx, call.Params, namespace, pod, claims, what.target); err != nil {
		return nil, err
	}
	restored, err := f.restore(ctx, call, repo, r, overrides, call.Progress)
	if err != nil {
		return nil, err
	}
	return restoreOutputs(r.restoredTo(), restored), nil
}

// restoreOutputs are ours: Kanister has none, and people lose time over where
// their files went.
func restoreOutputs(to string, restored *api.RestoreResult) map[string]any {
	output := map[string]any{
		"restoredTo": to,
		"fileCount":  strconv.FormatInt(restored.Files, 10), "size": sizeText(restored.Bytes),
	}
	if len(restored.NotKept) > 0 {
		output["notKept"] = strings.Join(restored.NotKept, "; ")
	}
	return output
}
