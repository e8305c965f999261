// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
)

// What a spec says is what the server is told, and only a repository that was never seen may
// be made.
func TestBuildConfig(t *testing.T) {
	type storage = kopiav1alpha1.Storage
	keys := storageKeys{AccessKeyID: "i", SecretAccessKey: "s"}
	for name, c := range map[string]struct {
		storage     storage
		format      *kopiav1alpha1.Format
		initialized *metav1.Time
		want        serverConfig
	}{
		"S3": {
			storage{S3: &kopiav1alpha1.S3Storage{Bucket: "b", Endpoint: "https://S3.example.com/", Prefix: "p/", Region: "r"}}, nil, nil,
			serverConfig{AllowCreate: true, Storage: storageConfig{Type: "s3", Bucket: "b", Endpoint: "s3.example.com", Prefix: "p/", Region: "r", storageKeys: keys, CABundle: "CA", InsecureTLS: true}},
		},
		"S3, AWS": {
			storage{S3: &kopiav1alpha1.S3Storage{Bucket: "b", Prefix: "p/"}}, nil, at(0),
			serverConfig{Storage: storageConfig{Type: "s3", Bucket: "b", Endpoint: "s3.amazonaws.com", Prefix: "p/", storageKeys: keys, CABundle: "CA", InsecureTLS: true}},
		},
		"S3, plain": {
			storage{S3: &kopiav1alpha1.S3Storage{Bucket: "b", Endpoint: "http://minio:9000", Prefix: "p/"}}, nil, at(0),
			serverConfig{Storage: storageConfig{Type: "s3", Bucket: "b", Endpoint: "minio:9000", DisableTLS: true, Prefix: "p/", storageKeys: keys, CABundle: "CA", InsecureTLS: true}},
		},
		"Google": {
			storage{GCS: &kopiav1alpha1.GCSStorage{Bucket: "b", Prefix: "p/"}}, nil, at(0),
			serverConfig{Storage: storageConfig{Type: "gcs", Bucket: "b", Prefix: "p/", storageKeys: keys, CABundle: "CA", InsecureTLS: true}},
		},
		"Azure": {
			storage{Azure: &kopiav1alpha1.AzureStorage{Container: "c", Prefix: "p/"}}, nil, at(0),
			serverConfig{Storage: storageConfig{Type: "azure", Bucket: "c", Prefix: "p/", storageKeys: keys, CABundle: "CA", InsecureTLS: true}},
		},
		// A volume gets no keys, and no path leads out of it.
		"volume":            {storage{Filesystem: &kopiav1alpha1.FilesystemStorage{Claim: "c"}}, nil, at(0), serverConfig{Storage: storageConfig{Type: "filesystem", Path: "/var/lib/repository"}}},
		"volume, a folder":  {storage{Filesystem: &kopiav1alpha1.FilesystemStorage{Claim: "c", Path: "/a/b/"}}, nil, at(0), serverConfig{Storage: storageConfig{Type: "filesystem", Path: "/var/lib/repository/a/b"}}},
		"volume, a way out": {storage{Filesystem: &kopiav1alpha1.FilesystemStorage{Claim: "c", Path: "../../etc"}}, nil, at(0), serverConfig{Storage: storageConfig{Type: "filesystem", Path: "/var/lib/repository/etc"}}},
		"format": {
			storage{GCS: &kopiav1alpha1.GCSStorage{Bucket: "b", Prefix: "p/"}},
			&kopiav1alpha1.Format{Splitter: "FIXED-4M", Compression: "zstd", ObjectLock: &kopiav1alpha1.ObjectLock{Mode: "Compliance", Period: metav1.Duration{Duration: 72 * time.Hour}}}, nil,
			serverConfig{
				AllowCreate: true, Storage: storageConfig{Type: "gcs", Bucket: "b", Prefix: "p/", storageKeys: keys, CABundle: "CA", InsecureTLS: true},
				Format: formatConfig{Splitter: "FIXED-4M", ObjectLockMode: "Compliance", ObjectLock: "72h0m0s"},
			},
		},
	} {
		rs := &kopiav1alpha1.RepositoryServer{
			ObjectMeta: metav1.ObjectMeta{Name: "id", Annotations: map[string]string{"kopia.kanister.io/replaces": "old"}},
			Spec:       kopiav1alpha1.RepositoryServerSpec{Storage: c.storage, Format: c.format},
			Status:     kopiav1alpha1.RepositoryServerStatus{Initialized: c.initialized},
		}
		c.want.RepositoryID, c.want.Replaces, c.want.Password = "id", "old", "password"
		got := buildConfig(rs, access{keys: keys, caBundle: []byte("CA"), insecureTLS: true}, "password")
		if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(storageConfig{})); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
		want := ""
		if c.format != nil {
			want = c.format.Compression
		}
		if got := (&Repository{rs: rs}).Compression(); got != want {
			t.Errorf("%s: new backups are compressed with %q, want %q", name, got, want)
		}
	}
}

// That a repository may not be made any more cuts nothing that runs; all else needs a new pod.
func TestNeedsRestart(t *testing.T) {
	old := serverConfig{AllowCreate: true, Password: "p", Storage: storageConfig{Bucket: "b"}}
	seen := old
	seen.AllowCreate = false
	other := old
	other.Storage.SecretAccessKey = "another"
	if needsRestart(old, old) || needsRestart(old, seen) || !needsRestart(old, other) {
		t.Errorf("the same %t, seen %t, other keys %t", needsRestart(old, old), needsRestart(old, seen), needsRestart(old, other))
	}
}
