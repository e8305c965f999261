// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"

	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/param"
)

// s3Keys reach a bucket.
type s3Keys struct {
	AccessKeyID, SecretAccessKey string
}

// awsSecretType is Kanister's type of Secret with AWS credentials.
const awsSecretType = "secrets.kanister.io/aws"

// s3KeysOf takes a Profile's S3 keys. Error texts for missing parts are Kanister's.
func s3KeysOf(p *param.Profile) (s3Keys, error) {
	switch c := p.Credential; c.Type {
	case param.CredentialTypeKeyPair:
		switch {
		case c.KeyPair == nil:
			return s3Keys{}, errors.New("Empty KeyPair field") // Kanister's text
		case c.KeyPair.ID == "":
			return s3Keys{}, errors.New("Access key ID is not set") // Kanister's text
		case c.KeyPair.Secret == "":
			return s3Keys{}, errors.New("Secret access key is not set") // Kanister's text
		}
		return s3Keys{c.KeyPair.ID, c.KeyPair.Secret}, nil
	case param.CredentialTypeSecret:
		s := c.Secret
		if s == nil || string(s.Type) != awsSecretType {
			return s3Keys{}, fmt.Errorf("read the Profile's credentials: an s3Compliant location needs a Secret of type %s, or credential type keyPair", awsSecretType)
		}
		keys := s3Keys{string(s.Data["aws_access_key_id"]), string(s.Data["aws_secret_access_key"])}
		switch {
		case keys.AccessKeyID == "":
			return s3Keys{}, errors.New("Access key ID is not set") // Kanister's text
		case keys.SecretAccessKey == "":
			return s3Keys{}, errors.New("Secret access key is not set") // Kanister's text
		case len(s.Data["role"]) > 0:
			return s3Keys{}, errors.New("read the Profile's credentials: key role of the Secret is not supported yet: use keys that may use the bucket themselves")
		}
		return keys, nil
	default:
		return s3Keys{}, fmt.Errorf("Unsupported type '%s' for credentials", c.Type) // Kanister's text
	}
}

// storageOf is the storage of a tenant's repository at a Profile's location.
func storageOf(p *param.Profile, t kopiav1alpha1.Tenant, keyID string) (kopiav1alpha1.Storage, error) {
	if p == nil {
		return kopiav1alpha1.Storage{}, errors.New("Profile must be non-nil") // Kanister's text
	}
	switch p.Location.Type {
	case param.LocationTypeS3Compliant:
	case param.LocationTypeKopia:
		return kopiav1alpha1.Storage{}, errors.New("Unsupported type 'kopia' for the location") // Kanister's text
	case param.LocationTypeGCS, param.LocationTypeAzure:
		return kopiav1alpha1.Storage{}, fmt.Errorf("read the Profile's location: type %s is not supported yet: use s3Compliant", p.Location.Type)
	default:
		return kopiav1alpha1.Storage{}, errors.New("Location type not supported") // Kanister's text
	}
	if p.Location.Bucket == "" {
		return kopiav1alpha1.Storage{}, errors.New("read the Profile's location: bucket is not set")
	}
	endpoint, err := normalEndpoint(p.Location.Endpoint)
	if err != nil {
		return kopiav1alpha1.Storage{}, err
	}
	return kopiav1alpha1.Storage{S3: &kopiav1alpha1.S3Storage{
		Bucket:   p.Location.Bucket,
		Endpoint: endpoint,
		Prefix:   storagePrefix(p.Location.Prefix, t, keyID),
		Region:   p.Location.Region,
	}}, nil
}

// normalEndpoint gives every way to write one endpoint one form: "", "host[:port]"
// for https, "http://host[:port]" for plain text. Kanister trims trailing slashes.
func normalEndpoint(s string) (string, error) {
	trimmed := strings.TrimRight(strings.TrimSpace(s), "/")
	if trimmed == "" {
		return "", nil
	}
	withScheme := trimmed
	if !strings.Contains(trimmed, "://") {
		withScheme = "https://" + trimmed
	}
	u, err := url.Parse(withScheme)
	switch {
	case err != nil:
		return "", fmt.Errorf("read the Profile's endpoint %q: %w", s, err)
	case u.Scheme != "https" && u.Scheme != "http":
		return "", fmt.Errorf("read the Profile's endpoint %q: scheme %q is neither https nor http", s, u.Scheme)
	case u.User != nil:
		// Not in the message: it may hold a password.
		return "", errors.New("read the Profile's endpoint: it must not hold user or password")
	case u.Hostname() == "" || u.Path != "" || u.RawQuery != "" || u.Fragment != "":
		return "", fmt.Errorf("read the Profile's endpoint %q: want host, host:port or a URL without path", s)
	}
	host := strings.ToLower(u.Hostname())
	switch port := u.Port(); {
	case port != "":
		host = net.JoinHostPort(host, port)
	case strings.Contains(host, ":"):
		host = "[" + host + "]"
	}
	if u.Scheme == "http" {
		return "http://" + host, nil
	}
	return host, nil
}

// defaultS3Endpoint is Kanister's meaning of an empty endpoint.
const defaultS3Endpoint = "s3.amazonaws.com"

// dialEndpoint is a normal endpoint as the server's S3 client wants it.
func dialEndpoint(normal string) (host string, plain bool) {
	if normal == "" {
		return defaultS3Endpoint, false
	}
	host, plain = strings.CutPrefix(normal, "http://")
	return host, plain
}
