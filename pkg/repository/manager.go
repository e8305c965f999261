// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	agentclient "github.com/kanister-kopia/kanister-kopia/agent/client"
	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/cabundle"
	"github.com/kanister-kopia/kanister-kopia/pkg/kube"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// StartTimeout bounds how long Open waits for a server that neither becomes ready
// nor says why not.
const StartTimeout = 5 * time.Minute

// Connector reaches the agent API in a container of a pod.
type Connector interface {
	Connect(ctx context.Context, namespace, pod, container string) (*agentclient.Client, error)
}

// Manager opens repositories for functions. It is safe for concurrent use.
type Manager struct {
	// Client reads and watches without a cache: what Open decides on must be fresh.
	Client client.WithWatch
	// Namespace is the control plane's.
	Namespace string
	// Agents reaches a server's own agent.
	Agents Connector
	// CA returns the PEM bundle that the servers' certificates chain to.
	CA    func() ([]byte, error)
	Clock clock.PassiveClock

	mu   sync.Mutex
	uses map[string]*use
	ways map[string]way // by the repository's id
	// owed are sessions that are to end, by the repository's id.
	owed map[string]map[string]struct{}
	// turns are of the sources that somebody takes a snapshot of, by repository and source.
	turns map[string]*turn
	// cluster is the uid of kube-system, read once.
	cluster string
}

// use is what is known of a repository that somebody works with.
type use struct {
	// open Repositories, and all who hold this value.
	open, holders int
	// up is the revision of the server that one of them has found ready.
	up string
	// deciding serialises what writes the server's configuration, starts or stops it, or ends
	// a session that is owed.
	deciding sync.Mutex
}

// Open returns the repository of ref's namespace and key at the Profile's
// location, its server ready; what does not exist yet is made. Close it.
//
// A namespace that shares a repository gets that one, but for calls with an
// encryptionKey: another key is another repository.
func (m *Manager) Open(ctx context.Context, ref Ref) (*Repository, error) {
	r, err := m.resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	var missing *kopiav1alpha1.RepositoryServer
	if !r.shared {
		missing = r.server(m.Namespace)
	}
	repo, err := m.start(ctx, &Repository{id: r.id, tenant: r.tenant, ref: ref, key: r.key, missing: missing})
	if moved := (*movedError)(nil); errors.As(err, &moved) {
		return m.start(ctx, &Repository{id: moved.id, tenant: r.tenant, ref: ref, key: r.key})
	}
	return repo, err
}

// movedError is that a repository is there, under the name of its storage's former endpoint.
type movedError struct{ id string }

func (e *movedError) Error() string { return "it is RepositoryServer " + e.id }

// OpenBackup returns the repository that a backupID or backupTag names, from
// whatever namespace it was made. ErrNotFound: there is no such repository, or
// not with this encryptionKey, or not at this Profile's location.
func (m *Manager) OpenBackup(ctx context.Context, token string, ref Ref) (*Repository, error) {
	id, err := repositoryOf(token)
	if err != nil {
		return nil, err
	}
	var rs kopiav1alpha1.RepositoryServer
	if err := m.Client.Get(ctx, client.ObjectKey{Namespace: m.Namespace, Name: id}, &rs); apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("backup %s: %w: namespace %s has no RepositoryServer %s: if it was made in another cluster, import that cluster's keys (controller import-keys)", token, ErrNotFound, m.Namespace, id)
	} else if err != nil {
		return nil, fmt.Errorf("read RepositoryServer %s: %w", id, err)
	}
	var tenant kopiav1alpha1.Tenant
	if rs.Spec.Tenant != nil {
		tenant = *rs.Spec.Tenant
	} else if _, tenant, err = m.tenant(ctx, ref.Namespace); err != nil {
		return nil, err
	}
	k, err := deriveKey(ref.EncryptionKey, tenant)
	if err != nil {
		return nil, err
	}
	if k.id != rs.Spec.KeyID {
		return nil, fmt.Errorf("backup %s: %w with this encryptionKey", token, ErrNotFound)
	}
	if err := checkPlace(&rs, ref.Profile); err != nil {
		return nil, fmt.Errorf("backup %s: %w", token, err)
	}
	return m.start(ctx, &Repository{id: id, tenant: tenant, ref: ref, key: k})
}

