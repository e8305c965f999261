// SPDX-License-Identifier: Apache-2.0

package actionset

import (
	"context"
	"fmt"
	"strings"

	"sigs.k8s.io/controller-runtime/pkg/client"

	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
)

// Running lists the ActionSets of a namespace and returns whether an operation,
// named by Call.OperationID or a part of it, belongs to one that has not ended.
func Running(ctx context.Context, c client.Reader, namespace string) (func(operation string) bool, error) {
	var list crv1alpha1.ActionSetList
	if err := c.List(ctx, &list, client.InNamespace(namespace)); err != nil {
		return nil, fmt.Errorf("list ActionSets: %w", err)
	}
	alive := map[string]bool{}
	for i := range list.Items {
		as := &list.Items[i]
		if as.Status == nil || as.Status.State == "" || unfinished(as.Status) {
			alive[strings.ToLower(string(as.UID))] = true
		}
	}
	return func(operation string) bool {
		const uid = len("00000000-0000-0000-0000-000000000000")
		return len(operation) > uid && operation[uid] == '-' && alive[operation[:uid]]
	}, nil
}
