// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/operation"
)

// ServeHealth serves /healthz and /metrics: the only port on the pod network,
// with nothing secret behind it.
func ServeHealth(address string, operations *operation.Manager) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		count := map[api.State]int{}
		for _, op := range operations.List() {
			count[op.State]++
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		fmt.Fprintln(w, "# HELP kopia_agent_operations Operations the agent knows, by state.\n# TYPE kopia_agent_operations gauge")
		for _, s := range []api.State{
			api.StateQueued, api.StateNeedsCredentials, api.StateRunning, api.StateCancelling,
			api.StateSucceeded, api.StateFailed, api.StateCancelled,
		} {
			fmt.Fprintf(w, "kopia_agent_operations{state=%q} %d\n", s, count[s])
		}
	})
	server := &http.Server{Addr: address, Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	return fmt.Errorf("serve health: %w", server.ListenAndServe())
}

// ChildEnv is what a child inherits of the container's environment: the memory
// limit, nothing else.
func ChildEnv() []string {
	env := []string{"GOMAXPROCS=2"}
	if limit := os.Getenv("GOMEMLIMIT"); limit != "" {
		env = append(env, "GOMEMLIMIT="+limit)
	}
	return env
}
