// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/kopia/kopia/repo/blob"
)

// Config is the content of the mounted configuration file. All of it is secret.
type Config struct {
	Storage  StorageConfig `json:"storage"`
	Password string        `json:"password"`
	// RepositoryID is the name of the RepositoryServer.
	RepositoryID string `json:"repositoryID"`
	// Replaces is the name of one whose repository it takes over.
	Replaces string `json:"replaces,omitempty"`
	// AllowCreate lets an empty storage be initialised: only a repository that was
	// never seen may be made.
	AllowCreate bool   `json:"allowCreate"`
	Format      Format `json:"format"`
	// External is a user of somebody else's server. Nothing else is set then.
	External *External `json:"external,omitempty"`
}

// External is a user of somebody else's repository server.
type External struct {
	URL string `json:"url"`
	// CA is PEM: the only roots that are trusted for URL.
	CA       string `json:"ca"`
	Username string `json:"username"`
	Hostname string `json:"hostname"`
	Password string `json:"password"`
}

// StorageConfig says where the repository is.
type StorageConfig struct {
	// Type is "s3", "gcs", "azure" or "filesystem".
	Type string `json:"type"`

	Bucket string `json:"bucket,omitempty"`
	// Endpoint is host[:port]; empty is AWS.
	Endpoint        string `json:"endpoint,omitempty"`
	Prefix          string `json:"prefix,omitempty"`
	Region          string `json:"region,omitempty"`
	AccessKeyID     string `json:"accessKeyID,omitempty"`
	SecretAccessKey string `json:"secretAccessKey,omitempty"`
	SessionToken    string `json:"sessionToken,omitempty"`
	// RoleARN is assumed with the keys.
	RoleARN string `json:"roleARN,omitempty"`
	// ServiceAccount is the JSON of a Google service account.
	ServiceAccount string `json:"serviceAccount,omitempty"`
	// StorageAccount, its key, and where it is: of Azure, whose container is Bucket.
	StorageAccount string `json:"storageAccount,omitempty"`
	StorageKey     string `json:"storageKey,omitempty"`
	StorageDomain  string `json:"storageDomain,omitempty"`
	// CABundle is PEM: the only roots for the endpoint, if set.
	CABundle string `json:"caBundle,omitempty"`
	// InsecureTLS skips the verification of the endpoint, DisableTLS speaks plain HTTP.
	InsecureTLS bool `json:"insecureTLS,omitempty"`
	DisableTLS  bool `json:"disableTLS,omitempty"`

	// Path of a filesystem storage.
	Path string `json:"path,omitempty"`
}

// Format of a new repository. Hash, encryption and splitter can never be changed.
type Format struct {
	Hash       string `json:"hash,omitempty"`
	Encryption string `json:"encryption,omitempty"`
	Splitter   string `json:"splitter,omitempty"`
	// ObjectLock is how long the object store keeps every object from deletion, as a
	// Go duration; ObjectLockMode is Governance or Compliance.
	ObjectLock     string `json:"objectLock,omitempty"`
	ObjectLockMode string `json:"objectLockMode,omitempty"`
}

// retention is the object lock as Kopia wants it.
func (f Format) retention() (blob.RetentionMode, time.Duration, error) {
	if f.ObjectLock == "" && f.ObjectLockMode == "" {
		return "", 0, nil
	}
	mode := map[string]blob.RetentionMode{"Governance": blob.Governance, "Compliance": blob.Compliance}[f.ObjectLockMode]
	period, err := time.ParseDuration(f.ObjectLock)
	if mode == "" || err != nil || period < leastObjectLock {
		return "", 0, fmt.Errorf("read configuration: object lock of mode %q for %q: want Governance or Compliance, for at least %s", f.ObjectLockMode, f.ObjectLock, leastObjectLock)
	}
	return mode, period, nil
}

// leastObjectLock leaves maintenance, which extends locks once a day, a day to spare.
const leastObjectLock = 48 * time.Hour

// What a repository may be made with, the default first: the hashes are keyed, the encryptions
// authenticate. Kopia's own defaults are among them, for a repository that somebody made with
// it, and the splitters are those of the resource.
var (
	hashes      = []string{"BLAKE3-256-128", "BLAKE3-256", "BLAKE2B-256-128", "BLAKE2B-256", "HMAC-SHA256-128", "HMAC-SHA256"}
	encryptions = []string{"AES256-GCM-HMAC-SHA256", "CHACHA20-POLY1305-HMAC-SHA256"}
	splitters   = []string{
		"DYNAMIC-1M-BUZHASH", "DYNAMIC-4M-BUZHASH", "DYNAMIC-8M-BUZHASH", "FIXED-1M", "FIXED-2M", "FIXED-4M", "FIXED-8M",
	}
)

