// SPDX-License-Identifier: Apache-2.0

package function

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
)

// kubeExecAll runs a command in several containers of several pods, side by side.
type kubeExecAll struct{ *Companion }

func (*kubeExecAll) Name() string { return "KubeExecAll" }

func (*kubeExecAll) RequiredArgs() []string {
	return []string{"namespace", "pods", "containers", "command"}
}

func (f *kubeExecAll) Arguments() []string { return f.RequiredArgs() }

// A command that was cut off may have ended, or go on, or both.
func (*kubeExecAll) Resumable() bool { return false }

func (f *kubeExecAll) Exec(ctx context.Context, call Call) (map[string]any, error) {
	var namespace, pods, containers string
	var command []string
	if err := decodeAll(call.Args, map[string]any{
		"namespace": &namespace, "pods": &pods, "containers": &containers, "command": &command,
	}); err != nil {
		return nil, err
	}
	var places []place
	for _, pod := range strings.Fields(pods) {
		for _, container := range strings.Fields(containers) {
			places = append(places, place{pod, container})
		}
	}
	outcomes := each(ctx, places, func(_ int, p place) (map[string]any, error) {
		log := call.podLog(p.pod, p.container)
		return f.exec(ctx, namespace, p.pod, p.container, command, func(line string) { log.Info(line) })
	})
	return mergeOutputs(namespace, places, outcomes)
}

// place is where a command runs.
type place struct{ pod, container string }

// mergeOutputs makes one of the outputs of all places. Of two outputs of one name that
// of the last place stays, whoever was faster.
func mergeOutputs(namespace string, places []place, outcomes []outcome[map[string]any]) (map[string]any, error) {
	var all map[string]any
	var errs []error
	for i, o := range outcomes {
		if o.err != nil {
			errs = append(errs, fmt.Errorf("run command in container %s of pod %s/%s: %w", places[i].container, namespace, places[i].pod, o.err))
		}
		if o.value != nil && all == nil {
			all = map[string]any{}
		}
		maps.Copy(all, o.value)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return all, nil
}
