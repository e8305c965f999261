// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repository_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/pkg/repository"
)

// command runs the controller's program as a person does, with his own rights.
func (w *world) command(args ...string) (string, error) {
	w.Helper()
	cmd := exec.CommandContext(w.Context(), testenv.Program(w, "controller"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+testenv.Kubeconfig(w, w.config, ""))
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Losing the control plane does not lose the backups: a cluster that has nothing but the
// bucket and the exported file restores every one of them, entry by entry.
func TestIntegrationNewCluster(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	secret, wrong := "correct horse", "battery staple"
	volume := w.volume()
	testenv.MakeTree(w, volume)
	kinds := []*struct {
		namespace string
		key       *string
		id        string
		backup    api.Record
		tree      map[string]testenv.Entry
	}{{namespace: "shop"}, {namespace: "own"}, {namespace: "own", key: &secret}}

	w.make("shop")
	rs := w.get()
	rs.Spec.TLS = &kopiav1alpha1.TLS{Issuer: &kopiav1alpha1.Issuer{Name: "theirs"}}
	w.must(w.Update(ctx, rs))
	for i, k := range kinds {
		w.must(os.WriteFile(filepath.Join(volume, "whose"), fmt.Append(nil, i, k.namespace), 0o600))
		ref := w.ref(k.namespace)
		ref.EncryptionKey = k.key
		repo := w.open(w.reconciler(), func() (*repository.Repository, error) { return w.manager.Open(ctx, ref) })
		if ca := w.get().Status.CA; (ca == string(w.issuer.PEM)) != (k.namespace == "shop") {
			t.Errorf("repository %s: its CA is not that of its issuer", repo.ID())
		}
		k.id, k.tree = repo.ID(), testenv.Tree(w, volume)
		k.backup = w.backup(repo, volume)
		repo.Close()
		w.leave()
	}
	w.must(w.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "control", Name: "gone-password", Labels: map[string]string{
		names.ManagedByLabel: names.ManagedByValue, names.ComponentLabel: "repository-server", names.RepositoryLabel: "gone",
	}}}))
	file := filepath.Join(t.TempDir(), "keys.json")
	if out, err := w.command("export-keys", "-namespace", "control", file); err != nil || !strings.Contains(out, "3 repositories") ||
		strings.Count(out, "not in the file") != 1 || !strings.Contains(out, "Secret gone-password") {
		t.Fatalf("export: %v: %s", err, out)
	}
	raw, err := os.ReadFile(file)
	w.must(err)
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file with passwords in clear is open to others: %v, %v", info.Mode(), err)
	}
	if strings.Contains(string(raw), secret) || strings.Contains(string(raw), w.s3.SecretKey) {
		t.Error("the file holds an encryptionKey, or the storage's keys")
	}
	if out, err := w.command("export-keys", "-namespace", "control", file); err == nil || !strings.Contains(out, "exists") {
		t.Errorf("an export over another: %v: %s", err, out)
	}
	if again, err := os.ReadFile(file); err != nil || string(again) != string(raw) {
		t.Errorf("an export over another changed it: %v", err)
	}

	w.cluster()
	if out, err := w.command("import-keys", "-namespace", "control", file); err != nil || strings.Count(out, "made RepositoryServer") != 3 {
		t.Fatalf("import: %v: %s", err, out)
	}
	if out, err := w.command("import-keys", "-namespace", "control", file); err != nil || strings.Contains(out, "made") {
		t.Errorf("import again: %v: %s", err, out)
	}
	if out, err := w.command("import-keys", "--maintain", "-namespace", "elsewhere", file); err != nil {
		t.Errorf("import to maintain: %v: %s", err, out)
	}
	for namespace, maintained := range map[string]bool{"control": false, "elsewhere": true} {
		var all kopiav1alpha1.RepositoryServerList
		w.must(w.List(ctx, &all, client.InNamespace(namespace)))
		for _, rs := range all.Items {
			suspended := rs.Spec.Maintenance != nil && rs.Spec.Maintenance.Suspend
			if suspended == maintained || rs.Status.Initialized == nil {
				t.Errorf("imported into %s: %+v, %+v", namespace, rs.Spec.Maintenance, rs.Status)
			}
		}
	}
	r := w.reconciler()
	for _, k := range kinds {
		w.name = k.id
		ref := w.ref("elsewhere")
		ref.EncryptionKey = k.key
		repo := w.open(r, func() (*repository.Repository, error) { return w.manager.OpenBackup(ctx, k.backup.BackupTag, ref) })
		if found, err := repo.Find(ctx, "by-tag-"+k.id, api.FindRequest{BackupTag: k.backup.BackupTag, Prefix: prefix}); err != nil || found.BackupID != k.backup.BackupID {
			t.Errorf("by the tag of %s backup %s is found, %v", k.backup.BackupID, found.BackupID, err)
		}
		if diff := cmp.Diff(k.tree, w.restored(repo, k.backup.BackupID)); diff != "" {
			t.Errorf("restored from %s:\n%s", k.id, diff)
		}
		repo.Close()
		ref.EncryptionKey = &wrong
		if _, err := w.manager.OpenBackup(ctx, k.backup.BackupID, ref); !errors.Is(err, repository.ErrNotFound) {
			t.Errorf("%s with another encryptionKey: %v", k.id, err)
		}
		w.leave()
	}

	var keys repository.Keys
	w.must(json.Unmarshal(raw, &keys))
	for i := range keys.Repositories {
		keys.Repositories[i].Password = "another"
	}
	if _, err := repository.ImportKeys(ctx, w, "control", keys, false); err == nil || !strings.Contains(err.Error(), "another password") || strings.Contains(err.Error(), "\"another\"") {
		t.Errorf("an import over another password: %v", err)
	}
}
