// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kanister-kopia/kanister-kopia/webhook/decide"
)

// Metrics of the injector.
type Metrics struct {
	decisions *prometheus.CounterVec
	duration  prometheus.Histogram
}

// NewMetrics registers the metrics. Every reason starts at zero, so that a rate
// over it is defined from the first scrape on.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kanister_kopia_webhook_decisions_total",
			Help: "Admission requests by the reason of their decision.",
		}, []string{"reason"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "kanister_kopia_webhook_duration_seconds",
			Help:    "Time from a decoded admission request to its response, without network and TLS.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5},
		}),
	}
	for _, r := range decide.Reasons() {
		m.decisions.WithLabelValues(string(r))
	}
	reg.MustRegister(m.decisions, m.duration)
	return m
}

func (m *Metrics) observe(r decide.Reason, d time.Duration) {
	m.decisions.WithLabelValues(string(r)).Inc()
	m.duration.Observe(d.Seconds())
}
