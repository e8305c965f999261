// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/operation"
	"github.com/kanister-kopia/kanister-kopia/internal/openport"
)

// ServeHealth serves /healthz and /metrics until ctx ends: the only port on the pod network,
// with nothing secret behind it. The error is nil when ctx has ended.
func ServeHealth(ctx context.Context, address string, seen *Seen, operations *operation.Manager) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		fmt.Fprint(w, metrics(seen.Last(), operations.List(), operations.Totals()))
	})
	return openport.ServeHealth(ctx, address, mux)
}

// metrics are written by hand: they are few, and the agent is to stay small.
func metrics(info api.Info, operations []api.Operation, totals map[operation.Outcome]operation.Total) string {
	var b strings.Builder
	family := func(name, kind, help string) {
		fmt.Fprintf(&b, "# HELP kopia_agent_%s %s\n# TYPE kopia_agent_%s %s\n", name, help, name, kind)
	}
	family("info", "gauge", "The agent itself.")
	fmt.Fprintf(&b, "kopia_agent_info{version=%q,kopia=%q,protocol=\"%d\"} 1\n", info.Version, info.KopiaVersion, info.Protocol)

	family("volume_readable", "gauge", "Whether the first entries of a volume, or the device, can be read by the agent's user.")
	for _, v := range info.Volumes {
		readable := 0
		if v.Readable {
			readable = 1
		}
		fmt.Fprintf(&b, "kopia_agent_volume_readable{volume=%q} %d\n", v.Name, readable)
	}

	count := map[api.State]int{}
	for _, op := range operations {
		count[op.State]++
	}
	family("operations", "gauge", "Operations the agent knows, by state.")
	for _, s := range []api.State{
		api.StateQueued, api.StateNeedsCredentials, api.StateRunning, api.StateCancelling,
		api.StateSucceeded, api.StateFailed, api.StateCancelled,
	} {
		fmt.Fprintf(&b, "kopia_agent_operations{state=%q} %d\n", s, count[s])
	}

	outcomes := slices.SortedFunc(maps.Keys(totals), func(a, b operation.Outcome) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.State, b.State))
	})
	for _, m := range []struct {
		name, help string
		of         func(operation.Total) any
	}{
		{"operations_ended_total", "Operations that have ended, by outcome.", func(t operation.Total) any { return t.Operations }},
		{"operation_seconds_total", "How long they ran.", func(t operation.Total) any { return t.Seconds }},
		{"operation_files_total", "Files that they read or wrote.", func(t operation.Total) any { return t.Files }},
		{"operation_bytes_total", "Bytes that they read or wrote.", func(t operation.Total) any { return t.Bytes }},
		{"operation_moved_bytes_total", "Bytes that went to the repository server or came from it.", func(t operation.Total) any { return t.Moved }},
	} {
		family(m.name, "counter", m.help)
		for _, o := range outcomes {
			fmt.Fprintf(&b, "kopia_agent_%s{kind=%q,outcome=%q} %v\n", m.name, o.Kind, o.State, m.of(totals[o]))
		}
	}
	return b.String()
}

// ChildEnv is what a child inherits of the container's environment: its part of the
// memory limit, nothing else. As many as may run at once are to fit into the container
// together, and nobody tells one that runs to take less when the next one comes.
func ChildEnv() []string {
	env := []string{"GOMAXPROCS=2"}
	if limit := debug.SetMemoryLimit(-1); limit != math.MaxInt64 { // asks, and sets nothing
		env = append(env, fmt.Sprintf("GOMEMLIMIT=%d", limit/operation.DefaultParallel))
	}
	return env
}
