// SPDX-License-Identifier: Apache-2.0

package function

import (
	"context"
	"errors"
	"maps"
	"path"
	"slices"

	"github.com/kanister-kopia/kanister-kopia/pkg/param"
)

// prepareData runs a command in a temporary pod that mounts claims.
type prepareData struct{ *Companion }

func (*prepareData) Name() string { return "PrepareData" }

func (*prepareData) RequiredArgs() []string { return []string{"namespace", "image", "command"} }

func (f *prepareData) Arguments() []string {
	return append(append(f.RequiredArgs(), "volumes", "serviceaccount", "failOnError"), podArgNames...)
}

func (*prepareData) Resumable() bool { return false }

func (f *prepareData) Exec(ctx context.Context, call Call) (map[string]any, error) {
	t := task{prefix: "prepare-data-job-"}
	failOnError := false
	if err := decodeAll(call.Args, map[string]any{
		"namespace": &t.namespace, "image": &t.image, "command": &t.command,
		"volumes": &t.claims, "serviceaccount": &t.serviceAccount, "failOnError": &failOnError,
	}); err != nil {
		return nil, err
	}
	var err error
	if t.pod, err = decodePod(call); err != nil {
		return nil, err
	}
	if len(t.claims) == 0 {
		if t.claims = claimsOf(call.Params); len(t.claims) == 0 {
			return nil, errors.New("prepare data: the workload has no claims: give volumes")
		}
	}
	// As the workload itself: what the command makes must be the workload's.
	for _, claim := range slices.Sorted(maps.Keys(t.claims)) {
		id, err := f.Movers.IdentityFor(ctx, t.namespace, claim)
		if err != nil {
			return nil, err
		}
		t.identity = t.identity.Or(id)
	}
	r, err := f.run(ctx, call, t)
	if errors.Is(err, errExit) && !failOnError {
		call.Log.Warn("command failed, which the Blueprint accepts: set failOnError to fail", "error", err.Error())
		err = nil
	}
	return r.outputs, err
}

// claimsOf are the claims of the action's workload, where Kanister mounts them.
func claimsOf(p param.TemplateParams) map[string]string {
	var pods map[string]map[string]string
	switch {
	case p.StatefulSet != nil:
		pods = p.StatefulSet.PersistentVolumeClaims
	case p.Deployment != nil:
		pods = p.Deployment.PersistentVolumeClaims
	}
	out := map[string]string{}
	for _, claims := range pods {
		for claim := range claims {
			out[claim] = path.Join("/mnt/prepare_data", claim)
		}
	}
	return out
}
