// SPDX-License-Identifier: Apache-2.0

package function

import (
	"cmp"
	"context"
)

// kubeTask runs a command in a temporary pod.
type kubeTask struct{ *Companion }

func (*kubeTask) Name() string { return "KubeTask" }

func (*kubeTask) RequiredArgs() []string { return []string{"image", "command"} }

func (f *kubeTask) Arguments() []string {
	return append(append(f.RequiredArgs(), "namespace"), podArgNames...)
}

func (*kubeTask) Resumable() bool { return false }

func (f *kubeTask) Exec(ctx context.Context, call Call) (map[string]any, error) {
	t := task{prefix: "kanister-job-"}
	if err := decodeAll(call.Args, map[string]any{
		"image": &t.image, "command": &t.command, "namespace": &t.namespace,
	}); err != nil {
		return nil, err
	}
	t.namespace = cmp.Or(t.namespace, f.Namespace)
	var err error
	if t.pod, err = decodePod(call); err != nil {
		return nil, err
	}
	r, err := f.run(ctx, call, t)
	return r.outputs, err
}