// hold returns what is known of a repository; open counts a user of it. Give it back
// with release.
func (m *Manager) hold(id string, open int) *use {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.uses == nil {
		m.uses = map[string]*use{}
	}
	u := m.uses[id]
	if u == nil {
		u = &use{}
		m.uses[id] = u
	}
	u.open += open
	u.holders++
	return u
}

func (m *Manager) release(id string, open int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	u := m.uses[id]
	u.open -= open
	if u.holders--; u.holders == 0 {
		delete(m.uses, id)
	}
}

// InUse is the number of Repositories of an id that are open.
func (m *Manager) InUse(id string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if u := m.uses[id]; u != nil {
		return u.open
	}
	return 0
}

// start brings the server of r, which says the repository, how to reach its storage and
// whose data is worked with, up and waits for it.
func (m *Manager) start(ctx context.Context, r *Repository) (*Repository, error) {
	r.manager, r.use = m, m.hold(r.id, 1)
	if err := r.bringUp(ctx, ""); err != nil {
		m.release(r.id, 1)
		return nil, err
	}
	return r, nil
}

// bringUp makes the server ready: one of another revision than spent, which is
// about to be stopped.
func (r *Repository) bringUp(ctx context.Context, spent string) error {
	m := r.manager
	rs, revision, err := r.configure(ctx, spent)
	if err == nil && !isReady(rs, revision) {
		rs, err = m.awaitReady(ctx, r.id, revision, m.patience(r.use, revision))
	}
	if err != nil {
		return fmt.Errorf("start repository server %s: %w", r.id, err)
	}
	m.mu.Lock()
	r.use.up = revision
	m.mu.Unlock()
	r.rs = rs
	return nil
}

// patience is how long a revision that has failed may take to be up again: one that was up
// has crashed, and its node starts it again; one that never was needs a change.
func (m *Manager) patience(u *use, revision string) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if u.up == revision {
		return agentTimeout
	}
	return 0
}

func isReady(rs *kopiav1alpha1.RepositoryServer, revision string) bool {
	return rs.Status.Revision == revision && rs.Status.Phase == kopiav1alpha1.PhaseReady
}

// accessOf is what a server needs of a Profile; nothing, if its storage is no bucket.
func accessOf(rs *kopiav1alpha1.RepositoryServer, ref Ref) (access, error) {
	if rs.Spec.External != nil || rs.Spec.Storage.Filesystem != nil {
		return access{}, nil
	}
	keys, err := keysOf(ref.Profile)
	return access{keys: keys, caBundle: ref.Profile.CABundle, insecureTLS: ref.InsecureTLS || ref.Profile.SkipSSLVerify}, err
}

// configure writes the password and the configuration of the server, if they are
// not there or have changed, and returns the RepositoryServer and the revision to wait
// for. Whoever holds the revision spent has been told that its server stops.
func (r *Repository) configure(ctx context.Context, spent string) (*kopiav1alpha1.RepositoryServer, string, error) {
	r.use.deciding.Lock()
	defer r.use.deciding.Unlock()
	rs, err := r.readOrMake(ctx)
	if err != nil {
		return nil, "", err
	}
	revision, err := r.decide(ctx, rs, spent)
	return rs, revision, err
}

