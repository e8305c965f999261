// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
)

// An import over a RepositoryServer that is there makes no other repository of it, and has
// none maintained by two clusters; what this cluster has used already stays as it is.
func TestImportOverOne(t *testing.T) {
	spec := func(bucket, prefix string, namespaces ...string) kopiav1alpha1.RepositoryServerSpec {
		return kopiav1alpha1.RepositoryServerSpec{
			KeyID: DefaultKeyID, Namespaces: namespaces,
			Storage: kopiav1alpha1.Storage{S3: &kopiav1alpha1.S3Storage{Bucket: bucket, Prefix: prefix, Endpoint: "https://S3.example.com/"}},
		}
	}
	same := spec("backups", "team/", "shop", "lab")
	same.Storage.S3.Endpoint = "s3.example.com"
	tenants := *same.DeepCopy()
	tenants.Namespaces, tenants.Tenant = nil, &tenant
	keyed := *same.DeepCopy()
	keyed.KeyID = "abc"
	suspended := *same.DeepCopy()
	suspended.Maintenance = &kopiav1alpha1.Maintenance{Suspend: true}
	for name, c := range map[string]struct {
		spec              kopiav1alpha1.RepositoryServerSpec
		used, maintain    bool
		refused           string
		suspends, changes bool
	}{
		"of another bucket":                {spec: spec("other", "team/", "shop", "lab"), refused: "another storage"},
		"of another folder":                {spec: spec("backups", "q/", "shop", "lab"), refused: "another storage"},
		"of another bucket, used":          {spec: spec("other", "team/", "shop", "lab"), used: true, refused: "another storage"},
		"an external one":                  {spec: kopiav1alpha1.RepositoryServerSpec{External: &kopiav1alpha1.External{}}, refused: "another storage"},
		"of another key":                   {spec: keyed, refused: "another keyID"},
		"somebody's own":                   {spec: tenants, refused: "another tenant"},
		"for other namespaces":             {spec: spec("backups", "team/", "shop", "thief"), refused: "list of namespaces"},
		"for others, and used":             {spec: spec("backups", "team/", "shop", "new"), used: true},
		"never used":                       {spec: same, suspends: true, changes: true},
		"never used, to maintain":          {spec: same, maintain: true, changes: true},
		"an import that was cut off":       {spec: suspended, suspends: true, changes: true},
		"where the keys come from":         {spec: same, used: true},
		"imported before":                  {spec: suspended, used: true, suspends: true},
		"imported before, then maintained": {spec: suspended, used: true, maintain: true, suspends: true},
	} {
		ctx := t.Context()
		there := &kopiav1alpha1.RepositoryServer{ObjectMeta: metav1.ObjectMeta{Namespace: "control", Name: "team-a"}, Spec: c.spec}
		if c.used {
			there.Status.Initialized = at(-time.Hour)
		}
		cluster := clusterOf(t, there)
		key := RepositoryKey{Name: "team-a", Password: "s3cret", Initialized: at(-24 * time.Hour), Spec: spec("backups", "team/", "lab", "shop")}
		for range 2 { // the second changes nothing more
			made, err := ImportKeys(ctx, cluster, "control", Keys{Version: keysVersion, Repositories: []RepositoryKey{key}}, c.maintain)
			if len(made) > 0 || (err != nil) != (c.refused != "") || err != nil && (!strings.Contains(err.Error(), c.refused) || !strings.Contains(err.Error(), "nothing was changed")) {
				t.Errorf("%s: made %v, error %v", name, made, err)
			}
		}
		err := cluster.Get(ctx, client.ObjectKey{Namespace: "control", Name: "team-a-password"}, &corev1.Secret{})
		if apierrors.IsNotFound(err) != (c.refused != "") {
			t.Errorf("%s: its password: %v", name, err)
		}
		var now kopiav1alpha1.RepositoryServer
		if err := cluster.Get(ctx, client.ObjectKeyFromObject(there), &now); err != nil {
			t.Fatal(err)
		}
		initialized := there.Status.Initialized
		if c.changes {
			initialized = key.Initialized
		}
		if got := now.Status.Initialized; (got == nil) != (initialized == nil) || got != nil && !got.Equal(initialized) {
			t.Errorf("%s: initialized %v, want %v", name, got, initialized)
		}
		if isSuspended(&now) != c.suspends {
			t.Errorf("%s: suspended %t", name, !c.suspends)
		}
	}
}

// Passwords that an export does not have are named, and nothing else is.
func TestLeftPasswords(t *testing.T) {
	server := func(name string) *kopiav1alpha1.RepositoryServer {
		return &kopiav1alpha1.RepositoryServer{ObjectMeta: metav1.ObjectMeta{Namespace: "control", Name: name}}
	}
	config, err := buildConfigSecret(server("odd"), serverConfig{}, "r")
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := buildPasswordSecret(server("far"), "s3cret")
	elsewhere.Namespace = "elsewhere"
	cluster := clusterOf(t, server("there"), buildPasswordSecret(server("there"), "s3cret"), buildPasswordSecret(server("gone"), "s3cret"), config, elsewhere,
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "control", Name: "somebodys-password"}})
	if left, err := LeftPasswords(t.Context(), cluster, "control"); err != nil || !slices.Equal(left, []string{"gone-password"}) {
		t.Errorf("left: %v, %v", left, err)
	}
}

// A file that nobody has exported is refused in words.
func TestImportNoExport(t *testing.T) {
	for _, name := range []string{"", "-x", "../x"} {
		keys := Keys{Version: keysVersion, Repositories: []RepositoryKey{{Name: name, Initialized: at(0)}}}
		if _, err := ImportKeys(t.Context(), clusterOf(t), "control", keys, false); err == nil || !strings.Contains(err.Error(), "not of an export") {
			t.Errorf("name %q: %v", name, err)
		}
	}
}
