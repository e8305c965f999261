// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/param"
)

// ErrWrongKey is a repository that is there, but with another encryptionKey.
var ErrWrongKey = errors.New("the repository has another encryptionKey")

// OpenExisting is Open for a repository that must be there: ErrNotFound if the
// namespace has none at the Profile's location, ErrWrongKey if it has one with
// another key.
func (m *Manager) OpenExisting(ctx context.Context, ref Ref) (*Repository, error) {
	r, err := m.resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	if r.shared {
		return m.start(ctx, &Repository{id: r.id, tenant: r.tenant, ref: ref, key: r.key})
	}
	var servers kopiav1alpha1.RepositoryServerList
	if err := m.Client.List(ctx, &servers, client.InNamespace(m.Namespace)); err != nil {
		return nil, fmt.Errorf("list RepositoryServers: %w", err)
	}
	other := false
	for i := range servers.Items {
		rs := &servers.Items[i]
		if isUnmade(rs) {
			continue
		}
		if rs.Name == r.id || sameRepository(rs, r.server(m.Namespace)) {
			return m.start(ctx, &Repository{id: rs.Name, tenant: r.tenant, ref: ref, key: r.key})
		}
		if rs.Spec.Tenant == nil || *rs.Spec.Tenant != r.tenant {
			continue
		}
		// The same place but for the key.
		at, err := storageOf(ref.Profile, r.tenant, rs.Spec.KeyID)
		other = other || err == nil && repositoryID(at, r.tenant, rs.Spec.KeyID) == rs.Name
	}
	if other {
		return nil, fmt.Errorf("repository of namespace %s: %w", ref.Namespace, ErrWrongKey)
	}
	return nil, fmt.Errorf("repository of namespace %s: %w", ref.Namespace, ErrNotFound)
}

// tenantOf is whose repository it is; nobody's, if it is shared.
func tenantOf(rs *kopiav1alpha1.RepositoryServer) kopiav1alpha1.Tenant {
	if rs.Spec.Tenant == nil {
		return kopiav1alpha1.Tenant{}
	}
	return *rs.Spec.Tenant
}

// isUnmade says that the server of a repository that is made on demand has never come up:
// there is nothing to look at, and starting it would make it. A shared one is somebody's
// wish: whoever comes first makes it.
func isUnmade(rs *kopiav1alpha1.RepositoryServer) bool {
	return rs.Spec.Tenant != nil && rs.Spec.External == nil && rs.Status.Initialized == nil
}

// OpenID opens a repository by its id. ErrWrongKey if ref's key is not its, ErrNotFound if
// it was never made.
func (m *Manager) OpenID(ctx context.Context, id string, ref Ref) (*Repository, error) {
	var rs kopiav1alpha1.RepositoryServer
	if err := m.Client.Get(ctx, client.ObjectKey{Namespace: m.Namespace, Name: id}, &rs); apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("repository %s: %w", id, ErrNotFound)
	} else if err != nil {
		return nil, fmt.Errorf("read RepositoryServer %s: %w", id, err)
	}
	if isUnmade(&rs) {
		return nil, fmt.Errorf("repository %s: %w: its server has never come up", id, ErrNotFound)
	}
	tenant := tenantOf(&rs)
	k, err := deriveKey(ref.EncryptionKey, tenant)
	if err != nil {
		return nil, err
	}
	if k.id != rs.Spec.KeyID {
		return nil, fmt.Errorf("repository %s: %w", id, ErrWrongKey)
	}
	return m.start(ctx, &Repository{id: id, tenant: tenant, ref: ref, key: k})
}

// At lists the ids of the repositories at a Profile's location: in its bucket, and
// below its prefix, but for those that were never made. Shared ones of that bucket come by
// themselves: they are nobody's to delete from by their place.
func (m *Manager) At(ctx context.Context, profile *param.Profile) (ids, shared []string, err error) {
	var servers kopiav1alpha1.RepositoryServerList
	if err := m.Client.List(ctx, &servers, client.InNamespace(m.Namespace)); err != nil {
		return nil, nil, fmt.Errorf("list RepositoryServers: %w", err)
	}
	for i := range servers.Items {
		rs := &servers.Items[i]
		at, err := storageOf(profile, tenantOf(rs), rs.Spec.KeyID)
		if err != nil {
			return nil, nil, err
		}
		have, want := locationOf(rs.Spec.Storage), locationOf(at)
		switch {
		case !have.samePlace(want) || isUnmade(rs):
		case rs.Spec.Tenant == nil:
			shared = append(shared, rs.Name)
		case have.prefix == want.prefix:
			ids = append(ids, rs.Name)
		}
	}
	return ids, shared, nil
}