// readOrMake reads the RepositoryServer. To make it first and read it then would be
// simpler, but it is nearly always there, and a write that fails costs as much as one.
func (r *Repository) readOrMake(ctx context.Context) (*kopiav1alpha1.RepositoryServer, error) {
	c := r.manager.Client
	rs := &kopiav1alpha1.RepositoryServer{}
	read := func() error { return c.Get(ctx, client.ObjectKey{Namespace: r.manager.Namespace, Name: r.id}, rs) }
	err := read()
	if apierrors.IsNotFound(err) && r.missing != nil {
		if err := r.manager.moved(ctx, r.missing); err != nil {
			return nil, err
		}
		rs = r.missing.DeepCopy()
		err = c.Create(ctx, rs)
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return nil, fmt.Errorf("make RepositoryServer: %w", err)
		}
		if err != nil { // somebody else's, a moment ago
			err = read()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read RepositoryServer: %w", err)
	}
	return rs, nil
}

// moved returns a movedError if a missing RepositoryServer would be a second one.
func (m *Manager) moved(ctx context.Context, missing *kopiav1alpha1.RepositoryServer) error {
	var all kopiav1alpha1.RepositoryServerList
	if err := m.Client.List(ctx, &all, client.InNamespace(m.Namespace)); err != nil {
		return fmt.Errorf("list RepositoryServers: %w", err)
	}
	for i := range all.Items {
		if sameRepository(&all.Items[i], missing) {
			return &movedError{all.Items[i].Name}
		}
	}
	return nil
}

// decide is configure of what was read. The lock deciding is held.
func (r *Repository) decide(ctx context.Context, rs *kopiav1alpha1.RepositoryServer, spent string) (string, error) {
	m := r.manager
	if rs.DeletionTimestamp != nil {
		return "", errors.New("the RepositoryServer is being deleted: run the action again when it is gone")
	}
	want, err := m.want(ctx, rs, r.ref, r.key)
	if err != nil {
		return "", err
	}
	have, of, err := m.readConfig(ctx, rs)
	if err != nil && !apierrors.IsNotFound(err) {
		return "", err
	}
	now := rs.Annotations[revisionAnnotation]
	revision, write := "", true
	if err == nil {
		// Once it may not be made any more, it never may again.
		want.AllowCreate = want.AllowCreate && have.AllowCreate
		revision = of
		alone := m.InUse(r.id) == 1
		failed := rs.Status.Phase == kopiav1alpha1.PhaseFailed && rs.Status.Revision == revision
		changed := needsRestart(have, want)
		switch {
		case now == "" || revision == spent:
			// Never the revision of a server that may still be going down.
			revision = ""
		case changed && (!alone || m.works(ctx, rs)):
			// A running backup is not cut off because another Profile has other keys, nor one
			// that was begun before this controller.
			log.FromContext(ctx).Info("repository server in use: its storage access stays as it is until it is idle", "repository", r.id)
			write = false
		case changed:
			revision = ""
		case failed && rs.Status.NextTry != nil && m.Clock.Now().Before(rs.Status.NextTry.Time):
			return "", fmt.Errorf("it failed %d times, the next try is at %s: %s",
				rs.Status.Failures, rs.Status.NextTry.UTC().Format(time.RFC3339), readyMessage(rs))
		case alone && failed:
			// Also when nothing changed but the last try failed: a new pod tries at
			// once, the old one after a growing pause.
			revision = ""
		case reflect.DeepEqual(have, want):
			write = false
		}
	}
	if revision == "" {
		revision, write = rand.Text(), true
	}
	if write {
		if err := m.writeConfig(ctx, rs, want, revision); err != nil {
			return "", err
		}
	}
	if now == revision {
		return revision, nil
	}
	// Last: the Reconciler starts the pod on this.
	before := rs.DeepCopy()
	metav1.SetMetaDataAnnotation(&rs.ObjectMeta, revisionAnnotation, revision)
	if err := m.Client.Patch(ctx, rs, client.MergeFrom(before)); err != nil {
		return "", fmt.Errorf("name the configuration's revision: %w", err)
	}
	return revision, nil
}

