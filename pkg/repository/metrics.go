// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
)

// Collector tells of all repositories, from their status.
type Collector struct {
	// Client should read from a cache: it is asked at each scrape.
	Client    client.Reader
	Namespace string
}

// The metrics; each has the label repository.
var (
	upDesc          = desc("repository_server_up", "1 while the repository's server runs.")
	degradedDesc    = desc("repository_degraded", "1 while the server does not start or the storage does not answer.")
	lastUsedDesc    = desc("repository_last_used_timestamp_seconds", "About when an operation last used the repository.")
	maintainedDesc  = desc("repository_maintenance_last_success_timestamp_seconds", "When the last maintenance that succeeded began.")
	fullDesc        = desc("repository_full_maintenance_last_success_timestamp_seconds", "When the last full maintenance that succeeded began.")
	failuresDesc    = desc("repository_maintenance_failures", "Failures of maintenance in a row, of the quick or of the full ones.")
	indexBlobsDesc  = desc("repository_index_blobs", "Index blobs after the last maintenance; some hundred make a repository slow to open.")
	sourcesDesc     = desc("repository_sources", "Sources with backups after the last maintenance; more than 500 make the server slow to start.")
	contentsDesc    = desc("repository_contents", "Contents after the last maintenance.")
	storedBytesDesc = desc("repository_stored_bytes", "Bytes in the storage after the last maintenance.")
	freedBytesDesc  = desc("repository_freed_bytes", "Bytes that the last full maintenance gave back.")
)

func desc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("kanister_kopia_"+name, help, []string{"repository"}, nil)
}

// Describe is for prometheus.Collector.
func (*Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		upDesc, degradedDesc, lastUsedDesc, maintainedDesc, fullDesc, failuresDesc, indexBlobsDesc, sourcesDesc, contentsDesc, storedBytesDesc, freedBytesDesc,
	} {
		ch <- d
	}
}

// collectTimeout bounds a scrape.
const collectTimeout = 5 * time.Second

// Collect is for prometheus.Collector.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), collectTimeout)
	defer cancel()
	var list kopiav1alpha1.RepositoryServerList
	if err := c.Client.List(ctx, &list, client.InNamespace(c.Namespace)); err != nil {
		ch <- prometheus.NewInvalidMetric(upDesc, err)
		return
	}
	for i := range list.Items {
		rs := &list.Items[i]
		gauge := func(d *prometheus.Desc, v float64) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, rs.Name)
		}
		yes := func(d *prometheus.Desc, b bool) {
			if b {
				gauge(d, 1)
			} else {
				gauge(d, 0)
			}
		}
		when := func(d *prometheus.Desc, t *metav1.Time) {
			if t != nil {
				gauge(d, float64(t.Unix()))
			}
		}
		s := &rs.Status
		yes(upDesc, s.Phase == kopiav1alpha1.PhaseReady)
		yes(degradedDesc, meta.IsStatusConditionTrue(s.Conditions, kopiav1alpha1.ConditionDegraded))
		when(lastUsedDesc, s.LastUsed)
		if m := s.Maintenance; m != nil {
			when(maintainedDesc, m.LastSuccess)
			when(fullDesc, m.LastFull)
			gauge(failuresDesc, float64(max(m.QuickFailures, m.FullFailures)))
			if m.LastSuccess != nil {
				gauge(indexBlobsDesc, float64(m.IndexBlobs))
				gauge(sourcesDesc, float64(m.Sources))
				gauge(contentsDesc, float64(m.Contents))
				gauge(storedBytesDesc, float64(m.StoredBytes))
				gauge(freedBytesDesc, float64(m.FreedBytes))
			}
		}
	}
}
