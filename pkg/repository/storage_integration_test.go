// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repository_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/pkg/param"
	"github.com/kanister-kopia/kanister-kopia/pkg/repository"
)

// A repository that was seen is never made a second time, whoever starts its server: an
// empty bucket is an error, and stays empty.
func TestIntegrationNeverMadeAnew(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.make("shop")
	ctx := t.Context()
	r := w.reconciler()
	r.IdleTimeout = 0 // it never stops
	folder, aside := filepath.Join(w.s3.Dir, "team"), filepath.Join(filepath.Dir(w.s3.Dir), "aside")
	empty := func() { w.must(os.Rename(folder, aside)) }
	full := func(after string) {
		t.Helper()
		if _, err := os.Stat(filepath.Join(folder, "kopia.repository")); !os.IsNotExist(err) {
			t.Errorf("%s: it was made anew (%v)", after, err)
		}
		w.must(os.RemoveAll(folder))
		w.must(os.Rename(aside, folder))
	}
	failed := func(after string) {
		t.Helper()
		w.turn(r, after+": the server fails", func() bool {
			p := w.get().Status.Phase
			if c := w.condition(kopiav1alpha1.ConditionReady); p == kopiav1alpha1.PhaseFailed && !strings.Contains(c.Message, names.RepositoryMissing) {
				t.Fatalf("%s: %s", after, c.Message)
			}
			return p == kopiav1alpha1.PhaseFailed
		})
	}
	open := func() (*repository.Repository, error) { return w.manager.Open(ctx, w.ref("shop")) }
	w.open(r, open).Close()

	// Its container is started again, with the configuration that it had.
	empty()
	w.process.Kill()
	w.process = w.process.Again(w)
	select {
	case <-w.process.Done:
	case <-time.After(time.Minute):
		t.Error("a container that was started again makes the repository anew")
		w.process.Kill()
	}
	if log := w.process.Log(); !strings.Contains(testenv.LastLine(log), names.RepositoryMissing) {
		t.Errorf("a container that was started again: %s", testenv.LastLine(log))
	}
	full("a container that was started again")

	// Another pod is in its place, which nobody asked for.
	empty()
	w.mayCrash = true
	w.must(w.Delete(ctx, w.pod, client.GracePeriodSeconds(0)))
	w.pod = nil
	failed("another pod")
	full("another pod")

	// It is replaced because its image is another, with a configuration of a version that
	// did not take the leave to make it back.
	w.open(r, open).Close()
	var secret corev1.Secret
	w.must(w.Get(ctx, client.ObjectKey{Namespace: w.namespace, Name: shared + "-config"}, &secret))
	var config map[string]any
	w.must(json.Unmarshal(secret.Data["config.json"], &config))
	config["allowCreate"] = true
	raw, err := json.Marshal(config)
	w.must(err)
	secret.Data["config.json"] = raw
	w.must(w.Update(ctx, &secret))
	empty()
	r.Image.Name = "server:next"
	failed("another image")

	// And whoever asks for it is told.
	if _, err := w.try(r, open); err == nil || !strings.Contains(err.Error(), names.RepositoryMissing) {
		t.Errorf("opened without its bucket: %v", err)
	}
	full("who asks")
}

// The first backup had wrong keys, and nothing was made. With the right ones a check finds
// nothing, and makes nothing; the next backup does.
func TestIntegrationCheckMakesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.name, w.mayCrash = "", true
	ctx := t.Context()
	wrong := w.ref("own")
	wrong.Profile.Credential.KeyPair = &param.KeyPair{ID: w.s3.AccessKey, Secret: "wrong"}
	if _, err := w.try(w.reconciler(), func() (*repository.Repository, error) { return w.manager.Open(ctx, wrong) }); err == nil {
		t.Fatal("the first backup has made a repository: nothing is tested")
	}
	before := w.get()
	look := func(what string, how func() (*repository.Repository, error)) {
		t.Helper()
		repo, err := w.try(w.reconciler(), how)
		if !errors.Is(err, repository.ErrNotFound) {
			t.Errorf("%s: %v", what, err)
		}
		if err == nil {
			repo.Close()
		}
	}
	look("by its place", func() (*repository.Repository, error) { return w.manager.OpenExisting(ctx, w.ref("own")) })
	look("by its id", func() (*repository.Repository, error) { return w.manager.OpenID(ctx, before.Name, w.ref("own")) })
	if ids, _, err := w.manager.At(ctx, w.ref("own").Profile); len(ids) != 0 || err != nil {
		t.Errorf("at the location: %v, %v", ids, err)
	}
	if got, want := w.get().Annotations[names.Group+"/revision"], before.Annotations[names.Group+"/revision"]; got != want {
		t.Error("its server was started")
	}
	if blobs, err := os.ReadDir(w.s3.Dir); len(blobs) != 0 || err != nil {
		t.Errorf("the bucket has %v, %v", blobs, err)
	}
	repo := w.open(w.reconciler(), func() (*repository.Repository, error) { return w.manager.Open(ctx, w.ref("own")) })
	repo.Close()
	existing, err := w.manager.OpenExisting(ctx, w.ref("own"))
	w.must(err)
	existing.Close()
}