// want is the configuration that a server should have.
func (m *Manager) want(ctx context.Context, rs *kopiav1alpha1.RepositoryServer, ref Ref, k key) (serverConfig, error) {
	if e := rs.Spec.External; e != nil {
		user, err := m.externalUser(ctx, e)
		if err != nil {
			return serverConfig{}, err
		}
		return serverConfig{RepositoryID: rs.Name, External: user}, nil
	}
	a, err := accessOf(rs, ref)
	if err != nil {
		return serverConfig{}, err
	}
	password := k.password
	if rs.Spec.KeyID == DefaultKeyID {
		if password, err = m.password(ctx, rs); err != nil {
			return serverConfig{}, err
		}
	}
	return buildConfig(rs, a, password), nil
}

// forbidCreate has the configuration of a repository that was seen say that it is never
// made again: also a pod that nobody asked for, in the place of one that was evicted, is
// to find an empty storage an error.
func (m *Manager) forbidCreate(ctx context.Context, rs *kopiav1alpha1.RepositoryServer) error {
	u := m.hold(rs.Name, 0)
	defer m.release(rs.Name, 0)
	u.deciding.Lock()
	defer u.deciding.Unlock()
	have, revision, err := m.readConfig(ctx, rs)
	if apierrors.IsNotFound(err) || err == nil && !have.AllowCreate {
		return nil
	}
	if err != nil {
		return err
	}
	have.AllowCreate = false
	return m.writeConfig(ctx, rs, have, revision)
}

// readConfig reads the server's configuration and its revision.
func (m *Manager) readConfig(ctx context.Context, rs *kopiav1alpha1.RepositoryServer) (serverConfig, string, error) {
	var secret corev1.Secret
	if err := m.Client.Get(ctx, client.ObjectKey{Namespace: m.Namespace, Name: configSecretName(rs)}, &secret); err != nil {
		return serverConfig{}, "", fmt.Errorf("read the server's configuration: %w", err)
	}
	return parseConfigSecret(&secret)
}

func (m *Manager) writeConfig(ctx context.Context, rs *kopiav1alpha1.RepositoryServer, c serverConfig, revision string) error {
	secret, err := buildConfigSecret(rs, c, revision)
	if err != nil {
		return err
	}
	return kube.Apply(ctx, m.Client, secret)
}

// externalUser reads the user of somebody else's server.
func (m *Manager) externalUser(ctx context.Context, e *kopiav1alpha1.External) (*externalUser, error) {
	var s corev1.Secret
	if err := m.Client.Get(ctx, client.ObjectKey{Namespace: m.Namespace, Name: e.UserSecret}, &s); err != nil {
		return nil, fmt.Errorf("read the user of the external server: %w", err)
	}
	u := &externalUser{URL: e.URL, CA: e.CABundle}
	for key, to := range map[string]*string{"username": &u.Username, "hostname": &u.Hostname, "password": &u.Password} {
		if *to = string(s.Data[key]); *to == "" {
			return nil, fmt.Errorf("read the user of the external server: Secret %s has no key %s", e.UserSecret, key)
		}
	}
	return u, nil
}

// caOf is what agents trust for a server: the CA of the certificate that its pod has,
// whatever the spec names by now. A pod that runs is not replaced while it is used.
func (m *Manager) caOf(ctx context.Context, rs *kopiav1alpha1.RepositoryServer) (string, error) {
	if rs.Spec.External != nil {
		return rs.Spec.External.CABundle, nil
	}
	name := tlsSecretName(rs)
	if pod, err := m.podOf(ctx, rs); err == nil {
		name = cmp.Or(mountedSecret(pod), name)
	} // else it is the spec's, nearly always
	var s corev1.Secret
	err := m.Client.Get(ctx, client.ObjectKey{Namespace: m.Namespace, Name: name}, &s)
	if rs.Spec.TLS == nil && name == tlsSecretName(rs) {
		ca, caErr := m.CA()
		if caErr != nil || client.IgnoreNotFound(err) != nil {
			return "", errors.Join(caErr, wrap("read the server's certificate", err))
		}
		// Its certificate may come from an older CA than the controller's, or a newer one.
		return string(cabundle.Join(ca, s.Data[names.CAKey])), nil
	}
	if err != nil {
		return "", fmt.Errorf("read the server's certificate: %w", err)
	}
	if len(s.Data[names.CAKey]) == 0 {
		return "", fmt.Errorf("Secret %s has no key %s: put the CA there that tls.crt chains to: agents trust nothing else", s.Name, names.CAKey)
	}
	return string(s.Data[names.CAKey]), nil
}

