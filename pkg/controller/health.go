// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
)

// healthHandler answers on the paths of Kubernetes and on Kanister's. Every replica
// is ready, also one that waits for its turn: the webhook answers from all.
func healthHandler() http.Handler {
	mux := http.NewServeMux()
	alive := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintln(w, `{"alive":true}`)
	}
	for _, path := range []string{"/healthz", "/readyz", "/v0/healthz", "/v0/readyz"} {
		mux.HandleFunc("GET "+path, alive)
	}
	// Kanister's scrape configurations look here.
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics.Registry, promhttp.HandlerOpts{}))
	return mux
}

func healthServer(address string) (manager.Runnable, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for health checks: %w", err)
	}
	return &manager.Server{Name: "health", Listener: listener, Server: &http.Server{Handler: healthHandler(), ReadHeaderTimeout: 10 * time.Second}}, nil
}