// withDefaults fills in what was measured to be the fastest of the safe ones.
func (f Format) withDefaults() Format {
	if f.Hash == "" {
		f.Hash = hashes[0]
	}
	if f.Encryption == "" {
		f.Encryption = encryptions[0]
	}
	if f.Splitter == "" {
		f.Splitter = splitters[0]
	}
	return f
}

// ReadConfig reads and checks a configuration file. Errors never quote the file.
func ReadConfig(path string) (Config, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("read configuration: %w", err)
	}
	return parseConfig(raw)
}

func parseConfig(raw []byte) (Config, error) {
	var c Config
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&c); err != nil {
		if strings.HasPrefix(err.Error(), "json: unknown field") {
			return Config{}, fmt.Errorf("read configuration: %w", err) // a name, not a value
		}
		return Config{}, errors.New("read configuration: it is not valid JSON")
	}
	c.Format = c.Format.withDefaults()
	return c, c.validate()
}

func (c Config) validate() error {
	if c.RepositoryID == "" {
		return errors.New("read configuration: repositoryID is missing")
	}
	if e := c.External; e != nil {
		if e.URL == "" || e.CA == "" || e.Username == "" || e.Hostname == "" || e.Password == "" {
			return errors.New("read configuration: url, ca, username, hostname and password of the external server are needed")
		}
		return nil
	}
	if c.Password == "" {
		return errors.New("read configuration: password is missing")
	}
	if err := c.Storage.validate(); err != nil {
		return err
	}
	if _, _, err := c.Format.retention(); err != nil {
		return err
	}
	for _, f := range []struct {
		name, value string
		known       []string
	}{
		{"hash", c.Format.Hash, hashes},
		{"encryption", c.Format.Encryption, encryptions},
		{"splitter", c.Format.Splitter, splitters},
	} {
		if !slices.Contains(f.known, f.value) {
			return fmt.Errorf("read configuration: format.%s %q is not one of %s", f.name, f.value, strings.Join(f.known, ", "))
		}
	}
	return nil
}

func (s StorageConfig) validate() error {
	missing := func(name string) error { return fmt.Errorf("read configuration: storage.%s is missing", name) }
	switch s.Type {
	case "s3", "gcs", "azure":
		switch {
		case s.Bucket == "":
			return missing("bucket")
		case s.Prefix != "" && !strings.HasSuffix(s.Prefix, "/"):
			return errors.New("read configuration: storage.prefix must end with a slash: it is put before every name")
		}
	case "filesystem":
		if s.Path == "" {
			return missing("path")
		}
	default:
		return fmt.Errorf("read configuration: storage type %q is not one of s3, gcs, azure, filesystem", s.Type)
	}
	switch {
	case s.Type == "s3" && (s.AccessKeyID == "" || s.SecretAccessKey == ""):
		return missing("accessKeyID or storage.secretAccessKey")
	case s.Type == "s3" && strings.Contains(s.Endpoint, "/"):
		return errors.New("read configuration: storage.endpoint is host[:port], without a scheme or path")
	case s.Type == "gcs" && !json.Valid([]byte(s.ServiceAccount)):
		return missing("serviceAccount, as JSON,")
	case s.Type == "azure" && (s.StorageAccount == "" || s.StorageKey == ""):
		return missing("storageAccount or storage.storageKey")
	}
	return nil
}

// where names the storage in errors.
func (s StorageConfig) where() string {
	switch s.Type {
	case "filesystem":
		return "folder " + s.Path
	case "gcs":
		return fmt.Sprintf("bucket %s of Google Cloud Storage, prefix %q", s.Bucket, s.Prefix)
	case "azure":
		return fmt.Sprintf("container %s of Azure account %s, prefix %q", s.Bucket, s.StorageAccount, s.Prefix)
	}
	return fmt.Sprintf("bucket %s at %s, prefix %q", s.Bucket, cmp.Or(s.Endpoint, "AWS"), s.Prefix)
}

// secrets are the texts that must never be shown.
func (c Config) secrets() []string {
	all := []string{c.Password, c.Storage.SecretAccessKey, c.Storage.SessionToken, c.Storage.StorageKey, c.Storage.ServiceAccount}
	if c.External != nil {
		all = append(all, c.External.Password)
	}
	return all
}
