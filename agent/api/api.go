// SPDX-License-Identifier: Apache-2.0

// Package api is the wire format of the agent's HTTP API: one resource, the
// operation, in three homes (sidecar, mover pod, repository server pod).
//
//	POST   /v1/operations              start; the same id and body again is the same operation
//	GET    /v1/operations              list
//	GET    /v1/operations/{id}         one
//	GET    /v1/operations/{id}/events  server-sent events: one Operation per "data:" line
//	PATCH  /v1/operations/{id}         change its rate limit
//	DELETE /v1/operations/{id}         cancel
//	GET    /v1/info                    versions and volumes
//
// A repository server's agent also serves
//
//	POST   /v1/sessions                mint a password (the same id again: the same password)
//	DELETE /v1/sessions/{id}           the password stops working, its connections are cut
//	GET    /v1/activity                what uses the server
//	POST   /v1/drain                   let nobody in any more, if nobody has used it for a while
//
// Times are RFC 3339 in UTC, sizes are bytes. Errors are application/problem+json.
// Agents live as long as their pods, so a caller may be newer or older: protocol.go.
package api

import (
	"slices"
	"time"
)

// LeastRateLimit is the least that an operation may be slowed down to: slower, it
// could not be told from one that hangs.
const LeastRateLimit = 16 << 10

// Compressions are the names that a snapshot may ask for. Kopia lists more than it can
// write: a name outside this list may end in an empty backup.
var Compressions = []string{
	"none", "zstd-fastest", "zstd", "zstd-better-compression", "s2-default", "s2-better",
	"s2-parallel-4", "s2-parallel-8", "gzip", "gzip-best-speed", "gzip-best-compression",
	"pgzip", "pgzip-best-speed", "pgzip-best-compression",
}

// Kind says what an operation does.
type Kind string

// The kinds. Snapshot and Restore move data of a mounted volume; the others
// work on the repository alone and are accepted by a repository server's agent only.
const (
	KindSnapshot Kind = "snapshot"
	KindRestore  Kind = "restore"
	KindRecord   Kind = "record"
	KindFind     Kind = "find"
	KindDelete   Kind = "delete"
	KindList     Kind = "list"
	KindStats    Kind = "stats"
	KindVerify   Kind = "verify"
	// KindProbe is a repository server's question to itself; no caller may start one.
	KindProbe Kind = "probe"
)

// State of an operation.
type State string

// The states; Done says which are final. NeedsCredentials is an operation that
// outlived its agent's container: credentials are never written to disk, so the
// caller posts the same operation again with fresh ones.
const (
	StateQueued           State = "queued"
	StateNeedsCredentials State = "needs-credentials"
	StateRunning          State = "running"
	StateCancelling       State = "cancelling"
	StateSucceeded        State = "succeeded"
	StateFailed           State = "failed"
	StateCancelled        State = "cancelled"
)

// Done reports whether the state is final.
func (s State) Done() bool {
	return slices.Contains([]State{StateSucceeded, StateFailed, StateCancelled}, s)
}

// StartRequest starts an operation. Exactly the field that Kind names is set.
// Credentials are not part of the comparison with an earlier request of the same
// id: they replace the earlier ones.
type StartRequest struct {
	// ID is chosen by the caller: [a-z0-9-], 1 to 128 characters.
	ID   string `json:"id"`
	Kind Kind   `json:"kind"`

	Snapshot *SnapshotRequest `json:"snapshot,omitempty"`
	Restore  *RestoreRequest  `json:"restore,omitempty"`
	Record   *RecordRequest   `json:"record,omitempty"`
	Find     *FindRequest     `json:"find,omitempty"`
	Delete   *DeleteRequest   `json:"delete,omitempty"`
	List     *ListRequest     `json:"list,omitempty"`
	Stats    *StatsRequest    `json:"stats,omitempty"`
	Verify   *VerifyRequest   `json:"verify,omitempty"`

	// RateLimit in bytes of content a second, read or written (holes are neither): 0, for
	// none, or at least LeastRateLimit. It is not part of the comparison either: a patch
	// may have changed it.
	RateLimit int64 `json:"rateLimit,omitempty"`

	// Credentials for the repository server. A repository server's own agent
	// needs none: it works through the running server as its administrator.
	Credentials *Credentials `json:"credentials,omitempty"`

	// Tenant is for whom it is done, in [a-z0-9._-], at most 253 characters; empty: nobody in
	// particular. Operations wait their turn fairly by it. It goes in TenantHeader: an agent
	// that does not know it yet would refuse it in the body. It is not compared either.
	Tenant string `json:"-"`
}

