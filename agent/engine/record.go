// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/snapshot"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

// recordType is the manifest type of backup records. The access control of the
// repository server lets nobody but its administrator write or read it.
const recordType = "kanister-backup"

// recordLabels are what a record is found by. A prefix may be longer than a label
// should be, so its digest stands for it.
func recordLabels(r api.Record) map[string]string {
	return map[string]string{
		"type": recordType, "id": r.BackupID, "tag": r.BackupTag,
		"prefix": digest(r.Prefix), "key": r.KeyID,
	}
}

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:16])
}

// writeRecord vouches for a snapshot after checking it against what the server
// knows: the manifest's labels, which no agent can forge, not what it says of itself.
func writeRecord(ctx context.Context, conn *connection, r api.RecordRequest) (*api.Result, error) {
	known, err := find(ctx, conn.rep, api.FindRequest{BackupID: r.Record.BackupID, Prefix: r.Record.Prefix, KeyID: r.Record.KeyID})
	if err != nil {
		return nil, err
	}
	if len(known) > 0 {
		if known[0].record.Snapshot.ID == r.Record.Snapshot.ID {
			return &api.Result{Records: []api.Record{known[0].record}}, nil
		}
		return nil, &api.Problem{Code: api.CodeConflict, Title: fmt.Sprintf("write record: %s names another snapshot already", r.Record.BackupID)}
	}
	var man snapshot.Manifest
	meta, err := conn.rep.GetManifest(ctx, manifest.ID(r.Record.Snapshot.ID), &man)
	if errors.Is(err, manifest.ErrNotFound) {
		return nil, &api.Problem{Code: api.CodeNotFound, Title: fmt.Sprintf("write record: the repository has no snapshot %s", r.Record.Snapshot.ID)}
	}
	if err != nil {
		return nil, fmt.Errorf("load snapshot %s: %w", r.Record.Snapshot.ID, err)
	}
	for label, want := range map[string]string{
		manifest.TypeLabelKey: snapshot.ManifestType, snapshot.UsernameLabel: r.Username,
		snapshot.HostnameLabel: r.Hostname, snapshot.PathLabel: r.SourcePath,
	} {
		if meta.Labels[label] != want {
			return nil, &api.Problem{
				Code:  api.CodeAccessDenied,
				Title: fmt.Sprintf("write record: snapshot %s is not of this source: its %s is %q, not %q", r.Record.Snapshot.ID, label, meta.Labels[label], want),
			}
		}
	}
	if man.IncompleteReason != "" || man.RootEntry == nil || man.RootEntry.ObjectID.String() != r.Record.Snapshot.RootObject {
		return nil, &api.Problem{
			Code:  api.CodeConflict,
			Title: fmt.Sprintf("write record: snapshot %s is incomplete or has another root than reported", r.Record.Snapshot.ID),
		}
	}
	err = conn.write(ctx, "record", nil, func(ctx context.Context, w repo.RepositoryWriter) error {
		_, err := w.PutManifest(ctx, recordLabels(r.Record), r.Record)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("write record: %w", err)
	}
	return &api.Result{Records: []api.Record{r.Record}}, nil
}

func findRecords(ctx context.Context, conn *connection, r api.FindRequest) (*api.Result, error) {
	found, err := find(ctx, conn.rep, r)
	if err != nil {
		return nil, err
	}
	result := &api.Result{}
	for _, f := range found {
		result.Records = append(result.Records, f.record)
	}
	return result, nil
}

type foundRecord struct {
	id     manifest.ID
	record api.Record
}

// find returns the matching records, oldest first.
func find(ctx context.Context, rep repo.Repository, r api.FindRequest) ([]foundRecord, error) {
	labels := map[string]string{"type": recordType, "key": r.KeyID}
	if !r.Under {
		labels["prefix"] = digest(r.Prefix)
	}
	switch {
	case r.Under && r.BackupID == "" && r.BackupTag == "" && r.Prefix != "":
	case r.Under:
		return nil, &api.Problem{Code: api.CodeBadRequest, Title: "find records under a prefix: give a prefix, and neither backup id nor backup tag"}
	case r.BackupID != "" && r.BackupTag == "":
		labels["id"] = r.BackupID
	case r.BackupTag != "" && r.BackupID == "":
		labels["tag"] = r.BackupTag
	default:
		return nil, &api.Problem{Code: api.CodeBadRequest, Title: "find record: exactly one of backup id and backup tag is needed"}
	}
	entries, err := rep.FindManifests(ctx, labels)
	if err != nil {
		return nil, fmt.Errorf("find record: %w", err)
	}
	var found []foundRecord
	for _, e := range entries {
		f := foundRecord{id: e.ID}
		if _, err := rep.GetManifest(ctx, e.ID, &f.record); err != nil {
			return nil, fmt.Errorf("read record %s: %w", e.ID, err)
		}
		if p := f.record.Prefix; r.Under && p != r.Prefix && !strings.HasPrefix(p, r.Prefix+"/") {
			continue
		}
		found = append(found, f)
	}
	slices.SortFunc(found, func(a, b foundRecord) int {
		return cmp.Or(a.record.Created.Compare(b.record.Created), cmp.Compare(a.id, b.id))
	})
	return found, nil
}

// deleteRecord deletes the first matching record and its snapshot, or all, the
// snapshot first: a record without one is found again by a retry, a snapshot without a
// record by nobody.
func deleteRecord(ctx context.Context, conn *connection, r api.DeleteRequest) (*api.Result, error) {
	found, err := find(ctx, conn.rep, r)
	if err != nil || len(found) == 0 {
		return &api.Result{}, err
	}
	if !r.Under {
		found = found[:1]
	}
	result := &api.Result{}
	err = conn.write(ctx, "delete", nil, func(ctx context.Context, w repo.RepositoryWriter) error {
		for _, f := range found {
			id := manifest.ID(f.record.Snapshot.ID)
			if err := w.DeleteManifest(ctx, id); err != nil && !errors.Is(err, manifest.ErrNotFound) {
				return fmt.Errorf("delete snapshot %s: %w", id, err)
			}
			if err := w.DeleteManifest(ctx, f.id); err != nil {
				return fmt.Errorf("delete record: %w", err)
			}
			result.Records = append(result.Records, f.record)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return result, nil
}