// password reads the repository's password, or makes one. It is made once: a
// repository that was ever ready has one, and no other opens it.
func (m *Manager) password(ctx context.Context, rs *kopiav1alpha1.RepositoryServer) (string, error) {
	key := client.ObjectKey{Namespace: m.Namespace, Name: passwordSecretName(rs)}
	read := func() (string, error) {
		var s corev1.Secret
		if err := m.Client.Get(ctx, key, &s); err != nil {
			return "", err
		}
		if len(s.Data[passwordKey]) == 0 {
			return "", fmt.Errorf("Secret %s has no key %s: put the repository's password back", key.Name, passwordKey)
		}
		return string(s.Data[passwordKey]), nil
	}
	password, err := read()
	if err == nil || !apierrors.IsNotFound(err) {
		return password, wrap("read the repository's password", err)
	}
	if rs.Status.Initialized != nil {
		return "", fmt.Errorf("the repository exists since %s, but its password is gone: put Secret %s (key %s) back",
			rs.Status.Initialized.UTC().Format(time.RFC3339), key.Name, passwordKey)
	}
	err = m.Client.Create(ctx, buildPasswordSecret(rs, rand.Text()+rand.Text()))
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return "", fmt.Errorf("keep the repository's new password: %w", err)
	}
	// What is stored counts, whoever stored it.
	password, err = read()
	return password, wrap("read the repository's password", err)
}

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

var errStartTimeout = fmt.Errorf("not ready after %s", StartTimeout)

// awaitReady waits until the server of a revision is ready, or has failed and is not up again
// within patience.
func (m *Manager) awaitReady(ctx context.Context, id, revision string, patience time.Duration) (*kopiav1alpha1.RepositoryServer, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, StartTimeout, errStartTimeout)
	defer cancel()
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	var last *kopiav1alpha1.RepositoryServer
	var end *time.Timer
	err := kube.Await(ctx, m.Client, client.ObjectKey{Namespace: m.Namespace, Name: id},
		&kopiav1alpha1.RepositoryServer{}, &kopiav1alpha1.RepositoryServerList{},
		func(rs *kopiav1alpha1.RepositoryServer) (bool, error) {
			if rs.Status.Revision != revision {
				return false, nil
			}
			last = rs.DeepCopy()
			switch rs.Status.Phase {
			case kopiav1alpha1.PhaseReady:
				return true, nil
			case kopiav1alpha1.PhaseFailed:
				if patience == 0 {
					return false, errors.New(readyMessage(rs))
				}
				if end == nil {
					end = time.AfterFunc(patience, func() { giveUp(fmt.Errorf("not up again after %s", patience)) })
				}
			}
			return false, nil
		})
	if end != nil {
		end.Stop()
	}
	switch {
	case err == nil:
		return last, nil
	case errors.Is(err, errStartTimeout) && last != nil:
		return nil, fmt.Errorf("%w: %s", errStartTimeout, readyMessage(last))
	case ctx.Err() != nil && last != nil:
		// The caller does not wait as long: what it was waiting for is the reason.
		return nil, fmt.Errorf("%w: %s", err, readyMessage(last))
	}
	return nil, err
}

func readyMessage(rs *kopiav1alpha1.RepositoryServer) string {
	if c := meta.FindStatusCondition(rs.Status.Conditions, kopiav1alpha1.ConditionReady); c != nil {
		return c.Message
	}
	return string(rs.Status.Phase)
}