// TenantHeader of a request is the Tenant of its operation.
const TenantHeader = "Kopia-Tenant"

// Credentials reach one repository server as one user, for one operation. They
// are held in memory and handed to the child process on its standard input.
type Credentials struct {
	// URL of the server, https://<service>.<namespace>.svc:<port>.
	URL string `json:"url"`
	// CA is a PEM bundle: the only roots that are trusted for URL.
	CA string `json:"ca"`
	// Username and Hostname form Kopia's user, and the source of every snapshot taken.
	Username string `json:"username"`
	Hostname string `json:"hostname"`
	Password string `json:"password"`
}

// SnapshotRequest takes a snapshot of a directory or file of one volume, or of a block
// device.
type SnapshotRequest struct {
	// Volume is the name of a volume mirrored at /volumes/<Volume>, or of a device at
	// /devices/<Volume>, whose Path is "/".
	Volume string `json:"volume"`
	// Path inside the volume, absolute, cleaned; "/" is the whole volume. No
	// component may be a symbolic link.
	Path string `json:"path"`
	// SourcePath is the path of the snapshot's identity: Path, unless the claim
	// is seen through a sub-path of it.
	SourcePath string `json:"sourcePath"`
	// Compression is one of Compressions; "" is the default.
	Compression string `json:"compression,omitempty"`
	// Ignore are patterns of entries that are left out, as in a .gitignore at Path; of a
	// file or a device that is backed up alone, nothing is.
	Ignore []string `json:"ignore,omitempty"`
	// AllowUnreadable lets entries that cannot be read be left out (and counted)
	// instead of failing the snapshot.
	AllowUnreadable bool `json:"allowUnreadable,omitempty"`
	// AllowEmpty accepts zero files although the previous snapshot had some.
	AllowEmpty bool `json:"allowEmpty,omitempty"`
	// Labels are put on the snapshot manifest for people who look with Kopia's
	// own tools. Nothing is decided by them.
	Labels map[string]string `json:"labels,omitempty"`
}

// RestoreRequest writes the tree below a root object into a volume.
type RestoreRequest struct {
	// RootObject is Kopia's object id of the snapshot's root entry, as the backup record has it.
	RootObject string `json:"rootObject"`
	// Root is what the backup record says of RootObject. A file is restored as Path/<Root.Name>.
	Root RootEntry `json:"root"`
	// SubPath below the root to restore, slash separated; "" is the root itself.
	SubPath string `json:"subPath,omitempty"`
	// Volume and Path are the target directory; it is made if missing.
	Volume string `json:"volume"`
	Path   string `json:"path"`
	// DeviceAsFile lets the backup of a block device be written as a file of its size
	// into a directory. A device is restored onto a device otherwise: Path is "/".
	DeviceAsFile bool `json:"deviceAsFile,omitempty"`
	// DeleteExtra removes entries of the target that the snapshot does not have.
	DeleteExtra bool `json:"deleteExtra,omitempty"`
	// Parallel is the number of files written at once; 0 is the default.
	Parallel int `json:"parallel,omitempty"`
	// Verify compares the target with the backup; "" does not.
	Verify RestoreVerify `json:"verify,omitempty"`
}

