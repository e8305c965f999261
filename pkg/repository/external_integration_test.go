// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repository_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/repository"
)

// Somebody else's server, from the object to the restored files: agents are given its URL,
// its CA and its one user, and nothing of ours listens.
func TestIntegrationExternal(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	ca := testenv.NewCA(t)
	theirs := testenv.StartKopiaServer(t, ca)
	w.must(w.Create(ctx, &kopiav1alpha1.RepositoryServer{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: shared},
		Spec: kopiav1alpha1.RepositoryServerSpec{
			Namespaces: []string{"shop"},
			External:   &kopiav1alpha1.External{URL: theirs.URL, CABundle: string(ca.PEM), UserSecret: "theirs-user"},
		},
	}))
	r := w.reconciler()
	r.IdleTimeout = 0
	ref := w.ref("shop")
	open := func() (*repository.Repository, error) { return w.manager.Open(ctx, ref) }

	refused := func(what, name string) {
		t.Helper()
		if _, err := w.try(r, open); err == nil || !strings.Contains(err.Error(), name) || strings.Contains(err.Error(), theirs.Password) {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("no Secret", "theirs-user")
	user := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "theirs-user"},
		StringData: map[string]string{"username": theirs.Username, "password": theirs.Password},
	}
	w.must(w.Create(ctx, user))
	refused("no host name", "key hostname")
	user.StringData = map[string]string{"hostname": theirs.Hostname}
	w.must(w.Update(ctx, user))

	repo := w.open(r, open)
	defer repo.Close()
	credentials, err := repo.Session(ctx, "op-1", "pvc.data", "ns-uid", "/")
	w.must(err)
	if credentials.Username != theirs.Username || credentials.Hostname != theirs.Hostname || credentials.Password != theirs.Password ||
		credentials.URL != theirs.URL || credentials.CA != string(ca.PEM) {
		t.Errorf("agents are given %s, user %s@%s", credentials.URL, credentials.Username, credentials.Hostname)
	}
	w.must(repo.EndSession(ctx, "op-1"))
	if got, want := repo.SourcePath("pvc.data", "/x"), "/"+repo.Tenant().NamespaceUID+"/pvc.data/x"; got != want {
		t.Errorf("a source is at %s, want %s: one user has the snapshots of all namespaces", got, want)
	}
	volume := w.volume()
	testenv.MakeTree(w, volume)
	record := w.backup(repo, volume)
	if diff := cmp.Diff(testenv.Tree(w, volume), w.restored(repo, record.BackupID)); diff != "" {
		t.Errorf("restored:\n%s", diff)
	}
	pod := w.pod.Spec
	for _, v := range pod.Volumes {
		if v.Name == "tls" {
			t.Error("the pod has a certificate to serve with")
		}
	}
	for _, p := range pod.Containers[0].Ports {
		if p.Name == "repository" {
			t.Error("the pod has the port of a server")
		}
	}
	if s := w.get().Status; s.URL != theirs.URL || s.Initialized != nil {
		t.Errorf("status %+v", s)
	}
}
