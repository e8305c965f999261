// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
)

// What the docs tell people to alert on is what is told, of each repository of the control
// plane, and nothing is made up of one that was never maintained.
func TestCollector(t *testing.T) {
	scheme := runtime.NewScheme()
	if err := kopiav1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	repo := func(namespace, name string, s kopiav1alpha1.RepositoryServerStatus) *kopiav1alpha1.RepositoryServer {
		return &kopiav1alpha1.RepositoryServer{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Status: s}
	}
	c := fake.NewClientBuilder().WithScheme(scheme).WithObjects(
		repo("control", "kept", kopiav1alpha1.RepositoryServerStatus{
			Phase: kopiav1alpha1.PhaseReady, LastUsed: at(-time.Minute),
			Maintenance: &kopiav1alpha1.MaintenanceStatus{
				LastSuccess: at(-time.Hour), LastFull: at(-2 * time.Hour), IndexBlobs: 3, Contents: 40, StoredBytes: 500, FreedBytes: 60, Sources: 7,
			},
		}),
		repo("control", "new", kopiav1alpha1.RepositoryServerStatus{
			Phase: kopiav1alpha1.PhaseFailed, Maintenance: &kopiav1alpha1.MaintenanceStatus{QuickFailures: 1, FullFailures: 2},
			Conditions: []metav1.Condition{{Type: kopiav1alpha1.ConditionDegraded, Status: metav1.ConditionTrue}},
		}),
		repo("elsewhere", "another", kopiav1alpha1.RepositoryServerStatus{Phase: kopiav1alpha1.PhaseReady}),
	).Build()
	var want strings.Builder
	for _, m := range []struct{ name, help, kept, of string }{
		{"contents", "Contents after the last maintenance.", "40", ""},
		{"degraded", "1 while the server does not start or the storage does not answer.", "0", "1"},
		{"freed_bytes", "Bytes that the last full maintenance gave back.", "60", ""},
		{"full_maintenance_last_success_timestamp_seconds", "When the last full maintenance that succeeded began.", "1.7955144e+09", ""},
		{"index_blobs", "Index blobs after the last maintenance; some hundred make a repository slow to open.", "3", ""},
		{"last_used_timestamp_seconds", "About when an operation last used the repository.", "1.79552154e+09", ""},
		{"maintenance_failures", "Failures of maintenance in a row, of the quick or of the full ones.", "0", "2"},
		{"maintenance_last_success_timestamp_seconds", "When the last maintenance that succeeded began.", "1.795518e+09", ""},
		{"server_up", "1 while the repository's server runs.", "1", "0"},
		{"sources", "Sources with backups after the last maintenance; more than 500 make the server slow to start.", "7", ""},
		{"stored_bytes", "Bytes in the storage after the last maintenance.", "500", ""},
	} {
		name := "kanister_kopia_repository_" + m.name
		want.WriteString("# HELP " + name + " " + m.help + "\n# TYPE " + name + " gauge\n" + name + `{repository="kept"} ` + m.kept + "\n")
		if m.of != "" {
			want.WriteString(name + `{repository="new"} ` + m.of + "\n")
		}
	}
	if err := testutil.CollectAndCompare(&Collector{Client: c, Namespace: "control"}, strings.NewReader(want.String())); err != nil {
		t.Error(err)
	}
}
