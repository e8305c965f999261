// SPDX-License-Identifier: Apache-2.0

package function

import (
	"encoding/json"
	"fmt"
)

// podBackup is the backup of one pod in BackupAllInfo, the output of BackupDataAll
// and the argument backupInfo of RestoreDataAll and DeleteDataAll. The JSON is
// Kanister's, by the pod's name.
type podBackup struct {
	PodName   string
	BackupID  string
	BackupTag string
}

// encodeBackupInfo writes compact JSON with sorted keys.
func encodeBackupInfo(backups map[string]podBackup) (string, error) {
	raw, err := json.Marshal(backups)
	if err != nil {
		return "", fmt.Errorf("encode BackupAllInfo: %w", err)
	}
	return string(raw), nil
}

func decodeBackupInfo(text string) (map[string]podBackup, error) {
	var backups map[string]podBackup
	if err := json.Unmarshal([]byte(text), &backups); err != nil {
		return nil, fmt.Errorf("Could not decode JSON data: backupInfo: %w", err) // Kanister's text
	}
	for pod, b := range backups {
		if b.BackupID == "" {
			return nil, fmt.Errorf("Could not decode JSON data: backupInfo has no BackupID for pod %s", pod) // Kanister's manner
		}
	}
	return backups, nil
}
