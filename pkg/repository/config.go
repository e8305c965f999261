// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"encoding/json"
	"fmt"
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
	AllowCreate  bool          `json:"allowCreate"`
}

type storageConfig struct {
	Type            string `json:"type"`
	Bucket          string `json:"bucket"`
	Endpoint        string `json:"endpoint"`
	Prefix          string `json:"prefix"`
	Region          string `json:"region,omitempty"`
	AccessKeyID     string `json:"accessKeyID"`
	SecretAccessKey string `json:"secretAccessKey"`
	CABundle        string `json:"caBundle,omitempty"`
	InsecureTLS     bool   `json:"insecureTLS,omitempty"`
	DisableTLS      bool   `json:"disableTLS,omitempty"`
}

// access is what a Profile adds to a RepositoryServer's storage.
type access struct {
	keys        s3Keys
	caBundle    []byte
	insecureTLS bool
}

// buildConfig is the server's configuration.
func buildConfig(rs *kopiav1alpha1.RepositoryServer, a access, password string) serverConfig {
	s3 := rs.Spec.Storage.S3
	endpoint, plain := dialEndpoint(s3.Endpoint)
	return serverConfig{
		Storage: storageConfig{
			Type:            "s3",
			Bucket:          s3.Bucket,
			Endpoint:        endpoint,
			Prefix:          s3.Prefix,
			Region:          s3.Region,
			AccessKeyID:     a.keys.AccessKeyID,
			SecretAccessKey: a.keys.SecretAccessKey,
			CABundle:        string(a.caBundle),
			InsecureTLS:     a.insecureTLS,
			DisableTLS:      plain,
		},
		Password:     password,
		RepositoryID: rs.Name,
		// Only a repository that was never seen ready may be made.
		AllowCreate: rs.Status.Initialized == nil,
	}
}

// buildConfigSecret holds the server's configuration, for its pod only.
func buildConfigSecret(rs *kopiav1alpha1.RepositoryServer, c serverConfig, revision string) (*corev1.Secret, error) {
	data, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode the configuration of repository %s: %w", rs.Name, err)
	}
	meta := ownedMeta(rs, rs.Name+"-config")
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
// with new. That the repository may no longer be created needs no new pod.
func needsRestart(old, new serverConfig) bool {
	old.AllowCreate = new.AllowCreate
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
