// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repositoryserver

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/blob/filesystem"
	"github.com/kopia/kopia/repo/format"
	"github.com/kopia/kopia/repo/logging"
	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"

	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// folder is a repository in a folder, without a server.
type folder struct {
	*testing.T
	Config
	ctx context.Context
}

func newFolder(t *testing.T, f Format) *folder {
	t.Helper()
	return &folder{
		T: t, ctx: logging.WithLogger(t.Context(), kopiaLogs(slog.New(slog.DiscardHandler), nil)),
		Config: Config{
			RepositoryID: "folder", Password: "folder", AllowCreate: true, Format: f.withDefaults(),
			Storage: StorageConfig{Type: "filesystem", Path: filepath.Join(t.TempDir(), "storage")},
		},
	}
}

func (f *folder) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

// open opens it at its storage, anew.
func (f *folder) open() repo.DirectRepository {
	f.Helper()
	_, rep, err := openRepository(f.ctx, f.Config, serverUser, f.TempDir())
	f.must(err)
	f.Cleanup(func() { _ = rep.Close(context.WithoutCancel(f.ctx)) })
	return rep
}

// What a repository is made with is what the configuration says, and can be read from it.
func TestIntegrationFormat(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ asked, want Format }{
		"ours":      {Format{}, Format{Hash: "BLAKE3-256-128", Encryption: "AES256-GCM-HMAC-SHA256", Splitter: "DYNAMIC-1M-BUZHASH"}},
		"databases": {Format{Splitter: "FIXED-4M"}, Format{Hash: "BLAKE3-256-128", Encryption: "AES256-GCM-HMAC-SHA256", Splitter: "FIXED-4M"}},
	} {
		f := newFolder(t, c.asked)
		f.must(seed(f.ctx, f.open(), time.Now()))
		made := f.open()
		content := made.ContentReader().ContentFormat()
		if got := (Format{Hash: content.GetHashFunction(), Encryption: content.GetEncryptionAlgorithm(), Splitter: made.ObjectFormat().Splitter}); got != c.want {
			t.Errorf("%s: made with %+v, want %+v", name, got, c.want)
		}
		mp, err := made.FormatManager().GetMutableParameters(f.ctx)
		f.must(err)
		if mp.Version != format.FormatVersion3 || !mp.EpochParameters.Enabled || mp.EpochParameters.MinEpochDuration != 6*time.Hour || !content.SupportsPasswordChange() {
			t.Errorf("%s: %+v, password change %t", name, mp, content.SupportsPasswordChange())
		}
	}
}

// A repository that was there, made by somebody else, is used as it is if it is safe, and
// refused with what to do if not.
func TestIntegrationFormatOfOthers(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		version          format.Version
		hash, encryption string
		want             string
	}{
		"Kopia's own": {format.FormatVersion3, "BLAKE2B-256-128", "AES256-GCM-HMAC-SHA256", ""},
		"old":         {format.FormatVersion1, "BLAKE2B-256-128", "AES256-GCM-HMAC-SHA256", "kopia repository upgrade"},
		"weaker":      {format.FormatVersion3, "BLAKE2S-128", "AES256-GCM-HMAC-SHA256", "hash BLAKE2S-128 is not one of"},
	} {
		f := newFolder(t, Format{})
		st, err := filesystem.New(f.ctx, &filesystem.Options{Path: f.Storage.Path}, true)
		f.must(err)
		f.must(repo.Initialize(f.ctx, st, &repo.NewRepositoryOptions{BlockFormat: format.ContentFormat{
			MutableParameters: format.MutableParameters{Version: c.version}, Hash: c.hash, Encryption: c.encryption,
		}}, f.Password))
		f.must(st.Close(f.ctx))
		_, rep, err := openRepository(f.ctx, f.Config, serverUser, t.TempDir())
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if err == nil {
			f.must(rep.Close(f.ctx))
		}
	}
}