// RestoreVerify says when a target is compared with the backup: types, content, sizes,
// modes, owners, times, link targets, extended attributes, hard links and, with
// DeleteExtra, what the backup does not have. Any difference fails the operation as
// CodeDiffers, but for what the restore itself has told as not kept.
type RestoreVerify string

// When to compare.
const (
	// VerifyAfter reads back what was restored.
	VerifyAfter RestoreVerify = "after"
	// VerifyOnly writes nothing.
	VerifyOnly RestoreVerify = "only"
)

// PatchRequest changes an operation that has not ended.
type PatchRequest struct {
	// RateLimit in bytes of content a second, in force at once: 0, for none, or at
	// least LeastRateLimit.
	RateLimit *int64 `json:"rateLimit"`
}

// Record is what makes a snapshot a backup: a manifest of our own type that only
// the repository server's own agent can write. Every look-up goes through records.
type Record struct {
	// BackupID and BackupTag are opaque tokens ([a-z0-9-], at most 63 characters).
	BackupID  string `json:"backupID"`
	BackupTag string `json:"backupTag"`
	// Prefix is the resolved backupArtifactPrefix; it is enforced on every look-up.
	Prefix string `json:"prefix"`
	// KeyID names the encryption key; a record under another key does not exist.
	KeyID string `json:"keyID"`
	// AbsolutePath is what was backed up, as the application's container sees it.
	AbsolutePath string `json:"absolutePath"`
	// Namespace, NamespaceUID, Pod, Claim and Volume say where the data came from.
	Namespace    string `json:"namespace"`
	NamespaceUID string `json:"namespaceUID"`
	Pod          string `json:"pod,omitempty"`
	Claim        string `json:"claim,omitempty"`
	Volume       string `json:"volume"`
	// Snapshot is what the record vouches for.
	Snapshot SnapshotResult `json:"snapshot"`
	Created  time.Time      `json:"created"`
}

// RecordWithin is how old a snapshot may be that becomes a backup. Some time after that,
// maintenance collects those that have not.
const RecordWithin = 72 * time.Hour

// RecordRequest writes a record after checking the snapshot's manifest: its
// labels must name Username@Hostname and SourcePath, and its root must be the
// record's. The same record again is the same record.
type RecordRequest struct {
	Record     Record `json:"record"`
	Username   string `json:"username"`
	Hostname   string `json:"hostname"`
	SourcePath string `json:"sourcePath"`
}

// FindRequest looks a record up by exactly one of BackupID and BackupTag, under one
// prefix: a//b/ is a/b.
type FindRequest struct {
	BackupID  string `json:"backupID,omitempty"`
	BackupTag string `json:"backupTag,omitempty"`
	Prefix    string `json:"prefix"`
	KeyID     string `json:"keyID"`
}

// DeleteRequest deletes the record and its snapshot. A record that is not there is
// not an error: Result.Records is empty. One that is there under another prefix is
// CodeNotFound.
type DeleteRequest = FindRequest

// MaxListed is the most records that one answer holds.
const MaxListed = 500

// ListRequest asks for the records of a key, in the order in which they were written.
// One answer is bounded: Result.Next says how to ask for what follows.
type ListRequest struct {
	// Prefix of the records; "" is all.
	Prefix string `json:"prefix,omitempty"`
	KeyID  string `json:"keyID"`
	// Limit is 1 to MaxListed; 0 is MaxListed. An answer may hold less than that.
	Limit int `json:"limit,omitempty"`
	// After is the Next of the answer before; "" begins with the oldest.
	After string `json:"after,omitempty"`
}

// StatsMode says what is counted. The modes are restic's.
type StatsMode string

