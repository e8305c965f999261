// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repositoryserver

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/blob/filesystem"
	"github.com/kopia/kopia/repo/format"
	"github.com/kopia/kopia/repo/logging"

	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// folder is a repository in a folder, without a server.
type folder struct {
	*testing.T
	Config
	ctx context.Context
	// now is the clock of Kopia and of the storage.
	now func() time.Time
}

func newFolder(t *testing.T, f Format) *folder {
	t.Helper()
	return &folder{
		T: t, now: time.Now, ctx: logging.WithLogger(t.Context(), kopiaLogs(slog.New(slog.DiscardHandler), nil)),
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
	_, rep, err := openRepository(f.ctx, f.Config, serverUser, f.TempDir(), f.now)
	f.must(err)
	f.Cleanup(func() { _ = rep.Close(context.WithoutCancel(f.ctx)) })
	return rep
}

// A server that is killed while it makes a repository leaves one blob of two. The next one
// makes it again, unless somebody may be about to, or there was a repository.
func TestIntegrationHalfMade(t *testing.T) {
	t.Parallel()
	f := newFolder(t, Format{})
	f.must(f.open().Close(f.ctx))
	blobs := func() (all []string) {
		entries, err := os.ReadDir(f.Storage.Path)
		f.must(err)
		for _, e := range entries {
			all = append(all, strings.TrimSuffix(e.Name(), ".f"))
		}
		return all
	}
	if got := blobs(); !slices.Equal(got, []string{".shards", "kopia.blobcfg", "kopia.repository"}) && !slices.Equal(got, []string{"kopia.blobcfg", "kopia.repository"}) {
		t.Fatalf("Kopia makes %v: look at clearHalfMade", got)
	}
	f.must(os.Remove(filepath.Join(f.Storage.Path, "kopia.repository.f")))
	refused := func(why, want string) {
		t.Helper()
		before := blobs()
		if _, _, err := openRepository(f.ctx, f.Config, serverUser, t.TempDir(), f.now); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", why, err, want)
		}
		if got := blobs(); !slices.Equal(got, before) {
			t.Errorf("%s: there is %v, there was %v", why, got, before)
		}
	}
	refused("a moment ago", "tried again after a minute")
	f.now = func() time.Time { return time.Now().Add(2 * halfMadeAge) }
	pack := filepath.Join(f.Storage.Path, "q0123456789.f")
	f.must(os.WriteFile(pack, []byte("data"), 0o600))
	refused("data is there", "possible corruption")
	f.must(os.Remove(pack))
	f.AllowCreate = false
	refused("it was known before", ErrMissing.Error())
	f.AllowCreate = true
	f.must(seed(f.ctx, f.open(), f.now()))
	f.must(checkFormat(f.ctx, f.open()))
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
		_, rep, err := openRepository(f.ctx, f.Config, serverUser, t.TempDir(), f.now)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if err == nil {
			f.must(rep.Close(f.ctx))
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
			_, rep, err := openRepository(f.ctx, f.Config, serverUser, t.TempDir(), f.now)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if err == nil {
				f.must(rep.Close(f.ctx))
			}
		})
	}
}
