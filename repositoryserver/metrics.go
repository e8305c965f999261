// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// newMetrics serves what uses the server, and Kopia's own counters (storage
// calls). Nothing in it is secret: no user, no path, no snapshot is named.
func newMetrics(open *sessions, watch *storageWatch) http.Handler {
	own := prometheus.NewRegistry()
	gauge := func(name, help string, value func() float64) {
		own.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "kanister_kopia", Subsystem: "repository", Name: name, Help: help}, value))
	}
	gauge("sessions", "Operations that hold a password.", func() float64 { return float64(open.activity().Sessions) })
	gauge("users", "Users of these operations.", func() float64 { return float64(open.activity().Users) })
	gauge("streams", "Connections' streams to the repository.", func() float64 { return float64(open.activity().Streams) })
	gauge("queue", "Operations that wait for their turn.", func() float64 { return float64(open.activity().Waiting) })
	gauge("storage_up", "1 while the storage, or the external server, answers.", func() float64 {
		if watch.problem() != "" {
			return 0
		}
		return 1
	})
	own.MustRegister(packReads)
	own.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Namespace: "kanister_kopia", Subsystem: "repository", Name: "denied_streams_total",
		Help: "Streams refused because no operation is going on with their user and password.",
	}, func() float64 {
		open.mu.Lock()
		defer open.mu.Unlock()
		return float64(open.denied)
	}))
	return promhttp.HandlerFor(prometheus.Gatherers{own, prometheus.DefaultGatherer},
		promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 2})
}

// packReads are counted where they are answered: readahead.go.
var packReads = prometheus.NewCounterVec(prometheus.CounterOpts{
	Namespace: "kanister_kopia", Subsystem: "repository", Name: "pack_reads_total",
	Help: "Reads of packs, by where their bytes came from: memory, because what is beside them was read before, or the storage.",
}, []string{"from"})