// The modes of StatsRequest.
const (
	// StatsRestoreSize counts files as a restore writes them; the bytes of a file with
	// several names once. It is the default.
	StatsRestoreSize StatsMode = "restore-size"
	// StatsFilesByContents counts files of equal content once.
	StatsFilesByContents StatsMode = "files-by-contents"
	// StatsBlobsPerFile counts files of equal content once, and the distinct contents of
	// each file, uncompressed: what repeats in one file counts once.
	StatsBlobsPerFile StatsMode = "blobs-per-file"
	// StatsRawData counts the distinct contents in the repository, directories
	// included, and their bytes as they are stored. Others may share them.
	StatsRawData StatsMode = "raw-data"
)

// StatsModes are all modes.
var StatsModes = []StatsMode{StatsRestoreSize, StatsFilesByContents, StatsBlobsPerFile, StatsRawData}

// StatsRequest measures the backup that exactly one of BackupID and BackupTag names.
type StatsRequest struct {
	BackupID  string `json:"backupID,omitempty"`
	BackupTag string `json:"backupTag,omitempty"`
	Prefix    string `json:"prefix"`
	KeyID     string `json:"keyID"`
	// Mode is one of StatsModes; "" is StatsRestoreSize.
	Mode StatsMode `json:"mode,omitempty"`
}

// VerifyRequest checks backups: the one that BackupID or BackupTag names under
// Prefix, or else all of KeyID, or of KeyID and Prefix. Each directory is read and
// each file's contents are looked for in the repository's index.
type VerifyRequest struct {
	BackupID  string `json:"backupID,omitempty"`
	BackupTag string `json:"backupTag,omitempty"`
	Prefix    string `json:"prefix,omitempty"`
	KeyID     string `json:"keyID"`
	// Percent of the files, 0 to 100, chosen at random, are read to their end: only
	// that proves that the storage still holds them. What the server has in its cache
	// is not fetched again.
	Percent int `json:"percent,omitempty"`
}

// Operation is the state of one operation as the agent knows it.
type Operation struct {
	ID       string     `json:"id"`
	Kind     Kind       `json:"kind"`
	State    State      `json:"state"`
	Created  time.Time  `json:"created"`
	Started  *time.Time `json:"started,omitempty"`
	Finished *time.Time `json:"finished,omitempty"`
	// RateLimit in bytes of content a second; 0 is none.
	RateLimit int64    `json:"rateLimit,omitempty"`
	Progress  Progress `json:"progress"`
	Result    *Result  `json:"result,omitempty"`
	Failure   *Problem `json:"failure,omitempty"`
}

// Progress of a running operation. Counters only grow.
type Progress struct {
	// Files and Bytes done: read for a snapshot (unchanged ones included), written for a restore.
	Files int64 `json:"files"`
	Bytes int64 `json:"bytes"`
	// UploadedBytes went to (or DownloadedBytes came from) the server; zeros of a restore
	// are not counted.
	UploadedBytes   int64 `json:"uploadedBytes,omitempty"`
	DownloadedBytes int64 `json:"downloadedBytes,omitempty"`
	// EstimatedFiles and EstimatedBytes of the whole, 0 while unknown.
	EstimatedFiles int64 `json:"estimatedFiles,omitempty"`
	EstimatedBytes int64 `json:"estimatedBytes,omitempty"`
	// Verified entries of a restore that is compared with its backup.
	Verified int64 `json:"verified,omitempty"`
	// Entries counts what a restore does besides files' content: directories made and
	// completed, links and special files made, anything removed.
	Entries int64 `json:"entries,omitempty" since:"2"`
	// Syncing is a restore of which all is written, and the volume's storage is waited for.
	Syncing bool `json:"syncing,omitempty" since:"2"`
}

// Result of a succeeded operation: exactly the field of its kind is set.
type Result struct {
	Snapshot *SnapshotResult `json:"snapshot,omitempty"`
	Restore  *RestoreResult  `json:"restore,omitempty"`
	// Records found, or the one written, or those deleted.
	Records []Record `json:"records,omitempty"`
	// Next is set if a list goes on: the After of the request for what follows.
	Next   string        `json:"next,omitempty"`
	Stats  *StatsResult  `json:"stats,omitempty"`
	Verify *VerifyResult `json:"verify,omitempty"`
}