// While the storage does not answer, the condition says so in its words, operations are
// refused at once, and when it answers again both are over.
func TestIntegrationStorageOutage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.make("shop")
	ctx := t.Context()
	r := w.reconciler()
	repo := w.open(r, func() (*repository.Repository, error) { return w.manager.Open(ctx, w.ref("shop")) })
	defer repo.Close()
	w.s3.Gateway.Kill()
	degraded := func(want metav1.ConditionStatus) func() bool {
		return func() bool { return w.condition(kopiav1alpha1.ConditionDegraded).Status == want }
	}
	w.turn(r, "the outage is told", degraded(metav1.ConditionTrue))
	c := w.condition(kopiav1alpha1.ConditionDegraded)
	if c.Reason != "StorageUnavailable" || !strings.Contains(c.Message, "the storage has not answered since") {
		t.Errorf("condition %+v", c)
	}
	if _, err := repo.Session(ctx, "op-1", "pvc.data", "ns-uid", "/"); err == nil || !strings.Contains(err.Error(), "the storage has not answered since") {
		t.Errorf("a session in the outage: %v", err)
	}
	if p := w.get().Status.Phase; p != kopiav1alpha1.PhaseReady {
		t.Errorf("the server is %s: what runs may yet succeed", p)
	}
	w.s3.Gateway = w.s3.Gateway.Again(t)
	testenv.Eventually(t, time.Minute, "a session after the outage", func() bool {
		_, err := repo.Session(ctx, "op-1", "pvc.data", "ns-uid", "/")
		return err == nil
	})
	w.turn(r, "the end of the outage is told", degraded(metav1.ConditionFalse))
	w.must(repo.EndSession(ctx, "op-1"))
}

// The storage is reached by another name from now on: what it is called in the RepositoryServer,
// too, is found there; and a second RepositoryServer of it is refused by the repository itself.
func TestIntegrationEndpointChanges(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.name = ""
	w.mayCrash = true
	ctx := t.Context()
	key := "correct horse"
	at := func(endpoint string) repository.Ref {
		ref := w.ref("own")
		ref.Profile.Location.Endpoint, ref.EncryptionKey = endpoint, &key
		return ref
	}
	opens := func(ref repository.Ref) func() (*repository.Repository, error) {
		return func() (*repository.Repository, error) { return w.manager.Open(ctx, ref) }
	}
	otherwise := strings.Replace(w.s3.Endpoint, "127.0.0.1", "localhost", 1)
	repo := w.open(w.reconciler(), opens(at(w.s3.Endpoint)))
	first := repo.ID()
	repo.Close()
	w.leave()

	if _, err := w.try(w.reconciler(), opens(at(otherwise))); err == nil || !strings.Contains(err.Error(), "RepositoryServer "+first) {
		t.Errorf("a second RepositoryServer of one repository: %v", err)
	}
	w.must(w.Delete(ctx, w.get()))
	w.leave()

	w.name, w.left = first, nil
	rs := w.get()
	rs.Spec.Storage.S3.Endpoint = otherwise
	w.must(w.Update(ctx, rs))
	repo = w.open(w.reconciler(), opens(at(otherwise)))
	if repo.ID() != first {
		t.Errorf("it is RepositoryServer %s, want %s", repo.ID(), first)
	}
	repo.Close()
	existing, err := w.manager.OpenExisting(ctx, at(otherwise))
	w.must(err)
	if existing.ID() != first {
		t.Errorf("the existing one is RepositoryServer %s, want %s", existing.ID(), first)
	}
	existing.Close()
	w.leave()

	// Without a key each has a password of its own, and the second is told so.
	own, again := at(w.s3.Endpoint), at(otherwise)
	own.EncryptionKey, again.EncryptionKey = nil, nil
	w.left = []string{first}
	w.open(w.reconciler(), opens(own)).Close()
	w.leave()
	if _, err := w.try(w.reconciler(), opens(again)); err == nil || !strings.Contains(err.Error(), names.WrongPassword) || !strings.Contains(err.Error(), "spec.storage") {
		t.Errorf("a second RepositoryServer without a key: %v", err)
	}
}
