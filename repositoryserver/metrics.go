// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"io/fs"
	"net/http"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// newMetrics serves what uses the server, and Kopia's own counters (caches, storage
// calls). Nothing in it is secret: no user, no path, no snapshot is named.
func newMetrics(open *sessions, watch *storageWatch, cacheDir string) http.Handler {
	own := prometheus.NewRegistry()
	gauge := func(name, help string, value func() float64) {
		own.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "kanister_kopia", Subsystem: "repository", Name: name, Help: help}, value))
	}
	gauge("sessions", "Operations that hold a password.", func() float64 { return float64(open.activity().Sessions) })
	gauge("users", "Users of these operations.", func() float64 { return float64(open.activity().Users) })
	gauge("streams", "Connections' streams to the repository.", func() float64 { return float64(open.activity().Streams) })
	gauge("queue", "Operations that wait for their turn.", func() float64 { return float64(open.activity().Waiting) })
	gauge("storage_up", "1 while the storage answers.", func() float64 {
		if watch.problem() != "" {
			return 0
		}
		return 1
	})
	gauge("cache_bytes", "Size of Kopia's cache on disk.", func() float64 { return folderBytes(cacheDir) })
	own.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Namespace: "kanister_kopia", Subsystem: "repository", Name: "denied_streams_total",
		Help: "Streams refused because no operation is going on with their user and password.",
	}, func() float64 {
		open.mu.Lock()
		defer open.mu.Unlock()
		return float64(open.denied)
	}))
	return promhttp.HandlerFor(prometheus.Gatherers{own, prometheus.DefaultGatherer}, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
}

// folderBytes adds up what is there; files that go meanwhile do not count.
func folderBytes(dir string) (bytes float64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil
		}
		if info, err := d.Info(); err == nil {
			bytes += float64(info.Size())
		}
		return nil
	})
	return bytes
}
