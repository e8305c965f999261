// SPDX-License-Identifier: Apache-2.0

package function

// elsewhere says what to do instead of a function of Kanister that is not here, ""
// for a name that is none.
func elsewhere(name string) string {
	switch name {
	case "CreateCSISnapshot", "CreateCSISnapshotStatic", "RestoreCSISnapshot", "DeleteCSISnapshot", "DeleteCSISnapshotContent",
		"CreateRDSSnapshot", "ExportRDSSnapshotToLocation", "RestoreRDSSnapshot", "DeleteRDSSnapshot",
		"CreateVolumeSnapshot", "WaitForSnapshotCompletion", "CreateVolumeFromSnapshot", "DeleteVolumeSnapshot",
		"WaitForEphemeralSnapshot":
		return "run this Blueprint with a stock Kanister"
	case "BackupDataUsingKopiaServer":
		return "use BackupData"
	case "RestoreDataUsingKopiaServer":
		return "use RestoreData"
	case "DeleteDataUsingKopiaServer":
		return "use DeleteData"
	case "DescribeBackups": // what Kanister had before CheckRepository
		return "use CheckRepository"
	}
	return ""
}
