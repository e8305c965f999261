// SPDX-License-Identifier: Apache-2.0

package coverage

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	withoutDesc = prometheus.NewDesc("kanister_kopia_pods_without_agent",
		"Pods that opted in to backups and have no healthy agent, and workloads whose label is misplaced, by owner and reason.",
		[]string{"namespace", "owner_kind", "owner", "reason"}, nil)
	optedInDesc = prometheus.NewDesc("kanister_kopia_pods_opted_in",
		"Pods that have an agent or should have one.", []string{"namespace"}, nil)
	heldDesc = prometheus.NewDesc("kanister_kopia_injection_on_hold",
		"1 for a namespace in which nothing is injected at present, because agents do not start there.", []string{"namespace"}, nil)
	unreadableDesc = prometheus.NewDesc("kanister_kopia_namespace_unreadable",
		"1 for an opted-in namespace that the controller has no rights in, so that nothing there can be backed up.", []string{"namespace"}, nil)
)

type label struct {
	kind, owner string
	reason      Reason
}

// seen is what a sweep saw in one namespace.
type seen struct {
	optedIn    int
	without    map[label]int
	held       bool
	unreadable bool
}

// metrics shows the last look at each namespace. A series exists only while there
// is something to say, so their number is that of the problems.
type metrics struct {
	mu   sync.Mutex
	seen map[string]seen
}

var _ prometheus.Collector = (*metrics)(nil)

func (m *metrics) set(all map[string]seen) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seen = all
}

func (m *metrics) last(namespace string) seen {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.seen[namespace]
}

// Describe is for prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{withoutDesc, optedInDesc, heldDesc, unreadableDesc} {
		ch <- d
	}
}

// Collect is for prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	gauge := func(d *prometheus.Desc, n int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), labels...)
	}
	for namespace, s := range m.seen {
		gauge(optedInDesc, s.optedIn, namespace)
		for l, n := range s.without {
			gauge(withoutDesc, n, namespace, l.kind, l.owner, string(l.reason))
		}
		if s.held {
			gauge(heldDesc, 1, namespace)
		}
		if s.unreadable {
			gauge(unreadableDesc, 1, namespace)
		}
	}
}

// Collector of the detector's metrics.
func (d *Detector) Collector() prometheus.Collector { return &d.metrics }
