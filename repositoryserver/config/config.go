// SPDX-License-Identifier: Apache-2.0

// Package config is the repository server's configuration file: what the
// controller writes into a Secret and the server reads once. It is pure and links
// nothing of Kopia, so that the controller can use it too.
package config

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Config says where a repository is and how it is opened.
type Config struct {
	Storage Storage `json:"storage"`
	// Password opens the repository.
	Password string `json:"password"`
	// RepositoryID names the repository in logs; it decides nothing.
	RepositoryID string `json:"repositoryID"`
	// AllowCreate lets the server make the repository if the storage is empty.
	// The controller sets it only for a repository that never existed.
	AllowCreate bool `json:"allowCreate"`
	// Format of a repository that is created; an existing one keeps its own.
	Format Format `json:"format"`
}

// Storage types. The zero value is none of them.
const (
	TypeS3         = "s3"
	TypeFilesystem = "filesystem"
)

// Storage is one place for blobs; Type says which fields count, and the others
// must be empty.
type Storage struct {
	Type string `json:"type"`

	// S3. Endpoint is host, host:port or an http(s) URL; empty is Amazon's.
	Bucket          string `json:"bucket,omitempty"`
	Endpoint        string `json:"endpoint,omitempty"`
	Prefix          string `json:"prefix,omitempty"`
	Region          string `json:"region,omitempty"`
	AccessKeyID     string `json:"accessKeyID,omitempty"`
	SecretAccessKey string `json:"secretAccessKey,omitempty"`
	SessionToken    string `json:"sessionToken,omitempty"`
	// CABundle (PEM) is trusted for Endpoint instead of the system's roots.
	CABundle string `json:"caBundle,omitempty"`
	// InsecureTLS takes any certificate; DisableTLS speaks plain HTTP.
	InsecureTLS bool `json:"insecureTLS,omitempty"`
	DisableTLS  bool `json:"disableTLS,omitempty"`

	// Filesystem: an absolute path.
	Path string `json:"path,omitempty"`
}

// Format of a new repository. It can never be changed later. Empty fields are
// DefaultFormat's.
type Format struct {
	Hash       string `json:"hash,omitempty"`
	Encryption string `json:"encryption,omitempty"`
	Splitter   string `json:"splitter,omitempty"`
}

// DefaultFormat is the fastest strong choice on current machines.
func DefaultFormat() Format {
	return Format{Hash: "BLAKE3-256-128", Encryption: "AES256-GCM-HMAC-SHA256", Splitter: "DYNAMIC-4M-BUZHASH"}
}

// Algorithms lists what Format accepts: a part of what Kopia has, without its
// weak, deprecated and surprising ones. The first of each is the default.
func Algorithms() (hashes, encryptions, splitters []string) {
	return []string{"BLAKE3-256-128", "BLAKE3-256", "BLAKE2B-256-128", "BLAKE2B-256", "HMAC-SHA256-128", "HMAC-SHA256", "HMAC-SHA3-256"},
		[]string{"AES256-GCM-HMAC-SHA256", "CHACHA20-POLY1305-HMAC-SHA256"},
		[]string{"DYNAMIC-4M-BUZHASH", "DYNAMIC-1M-BUZHASH", "DYNAMIC-2M-BUZHASH", "DYNAMIC-8M-BUZHASH", "FIXED-1M", "FIXED-2M", "FIXED-4M", "FIXED-8M"}
}

// Load reads and validates a configuration file, and fills in defaults. Its
// errors name the field and never a secret.
func Load(path string) (Config, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("read configuration: %w", err)
	}
	c, err := Parse(raw)
	if err != nil {
		return Config{}, fmt.Errorf("read configuration %s: %w", path, err)
	}
	return c, nil
}

// Parse is Load for what was read.
func Parse(raw []byte) (Config, error) {
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.DisallowUnknownFields()
	var c Config
	if err := decoder.Decode(&c); err != nil {
		var wrongType *json.UnmarshalTypeError
		if errors.As(err, &wrongType) {
			// The library's text would quote the value.
			return Config{}, fmt.Errorf("field %q must be a %s", wrongType.Field, wrongType.Type)
		}
		return Config{}, err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return Config{}, errors.New("there is something after the JSON object")
	}
	c.Format = c.Format.withDefaults()
	c.Storage.Prefix = cleanPrefix(c.Storage.Prefix)
	return c, c.Validate()
}

func (f Format) withDefaults() Format {
	d := DefaultFormat()
	if f.Hash == "" {
		f.Hash = d.Hash
	}
	if f.Encryption == "" {
		f.Encryption = d.Encryption
	}
	if f.Splitter == "" {
		f.Splitter = d.Splitter
	}
	return f
}

