// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repository_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/repository"
)

// theirUser is the Secret of an external server's user, which the trial makes.
const theirUser = "theirs-user"

// external starts somebody else's server, for the namespace shop, and makes its object.
func (w *world) external() (theirs *testenv.KopiaServer, ca *testenv.CA) {
	w.Helper()
	ca = testenv.NewCA(w)
	theirs = testenv.StartKopiaServer(w, ca)
	w.must(w.Create(w.Context(), &kopiav1alpha1.RepositoryServer{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: shared},
		Spec: kopiav1alpha1.RepositoryServerSpec{
			Namespaces: []string{"shop"},
			External:   &kopiav1alpha1.External{URL: theirs.URL, CABundle: string(ca.PEM), UserSecret: theirUser},
		},
	}))
	return theirs, ca
}

// Somebody else's server, from the object to the restored files: agents are given its URL,
// its CA and its one user, and nothing of ours listens.
func TestIntegrationExternal(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	theirs, ca := w.external()
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
	refused("no Secret", theirUser)
	user := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: theirUser},
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

// While an external server does not answer, the condition and the metric say so, operations
// are refused at once in these words, and go on when it is back.
func TestIntegrationExternalOutage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	theirs, _ := w.external()
	w.must(w.Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: theirUser},
		StringData: map[string]string{"username": theirs.Username, "hostname": theirs.Hostname, "password": theirs.Password},
	}))
	r := w.reconciler()
	repo := w.open(r, func() (*repository.Repository, error) { return w.manager.Open(ctx, w.ref("shop")) })
	defer repo.Close()
	const words = "the external server has not answered since"
	up := func() string {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", w.health))
		w.must(err)
		defer resp.Body.Close()
		raw, err := io.ReadAll(resp.Body)
		w.must(err)
		_, rest, _ := strings.Cut(string(raw), "\nkanister_kopia_repository_storage_up ")
		return rest[:1]
	}
	degraded := func(want metav1.ConditionStatus) func() bool {
		return func() bool { return w.condition(kopiav1alpha1.ConditionDegraded).Status == want }
	}

	theirs.Process.Kill()
	w.turn(r, "the outage is told", degraded(metav1.ConditionTrue))
	if c := w.condition(kopiav1alpha1.ConditionDegraded); !strings.Contains(c.Message, words) || !strings.Contains(c.Message, "spec.external") {
		t.Errorf("condition %+v", c)
	}
	if got := up(); got != "0" {
		t.Errorf("storage_up is %s in the outage", got)
	}
	if _, err := repo.Session(ctx, "op-1", "pvc.data", "ns-uid", "/"); err == nil || !strings.Contains(err.Error(), words) {
		t.Errorf("a session in the outage: %v", err)
	}
	if _, err := repo.Find(ctx, "find-1", api.FindRequest{BackupID: "x"}); err == nil || !strings.Contains(err.Error(), words) {
		t.Errorf("a look-up in the outage: %v", err)
	}

	theirs.Restart(t)
	testenv.Eventually(t, time.Minute, "a session after the outage", func() bool {
		_, err := repo.Session(ctx, "op-1", "pvc.data", "ns-uid", "/")
		return err == nil
	})
	if got := up(); got != "1" {
		t.Errorf("storage_up is %s after the outage", got)
	}
	w.turn(r, "the end of the outage is told", degraded(metav1.ConditionFalse))
	w.must(repo.EndSession(ctx, "op-1"))
}
