// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// keysVersion is raised when an older Import would misread a file.
const keysVersion = 1

// Keys are what another cluster needs besides the bucket, and the Blueprints'
// encryptionKeys where there are any. They hold passwords.
type Keys struct {
	Version      int             `json:"version"`
	Repositories []RepositoryKey `json:"repositories"`
}

// RepositoryKey is one repository.
type RepositoryKey struct {
	Name string                             `json:"name"`
	Spec kopiav1alpha1.RepositoryServerSpec `json:"spec"`
	// Password is empty if the repository's key is a Blueprint's encryptionKey.
	Password string `json:"password,omitempty"`
	// Initialized is when it was first seen ready; such a one is never made anew.
	Initialized *metav1.Time `json:"initialized,omitempty"`
}

// ExportKeys reads the keys of all repositories of a control plane. One that was
// never used has none and is left out.
func ExportKeys(ctx context.Context, c client.Client, namespace string) (Keys, error) {
	var list kopiav1alpha1.RepositoryServerList
	if err := c.List(ctx, &list, client.InNamespace(namespace)); err != nil {
		return Keys{}, fmt.Errorf("export keys: list RepositoryServers: %w", err)
	}
	out := Keys{Version: keysVersion}
	for i := range list.Items {
		rs := &list.Items[i]
		if rs.Spec.External != nil || rs.Status.Initialized == nil {
			continue
		}
		k := RepositoryKey{Name: rs.Name, Spec: rs.Spec, Initialized: rs.Status.Initialized}
		if rs.Spec.KeyID == DefaultKeyID {
			var s corev1.Secret
			if err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: passwordSecretName(rs)}, &s); err != nil {
				return Keys{}, fmt.Errorf("export keys: read the password of repository %s: %w", rs.Name, err)
			}
			if k.Password = string(s.Data[passwordKey]); k.Password == "" {
				return Keys{}, fmt.Errorf("export keys: Secret %s has no key %s", s.Name, passwordKey)
			}
		}
		out.Repositories = append(out.Repositories, k)
	}
	return out, nil
}

// LeftPasswords names the Secrets with passwords of RepositoryServers that were deleted.
// ExportKeys has none of them: nothing says any more where their repositories are.
func LeftPasswords(ctx context.Context, c client.Client, namespace string) ([]string, error) {
	// Names only: what else the Secrets of that namespace hold is nobody's business here.
	var secrets metav1.PartialObjectMetadataList
	secrets.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("SecretList"))
	ours := client.MatchingLabels{names.ManagedByLabel: names.ManagedByValue, names.ComponentLabel: component}
	if err := c.List(ctx, &secrets, client.InNamespace(namespace), ours); err != nil {
		return nil, fmt.Errorf("look for passwords of deleted RepositoryServers: list Secrets: %w", err)
	}
	var left []string
	for _, s := range secrets.Items {
		rs := kopiav1alpha1.RepositoryServer{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: s.Labels[names.RepositoryLabel]}}
		if s.Name != passwordSecretName(&rs) {
			continue
		}
		// After the list, one by one: a RepositoryServer may be made meanwhile.
		err := c.Get(ctx, client.ObjectKeyFromObject(&rs), &rs)
		if apierrors.IsNotFound(err) {
			left = append(left, s.Name)
		} else if err != nil {
			return nil, fmt.Errorf("look for passwords of deleted RepositoryServers: read RepositoryServer %s: %w", rs.Name, err)
		}
	}
	return left, nil
}

// ImportKeys makes what Keys describe where it is missing, and returns the names of
// what it made. What is there as another repository, or with another password, is an
// error: nothing is overwritten. Maintenance is suspended unless maintain is set: two
// clusters that maintain one repository destroy it. A repository that this cluster has
// used or imported before stays as it is: an import into the cluster that the keys come
// from suspends nothing.
func ImportKeys(ctx context.Context, c client.Client, namespace string, keys Keys, maintain bool) (made []string, err error) {
	if keys.Version != keysVersion {
		return nil, fmt.Errorf("import keys: version %d is not %d: use the controller that exported them", keys.Version, keysVersion)
	}
	for _, k := range keys.Repositories {
		if !isToken(k.Name) || k.Initialized == nil {
			return made, fmt.Errorf("import keys: repository %q is not of an export", k.Name)
		}
		isNew, err := importKey(ctx, c, namespace, k, maintain)
		if err != nil {
			return made, fmt.Errorf("import keys: repository %s: %w", k.Name, err)
		}
		if isNew {
			made = append(made, k.Name)
		}
	}
	return made, nil
}