// A full maintenance collects what unfinished backups left for too long, keeps backups, and
// keeps what somebody may be about to use: a content that no backup names yet.
func TestIntegrationMaintainKeeps(t *testing.T) {
	t.Parallel()
	f := newFolder(t, Format{})
	rep := f.open()
	f.must(seed(f.ctx, rep, time.Now()))
	write := func(fn func(context.Context, repo.RepositoryWriter) error) {
		t.Helper()
		f.must(repo.WriteSession(f.ctx, rep, repo.WriteSessionOptions{}, fn))
	}
	var complete, incomplete manifest.ID
	write(func(ctx context.Context, w repo.RepositoryWriter) error {
		save := func(text, why string) (manifest.ID, error) {
			id, err := writeObject(ctx, w, text)
			if err != nil {
				return "", err
			}
			at := fs.UTCTimestampFromTime(time.Now())
			return snapshot.SaveSnapshot(ctx, w, &snapshot.Manifest{
				Source:    snapshot.SourceInfo{UserName: "pvc.data", Host: "ns", Path: "/" + text},
				StartTime: at, EndTime: at, IncompleteReason: why,
				RootEntry: &snapshot.DirEntry{Name: "f", Type: snapshot.EntryTypeFile, ObjectID: id, FileSize: int64(len(text))},
			})
		}
		var err error
		if complete, err = save("done", ""); err == nil {
			incomplete, err = save("cut", "checkpoint")
		}
		return err
	})
	const text = "of a backup that still runs"
	var unnamed object.ID
	write(func(ctx context.Context, w repo.RepositoryWriter) (err error) {
		unnamed, err = writeObject(ctx, w, text)
		return err
	})

	result, err := Maintain(f.ctx, MaintainOptions{
		Config: f.Config, StateDir: t.TempDir(), Full: true, Log: slog.New(slog.DiscardHandler),
		Now: func() time.Time { return time.Now().AddDate(0, 0, 8) },
	})
	f.must(err)
	if result.IncompleteCollected != 1 {
		t.Errorf("%d incomplete snapshots were collected, want 1", result.IncompleteCollected)
	}
	after := f.open()
	if _, err := snapshot.LoadSnapshot(f.ctx, after, incomplete); !errors.Is(err, snapshot.ErrSnapshotNotFound) {
		t.Errorf("the incomplete snapshot: %v, want it gone", err)
	}
	kept, err := snapshot.LoadSnapshot(f.ctx, after, complete)
	f.must(err)
	for what, id := range map[string]object.ID{"done": kept.RootObjectID(), text: unnamed} {
		r, err := after.OpenObject(f.ctx, id)
		if err != nil {
			t.Errorf("%q after maintenance: %v", what, err)
			continue
		}
		if raw, err := io.ReadAll(r); string(raw) != what || err != nil {
			t.Errorf("%q is %q, %v after maintenance", what, raw, err)
		}
		f.must(r.Close())
		// What is marked is dropped by one of the next runs.
		contents, err := after.VerifyObject(f.ctx, id)
		f.must(err)
		for _, id := range contents {
			if info, err := after.ContentReader().ContentInfo(f.ctx, id); err != nil || info.Deleted {
				t.Errorf("content of %q: %v, marked for deletion: %t", what, err, info.Deleted)
			}
		}
	}
}

// An endpoint whose certificate comes from who knows where is used by who asked for that,
// and by nobody else.
func TestIntegrationInsecureTLS(t *testing.T) {
	t.Parallel() // Kopia tries for a while
	s3 := testenv.StartS3(t)
	for name, c := range map[string]struct {
		insecure bool
		ca       string
		want     string
	}{
		"its CA":     {false, string(s3.CA.PEM), ""},
		"insecure":   {true, "", ""},
		"another CA": {false, string(testenv.NewCA(t).PEM), "certificate"},
		"no CA":      {false, "", "certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFolder(t, Format{})
			f.Storage = StorageConfig{
				Type: "s3", Bucket: s3.Bucket, Endpoint: s3.Endpoint, Prefix: strings.ReplaceAll(name, " ", "-") + "/", Region: "us-east-1",
				AccessKeyID: s3.AccessKey, SecretAccessKey: s3.SecretKey, CABundle: c.ca, InsecureTLS: c.insecure,
			}
			_, rep, err := openRepository(f.ctx, f.Config, serverUser, t.TempDir())
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if err == nil {
				f.must(rep.Close(f.ctx))
			}
		})
	}
}
