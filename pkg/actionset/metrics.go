// SPDX-License-Identifier: Apache-2.0

package actionset

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

// Metrics of the engine. The first is Kanister's.
type Metrics struct {
	resolutions *prometheus.CounterVec
	phases      *prometheus.HistogramVec
	running     prometheus.Gauge
	bytes       *prometheus.CounterVec
}

// NewMetrics registers them.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		resolutions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kanister_action_set_resolutions_total",
			Help: "Ended ActionSets, by how they ended.",
		}, []string{"resolution"}),
		phases: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "kanister_kopia_phase_duration_seconds",
			Help: "How long phases ran, by function and outcome: complete, failed, or interrupted by the end of the controller or of the ActionSet.",
			// From a tenth of a second to half a day.
			Buckets: prometheus.ExponentialBuckets(0.1, 3.3, 12),
		}, []string{"function", "outcome"}),
		running: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "kanister_kopia_action_sets_running",
			Help: "ActionSets that run now.",
		}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kanister_kopia_phase_bytes_total",
			Help: "Bytes that phases moved, by function and direction: upload to a repository, download from one.",
		}, []string{"function", "direction"}),
	}
	r.MustRegister(m.resolutions, m.phases, m.running, m.bytes)
	// So that a rate can be taken from the first one on, as in Kanister.
	m.resolutions.WithLabelValues("success")
	m.resolutions.WithLabelValues("failure")
	return m
}

func (m *Metrics) resolved(success bool) {
	m.resolutions.WithLabelValues(map[bool]string{true: "success", false: "failure"}[success]).Inc()
}

func (m *Metrics) phase(function, outcome string, took time.Duration, p api.Progress) {
	m.phases.WithLabelValues(function, outcome).Observe(took.Seconds())
	if p.UploadedBytes > 0 {
		m.bytes.WithLabelValues(function, "upload").Add(float64(p.UploadedBytes))
	}
	if p.DownloadedBytes > 0 {
		m.bytes.WithLabelValues(function, "download").Add(float64(p.DownloadedBytes))
	}
}
