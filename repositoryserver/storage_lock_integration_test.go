// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repositoryserver_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"
	"github.com/minio/minio-go/v7"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// What is written into a bucket with object lock stays for the period, whoever wants
// it gone, and maintenance makes the period longer.
func TestIntegrationObjectLock(t *testing.T) {
	t.Parallel()
	w := newWorldOn(t, testenv.StartLockingS3(t))
	w.config.Format.ObjectLock, w.config.Format.ObjectLockMode = "48h", "Governance"
	source := w.volume()
	w.must(os.WriteFile(filepath.Join(source, "f"), []byte(strings.Repeat("locked", 1000)), 0o600))
	began := time.Now()
	s := w.serve()
	agent, _ := w.sidecar(source, nil)
	record := w.backup(s, agent, "op-1", "/")

	bucket, ctx := w.s3.Client(t), w.context()
	// locks are until when what belongs to the repository is kept: all but what Kopia
	// itself replaces every now and then.
	locks := func() map[string]time.Time {
		found := map[string]time.Time{}
		for o := range bucket.ListObjects(ctx, w.s3.Bucket, minio.ListObjectsOptions{Recursive: true, Prefix: w.config.Storage.Prefix}) {
			w.must(o.Err)
			name := strings.TrimPrefix(o.Key, w.config.Storage.Prefix)
			if name == "kopia.maintenance" {
				continue
			}
			switch name[0] {
			case 'p', 'q', 'x', 'k':
				info, err := bucket.StatObject(ctx, w.s3.Bucket, o.Key, minio.StatObjectOptions{})
				w.must(err)
				until, err := time.Parse(time.RFC3339, info.Metadata.Get("X-Amz-Object-Lock-Retain-Until-Date"))
				if err != nil || info.Metadata.Get("X-Amz-Object-Lock-Mode") != string(minio.Governance) {
					t.Errorf("%s is not locked: %v", name, info.Metadata)
					continue
				}
				found[o.Key] = until
			}
		}
		return found
	}
	before := locks()
	if len(before) < 4 {
		t.Fatalf("only %d objects were looked at", len(before))
	}
	for key, until := range before {
		if until.Before(began.Add(47 * time.Hour)) {
			t.Errorf("%s is kept until %s only", key, until)
		}
	}
	for o := range bucket.ListObjects(ctx, w.s3.Bucket, minio.ListObjectsOptions{Recursive: true, WithVersions: true, Prefix: w.config.Storage.Prefix + "p"}) {
		w.must(o.Err)
		if err := bucket.RemoveObject(ctx, w.s3.Bucket, o.Key, minio.RemoveObjectOptions{VersionID: o.VersionID}); err == nil {
			t.Errorf("%s was deleted", o.Key)
		}
	}

	if _, message := w.maintain("--mode", "full"); message != "" {
		t.Fatal(message)
	}
	after := locks()
	for key, until := range before {
		if now, there := after[key]; there && !now.After(until) {
			t.Errorf("the lock of %s was not made longer: %s, then %s", key, until, now)
		}
	}

	// A damaged backup stops the collection, and the locks go on.
	w.damagedBackup(s)
	if _, message := w.maintain("--mode", "full"); !strings.Contains(message, "backup shop-damaged") {
		t.Errorf("with a damaged backup: %q", message)
	}
	later := locks()
	for key, until := range after {
		if now, there := later[key]; there && !now.After(until) {
			t.Errorf("the lock of %s was not made longer beside a damaged backup: %s, then %s", key, until, now)
		}
	}
	folder, _ := w.restore(s, "op-2", record, "", "/")
	w.same(testenv.Tree(w, source), testenv.Tree(w, folder))
}

// damagedBackup makes a backup of a directory that names a file which is not there.
func (w *world) damagedBackup(s *server) {
	w.Helper()
	c := w.session(s, "damaged", "pvc.data")
	missing, err := object.ParseID(strings.Repeat("0", 32))
	w.must(err)
	at := fs.UTCTimestampFromTime(time.Now())
	man := &snapshot.Manifest{Source: snapshot.SourceInfo{UserName: c.Username, Host: c.Hostname, Path: "/damaged"}, StartTime: at, EndTime: at}
	w.must(write(w.context(), w.kopia(c), func(ctx context.Context, rw repo.RepositoryWriter) error {
		raw, err := json.Marshal(snapshot.DirManifest{StreamType: "kopia:directory", Entries: []*snapshot.DirEntry{{
			Name: "f", Type: snapshot.EntryTypeFile, ObjectID: missing, FileSize: 4,
		}}})
		if err != nil {
			return err
		}
		id, err := store(ctx, rw, "k", raw)
		if err != nil {
			return err
		}
		man.RootEntry = &snapshot.DirEntry{Name: "d", Type: snapshot.EntryTypeDirectory, ObjectID: id}
		_, err = snapshot.SaveSnapshot(ctx, rw, man)
		return err
	}))
	w.record(s, "damaged", prefix, "/damaged", api.SnapshotResult{ID: string(man.ID), RootObject: man.RootObjectID().String(), End: at.ToTime()})
}

// A bucket without object lock is told so, instead of a repository that looks locked.
func TestIntegrationNoObjectLock(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.config.Format.ObjectLock, w.config.Format.ObjectLockMode = "48h", "Compliance"
	p, _, _, _ := w.launch(w.config)
	<-p.Done
	if last := testenv.LastLine(p.Log()); !strings.Contains(last, "object lock") {
		t.Errorf("it ends with %q", last)
	}
}