// Of says whether it is a result of operations of a kind.
func (r *Result) Of(kind Kind) bool {
	if r == nil {
		return false
	}
	switch kind {
	case KindSnapshot:
		return r.Snapshot != nil
	case KindRestore:
		return r.Restore != nil
	case KindStats:
		return r.Stats != nil
	case KindVerify:
		return r.Verify != nil
	}
	return true // records, of which there may be none
}

// StatsResult is what a backup measures in a mode. Files counts contents in StatsRawData.
type StatsResult struct {
	Mode  StatsMode `json:"mode"`
	Files int64     `json:"files"`
	Bytes int64     `json:"bytes"`
}

// VerifyResult says what was checked. An operation that found problems has
// succeeded: it did its work.
type VerifyResult struct {
	Backups int64 `json:"backups"`
	// Files and Bytes checked; what several backups share counts once.
	Files int64 `json:"files"`
	Bytes int64 `json:"bytes"`
	// ReadFiles and ReadBytes were read back.
	ReadFiles int64 `json:"readFiles"`
	ReadBytes int64 `json:"readBytes"`
	// ProblemCount of all problems; Problems are the first, each with its backup and path.
	ProblemCount int64    `json:"problemCount"`
	Problems     []string `json:"problems,omitempty"`
}

// SnapshotResult describes a saved snapshot.
type SnapshotResult struct {
	// ID is Kopia's manifest id, RootObject the object id of its root entry.
	ID         string `json:"id"`
	RootObject string `json:"rootObject"`
	// Root describes the root entry: the object itself holds only what is below it.
	Root RootEntry `json:"root"`
	// Files, Dirs and Bytes of the whole tree, as its root's summary has them.
	Files int64 `json:"files"`
	Dirs  int64 `json:"dirs"`
	Bytes int64 `json:"bytes"`
	// NewBytes were sent to the server: what this snapshot added before compression.
	NewBytes int64 `json:"newBytes"`
	// CachedFiles were unchanged since the previous snapshot of the same source.
	CachedFiles int64 `json:"cachedFiles"`
	// Excluded entries were left out (a volume's own lost+found), Ignored ones by the
	// request's patterns (of a directory it alone), Unreadable ones by permission; the
	// first paths of each.
	Excluded   []string `json:"excluded,omitempty"`
	Ignored    []string `json:"ignored,omitempty"`
	Unreadable []string `json:"unreadable,omitempty"`
	// Vanished entries were removed between their listing and their reading.
	Vanished int64 `json:"vanished,omitempty"`
	// Changed files were written to while they were read; the first paths.
	Changed []string `json:"changed,omitempty"`
	// LinkedNames of files with more than one, SpecialFiles (sockets, pipes, devices)
	// and entries WithAttributes (extended attributes, POSIX ACLs) are kept beside
	// Kopia's own record.
	LinkedNames    int64     `json:"linkedNames,omitempty"`
	SpecialFiles   int64     `json:"specialFiles,omitempty"`
	WithAttributes int64     `json:"withAttributes,omitempty"`
	Start          time.Time `json:"start"`
	End            time.Time `json:"end"`
}

// Xattr is an extended attribute of a file. Name is encoded as file names are.
type Xattr struct {
	Name  string `json:"name"`
	Value []byte `json:"value,omitempty"`
}

// RootEntry is what a parent directory would say of the file or directory that was
// backed up. Mode has Kopia's permission bits, setuid and its kin included.
type RootEntry struct {
	Name string `json:"name"`
	File bool   `json:"file,omitempty"`
	// Device: the file is the content of a block device.
	Device  bool      `json:"device,omitempty"`
	Size    int64     `json:"size,omitempty"`
	Mode    uint32    `json:"mode"`
	UID     uint32    `json:"uid"`
	GID     uint32    `json:"gid"`
	ModTime time.Time `json:"modTime"`
	// Xattrs of a file that was backed up alone; a directory keeps its own.
	Xattrs []Xattr `json:"xattrs,omitempty"`
}