func importKey(ctx context.Context, c client.Client, namespace string, k RepositoryKey, maintain bool) (isNew bool, err error) {
	rs := &kopiav1alpha1.RepositoryServer{}
	err = c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: k.Name}, rs)
	isNew = apierrors.IsNotFound(err)
	switch {
	case isNew:
		rs = &kopiav1alpha1.RepositoryServer{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: namespace, Name: k.Name,
				Labels: map[string]string{names.ManagedByLabel: names.ManagedByValue, names.RepositoryLabel: k.Name},
			},
			Spec: *k.Spec.DeepCopy(),
		}
	case err != nil:
		return false, fmt.Errorf("read the RepositoryServer: %w", err)
	default:
		if what := differs(rs, k.Spec); what != "" {
			return false, fmt.Errorf("RepositoryServer %s is there with another %s: nothing was changed: "+
				"import into another namespace, or delete it if it is not needed", k.Name, what)
		}
	}
	// The password first: an object without it could not be used, and one that is
	// used meanwhile would get another.
	if err := importPassword(ctx, c, rs, k); err != nil {
		return false, err
	}
	if !isNew && rs.Status.Initialized != nil {
		return false, nil
	}
	before := rs.DeepCopy()
	if !maintain {
		if rs.Spec.Maintenance == nil {
			rs.Spec.Maintenance = &kopiav1alpha1.Maintenance{}
		}
		rs.Spec.Maintenance.Suspend = true
	}
	// Before the status: what is initialized is maintained.
	if isNew {
		err = c.Create(ctx, rs)
	} else {
		err = c.Patch(ctx, rs, client.MergeFrom(before))
	}
	if err != nil {
		return false, fmt.Errorf("write the RepositoryServer: %w", err)
	}
	before = rs.DeepCopy()
	rs.Status.Initialized = k.Initialized
	if err := c.Status().Patch(ctx, rs, client.MergeFrom(before)); err != nil {
		return isNew, fmt.Errorf("note that it exists: %w", err)
	}
	return isNew, nil
}

// differs names what makes a RepositoryServer another repository than an exported one;
// "": nothing. Who may share it may have changed since the export, but one that was never
// used shares nothing yet: it would give its namespaces what others have stored.
func differs(rs *kopiav1alpha1.RepositoryServer, exported kopiav1alpha1.RepositoryServerSpec) string {
	have, want := locationOf(rs.Spec.Storage), locationOf(exported.Storage)
	among := func(namespaces []string) []string { return slices.Sorted(slices.Values(namespaces)) }
	switch {
	case rs.Spec.External != nil || !have.samePlace(want) || have.prefix != want.prefix:
		return "storage"
	case rs.Spec.KeyID != exported.KeyID:
		return "keyID"
	case tenantOf(rs) != ptr.Deref(exported.Tenant, kopiav1alpha1.Tenant{}):
		return "tenant"
	case rs.Status.Initialized == nil && !slices.Equal(among(rs.Spec.Namespaces), among(exported.Namespaces)):
		return "list of namespaces"
	}
	return ""
}

// importPassword keeps an exported password, unless the key is a Blueprint's.
func importPassword(ctx context.Context, c client.Client, rs *kopiav1alpha1.RepositoryServer, k RepositoryKey) error {
	if k.Spec.KeyID != DefaultKeyID {
		return nil
	}
	if k.Password == "" {
		return errors.New("its password is missing in the file")
	}
	s := buildPasswordSecret(rs, k.Password)
	err := c.Create(ctx, s)
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("keep its password: %w", err)
	}
	if err == nil {
		return nil
	}
	var have corev1.Secret
	if err := c.Get(ctx, client.ObjectKeyFromObject(s), &have); err != nil {
		return fmt.Errorf("read its password: %w", err)
	}
	if string(have.Data[passwordKey]) != k.Password {
		return fmt.Errorf("Secret %s is there with another password: nothing was changed", s.Name)
	}
	return nil
}
