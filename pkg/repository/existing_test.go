// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
)

// What only looks, or deletes, finds nothing where the first backup has failed before its
// repository was made, and starts no server, which would make it.
func TestUnmade(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // a server that is started never comes up here
	defer cancel()
	namespace := func(name string) client.Object {
		return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, UID: "uid-of-shop"}}
	}
	shared := &kopiav1alpha1.RepositoryServer{
		ObjectMeta: metav1.ObjectMeta{Namespace: "control", Name: "together"},
		Spec: kopiav1alpha1.RepositoryServerSpec{
			Namespaces: []string{"shop"}, KeyID: DefaultKeyID,
			Storage: kopiav1alpha1.Storage{S3: &kopiav1alpha1.S3Storage{Bucket: "backups", Endpoint: "s3.example.com", Prefix: "together/"}},
		},
	}
	m := &Manager{Client: clusterOf(t, namespace(metav1.NamespaceSystem), namespace("shop"), shared), Namespace: "control"}
	secret := "correct horse"
	plain, keyed := Ref{Profile: profile(), Namespace: "shop"}, Ref{Profile: profile(), Namespace: "shop", EncryptionKey: &secret}
	var ids []string
	for _, ref := range []Ref{plain, keyed} {
		r, err := m.resolve(ctx, ref)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Client.Create(ctx, r.server("control")); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, r.id)
	}
	for i, ref := range []Ref{plain, keyed} {
		if _, err := m.OpenExisting(ctx, ref); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s, by its place: %v, want that it is not there", ids[i], err)
		}
		if _, err := m.OpenID(ctx, ids[i], ref); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s, by its id: %v, want that it is not there", ids[i], err)
		}
		var rs kopiav1alpha1.RepositoryServer
		if err := m.Client.Get(ctx, client.ObjectKey{Namespace: "control", Name: ids[i]}, &rs); err != nil || rs.Annotations[revisionAnnotation] != "" {
			t.Errorf("%s was started, %v", ids[i], err)
		}
	}
	if got, others, err := m.At(ctx, profile()); len(got) != 0 || !slices.Equal(others, []string{"together"}) || err != nil {
		t.Errorf("at the location: %v, shared %v, %v", got, others, err)
	}

	// One that was made, as by an import, is there, whatever else its status has lost.
	var rs kopiav1alpha1.RepositoryServer
	if err := m.Client.Get(ctx, client.ObjectKey{Namespace: "control", Name: ids[0]}, &rs); err != nil {
		t.Fatal(err)
	}
	rs.Status.Initialized = at(0)
	if err := m.Client.Status().Update(ctx, &rs); err != nil {
		t.Fatal(err)
	}
	if got, _, err := m.At(ctx, profile()); !slices.Equal(got, ids[:1]) || err != nil {
		t.Errorf("at the location: %v, %v, want %v", got, err, ids[:1])
	}
	if _, err := m.OpenExisting(ctx, keyed); !errors.Is(err, ErrWrongKey) {
		t.Errorf("with a key, where one without is made: %v", err)
	}
}
