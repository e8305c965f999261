// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/blob/azure"
	"github.com/kopia/kopia/repo/blob/filesystem"
	"github.com/kopia/kopia/repo/blob/gcs"
	"github.com/kopia/kopia/repo/blob/s3"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/format"
	"github.com/kopia/kopia/repo/object"

	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// What a server's failure to open its repository is about; each tells the user
// what to do.
var (
	ErrWrongPassword = errors.New(names.WrongPassword + ": this storage was made with another encryptionKey, or by a RepositoryServer whose password is another: import its keys, or change its spec.storage if the endpoint is another now")
	ErrMissing       = errors.New(names.RepositoryMissing + ": it is not made anew; restore the bucket, or delete the RepositoryServer if the backups are to be given up")
	ErrStorage       = errors.New("the storage refuses us")
)

// The identity of this server in the repository. It is no application's and not
// the owner of maintenance: a server never runs maintenance.
const (
	serverUser      = "server"
	serverHost      = "repository"
	maintenanceUser = "maintenance"
)

// epochDuration is shorter than Kopia's: many small backups make many index blobs.
const epochDuration = 6 * time.Hour

func openStorage(ctx context.Context, c StorageConfig) (blob.Storage, error) {
	switch c.Type {
	case "filesystem":
		if err := os.MkdirAll(c.Path, 0o700); err != nil {
			return nil, fmt.Errorf("open storage: %w", err)
		}
		return filesystem.New(ctx, &filesystem.Options{Path: c.Path}, true)
	case "gcs":
		return gcs.New(ctx, &gcs.Options{
			BucketName: c.Bucket, Prefix: c.Prefix, ServiceAccountCredentialJSON: json.RawMessage(c.ServiceAccount),
		}, false)
	case "azure":
		return azure.New(ctx, &azure.Options{
			Container: c.Bucket, Prefix: c.Prefix, StorageAccount: c.StorageAccount, StorageKey: c.StorageKey, StorageDomain: c.StorageDomain,
		}, false)
	default:
		o := s3Options(c)
		return s3.New(ctx, &o, false)
	}
}

// s3Options are Kopia's. A role is assumed at the token service of the endpoint, and
// again before its hour is over.
func s3Options(c StorageConfig) s3.Options {
	o := s3.Options{
		BucketName: c.Bucket, Prefix: c.Prefix, Endpoint: cmp.Or(c.Endpoint, awsEndpoint), Region: c.Region,
		AccessKeyID: c.AccessKeyID, SecretAccessKey: c.SecretAccessKey, SessionToken: c.SessionToken,
		RootCA: []byte(c.CABundle), DoNotVerifyTLS: c.InsecureTLS, DoNotUseTLS: c.DisableTLS,
	}
	if c.RoleARN != "" {
		o.RoleARN, o.SessionName, o.RoleRegion = c.RoleARN, "kanister-kopia", c.Region
		o.RoleDuration.Duration = time.Hour
		switch {
		case o.Endpoint == awsEndpoint && c.Region != "":
			o.RoleEndpoint = "https://sts." + c.Region + ".amazonaws.com"
		case o.Endpoint == awsEndpoint:
			o.RoleEndpoint = "https://sts.amazonaws.com"
		case c.DisableTLS:
			o.RoleEndpoint = "http://" + o.Endpoint
		default:
			o.RoleEndpoint = "https://" + o.Endpoint
		}
	}
	return o
}

const awsEndpoint = "s3.amazonaws.com"

// openRepository makes the repository if it may be made, and opens it at its storage. It
// returns the path of Kopia's connection file, too.
func openRepository(ctx context.Context, c Config, username, dir string, now func() time.Time) (configFile string, rep repo.DirectRepository, err error) {
	configFile, err = prepare(ctx, c, username, dir, now)
	if err == nil {
		rep, err = openDirect(ctx, configFile, c.Password, now)
	}
	if err == nil {
		if err = checkFormat(ctx, rep); err != nil {
			_ = rep.Close(ctx)
		}
	}
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", c.Storage.where(), err)
	}
	return configFile, rep, nil
}

