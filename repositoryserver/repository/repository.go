// SPDX-License-Identifier: Apache-2.0

// Package repository opens the repository that a configuration names, or makes it
// where that is allowed, and says what is wrong when neither can be done.
package repository

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/format"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/repositoryserver/access"
	"github.com/kanister-kopia/kanister-kopia/repositoryserver/config"
)

// storageTimeout bounds the first talk with the storage: the libraries below
// would try for minutes what a person could correct in one.
const storageTimeout = 20 * time.Second

// Connection is how Kopia finds the repository again.
type Connection struct {
	// ConfigFile holds the storage's keys: it must lie in memory, and is 0600.
	ConfigFile string
	// CacheDir holds encrypted pieces of the repository; CacheBytes limits each of
	// the two caches, for contents and for metadata.
	CacheDir   string
	CacheBytes int64
}

// Open opens the repository on a direct session, after making it if the storage
// is empty and c allows it. It writes conn.ConfigFile for the server to use. Its
// errors are *api.Problem.
func Open(ctx context.Context, c config.Config, conn Connection, log *slog.Logger) (repo.DirectRepository, error) {
	if err := prepare(ctx, c, conn, log); err != nil {
		return nil, err
	}
	rep, err := repo.Open(ctx, conn.ConfigFile, c.Password, &repo.Options{
		DisableRepositoryLog: true,
		OnFatalError:         func(err error) { log.Error("repository failed", "error", err) },
	})
	switch {
	case errors.Is(err, repo.ErrInvalidPassword):
		return nil, &api.Problem{
			Code:  api.CodeWrongPassword,
			Title: fmt.Sprintf("open repository in %s: the repository password is wrong", c.Storage),
			Hint:  "give the password (Kanister: encryptionKey) that the repository was created with",
		}
	case err != nil:
		return nil, explain(ctx, c.Storage, fmt.Errorf("open repository: %w", err))
	}
	direct, ok := rep.(repo.DirectRepository)
	if !ok {
		_ = rep.Close(ctx) // nothing was written
		return nil, &api.Problem{Code: api.CodeInternal, Title: "open repository: it is not a direct one"}
	}
	mp, err := direct.FormatManager().GetMutableParameters(ctx)
	if err == nil && mp.Version < format.FormatVersion2 {
		err = fmt.Errorf("format version %d is too old", mp.Version)
	}
	if err != nil {
		_ = rep.Close(ctx) // nothing was written
		return nil, &api.Problem{Code: api.CodeUnsupported, Title: fmt.Sprintf("open repository in %s: %v", c.Storage, err), Hint: "use another prefix, or upgrade it with Kopia's own tool"}
	}
	log.Info("repository is open", "storage", c.Storage.String(), "hash", direct.ContentReader().ContentFormat().GetHashFunction(),
		"encryption", direct.ContentReader().ContentFormat().GetEncryptionAlgorithm(), "splitter", direct.ObjectFormat().Splitter, "version", mp.Version)
	return direct, nil
}

// prepare makes sure that there is a repository, and writes how to connect to it.
func prepare(ctx context.Context, c config.Config, conn Connection, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	st, err := openStorage(ctx, c.Storage, c.AllowCreate)
	if err != nil {
		return explain(ctx, c.Storage, err)
	}
	defer st.Close(ctx)
	found, err := inspect(ctx, st, c.Storage)
	if err != nil {
		return explain(ctx, c.Storage, err)
	}
	switch {
	case found.repository:
	case found.other != "":
		return &api.Problem{
			Code:  api.CodeStorageNotEmpty,
			Title: fmt.Sprintf("open repository: %s holds no repository, but other things, like %q", c.Storage, found.other),
			Hint:  "use another prefix; nothing is ever deleted to make room",
		}
	case !c.AllowCreate:
		return &api.Problem{
			Code:  api.CodeRepositoryMissing,
			Title: fmt.Sprintf("open repository: %s is empty, but the repository existed before", c.Storage),
			Hint:  "check bucket, prefix and endpoint; a known repository is never made again, because that would hide the loss of its backups",
		}
	default:
		if found.interrupted {
			log.Warn("an earlier creation of the repository was interrupted; it is done again")
			if err := st.DeleteBlob(ctx, blobConfigBlob); err != nil {
				return explain(ctx, c.Storage, err)
			}
		}
		err := repo.Initialize(ctx, st, newOptions(c.Format), c.Password)
		if err != nil && !errors.Is(err, repo.ErrAlreadyInitialized) {
			return explain(ctx, c.Storage, fmt.Errorf("create repository: %w", err))
		}
		log.Info("repository was created", "storage", c.Storage.String())
	}
	info := st.ConnectionInfo()
	local := repo.LocalConfig{
		Storage: &info,
		Caching: &content.CachingOptions{
			CacheDirectory:        conn.CacheDir,
			ContentCacheSizeBytes: conn.CacheBytes * 3 / 4, ContentCacheSizeLimitBytes: conn.CacheBytes,
			MetadataCacheSizeBytes: conn.CacheBytes * 3 / 4, MetadataCacheSizeLimitBytes: conn.CacheBytes,
		},
		ClientOptions: repo.ClientOptions{
			Username: access.Server, Hostname: access.ServerHost, Description: c.RepositoryID,
			// The format blob is a fraction of a kilobyte: reading it again tells that
			// somebody changed the password or the format.
			FormatBlobCacheDuration: time.Minute,
		},
	}
	raw, err := json.Marshal(local)
	if err != nil {
		return fmt.Errorf("encode connection: %w", err)
	}
	if err := errors.Join(os.MkdirAll(filepath.Dir(conn.ConfigFile), 0o700), os.MkdirAll(conn.CacheDir, 0o700)); err != nil {
		return fmt.Errorf("make state folder: %w", err)
	}
	if err := os.WriteFile(conn.ConfigFile, raw, 0o600); err != nil {
		return fmt.Errorf("write connection: %w", err)
	}
	return nil
}

func newOptions(f config.Format) *repo.NewRepositoryOptions {
	o := &repo.NewRepositoryOptions{}
	o.BlockFormat.Version = format.FormatVersion3
	o.BlockFormat.Hash = f.Hash
	o.BlockFormat.Encryption = f.Encryption
	o.BlockFormat.EnablePasswordChange = true
	o.ObjectFormat.Splitter = f.Splitter
	return o
}
