// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"

	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/pkg/param"
)

// storageKeys reach a bucket; all but the names are secret. Only the fields of one
// kind of storage are set.
type storageKeys struct {
	AccessKeyID     string `json:"accessKeyID,omitempty"`
	SecretAccessKey string `json:"secretAccessKey,omitempty"`
	SessionToken    string `json:"sessionToken,omitempty"`
	// RoleARN is assumed with the keys; Kopia renews it by itself.
	RoleARN string `json:"roleARN,omitempty"`

	// ServiceAccount is the JSON of a Google service account.
	ServiceAccount string `json:"serviceAccount,omitempty"`

	StorageAccount string `json:"storageAccount,omitempty"`
	StorageKey     string `json:"storageKey,omitempty"`
	StorageDomain  string `json:"storageDomain,omitempty"`
}

// Kanister's types of Secrets with credentials.
const (
	awsSecretType   = "secrets.kanister.io/aws"
	gcpSecretType   = "secrets.kanister.io/gcp"
	azureSecretType = "secrets.kanister.io/azure"
)

// secretFields of the types whose other fields Kanister refuses: a misspelled role would
// be no role.
var secretFields = map[string][]string{
	awsSecretType:   {"aws_access_key_id", "aws_secret_access_key", "role", "aws_session_token"}, // the last is ours
	azureSecretType: {"azure_storage_account_id", "azure_storage_key", "azure_storage_environment"},
}

// azureDomains are where the environments that Kanister's Secrets name keep blobs.
var azureDomains = map[string]string{
	"":                       "blob.core.windows.net",
	"AzurePublicCloud":       "blob.core.windows.net",
	"AzureUSGovernmentCloud": "blob.core.usgovcloudapi.net",
	"AzureChinaCloud":        "blob.core.chinacloudapi.cn",
}

// bucketOrExternal is what to do where a Profile is of a Kopia server: Blueprints may
// hand it to kando, functions have no use for it.
const bucketOrExternal = "give the action a Profile of the bucket and its keys, or make the server a RepositoryServer with spec.external " +
	"and let the namespace ask for it with the annotation " + names.RepositoryAnnotation

// keysOf takes a Profile's credentials. Error texts for missing parts are Kanister's.
func keysOf(p *param.Profile) (storageKeys, error) {
	if p == nil {
		return storageKeys{}, errors.New("Profile must be non-nil") // Kanister's text
	}
	secretType := map[param.LocationType]string{param.LocationTypeGCS: gcpSecretType, param.LocationTypeAzure: azureSecretType}[p.Location.Type]
	if secretType == "" {
		secretType = awsSecretType
	}
	var id, secret, role, token, environment string
	switch c := p.Credential; c.Type {
	case param.CredentialTypeKeyPair:
		if c.KeyPair == nil {
			return storageKeys{}, errors.New("Empty KeyPair field") // Kanister's text
		}
		id, secret = c.KeyPair.ID, c.KeyPair.Secret
	case param.CredentialTypeSecret:
		if c.Secret == nil || string(c.Secret.Type) != secretType {
			return storageKeys{}, fmt.Errorf("read the Profile's credentials: a location of type %s needs a Secret of type %s, or credential type keyPair", p.Location.Type, secretType)
		}
		for key := range c.Secret.Data {
			if known := secretFields[secretType]; known != nil && !slices.Contains(known, key) {
				return storageKeys{}, fmt.Errorf("Secret has an unknown field %q: a Secret of type %s has %s", key, secretType, strings.Join(known, ", ")) // Kanister's text, and which
			}
		}
		get := func(key string) string { return string(c.Secret.Data[key]) }
		switch secretType {
		case awsSecretType:
			id, secret, role, token = get("aws_access_key_id"), get("aws_secret_access_key"), get("role"), get("aws_session_token")
		case gcpSecretType:
			id, secret = get("gcp_project_id"), get("service-account.json")
		default:
			id, secret, environment = get("azure_storage_account_id"), get("azure_storage_key"), get("azure_storage_environment")
		}
	case param.CredentialTypeKopia:
		return storageKeys{}, fmt.Errorf("Unsupported type 'kopia' for credentials: %s", bucketOrExternal) // Kanister's text, and the way out
	default:
		return storageKeys{}, fmt.Errorf("Unsupported type '%s' for credentials", c.Type) // Kanister's text
	}
	switch {
	case id == "" && secretType != gcpSecretType: // the project is of no use here
		return storageKeys{}, errors.New("Access key ID is not set") // Kanister's text
	case secret == "":
		return storageKeys{}, errors.New("Secret access key is not set") // Kanister's text
	}
	switch secretType {
	case gcpSecretType:
		if !json.Valid([]byte(secret)) {
			return storageKeys{}, errors.New("read the Profile's credentials: the service account is not JSON")
		}
		return storageKeys{ServiceAccount: secret}, nil
	case azureSecretType:
		domain, ok := azureDomains[environment]
		if !ok {
			return storageKeys{}, fmt.Errorf("read the Profile's credentials: azure_storage_environment %q is not one of AzurePublicCloud, AzureUSGovernmentCloud, AzureChinaCloud", environment)
		}
		return storageKeys{StorageAccount: id, StorageKey: secret, StorageDomain: domain}, nil
	}
	return storageKeys{AccessKeyID: id, SecretAccessKey: secret, SessionToken: token, RoleARN: role}, nil
}

