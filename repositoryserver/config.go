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

	"github.com/kopia/kopia/repo/encryption"
	"github.com/kopia/kopia/repo/hashing"
	"github.com/kopia/kopia/repo/splitter"
)

// Config is the content of the mounted configuration file. All of it is secret.
type Config struct {
	Storage  StorageConfig `json:"storage"`
	Password string        `json:"password"`
	// RepositoryID is the name of the RepositoryServer.
	RepositoryID string `json:"repositoryID"`
	// AllowCreate lets an empty storage be initialised: only a repository that was
	// never seen may be made.
	AllowCreate bool   `json:"allowCreate"`
	Format      Format `json:"format"`
}

// StorageConfig says where the repository is.
type StorageConfig struct {
	// Type is "s3" or "filesystem".
	Type string `json:"type"`

	Bucket string `json:"bucket,omitempty"`
	// Endpoint is host[:port]; empty is AWS.
	Endpoint        string `json:"endpoint,omitempty"`
	Prefix          string `json:"prefix,omitempty"`
	Region          string `json:"region,omitempty"`
	AccessKeyID     string `json:"accessKeyID,omitempty"`
	SecretAccessKey string `json:"secretAccessKey,omitempty"`
	SessionToken    string `json:"sessionToken,omitempty"`
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
}

// withDefaults fills in what was measured to be the fastest of the safe ones.
func (f Format) withDefaults() Format {
	if f.Hash == "" {
		f.Hash = "BLAKE3-256-128"
	}
	if f.Encryption == "" {
		f.Encryption = "AES256-GCM-HMAC-SHA256"
	}
	if f.Splitter == "" {
		f.Splitter = "DYNAMIC-4M-BUZHASH"
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
	if c.Password == "" {
		return errors.New("read configuration: password is missing")
	}
	if c.RepositoryID == "" {
		return errors.New("read configuration: repositoryID is missing")
	}
	s := c.Storage
	switch s.Type {
	case "s3":
		if s.Bucket == "" {
			return errors.New("read configuration: storage.bucket is missing")
		}
		if s.AccessKeyID == "" || s.SecretAccessKey == "" {
			return errors.New("read configuration: storage.accessKeyID or storage.secretAccessKey is missing")
		}
		if strings.Contains(s.Endpoint, "/") {
			return errors.New("read configuration: storage.endpoint is host[:port], without a scheme or path")
		}
		if s.Prefix != "" && !strings.HasSuffix(s.Prefix, "/") {
			return errors.New("read configuration: storage.prefix must end with a slash: it is put before every name")
		}
	case "filesystem":
		if s.Path == "" {
			return errors.New("read configuration: storage.path is missing")
		}
	case "gcs", "azure":
		return fmt.Errorf("read configuration: storage type %q is not supported yet: use s3", s.Type)
	default:
		return fmt.Errorf("read configuration: storage type %q is not one of s3, filesystem", s.Type)
	}
	for _, f := range []struct {
		name, value string
		known       []string
	}{
		{"hash", c.Format.Hash, hashing.SupportedAlgorithms()},
		{"encryption", c.Format.Encryption, encryption.SupportedAlgorithms(false)},
		{"splitter", c.Format.Splitter, splitter.SupportedAlgorithms()},
	} {
		if !slices.Contains(f.known, f.value) {
			return fmt.Errorf("read configuration: format.%s %q is not one of %s", f.name, f.value, strings.Join(f.known, ", "))
		}
	}
	return nil
}

// where names the storage in errors.
func (s StorageConfig) where() string {
	if s.Type == "filesystem" {
		return "folder " + s.Path
	}
	return fmt.Sprintf("bucket %s at %s, prefix %q", s.Bucket, cmp.Or(s.Endpoint, "AWS"), s.Prefix)
}

// secrets are the texts that must never be shown.
func (c Config) secrets() []string {
	return []string{c.Password, c.Storage.SecretAccessKey, c.Storage.SessionToken}
}
