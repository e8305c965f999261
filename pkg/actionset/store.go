// SPDX-License-Identifier: Apache-2.0

package actionset

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"

	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
)

// errDeleted says that the ActionSet is gone: there is nobody left to tell.
var errDeleted = errors.New("the ActionSet was deleted")

// store writes the status of one ActionSet. The type has no status subresource, so
// the whole object is written, on top of what is there.
type store struct {
	client client.Client
	key    client.ObjectKey
	uid    types.UID
	now    func() time.Time

	mu sync.Mutex // the actions of one ActionSet write one after the other
}

// update changes the status. It outlives ctx: what happened is written down even
// when the run was cancelled, within writeTimeout.
func (s *store) update(ctx context.Context, change func(*crv1alpha1.ActionSetStatus)) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		var as crv1alpha1.ActionSet
		if err := s.client.Get(ctx, s.key, &as); err != nil {
			return err
		}
		if as.UID != s.uid || as.Status == nil {
			return errDeleted
		}
		change(as.Status)
		sumUp(as.Status, s.now())
		return s.client.Update(ctx, &as)
	})
	if client.IgnoreNotFound(err) == nil && err != nil {
		return errDeleted
	}
	if err != nil {
		return fmt.Errorf("write the status of ActionSet %s: %w", s.key, err)
	}
	return nil
}

const writeTimeout = 30 * time.Second
