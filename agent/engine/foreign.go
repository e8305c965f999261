// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/snapshot"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

// A user of somebody else's server may write snapshots, and no manifest of our type.
// So there a record is a second snapshot of the same root: what it is found by are
// tags, and the record itself is the description. Whoever has that user's password
// can write one too: it is a weaker index than our own server's, where agents cannot.

// foreignLabels turns the labels of a record into those of such a snapshot.
func foreignLabels(labels map[string]string) map[string]string {
	out := map[string]string{"type": snapshot.ManifestType}
	for name, value := range labels {
		if name != "type" {
			out["tag:kanister-"+name] = value
		}
	}
	return out
}

func putForeign(ctx context.Context, w repo.RepositoryWriter, man snapshot.Manifest, record api.Record) error {
	raw, err := json.Marshal(record)
	if err != nil {
		return err
	}
	tags := foreignLabels(recordLabels(record))
	delete(tags, "type")
	_, err = snapshot.SaveSnapshot(ctx, w, &snapshot.Manifest{
		Source: man.Source, StartTime: man.StartTime, EndTime: man.EndTime, RootEntry: man.RootEntry,
		Description: string(raw), Tags: tags,
	})
	return err
}

func parseForeign(man snapshot.Manifest) (record api.Record, err error) {
	if err := json.Unmarshal([]byte(man.Description), &record); err != nil {
		return record, fmt.Errorf("its description is no record: %w", err)
	}
	if man.RootEntry == nil || man.RootEntry.ObjectID.String() != record.Snapshot.RootObject {
		return record, errors.New("its record is of another snapshot")
	}
	return record, nil
}
