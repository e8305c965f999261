// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/pkg/param"
)

// Ref says which repository a function means.
type Ref struct {
	Profile *param.Profile
	// Namespace is the application's.
	Namespace string
	// EncryptionKey of the function; nil if the argument is absent.
	EncryptionKey *string
	// InsecureTLS accepts any certificate of the object store, as does the
	// Profile's skipSSLVerify.
	InsecureTLS bool
}

// resolved is the repository that a Ref means. It need not be there.
type resolved struct {
	id     string
	tenant kopiav1alpha1.Tenant
	key    key
	// shared: the namespace asks for one by name. Otherwise it is the one at storage.
	shared  bool
	storage kopiav1alpha1.Storage
}

// server is the RepositoryServer of one that is not shared.
func (r resolved) server(namespace string) *kopiav1alpha1.RepositoryServer {
	return &kopiav1alpha1.RepositoryServer{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace,
			Name:      r.id,
			Labels: map[string]string{
				names.ManagedByLabel:  names.ManagedByValue,
				names.RepositoryLabel: r.id,
			},
		},
		Spec: kopiav1alpha1.RepositoryServerSpec{Storage: r.storage, Tenant: &r.tenant, KeyID: r.key.id},
	}
}

// resolve says which repository a call means: the one that its namespace shares, but
// for calls with an encryptionKey (another key is another repository); else the one
// of the namespace and the key at the Profile's location.
func (m *Manager) resolve(ctx context.Context, ref Ref) (resolved, error) {
	ns, tenant, err := m.tenant(ctx, ref.Namespace)
	if err != nil {
		return resolved{}, err
	}
	if name := ns.Annotations[names.RepositoryAnnotation]; name != "" && ref.EncryptionKey == nil {
		if err := m.mayShare(ctx, name, ref); err != nil {
			return resolved{}, fmt.Errorf("use RepositoryServer %s, which namespace %s asks for: %w", name, ref.Namespace, err)
		}
		return resolved{id: name, tenant: tenant, key: key{id: DefaultKeyID}, shared: true}, nil
	}
	k, err := deriveKey(ref.EncryptionKey, tenant)
	if err != nil {
		return resolved{}, err
	}
	storage, err := storageOf(ref.Profile, tenant, k.id)
	if err != nil {
		return resolved{}, err
	}
	return resolved{id: repositoryID(storage, tenant, k.id), tenant: tenant, key: k, storage: storage}, nil
}

// mayShare checks the other side's consent: the namespace asked with its annotation,
// the RepositoryServer must list it.
func (m *Manager) mayShare(ctx context.Context, name string, ref Ref) error {
	var rs kopiav1alpha1.RepositoryServer
	if err := m.Client.Get(ctx, client.ObjectKey{Namespace: m.Namespace, Name: name}, &rs); apierrors.IsNotFound(err) {
		return fmt.Errorf("namespace %s has no such RepositoryServer: make it, or remove the annotation %s", m.Namespace, names.RepositoryAnnotation)
	} else if err != nil {
		return err
	}
	if !slices.Contains(rs.Spec.Namespaces, ref.Namespace) {
		return fmt.Errorf("its spec.namespaces does not list the namespace: whoever runs the control plane may add it, or remove the annotation %s", names.RepositoryAnnotation)
	}
	return checkPlace(&rs, ref.Profile)
}

// tenant reads who a namespace is.
func (m *Manager) tenant(ctx context.Context, namespace string) (*corev1.Namespace, kopiav1alpha1.Tenant, error) {
	cluster, err := m.clusterID(ctx)
	if err != nil {
		return nil, kopiav1alpha1.Tenant{}, err
	}
	ns, err := m.namespace(ctx, namespace)
	if err != nil {
		return nil, kopiav1alpha1.Tenant{}, err
	}
	return ns, kopiav1alpha1.Tenant{ClusterID: cluster, Namespace: namespace, NamespaceUID: string(ns.UID)}, nil
}

func (m *Manager) clusterID(ctx context.Context) (string, error) {
	m.mu.Lock()
	id := m.cluster
	m.mu.Unlock()
	if id != "" {
		return id, nil
	}
	ns, err := m.namespace(ctx, metav1.NamespaceSystem)
	if err != nil {
		return "", err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cluster = string(ns.UID)
	return m.cluster, nil
}

func (m *Manager) namespace(ctx context.Context, name string) (*corev1.Namespace, error) {
	var ns corev1.Namespace
	if err := m.Client.Get(ctx, client.ObjectKey{Name: name}, &ns); err != nil {
		return nil, fmt.Errorf("read namespace %s: %w", name, err)
	}
	return &ns, nil
}
