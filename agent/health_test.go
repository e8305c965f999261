// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"math"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/operation"
)

// oneRunner moves something and fails if it was told to.
type oneRunner struct{}

func (*oneRunner) Run(_ context.Context, req api.StartRequest, _ <-chan int64, report func(api.Progress)) (*api.Result, *api.Problem) {
	report(api.Progress{Files: 3, Bytes: 4 << 20, UploadedBytes: 1 << 20, DownloadedBytes: 7})
	if req.ID == "bad" {
		return nil, &api.Problem{Code: api.CodeStorage, Title: "no"}
	}
	return &api.Result{}, nil
}

// All operations that run at once fit into the container's memory together; nothing
// else of the environment reaches them.
func TestChildEnv(t *testing.T) {
	t.Setenv("SECRET", "x")
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(384 << 20))
	if diff := cmp.Diff([]string{"GOMAXPROCS=2", fmt.Sprintf("GOMEMLIMIT=%d", 192<<20)}, ChildEnv()); diff != "" {
		t.Errorf("limited (-want +got)\n%s", diff)
	}
	debug.SetMemoryLimit(math.MaxInt64)
	if diff := cmp.Diff([]string{"GOMAXPROCS=2"}, ChildEnv()); diff != "" {
		t.Errorf("not limited (-want +got)\n%s", diff)
	}
}

// A platform team sees how many operations of a kind ended how, and what they moved.
// Names and types are Prometheus' to read.
func TestMetrics(t *testing.T) {
	ops, err := operation.New(operation.Options{Runner: &oneRunner{}, Kinds: []api.Kind{api.KindSnapshot}, StateDir: t.TempDir(), Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"a", "b", "bad"} {
		req := api.StartRequest{ID: id, Kind: api.KindSnapshot, Snapshot: &api.SnapshotRequest{Volume: id, Path: "/"}, Credentials: &api.Credentials{}}
		if _, err := ops.Start(req); err != nil {
			t.Fatal(err)
		}
		if err := ops.Watch(t.Context(), id, func(api.Operation) error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	text := metrics(api.Info{Version: "v1", KopiaVersion: "v0", Protocol: 1, Volumes: []api.VolumeInfo{{Name: "data", Readable: true}, {Name: "wal"}}}, ops.List(), ops.Totals())
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	value := func(name string, labels ...string) float64 {
		for _, m := range families["kopia_agent_"+name].GetMetric() {
			got := map[string]string{}
			for _, l := range m.Label {
				got[l.GetName()] = l.GetValue()
			}
			match := true
			for i := 0; i < len(labels); i += 2 {
				match = match && got[labels[i]] == labels[i+1]
			}
			if match {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
		return -1
	}
	for _, c := range []struct {
		want   float64
		name   string
		labels []string
	}{
		{1, "info", []string{"version", "v1", "protocol", "1"}},
		{1, "volume_readable", []string{"volume", "data"}},
		{0, "volume_readable", []string{"volume", "wal"}},
		{2, "operations", []string{"state", "succeeded"}},
		{0, "operations", []string{"state", "running"}},
		{2, "operations_ended_total", []string{"kind", "snapshot", "outcome", "succeeded"}},
		{1, "operations_ended_total", []string{"kind", "snapshot", "outcome", "failed"}},
		{6, "operation_files_total", []string{"outcome", "succeeded"}},
		{4 << 20, "operation_bytes_total", []string{"outcome", "failed"}},
		{2<<20 + 14, "operation_moved_bytes_total", []string{"outcome", "succeeded"}},
	} {
		if got := value(c.name, c.labels...); got != c.want {
			t.Errorf("%s %v is %v, want %v", c.name, c.labels, got, c.want)
		}
	}
	if seconds := value("operation_seconds_total", "outcome", "succeeded"); seconds < 0 || seconds > 60 {
		t.Errorf("they ran for %v s", seconds)
	}
}