// prepare makes the repository if it may be made and returns the path of Kopia's
// connection file, which holds the storage keys: dir is memory. Kopia's own Connect writes
// the same file, and opens the repository once to try it: to derive the key of a password
// takes a good part of a second, and who calls opens it anyway.
func prepare(ctx context.Context, c Config, username, dir string, now func() time.Time) (configFile string, err error) {
	st, err := openStorage(ctx, c.Storage)
	if err != nil {
		return "", fmt.Errorf("open storage: %w: %w", ErrStorage, err)
	}
	st = newReadAhead(st)
	defer st.Close(ctx)
	configFile = filepath.Join(dir, "repository.config")
	// The folder outlives its container: one that was started again finds the file that the
	// last one wrote when it had the repository, and makes none, whatever its configuration
	// still says.
	if _, err := os.Stat(configFile); err == nil {
		c.AllowCreate = false
	}
	if err := initialize(ctx, c, st, now); err != nil {
		return "", err
	}
	storage := st.ConnectionInfo()
	connection, err := json.Marshal(repo.LocalConfig{
		Storage: &storage,
		Caching: &content.CachingOptions{}, // none
		ClientOptions: repo.ClientOptions{Hostname: serverHost, Username: username}.
			ApplyDefaults(ctx, "Repository in "+st.DisplayName()),
	})
	if err != nil {
		return "", fmt.Errorf("write connection: %w", err)
	}
	if err := os.WriteFile(configFile, connection, 0o600); err != nil {
		return "", fmt.Errorf("write connection: %w", err)
	}
	return configFile, nil
}

func initialize(ctx context.Context, c Config, st blob.Storage, now func() time.Time) error {
	var there bool
	err := st.GetBlob(ctx, format.KopiaRepositoryBlobID, 0, -1, &discard{})
	switch {
	case err == nil:
		there = true
	case !errors.Is(err, blob.ErrBlobNotFound):
		return fmt.Errorf("look for the repository: %w: %w", ErrStorage, err)
	}
	if there {
		return nil
	}
	// A bucket that is not there looks like an empty one until it is listed.
	if err := st.ListBlobs(ctx, "", func(blob.Metadata) error { return errEnough }); err != nil && !errors.Is(err, errEnough) {
		return fmt.Errorf("look for the repository: %w: %w", ErrStorage, err)
	}
	if !c.AllowCreate {
		return fmt.Errorf("open repository: %w", ErrMissing)
	}
	if err := clearHalfMade(ctx, st, now()); err != nil {
		return fmt.Errorf("make repository: %w", err)
	}
	mode, period, err := c.Format.retention()
	if err != nil {
		return err
	}
	err = repo.Initialize(ctx, st, &repo.NewRepositoryOptions{
		BlockFormat: format.ContentFormat{
			MutableParameters:    format.MutableParameters{Version: format.FormatVersion3},
			Hash:                 c.Format.Hash,
			Encryption:           c.Format.Encryption,
			EnablePasswordChange: true,
		},
		ObjectFormat:    format.ObjectFormat{Splitter: c.Format.Splitter},
		RetentionMode:   mode,
		RetentionPeriod: period,
	}, c.Password)
	if errors.Is(err, repo.ErrAlreadyInitialized) {
		return nil // by another server of ours, a moment ago
	}
	switch {
	case err != nil && period > 0:
		return fmt.Errorf("make repository with object lock, which the bucket must have been made with: %w", err)
	case err != nil:
		return fmt.Errorf("make repository: %w", err)
	}
	return nil
}

// halfMadeAge is when whoever was making a repository is no longer there. It takes a second.
const halfMadeAge = time.Minute

// clearHalfMade removes what is left of a repository whose server was killed while it made
// it: Kopia writes two blobs, and refuses for ever to go on after the first. Where there is
// anything else there was a repository, and nothing is touched.
func clearHalfMade(ctx context.Context, st blob.Storage, now time.Time) error {
	var found []blob.Metadata
	err := st.ListBlobs(ctx, "", func(m blob.Metadata) error {
		if found = append(found, m); len(found) > 1 {
			return errEnough
		}
		return nil
	})
	switch {
	case err != nil && !errors.Is(err, errEnough):
		return fmt.Errorf("%w: %w", ErrStorage, err)
	case len(found) != 1 || found[0].BlobID != format.KopiaBlobCfgBlobID:
		return nil
	case now.Sub(found[0].Timestamp) < halfMadeAge:
		return errors.New("somebody else is making it, or was killed meanwhile: it is tried again after a minute")
	}
	if err := st.DeleteBlob(ctx, format.KopiaBlobCfgBlobID); err != nil {
		return fmt.Errorf("remove what was left half made: %w", err)
	}
	return nil
}

