// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"encoding/json"
	"fmt"
	"path"
	"reflect"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// configKey is the file of the config Secret; the repository server reads it.
const configKey = "config.json"

// revisionAnnotation on the config Secret and the server's pods: a new value
// means a new pod. It is random, so that nothing about the keys shows in it.
const revisionAnnotation = names.Group + "/revision"

// serverConfig is the file that the repository server reads. It mirrors that
// binary's own type, which cannot be imported here: it would link Kopia.
type serverConfig struct {
	Storage      storageConfig `json:"storage"`
	Password     string        `json:"password"`
	RepositoryID string        `json:"repositoryID"`
	Replaces     string        `json:"replaces,omitempty"`
	AllowCreate  bool          `json:"allowCreate"`
	Format       formatConfig  `json:"format,omitzero"`
	External     *externalUser `json:"external,omitempty"`
}

type formatConfig struct {
	Splitter       string `json:"splitter,omitempty"`
	ObjectLockMode string `json:"objectLockMode,omitempty"`
	ObjectLock     string `json:"objectLock,omitempty"`
}

// externalUser is a user of somebody else's server.
type externalUser struct {
	URL      string `json:"url"`
	CA       string `json:"ca"`
	Username string `json:"username"`
	Hostname string `json:"hostname"`
	Password string `json:"password"`
}

type storageConfig struct {
	Type     string `json:"type"`
	Bucket   string `json:"bucket,omitempty"`
	Endpoint string `json:"endpoint,omitempty"`
	Prefix   string `json:"prefix,omitempty"`
	Region   string `json:"region,omitempty"`
	Path     string `json:"path,omitempty"`
	storageKeys
	CABundle    string `json:"caBundle,omitempty"`
	InsecureTLS bool   `json:"insecureTLS,omitempty"`
	DisableTLS  bool   `json:"disableTLS,omitempty"`
}

// access is what a Profile adds to a RepositoryServer's storage.
type access struct {
	keys        storageKeys
	caBundle    []byte
	insecureTLS bool
}

// claimDir is where a filesystem storage's claim is mounted.
const claimDir = "/var/lib/repository"

// buildConfig is the server's configuration.
func buildConfig(rs *kopiav1alpha1.RepositoryServer, a access, password string) serverConfig {
	c := serverConfig{
		Storage:      storageConfig{storageKeys: a.keys, CABundle: string(a.caBundle), InsecureTLS: a.insecureTLS},
		Password:     password,
		RepositoryID: rs.Name,
		Replaces:     rs.Annotations[names.ReplacesAnnotation],
		// Only a repository that was never seen ready may be made.
		AllowCreate: rs.Status.Initialized == nil,
	}
	switch s := rs.Spec.Storage; {
	case s.S3 != nil:
		endpoint, plain := dialEndpoint(s.S3.Endpoint)
		c.Storage.Type, c.Storage.Bucket, c.Storage.Prefix = "s3", s.S3.Bucket, s.S3.Prefix
		c.Storage.Endpoint, c.Storage.DisableTLS, c.Storage.Region = endpoint, plain, s.S3.Region
	case s.GCS != nil:
		c.Storage.Type, c.Storage.Bucket, c.Storage.Prefix = "gcs", s.GCS.Bucket, s.GCS.Prefix
	case s.Azure != nil:
		c.Storage.Type, c.Storage.Bucket, c.Storage.Prefix = "azure", s.Azure.Container, s.Azure.Prefix
	case s.Filesystem != nil:
		c.Storage = storageConfig{Type: "filesystem", Path: path.Join(claimDir, path.Join("/", s.Filesystem.Path))}
	}
	if f := rs.Spec.Format; f != nil {
		c.Format.Splitter = f.Splitter
		if f.ObjectLock != nil {
			c.Format.ObjectLockMode, c.Format.ObjectLock = f.ObjectLock.Mode, f.ObjectLock.Period.Duration.String()
		}
	}
	return c
}

func configSecretName(rs *kopiav1alpha1.RepositoryServer) string { return rs.Name + "-config" }

// buildConfigSecret holds the server's configuration, for its pod only.
func buildConfigSecret(rs *kopiav1alpha1.RepositoryServer, c serverConfig, revision string) (*corev1.Secret, error) {
	data, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode the configuration of repository %s: %w", rs.Name, err)
	}
	meta := ownedMeta(rs, configSecretName(rs))
	meta.Annotations = map[string]string{revisionAnnotation: revision}
	return &corev1.Secret{ObjectMeta: meta, Type: corev1.SecretTypeOpaque, Data: map[string][]byte{configKey: data}}, nil
}

// parseConfigSecret reads it back.
func parseConfigSecret(s *corev1.Secret) (serverConfig, string, error) {
	var c serverConfig
	if err := json.Unmarshal(s.Data[configKey], &c); err != nil {
		// The text of the error could quote the file.
		return serverConfig{}, "", fmt.Errorf("read Secret %s: %s is not valid JSON: delete the Secret, it is made again", s.Name, configKey)
	}
	return c, s.Annotations[revisionAnnotation], nil
}

// needsRestart says whether a server that runs with old must be replaced to run
// with new. That the repository may no longer be created, or whose it was, needs no new pod.
func needsRestart(old, new serverConfig) bool {
	old.AllowCreate, old.Replaces = new.AllowCreate, new.Replaces
	return !reflect.DeepEqual(old, new)
}

// buildPasswordSecret keeps a generated password. It has no owner: whoever
// deletes the RepositoryServer keeps the key to the data. It is immutable:
// another password could not open the repository.
func buildPasswordSecret(rs *kopiav1alpha1.RepositoryServer, password string) *corev1.Secret {
	immutable := true
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: rs.Namespace, Name: passwordSecretName(rs), Labels: labels(rs)},
		Type:       corev1.SecretTypeOpaque,
		Immutable:  &immutable,
		Data:       map[string][]byte{passwordKey: []byte(password)},
	}
}

const passwordKey = "password"

func passwordSecretName(rs *kopiav1alpha1.RepositoryServer) string { return rs.Name + "-password" }

// component is the value of names.ComponentLabel.
const component = "repository-server"

func labels(rs *kopiav1alpha1.RepositoryServer) map[string]string {
	return map[string]string{
		names.ManagedByLabel:  names.ManagedByValue,
		names.ComponentLabel:  component,
		names.RepositoryLabel: rs.Name,
	}
}

// ownedMeta is the metadata of an object that goes with its RepositoryServer.
func ownedMeta(rs *kopiav1alpha1.RepositoryServer, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: rs.Namespace,
		Name:      name,
		Labels:    labels(rs),
		OwnerReferences: []metav1.OwnerReference{
			*metav1.NewControllerRef(rs, kopiav1alpha1.GroupVersion.WithKind("RepositoryServer")),
		},
	}
}