// cleanPrefix makes a prefix a folder: blob names follow it directly.
func cleanPrefix(p string) string {
	p = strings.Trim(p, "/")
	if p == "" {
		return ""
	}
	return p + "/"
}

// Validate names everything that is wrong.
func (c Config) Validate() error {
	var errs []error
	need := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	need(c.Password != "", "password is missing")
	need(c.RepositoryID != "", "repositoryID is missing")
	hashes, encryptions, splitters := Algorithms()
	need(slices.Contains(hashes, c.Format.Hash), "format.hash %q: use one of %s", c.Format.Hash, strings.Join(hashes, ", "))
	need(slices.Contains(encryptions, c.Format.Encryption), "format.encryption %q: use one of %s", c.Format.Encryption, strings.Join(encryptions, ", "))
	need(slices.Contains(splitters, c.Format.Splitter), "format.splitter %q: use one of %s", c.Format.Splitter, strings.Join(splitters, ", "))
	errs = append(errs, c.Storage.validate()...)
	return errors.Join(errs...)
}

func (s Storage) validate() (errs []error) {
	need := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf("storage."+format, args...))
		}
	}
	switch s.Type {
	case TypeS3:
		need(s.Path == "", "path is not for type s3")
		need(s.Bucket != "", "bucket is missing")
		need(s.AccessKeyID != "", "accessKeyID is missing")
		need(s.SecretAccessKey != "", "secretAccessKey is missing")
		host, plain, err := s.Host()
		need(err == nil, "endpoint: %v", err)
		need(host != "" || err != nil, "endpoint has no host")
		need(!plain || s.CABundle == "", "caBundle is given, but the endpoint speaks plain HTTP")
		need(!s.InsecureTLS || s.CABundle == "", "insecureTLS and caBundle contradict each other: use one")
		need(s.CABundle == "" || x509.NewCertPool().AppendCertsFromPEM([]byte(s.CABundle)), "caBundle holds no PEM certificate")
	case TypeFilesystem:
		need(filepath.IsAbs(s.Path) && filepath.Clean(s.Path) == s.Path, "path must be absolute and clean, like /repository")
		need(s == Storage{Type: s.Type, Path: s.Path}, "only path goes with type filesystem")
	case "gcs", "azure":
		need(false, "type %q is not supported yet: use s3 or filesystem", s.Type)
	case "":
		need(false, "type is missing: use s3 or filesystem")
	default:
		need(false, "type %q is unknown: use s3 or filesystem", s.Type)
	}
	return errs
}

// Host is the endpoint as host or host:port, and whether it speaks plain HTTP.
func (s Storage) Host() (host string, plain bool, err error) {
	if s.Endpoint == "" {
		return "s3.amazonaws.com", s.DisableTLS, nil
	}
	if !strings.Contains(s.Endpoint, "://") {
		if strings.ContainsAny(s.Endpoint, "/@? ") {
			return "", false, errors.New("use host, host:port or an http(s) URL")
		}
		return s.Endpoint, s.DisableTLS, nil
	}
	u, err := url.Parse(s.Endpoint)
	if err != nil {
		return "", false, errors.New("it is not a URL") // the library's text would quote it
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return "", false, fmt.Errorf("scheme %q: use http or https", u.Scheme)
	case u.User != nil, u.RawQuery != "", u.Fragment != "", strings.Trim(u.Path, "/") != "":
		return "", false, errors.New("only scheme, host and port may be given")
	}
	if u.Port() != "" {
		return net.JoinHostPort(u.Hostname(), u.Port()), s.DisableTLS || u.Scheme == "http", nil
	}
	return u.Host, s.DisableTLS || u.Scheme == "http", nil
}

// Secrets are the texts that must never be shown.
func (c Config) Secrets() []string {
	return slices.DeleteFunc([]string{c.Password, c.Storage.SecretAccessKey, c.Storage.SessionToken}, func(s string) bool { return s == "" })
}

// String hides the secrets, so that a slip of the pen shows none.
func (c Config) String() string { return "configuration of repository " + c.RepositoryID }

// GoString is String.
func (c Config) GoString() string { return c.String() }

// String describes the place without its keys.
func (s Storage) String() string {
	switch s.Type {
	case TypeS3:
		host, _, _ := s.Host()
		return fmt.Sprintf("bucket %q, prefix %q at %s", s.Bucket, s.Prefix, host)
	case TypeFilesystem:
		return fmt.Sprintf("folder %s", s.Path)
	default:
		return "storage of type " + s.Type
	}
}

// GoString is String.
func (s Storage) GoString() string { return s.String() }
