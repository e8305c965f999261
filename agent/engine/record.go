// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"sort"
	"time"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/snapshot"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/contents"
)

// recordType is the manifest type of backup records. The access control of the
// repository server lets nobody but its administrator write or read it.
const recordType = "kanister-backup"

// recordLabels are what a record is found by. A prefix may be longer than a label
// should be, so its digest stands for it.
func recordLabels(r api.Record) map[string]string {
	return map[string]string{
		"type": recordType, "id": r.BackupID, "tag": r.BackupTag,
		"prefix": prefixLabel(r.Prefix), "key": r.KeyID,
	}
}

// prefixLabel is the same for every way to write a prefix: see samePrefix.
func prefixLabel(prefix string) string { return digest(path.Clean(prefix)) }

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:16])
}

// samePrefix: a//b/ is a/b. A Blueprint that builds a prefix from parts need not
// write it in the same way each time.
func samePrefix(a, b string) bool { return path.Clean(a) == path.Clean(b) }

// writeRecord vouches for a snapshot after checking it against what the server
// knows: the manifest's labels, which no agent can forge, not what it says of itself.
func writeRecord(ctx context.Context, conn *connection, r api.RecordRequest) (*api.Result, error) {
	known, err := find(ctx, conn, api.FindRequest{BackupID: r.Record.BackupID, Prefix: r.Record.Prefix, KeyID: r.Record.KeyID})
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
	if err := recordable(conn.rep.Time().Sub(meta.ModTime)); err != nil && !conn.foreign {
		return nil, err
	}
	if err := checkRoot(ctx, conn.rep, man.RootEntry); err != nil {
		err = fmt.Errorf("write record: the root of snapshot %s: %w", r.Record.Snapshot.ID, err)
		if damage(ctx, err, conn.creds.URL) {
			return nil, &api.Problem{Code: api.CodeConflict, Title: err.Error(), Hint: "back up again"}
		}
		return nil, err
	}
	err = conn.write(ctx, "record", nil, func(ctx context.Context, w repo.RepositoryWriter) error {
		if conn.foreign {
			return putForeign(ctx, w, man, r.Record)
		}
		_, err := w.PutManifest(ctx, recordLabels(r.Record), r.Record)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("write record: %w", err)
	}
	return &api.Result{Records: []api.Record{r.Record}}, nil
}

// recordable refuses a snapshot that maintenance may be about to collect.
func recordable(age time.Duration) error {
	if age <= api.RecordWithin {
		return nil
	}
	return &api.Problem{
		Code:  api.CodeConflict,
		Title: fmt.Sprintf("write record: the snapshot was made %s ago, and can become a backup within %s", age.Round(time.Minute), api.RecordWithin),
		Hint:  "back up again: only what has changed since is sent",
	}
}

// checkRoot reads the beginning of a snapshot's root: a record vouches for nothing that is
// not there. To read all would take as long as a restore.
func checkRoot(ctx context.Context, rep objects, root *snapshot.DirEntry) error {
	r, err := rep.OpenObject(ctx, root.ObjectID)
	if err != nil {
		return err
	}
	defer r.Close()
	switch root.Type {
	case snapshot.EntryTypeDirectory:
		d := json.NewDecoder(r)
		for _, want := range []json.Token{json.Delim('{'), "stream", directoryStream} {
			var got json.Token
			if got, err = d.Token(); err != nil {
				break
			} else if got != want {
				return fmt.Errorf("it is no directory: it has %v instead of %v", got, want)
			}
		}
	case snapshot.EntryTypeFile, snapshot.EntryTypeSymlink:
		if contents.IsDirectory(root.ObjectID) {
			return errors.New("it is said to be a file, and is a directory")
		}
		if root.FileSize > 0 {
			_, err = r.Read(make([]byte, 1))
		}
	default:
		return fmt.Errorf("it is of unknown kind %q", root.Type)
	}
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func findRecords(ctx context.Context, conn *connection, r api.FindRequest) (*api.Result, error) {
	found, err := find(ctx, conn, r)
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
func find(ctx context.Context, conn *connection, r api.FindRequest) ([]foundRecord, error) {
	known, err := findAnywhere(ctx, conn, r)
	return under(r.Prefix, known), err
}

// under keeps the records of one prefix.
func under(prefix string, known []foundRecord) []foundRecord {
	return slices.DeleteFunc(slices.Clone(known), func(f foundRecord) bool { return !samePrefix(f.record.Prefix, prefix) })
}

// findAnywhere is find under every prefix.
func findAnywhere(ctx context.Context, conn *connection, r api.FindRequest) ([]foundRecord, error) {
	labels := map[string]string{"type": recordType, "key": r.KeyID}
	switch {
	case r.BackupID != "" && r.BackupTag == "":
		labels["id"] = r.BackupID
	case r.BackupTag != "" && r.BackupID == "":
		labels["tag"] = r.BackupTag
	default:
		return nil, &api.Problem{Code: api.CodeBadRequest, Title: "find record: exactly one of backup id and backup tag is needed"}
	}
	entries, err := conn.findRecords(ctx, labels)
	if err != nil {
		return nil, fmt.Errorf("find record: %w", err)
	}
	var found []foundRecord
	for _, e := range entries {
		record, err := conn.readRecord(ctx, e.ID)
		if err != nil {
			return nil, err
		}
		found = append(found, foundRecord{e.ID, record})
	}
	slices.SortFunc(found, func(a, b foundRecord) int {
		return cmp.Or(a.record.Created.Compare(b.record.Created), cmp.Compare(a.id, b.id))
	})
	return found, nil
}

// findRecords looks manifests of records up by the labels of recordLabels.
func (c *connection) findRecords(ctx context.Context, labels map[string]string) ([]*manifest.EntryMetadata, error) {
	if c.foreign {
		labels = foreignLabels(labels)
	}
	return c.rep.FindManifests(ctx, labels)
}

// readRecord reads one. manifest.ErrNotFound: it was deleted meanwhile.
func (c *connection) readRecord(ctx context.Context, id manifest.ID) (record api.Record, err error) {
	if !c.foreign {
		_, err = c.rep.GetManifest(ctx, id, &record)
	} else {
		var man snapshot.Manifest
		if _, err = c.rep.GetManifest(ctx, id, &man); err == nil {
			record, err = parseForeign(man)
		}
	}
	if err != nil {
		return api.Record{}, fmt.Errorf("read record %s: %w", id, err)
	}
	return record, nil
}

// findOne returns the first matching record.
func findOne(ctx context.Context, conn *connection, r api.FindRequest) (api.Record, error) {
	found, err := find(ctx, conn, r)
	if err != nil {
		return api.Record{}, err
	}
	if len(found) == 0 {
		return api.Record{}, &api.Problem{
			Code:  api.CodeNotFound,
			Title: fmt.Sprintf("find record: no backup %s under %q", cmp.Or(r.BackupID, r.BackupTag), r.Prefix),
		}
	}
	return found[0].record, nil
}

// maxAnswer bounds the bytes of records in one answer. The agent remembers the
// answers of many operations.
const maxAnswer = 256 << 10

// listRecords returns one page of the records of a key.
func listRecords(ctx context.Context, conn *connection, r api.ListRequest) (*api.Result, error) {
	if r.Limit < 0 || r.Limit > api.MaxListed {
		return nil, &api.Problem{Code: api.CodeBadRequest, Title: fmt.Sprintf("list records: limit %d is not 0 to %d", r.Limit, api.MaxListed)}
	}
	entries, err := recordsOf(ctx, conn, r.KeyID, r.Prefix)
	if err != nil {
		return nil, err
	}
	if r.After != "" {
		// The place of a record that may be gone by now.
		entries = entries[sort.Search(len(entries), func(i int) bool { return placeOf(entries[i]) > r.After }):]
	}
	result, size := &api.Result{}, 0
	for i, e := range entries {
		record, err := conn.readRecord(ctx, e.ID)
		if errors.Is(err, manifest.ErrNotFound) {
			continue // deleted meanwhile
		} else if err != nil {
			return nil, err
		}
		raw, err := json.Marshal(record)
		if err != nil {
			return nil, err
		}
		result.Records, size = append(result.Records, record), size+len(raw)
		if len(result.Records) == cmp.Or(r.Limit, api.MaxListed) || size >= maxAnswer {
			if i+1 < len(entries) {
				result.Next = placeOf(e)
			}
			break
		}
	}
	return result, nil
}

// recordsOf returns the manifests of a key's records in the order in which they were
// written; an empty prefix is any.
func recordsOf(ctx context.Context, conn *connection, keyID, prefix string) ([]*manifest.EntryMetadata, error) {
	labels := map[string]string{"type": recordType, "key": keyID}
	if prefix != "" {
		labels["prefix"] = prefixLabel(prefix)
	}
	entries, err := conn.findRecords(ctx, labels)
	if err != nil {
		return nil, fmt.Errorf("list records: %w", err)
	}
	slices.SortFunc(entries, func(a, b *manifest.EntryMetadata) int { return cmp.Compare(placeOf(a), placeOf(b)) })
	return entries, nil
}

// placeOf is where a record stands in a list: it sorts by the time of writing.
func placeOf(e *manifest.EntryMetadata) string {
	return e.ModTime.UTC().Format("20060102T150405.000000000") + "-" + string(e.ID)
}

// deleteRecord deletes the first matching record and its snapshot, the snapshot
// first: a record without one is found again by a retry, a snapshot without a
// record by nobody. A backup that is there under another prefix has not been deleted
// by an earlier try, so it is an error, which does not say where it is.
func deleteRecord(ctx context.Context, conn *connection, r api.DeleteRequest) (*api.Result, error) {
	known, err := findAnywhere(ctx, conn, r)
	if err != nil {
		return nil, err
	}
	found := under(r.Prefix, known)
	switch {
	case len(known) == 0:
		return &api.Result{}, nil
	case len(found) == 0:
		return nil, &api.Problem{
			Code:  api.CodeNotFound,
			Title: fmt.Sprintf("delete record: no backup %s under %q", cmp.Or(r.BackupID, r.BackupTag), r.Prefix),
		}
	}
	err = conn.write(ctx, "delete", nil, func(ctx context.Context, w repo.RepositoryWriter) error {
		id := manifest.ID(found[0].record.Snapshot.ID)
		if err := w.DeleteManifest(ctx, id); err != nil && !errors.Is(err, manifest.ErrNotFound) {
			return fmt.Errorf("delete snapshot %s: %w", id, err)
		}
		if err := w.DeleteManifest(ctx, found[0].id); err != nil {
			return fmt.Errorf("delete record: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := conn.areGone(ctx, manifest.ID(found[0].record.Snapshot.ID), found[0].id); err != nil {
		return nil, err
	}
	return &api.Result{Records: []api.Record{found[0].record}}, nil
}

// areGone makes sure that manifests were deleted: of the entries of one, Kopia believes
// the youngest, so to delete what was written by a clock that was ahead does nothing,
// without a word, until that time has come.
func (c *connection) areGone(ctx context.Context, ids ...manifest.ID) error {
	for _, id := range ids {
		var ignored json.RawMessage
		meta, err := c.rep.GetManifest(ctx, id, &ignored)
		switch {
		case errors.Is(err, manifest.ErrNotFound):
		case err != nil:
			return fmt.Errorf("look whether %s is deleted: %w", id, err)
		default:
			return &api.Problem{
				Code:  api.CodeConflict,
				Title: fmt.Sprintf("delete record: manifest %s is still there: it was written at %s, by a clock that was ahead", id, meta.ModTime.UTC().Format(time.RFC3339)),
				Hint:  "look at the clock of the repository server's node; delete the backup again after that time",
			}
		}
	}
	return nil
}
