// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"crypto/rand"
	"fmt"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// The sample S3 endpoint of manifests/samples/s3.
const (
	S3Namespace = "s3"
	S3Endpoint  = "https://s3.s3.svc:9000"
	S3Bucket    = "backups"
)

// Keys of a bucket.
type Keys struct {
	Access, Secret string
}

// StartS3 brings the sample S3 endpoint up and returns the keys of its bucket.
func (c *Cluster) StartS3(ctx context.Context) (Keys, error) {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: S3Namespace}}
	if err := c.Create(ctx, ns); err != nil && !apierrors.IsAlreadyExists(err) {
		return Keys{}, fmt.Errorf("make namespace %s: %w", S3Namespace, err)
	}
	root := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: S3Namespace, Name: "s3-root"},
		StringData: map[string]string{"access-key": rand.Text()[:20], "secret-key": rand.Text() + rand.Text()},
	}
	if err := c.Create(ctx, root); err != nil && !apierrors.IsAlreadyExists(err) {
		return Keys{}, fmt.Errorf("make the keys of the S3 endpoint: %w", err)
	}
	if err := c.Get(ctx, client.ObjectKeyFromObject(root), root); err != nil {
		return Keys{}, fmt.Errorf("read the keys of the S3 endpoint: %w", err)
	}
	if _, err := c.Kubectl(ctx, "apply", "-k", filepath.Join(c.Root, "manifests/samples/s3")); err != nil {
		return Keys{}, err
	}
	if err := c.Rollout(ctx, S3Namespace, "deployment/s3"); err != nil {
		return Keys{}, err
	}
	return Keys{Access: string(root.Data["access-key"]), Secret: string(root.Data["secret-key"])}, nil
}

// PutProfile makes a Profile for the sample bucket, with its Secret and the
// endpoint's CA, all in the control-plane namespace.
func (c *Cluster) PutProfile(ctx context.Context, name string, keys Keys, prefix string) error {
	var tls corev1.Secret
	if err := c.Get(ctx, client.ObjectKey{Namespace: S3Namespace, Name: "s3-tls"}, &tls); err != nil {
		return fmt.Errorf("read the CA of the S3 endpoint: %w", err)
	}
	objects := []client.Object{
		&corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: names.ControlPlaneNamespace, Name: name + "-s3-ca"},
			Data:       map[string]string{names.CAKey: string(tls.Data["ca.crt"])},
		},
		&corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: names.ControlPlaneNamespace, Name: name + "-s3-keys"},
			StringData: map[string]string{"aws_access_key_id": keys.Access, "aws_secret_access_key": keys.Secret},
		},
		&crv1alpha1.Profile{
			ObjectMeta: metav1.ObjectMeta{
				Namespace:   names.ControlPlaneNamespace,
				Name:        name,
				Annotations: map[string]string{names.Group + "/ca-configmap": name + "-s3-ca"},
			},
			Location: crv1alpha1.Location{
				Type: crv1alpha1.LocationTypeS3Compliant, Bucket: S3Bucket,
				Endpoint: S3Endpoint, Prefix: prefix, Region: "us-east-1",
			},
			Credential: crv1alpha1.Credential{
				Type: crv1alpha1.CredentialTypeKeyPair,
				KeyPair: &crv1alpha1.KeyPair{
					IDField: "aws_access_key_id", SecretField: "aws_secret_access_key",
					Secret: crv1alpha1.ObjectReference{Namespace: names.ControlPlaneNamespace, Name: name + "-s3-keys"},
				},
			},
		},
	}
	for _, obj := range objects {
		if err := c.Put(ctx, obj); err != nil {
			return fmt.Errorf("put %T %s: %w", obj, obj.GetName(), err)
		}
	}
	return nil
}
