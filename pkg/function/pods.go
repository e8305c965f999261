// SPDX-License-Identifier: Apache-2.0

package function

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/pkg/param"
)

// podsAtOnce is how many pods of one phase move data at the same time. Kanister
// has no limit; one repository server has one.
const podsAtOnce = 8

// podNames are the pods of a white-space separated list, each once; with an empty
// list those of the action's workload, and none without one.
func podNames(list string, params param.TemplateParams) (pods []string, workload bool) {
	named := strings.Fields(list)
	switch {
	case len(named) > 0:
		workload = true
	case params.Deployment != nil:
		named, workload = params.Deployment.Pods, true
	case params.StatefulSet != nil:
		named, workload = params.StatefulSet.Pods, true
	}
	seen := map[string]bool{}
	for _, pod := range named {
		if !seen[pod] {
			pods = append(pods, pod)
		}
		seen[pod] = true
	}
	return pods, workload
}

// part names the operation of one part of a phase, the same after any restart.
func part(operation, name string) string {
	sum := sha256.Sum256([]byte(name))
	return operation + "-" + hex.EncodeToString(sum[:6])
}

// outcome of one of several things that are done side by side.
type outcome[T any] struct {
	value T
	err   error
}

// each does something for every item, at most podsAtOnce at a time. One that fails
// stops none of the others; those that did not begin before ctx ended have its
// cause as their error.
func each[I, T any](ctx context.Context, items []I, do func(int, I) (T, error)) []outcome[T] {
	outcomes := make([]outcome[T], len(items))
	free := make(chan struct{}, podsAtOnce)
	var wg sync.WaitGroup
	for i, item := range items {
		select {
		case free <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			outcomes[i].err = context.Cause(ctx)
			continue
		}
		wg.Go(func() {
			defer func() { <-free }()
			// The engine guards the phase's goroutine against bugs, and no other one.
			defer func() {
				if v := recover(); v != nil {
					outcomes[i].err = Bug(slog.Default(), v)
				}
			}()
			outcomes[i].value, outcomes[i].err = do(i, item)
		})
	}
	wg.Wait()
	return outcomes
}

// Bug is the error of a panic with the value v, for whoever recovers from it.
func Bug(log *slog.Logger, v any) error {
	log.Error("panic", "value", fmt.Sprint(v), "stack", string(debug.Stack()))
	return fmt.Errorf("internal error: %v: please report it with the controller's log", v)
}

// failures has a line for each pod that failed, "" if none did.
func failures[T any](pods []string, outcomes []outcome[T]) string {
	var lines []string
	for i, o := range outcomes {
		if o.err != nil {
			lines = append(lines, fmt.Sprintf("pod %s: %v", pods[i], o.err))
		}
	}
	return strings.Join(lines, "\n")
}

// totals adds the progress of several operations up.
type totals struct {
	report func(api.Progress)

	mu    sync.Mutex // protects the following, and keeps reports in order
	parts []api.Progress
}

func newTotals(n int, report func(api.Progress)) *totals {
	return &totals{parts: make([]api.Progress, n), report: report}
}

// of is what operation i reports to.
func (t *totals) of(i int) func(api.Progress) {
	return func(p api.Progress) {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.parts[i] = p
		var sum api.Progress
		estimated := true
		for _, p := range t.parts {
			sum.Files += p.Files
			sum.Bytes += p.Bytes
			sum.UploadedBytes += p.UploadedBytes
			sum.DownloadedBytes += p.DownloadedBytes
			sum.EstimatedFiles += p.EstimatedFiles
			sum.EstimatedBytes += p.EstimatedBytes
			estimated = estimated && p.EstimatedBytes > 0
		}
		if !estimated {
			// The whole is not known while one part is not: a percentage of some would fall later.
			sum.EstimatedFiles, sum.EstimatedBytes = 0, 0
		}
		t.report(sum)
	}
}
