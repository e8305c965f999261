// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	agentclient "github.com/kanister-kopia/kanister-kopia/agent/client"
	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
)

// DefaultIdleTimeout is how long a server stays up when nothing uses it.
const DefaultIdleTimeout = 5 * time.Minute

const (
	// lookPeriod is how often a server that is up is asked what uses it, at most.
	lookPeriod = time.Minute
	// leastPause is how soon it is asked again at least.
	leastPause = 5 * time.Second
	// lookTimeout bounds one look: phases that open the repository wait for it.
	lookTimeout = 10 * time.Second
)

// idleTimeout of a server; 0: it never stops.
func (r *Reconciler) idleTimeout(rs *kopiav1alpha1.RepositoryServer) time.Duration {
	if rs.Spec.IdleTimeout != nil {
		return rs.Spec.IdleTimeout.Duration
	}
	return r.IdleTimeout
}

// nextLook is when a server is asked again: when it may have been idle for long
// enough, but soon enough to tell of a storage that does not answer.
func nextLook(a api.Activity, timeout time.Duration) time.Duration {
	if timeout <= 0 {
		return lookPeriod
	}
	left := timeout - time.Duration(a.IdleSeconds)*time.Second
	return max(leastPause, min(lookPeriod, left))
}

// look ends the sessions of a ready server that are owed, asks what uses it, and ends it
// (stop or renew) if that has been nothing for timeout (0: never).
//
// The server decides, under the lock that lets operations in: what began before
// keeps it up, and nothing begins after. What it counts are its own open sessions
// and operations, so the count is right after this controller was killed, with a
// second one beside it, and while an agent works on without any. A controller that
// dies between the two steps leaves a server that refuses work: the next one that
// looks stops it, and the next phase that asks starts another.
func (m *Manager) look(ctx context.Context, rs *kopiav1alpha1.RepositoryServer, timeout time.Duration, end ending) (a api.Activity, stopped bool, err error) {
	u := m.hold(rs.Name, 0)
	defer m.release(rs.Name, 0)
	u.deciding.Lock()
	defer u.deciding.Unlock()
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	a, err = m.activity(ctx, rs, func(agent *agentclient.Client) (api.Activity, error) {
		// First: what is owed counts as in use.
		if err := m.pay(ctx, rs.Name, agent); err != nil {
			return api.Activity{}, err
		}
		// A phase here may have the repository open and not have asked for anything yet.
		if timeout > 0 && m.InUse(rs.Name) == 0 {
			return agent.Drain(ctx, timeout)
		}
		return agent.Activity(ctx)
	})
	if err != nil {
		return a, false, fmt.Errorf("ask repository server %s what uses it: %w", rs.Name, err)
	}
	if !a.Draining || m.InUse(rs.Name) > 0 {
		return a, false, nil
	}
	return a, true, end(ctx, rs)
}

// activity asks a server's agent. A way that broke is found anew by the next who asks.
func (m *Manager) activity(ctx context.Context, rs *kopiav1alpha1.RepositoryServer, ask func(*agentclient.Client) (api.Activity, error)) (api.Activity, error) {
	agent, err := m.agentOf(ctx, rs)
	if err != nil {
		return api.Activity{}, err
	}
	a, err := ask(agent)
	if err != nil {
		m.forget(rs.Name, agent)
	}
	return a, err
}

// works says whether a server has work that need not be of this controller: of one
// before it, or beside it. One that is there and cannot be asked may have some. The lock
// deciding is held.
func (m *Manager) works(ctx context.Context, rs *kopiav1alpha1.RepositoryServer) bool {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	a, err := m.activity(ctx, rs, func(agent *agentclient.Client) (api.Activity, error) { return agent.Activity(ctx) })
	if errors.Is(err, errReplaced) || apierrors.IsNotFound(err) {
		return false
	}
	return err != nil || !a.Draining && a.Sessions+a.Streams+a.Waiting+a.Operations > 0
}

// ending is stop or renew.
type ending func(context.Context, *kopiav1alpha1.RepositoryServer) error

// stopUnused stops a server that cannot be asked, if nobody here has it open.
func (m *Manager) stopUnused(ctx context.Context, rs *kopiav1alpha1.RepositoryServer) (bool, error) {
	u := m.hold(rs.Name, 0)
	defer m.release(rs.Name, 0)
	u.deciding.Lock()
	defer u.deciding.Unlock()
	if m.InUse(rs.Name) > 0 {
		return false, nil
	}
	err := m.stop(ctx, rs)
	return err == nil, err
}

// stop takes the revision away, on which the Reconciler scales to zero. It fails if
// anybody has changed the object meanwhile: another revision is another server.
func (m *Manager) stop(ctx context.Context, rs *kopiav1alpha1.RepositoryServer) error {
	changed := rs.DeepCopy()
	delete(changed.Annotations, revisionAnnotation)
	err := m.Client.Patch(ctx, changed, client.MergeFromWithOptions(rs, client.MergeFromWithOptimisticLock{}))
	if err != nil && !apierrors.IsConflict(err) {
		return fmt.Errorf("stop repository server %s: %w", rs.Name, err)
	}
	m.settleAll(rs.Name) // none is there: it drained, or had not come up
	return nil
}

// renew has a server that lets nobody in any more replaced by one of another revision,
// which is made as it would be today.
func (m *Manager) renew(ctx context.Context, rs *kopiav1alpha1.RepositoryServer) error {
	have, _, err := m.readConfig(ctx, rs)
	if err != nil {
		return err
	}
	have.AllowCreate = have.AllowCreate && rs.Status.Initialized == nil
	revision := rand.Text()
	if err := m.writeConfig(ctx, rs, have, revision); err != nil {
		return err
	}
	changed := rs.DeepCopy()
	metav1.SetMetaDataAnnotation(&changed.ObjectMeta, revisionAnnotation, revision)
	err = m.Client.Patch(ctx, changed, client.MergeFromWithOptions(rs, client.MergeFromWithOptimisticLock{}))
	if err != nil && !apierrors.IsConflict(err) {
		return fmt.Errorf("replace repository server %s: %w", rs.Name, err)
	}
	return nil
}
