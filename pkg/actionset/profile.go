// SPDX-License-Identifier: Apache-2.0

package actionset

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/pkg/param"
)

// CAConfigMapAnnotation on a Profile names a ConfigMap beside it whose key ca.crt
// is trusted for the Profile's endpoint. Kanister does not have it.
const CAConfigMapAnnotation = names.Group + "/ca-configmap"

// resolveProfile reads a Profile with its credentials.
func resolveProfile(ctx context.Context, c client.Reader, ref *crv1alpha1.ObjectReference) (*param.Profile, error) {
	if ref == nil {
		return nil, nil
	}
	var p crv1alpha1.Profile
	if err := c.Get(ctx, client.ObjectKey{Namespace: ref.Namespace, Name: ref.Name}, &p); err != nil {
		return nil, fmt.Errorf("read Profile %s/%s: %w", ref.Namespace, ref.Name, err)
	}
	credential, err := resolveCredential(ctx, c, p.Credential)
	if err != nil {
		return nil, fmt.Errorf("read credentials of Profile %s/%s: %w", ref.Namespace, ref.Name, err)
	}
	out := &param.Profile{
		Location: param.Location{
			Type: p.Location.Type, Bucket: p.Location.Bucket, Endpoint: p.Location.Endpoint,
			Prefix: p.Location.Prefix, Region: p.Location.Region,
		},
		Credential:    credential,
		SkipSSLVerify: p.SkipSSLVerify,
	}
	if name := p.Annotations[CAConfigMapAnnotation]; name != "" {
		var cm corev1.ConfigMap
		if err := c.Get(ctx, client.ObjectKey{Namespace: p.Namespace, Name: name}, &cm); err != nil {
			return nil, fmt.Errorf("read the CA of Profile %s/%s: %w", ref.Namespace, ref.Name, err)
		}
		if cm.Data[names.CAKey] == "" {
			return nil, fmt.Errorf("read the CA of Profile %s/%s: ConfigMap %s has no key %s", ref.Namespace, ref.Name, name, names.CAKey)
		}
		out.CABundle = []byte(cm.Data[names.CAKey])
	}
	return out, nil
}

func resolveCredential(ctx context.Context, c client.Reader, in crv1alpha1.Credential) (param.Credential, error) {
	out := param.Credential{Type: in.Type}
	switch in.Type {
	case crv1alpha1.CredentialTypeKeyPair:
		if in.KeyPair == nil {
			return out, errors.New("KeyPair cannot be empty") // Kanister's text
		}
		secret, err := readSecret(ctx, c, in.KeyPair.Secret)
		if err != nil {
			return out, err
		}
		id, err := valueOf(secret, in.KeyPair.IDField)
		if err != nil {
			return out, err
		}
		key, err := valueOf(secret, in.KeyPair.SecretField)
		if err != nil {
			return out, err
		}
		out.KeyPair = &param.KeyPair{ID: id, Secret: key}
		return out, nil
	case crv1alpha1.CredentialTypeSecret:
		if in.Secret == nil {
			return out, errors.New("Secret cannot be empty") // Kanister's text
		}
		secret, err := readSecret(ctx, c, *in.Secret)
		out.Secret = secret
		return out, err
	case crv1alpha1.CredentialTypeKopia:
		ks := in.KopiaServerSecret
		switch {
		case ks == nil:
			return out, errors.New("Kopia Secret reference cannot be nil") // Kanister's text
		case ks.UserPassphrase.Secret == nil:
			return out, errors.New("Kopia UserPassphrase Secret reference cannot be nil") // Kanister's text
		case ks.TLSCert.Secret == nil:
			return out, errors.New("Kopia TLS cert Secret reference cannot be nil") // Kanister's text
		}
		password, err := readValue(ctx, c, ks.UserPassphrase)
		if err != nil {
			return out, err
		}
		cert, err := readValue(ctx, c, ks.TLSCert)
		out.KopiaServerSecret = &param.KopiaServerCreds{
			Username: ks.Username, Hostname: ks.Hostname, Password: password, Cert: cert, ConnectOptions: ks.ConnectOptions,
		}
		return out, err
	default:
		return out, fmt.Errorf("Unsupported type '%s' for credentials", in.Type) // Kanister's text
	}
}

// valueOf is a key of a Secret; it may be empty.
func valueOf(s *corev1.Secret, key string) (string, error) {
	v, ok := s.Data[key]
	if !ok {
		return "", fmt.Errorf("Key '%s' not found in secret '%s:%s'", key, s.Namespace, s.Name) // Kanister's text
	}
	return string(v), nil
}

func readValue(ctx context.Context, c client.Reader, ref crv1alpha1.KopiaServerSecretRef) (string, error) {
	s, err := readSecret(ctx, c, *ref.Secret)
	if err != nil {
		return "", err
	}
	return valueOf(s, ref.Key)
}

func readSecret(ctx context.Context, c client.Reader, ref crv1alpha1.ObjectReference) (*corev1.Secret, error) {
	var s corev1.Secret
	if err := c.Get(ctx, client.ObjectKey{Namespace: ref.Namespace, Name: ref.Name}, &s); err != nil {
		return nil, fmt.Errorf("read Secret %s/%s: %w", ref.Namespace, ref.Name, err)
	}
	return &s, nil
}

func readConfigMap(ctx context.Context, c client.Reader, ref crv1alpha1.ObjectReference) (*corev1.ConfigMap, error) {
	var m corev1.ConfigMap
	if err := c.Get(ctx, client.ObjectKey{Namespace: ref.Namespace, Name: ref.Name}, &m); err != nil {
		return nil, fmt.Errorf("read ConfigMap %s/%s: %w", ref.Namespace, ref.Name, err)
	}
	return &m, nil
}