// storageOf is the storage of a tenant's repository at a Profile's location.
func storageOf(p *param.Profile, t kopiav1alpha1.Tenant, keyID string) (kopiav1alpha1.Storage, error) {
	if p == nil {
		return kopiav1alpha1.Storage{}, errors.New("Profile must be non-nil") // Kanister's text
	}
	l := p.Location
	switch l.Type {
	case param.LocationTypeS3Compliant, param.LocationTypeGCS, param.LocationTypeAzure:
	case param.LocationTypeKopia:
		return kopiav1alpha1.Storage{}, fmt.Errorf("Unsupported type 'kopia' for the location: %s", bucketOrExternal) // Kanister's text, and the way out
	default:
		return kopiav1alpha1.Storage{}, errors.New("Location type not supported") // Kanister's text
	}
	if l.Bucket == "" {
		return kopiav1alpha1.Storage{}, errors.New("read the Profile's location: bucket is not set")
	}
	prefix := storagePrefix(l.Prefix, t, keyID)
	switch l.Type {
	case param.LocationTypeGCS:
		return kopiav1alpha1.Storage{GCS: &kopiav1alpha1.GCSStorage{Bucket: l.Bucket, Prefix: prefix}}, nil
	case param.LocationTypeAzure:
		keys, err := keysOf(p) // a container is of an account
		if err != nil {
			return kopiav1alpha1.Storage{}, err
		}
		return kopiav1alpha1.Storage{Azure: &kopiav1alpha1.AzureStorage{
			Account: keys.StorageAccount, Domain: keys.StorageDomain, Container: l.Bucket, Prefix: prefix,
		}}, nil
	}
	endpoint, err := normalEndpoint(l.Endpoint)
	if err != nil {
		return kopiav1alpha1.Storage{}, err
	}
	return kopiav1alpha1.Storage{S3: &kopiav1alpha1.S3Storage{Bucket: l.Bucket, Endpoint: endpoint, Prefix: prefix, Region: l.Region}}, nil
}

// checkPlace says whether a Profile is of the bucket that a repository is in. A
// repository on a claim or of an external server needs no bucket.
func checkPlace(rs *kopiav1alpha1.RepositoryServer, p *param.Profile) error {
	have := locationOf(rs.Spec.Storage)
	if rs.Spec.External != nil || rs.Spec.Storage.Filesystem != nil {
		return nil
	}
	s, err := storageOf(p, kopiav1alpha1.Tenant{}, DefaultKeyID)
	if err != nil {
		return err
	}
	if want := locationOf(s); !have.samePlace(want) {
		return fmt.Errorf("%w in bucket %s of the Profile", ErrNotFound, p.Location.Bucket)
	}
	return nil
}

// normalEndpoint gives every way to write one endpoint one form: "", "host[:port]"
// for https, "http://host[:port]" for plain text, without the port that goes without
// saying. Kanister trims trailing slashes.
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
	case port != "" && port != map[string]string{"https": "443", "http": "80"}[u.Scheme]:
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

// dialEndpoint is an endpoint as the server's S3 client wants it.
func dialEndpoint(endpoint string) (host string, plain bool) {
	normal, err := normalEndpoint(endpoint)
	if err != nil {
		normal = endpoint // a hand-written one: the client says what is wrong with it
	}
	if normal == "" {
		return defaultS3Endpoint, false
	}
	host, plain = strings.CutPrefix(normal, "http://")
	return host, plain
}