// RestoreResult describes a finished restore.
type RestoreResult struct {
	Files    int64 `json:"files"`
	Dirs     int64 `json:"dirs"`
	Symlinks int64 `json:"symlinks"`
	Bytes    int64 `json:"bytes"`
	Deleted  int64 `json:"deleted,omitempty"`
	// HardLinks are further names of files, SpecialFiles sockets, pipes and devices.
	HardLinks    int64 `json:"hardLinks,omitempty"`
	SpecialFiles int64 `json:"specialFiles,omitempty"`
	// Resumed files were there already from a restore that was cut short.
	Resumed int64 `json:"resumed,omitempty"`
	// NotKept says what could not be set, with counts and the first paths.
	NotKept []string `json:"notKept,omitempty"`
	// Verified entries are as in the backup; Unverified says what the agent's user could
	// not read to compare it, with counts and the first paths.
	Verified   int64    `json:"verified,omitempty"`
	Unverified []string `json:"unverified,omitempty"`
}

// Info describes the agent.
type Info struct {
	// Protocol is the newest version of this API that the agent speaks, OldestProtocol
	// the oldest; 0 is the same.
	Protocol       int `json:"protocol"`
	OldestProtocol int `json:"oldestProtocol,omitempty"`

	Version      string       `json:"version"`
	KopiaVersion string       `json:"kopiaVersion"`
	UID          int          `json:"uid"`
	GID          int          `json:"gid"`
	Volumes      []VolumeInfo `json:"volumes"`
}

// VolumeInfo describes one mirrored volume, a file system or a block Device. Readable is false when its root, or
// one of the first entries sampled, cannot be read by the agent's uid; Problem says which.
type VolumeInfo struct {
	Name     string `json:"name"`
	Device   bool   `json:"device,omitempty"`
	Readable bool   `json:"readable"`
	Problem  string `json:"problem,omitempty"`
}

// SessionRequest asks a repository server for a password that works at once for
// Username@Hostname until the session ends.
type SessionRequest struct {
	ID       string `json:"id"`
	Username string `json:"username"`
	Hostname string `json:"hostname"`
	// ReadOnly is for who restores: the password reads contents by their ids, and does nothing else.
	ReadOnly bool `json:"readOnly,omitempty" since:"2,hint"`
	// SourcePath is of the source that the operation backs up: it saves no snapshot of another.
	SourcePath string `json:"sourcePath,omitempty" since:"2,hint"`
}

// Session is the answer: what an agent needs, but for URL and CA, which the
// controller knows from the Service and the issuer.
type Session struct {
	ID       string `json:"id"`
	Username string `json:"username"`
	Hostname string `json:"hostname"`
	Password string `json:"password"`
}

// DrainRequest asks a repository server to let nobody in any more, if nothing has
// used it for IdleSeconds.
type DrainRequest struct {
	IdleSeconds int64 `json:"idleSeconds"`
}

// Activity is what uses a repository server.
type Activity struct {
	// Draining is a server that lets nobody in any more; it never will again.
	Draining bool `json:"draining,omitempty"`
	// Sessions in use, of Users, with Streams; Waiting for a session.
	Sessions int `json:"sessions"`
	Users    int `json:"users"`
	Streams  int `json:"streams"`
	Waiting  int `json:"waiting"`
	// Operations of the server's own agent that have not ended.
	Operations int `json:"operations"`
	// LastUsed is now while anything is in use.
	LastUsed time.Time `json:"lastUsed"`
	// IdleSeconds since LastUsed, by the server's clock.
	IdleSeconds int64 `json:"idleSeconds"`
	// StorageProblem is why the storage, or the external server, does not answer; empty: it does.
	StorageProblem string `json:"storageProblem,omitempty"`
}