var errEnough = errors.New("enough was listed")

// seed puts into the repository what must be there before anybody may connect.
func seed(ctx context.Context, rep repo.DirectRepository, now time.Time) error {
	if err := setEpochs(ctx, rep); err != nil {
		return err
	}
	if err := repo.WriteSession(ctx, rep, repo.WriteSessionOptions{Purpose: "seed"}, func(ctx context.Context, w repo.RepositoryWriter) error {
		return seedManifests(ctx, w, now)
	}); err != nil {
		return fmt.Errorf("seed repository: %w", err)
	}
	return checkSeed(ctx, rep)
}

// openDirect opens the repository at its storage.
func openDirect(ctx context.Context, configFile, password string, now func() time.Time) (repo.DirectRepository, error) {
	rep, err := repo.Open(ctx, configFile, password, &repo.Options{OnFatalError: func(error) {}, DisableRepositoryLog: true, TimeNowFunc: now})
	switch {
	case errors.Is(err, repo.ErrInvalidPassword), errors.Is(err, format.ErrInvalidPassword):
		return nil, fmt.Errorf("open repository: %w", ErrWrongPassword)
	case err != nil:
		return nil, fmt.Errorf("open repository: %w", err)
	}
	direct, ok := rep.(repo.DirectRepository)
	if !ok {
		_ = rep.Close(ctx)
		return nil, errors.New("open repository: not a direct connection")
	}
	return direct, nil
}

// checkFormat refuses a repository that we would not have made, whoever did.
func checkFormat(ctx context.Context, rep repo.DirectRepository) error {
	mp, err := rep.FormatManager().GetMutableParameters(ctx)
	if err != nil {
		return fmt.Errorf("read format: %w", err)
	}
	if mp.Version != format.FormatVersion3 {
		return fmt.Errorf("open repository: its format is version %d: upgrade it to version %d with 'kopia repository upgrade', or use another prefix", mp.Version, format.FormatVersion3)
	}
	f := rep.ContentReader().ContentFormat()
	for _, a := range []struct {
		what, algorithm string
		safe            []string
	}{{"hash", f.GetHashFunction(), hashes}, {"encryption", f.GetEncryptionAlgorithm(), encryptions}} {
		if !slices.Contains(a.safe, a.algorithm) {
			return fmt.Errorf("open repository: its %s %s is not one of %s, and cannot be changed: use another prefix, where a repository is made",
				a.what, a.algorithm, strings.Join(a.safe, ", "))
		}
	}
	return nil
}

// setEpochs sets the shorter epoch; Kopia ignores it when a repository is made.
func setEpochs(ctx context.Context, rep repo.DirectRepository) error {
	fm := rep.FormatManager()
	mp, err := fm.GetMutableParameters(ctx)
	if err != nil {
		return fmt.Errorf("read format: %w", err)
	}
	if mp.EpochParameters.MinEpochDuration == epochDuration {
		return nil
	}
	mp.EpochParameters.MinEpochDuration = epochDuration
	blobs, err := fm.BlobCfgBlob(ctx)
	if err != nil {
		return fmt.Errorf("read format: %w", err)
	}
	features, err := fm.RequiredFeatures(ctx)
	if err != nil {
		return fmt.Errorf("read format: %w", err)
	}
	if err := fm.SetParameters(ctx, mp, blobs, features); err != nil {
		return fmt.Errorf("set epoch duration: %w", err)
	}
	return nil
}

// writeObject stores a few bytes and returns their object id.
func writeObject(ctx context.Context, w repo.RepositoryWriter, content string) (object.ID, error) {
	ow := w.NewObjectWriter(ctx, object.WriterOptions{Description: "canary"})
	defer ow.Close()
	if _, err := ow.Write([]byte(content)); err != nil {
		return object.EmptyID, err
	}
	return ow.Result()
}

// discard takes a blob's bytes and forgets them.
type discard struct{ n int }

func (d *discard) Write(p []byte) (int, error) { d.n += len(p); return len(p), nil }
func (d *discard) Reset()                      { d.n = 0 }
func (d *discard) Length() int                 { return d.n }
