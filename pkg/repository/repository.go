// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"path"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	agentclient "github.com/kanister-kopia/kanister-kopia/agent/client"
	"github.com/kanister-kopia/kanister-kopia/internal/pause"
	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/kube"
)

// Repository is a repository whose server is ready. While it is open, the server
// is not stopped. It is safe for concurrent use.
type Repository struct {
	manager *Manager
	id      string
	tenant  kopiav1alpha1.Tenant
	ref     Ref
	key     key
	// missing is made where there is no RepositoryServer; nil: nothing is.
	missing *kopiav1alpha1.RepositoryServer
	use     *use
	closing sync.Once

	mu    sync.Mutex // protects the following
	rs    *kopiav1alpha1.RepositoryServer
	agent *agentclient.Client
}

// Close gives the repository back.
func (r *Repository) Close() {
	r.closing.Do(func() {
		r.manager.release(r.id, 1)
	})
}

// drop forgets a way to the server's agent; false: it is another by now. The lock is held.
func (r *Repository) drop(agent *agentclient.Client) bool {
	if r.agent != agent {
		return false
	}
	r.manager.forget(r.id, agent)
	r.agent = nil
	return true
}

// ID names the repository; tokens of its backups begin with it.
func (r *Repository) ID() string { return r.id }

// KeyID names its encryption key.
func (r *Repository) KeyID() string { return r.key.id }

// Tenant is whose data is worked with.
func (r *Repository) Tenant() kopiav1alpha1.Tenant { return r.tenant }

// Compression of new backups, "" for the agent's default.
func (r *Repository) Compression() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f := r.rs.Spec.Format; f != nil {
		return f.Compression
	}
	return ""
}

// SourcePath is the path of a snapshot's identity. An external server knows one user
// alone, so there the path tells namespaces and their claims apart.
func (r *Repository) SourcePath(username, pathInVolume string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.rs.Spec.External != nil {
		return path.Join("/", r.tenant.NamespaceUID, username, pathInVolume)
	}
	return pathInVolume
}

// queuePause is how often an operation that waits for its turn asks again; the
// server keeps its place for longer.
const queuePause = 2 * time.Second

// Session mints a password for one user and one operation, when it is the
// operation's turn, which backs up one source. The same id again gives the same password,
// so a phase that goes on after a restart asks anew. End it with EndSession.
func (r *Repository) Session(ctx context.Context, id, username, hostname, sourcePath string) (*api.Credentials, error) {
	return r.session(ctx, api.SessionRequest{ID: id, Username: username, Hostname: hostname, SourcePath: sourcePath})
}

// ReadSession is Session for an operation that restores: its password reads contents and does
// nothing else, at a server of ours.
func (r *Repository) ReadSession(ctx context.Context, id, username, hostname string) (*api.Credentials, error) {
	return r.session(ctx, api.SessionRequest{ID: id, Username: username, Hostname: hostname, ReadOnly: true})
}

func (r *Repository) session(ctx context.Context, req api.SessionRequest) (_ *api.Credentials, err error) {
	begun := r.reclaim(req.ID) // the server may have it
	defer func() {
		// Nobody gets to know the password, so nobody else ends it. A controller that goes away
		// leaves it to the next one, which asks for the same.
		if err != nil && begun && !errors.Is(context.Cause(ctx), agentclient.ErrDetached) {
			_ = r.EndSession(ctx, req.ID) // or it is owed
		}
	}()
	var s api.Session
	for {
		err := r.ask(ctx, func(agent *agentclient.Client) (err error) {
			s, err = agent.StartSession(ctx, req)
			// Only a server that says no leaves nothing behind: an answer may be lost.
			begun = begun || codeOf(err) == ""
			return err
		})
		if err == nil {
			break
		}
		if codeOf(err) != api.CodeBusy {
			return nil, fmt.Errorf("open a session at repository server %s: %w", r.ID(), err)
		}
		if err := pause.For(ctx, queuePause); err != nil {
			return nil, err
		}
	}
	r.mu.Lock()
	rs := r.rs
	r.mu.Unlock()
	ca, err := r.manager.caOf(ctx, rs)
	if err != nil {
		return nil, fmt.Errorf("open a session at repository server %s: read the CA: %w", r.ID(), err)
	}
	return &api.Credentials{
		URL: serverURL(rs), CA: ca, Username: s.Username, Hostname: s.Hostname, Password: s.Password,
	}, nil
}

// EndSession makes a session's password stop working and cuts its connections, also when
// ctx has ended. A way that broke, or that says nothing for endTimeout, is found anew, once.
// With an error, after tidyTimeout at most, the server is told as soon as it can be asked
// what uses it: within a minute, if it answers then.
func (r *Repository) EndSession(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyTimeout)
	defer cancel()
	err := r.ask(ctx, func(agent *agentclient.Client) error {
		ctx, cancel := context.WithTimeout(ctx, endTimeout)
		defer cancel()
		return agent.EndSession(ctx, id)
	})
	if err == nil || errors.Is(err, kube.ErrGone) { // a RepositoryServer that was deleted takes its pod along
		r.manager.settle(r.id, id)
	} else {
		r.manager.owe(r.id, id)
	}
	return wrap("end a session at repository server "+r.ID(), err)
}

const (
	// tidyTimeout bounds how long the end of a session keeps a phase waiting.
	tidyTimeout = 15 * time.Second
	// endTimeout leaves time for another way.
	endTimeout = 5 * time.Second
)

func codeOf(err error) api.Code {
	var p *api.Problem
	if errors.As(err, &p) {
		return p.Code
	}
	return ""
}

// ask calls the server's agent. A server that is about to be stopped, which another
// controller may have decided a moment ago, is replaced by one that is not; a way
// that broke is found anew, once.
func (r *Repository) ask(ctx context.Context, call func(*agentclient.Client) error) error {
	broke := false
	for {
		agent, revision, err := r.connect(ctx)
		if err != nil {
			return err
		}
		err = call(agent)
		switch code := codeOf(err); {
		case err == nil || ctx.Err() != nil:
			return err
		case code == api.CodeDraining:
			if err := r.replace(ctx, agent, revision); err != nil {
				return err
			}
		case code == "":
			r.mu.Lock()
			r.drop(agent)
			r.mu.Unlock()
			if broke {
				return err
			}
			broke = true
		default:
			return err
		}
	}
}

// replace brings another server up than the one of this agent and revision, which stops,
// unless somebody has done so meanwhile: what he got may be at work already.
func (r *Repository) replace(ctx context.Context, agent *agentclient.Client, revision string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.drop(agent) {
		return nil
	}
	return r.bringUp(ctx, revision)
}

// Record makes a snapshot a backup and returns the record as it is stored.
func (r *Repository) Record(ctx context.Context, id string, req api.RecordRequest) (api.Record, error) {
	return r.one(ctx, api.StartRequest{ID: id, Kind: api.KindRecord, Record: &req}, "record the backup")
}

// Find looks a backup up. ErrNotFound if the repository has none of that id or
// tag under that prefix.
func (r *Repository) Find(ctx context.Context, id string, req api.FindRequest) (api.Record, error) {
	req.KeyID = r.KeyID()
	return r.one(ctx, api.StartRequest{ID: id, Kind: api.KindFind, Find: &req}, "find the backup")
}

// Delete deletes a backup and its snapshot. It returns what was deleted: nothing,
// if there was nothing. ErrNotFound if it is there under another prefix.
func (r *Repository) Delete(ctx context.Context, id string, req api.DeleteRequest) ([]api.Record, error) {
	req.KeyID = r.KeyID()
	// One that goes on was counted when it began.
	err := r.ask(ctx, func(agent *agentclient.Client) error {
		_, err := agent.Get(ctx, id)
		return err
	})
	if codeOf(err) == api.CodeNotFound {
		// Nor does one count that deletes nothing: the server forgets what it has done, so
		// what was deleted before a restart of the controller would count again.
		switch _, err = r.Find(ctx, id+"-find", req); {
		case err == nil:
			err = r.manager.mayDelete(ctx, r.id)
		case errors.Is(err, ErrNotFound):
			err = nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("delete the backup: %w", err)
	}
	res, err := r.run(ctx, api.StartRequest{ID: id, Kind: api.KindDelete, Delete: &req})
	if err != nil {
		return nil, told("delete the backup", err)
	}
	return res.Records, nil
}

// List returns the records under a prefix, of all prefixes if it is "", in the order in
// which they were written. It asks for them page by page, with ids that begin with id:
// another id sees what was written since. An error is the last that it yields.
func (r *Repository) List(ctx context.Context, id, prefix string) iter.Seq2[api.Record, error] {
	return func(yield func(api.Record, error) bool) {
		req := api.ListRequest{Prefix: prefix, KeyID: r.KeyID()}
		for page := 0; ; page++ {
			res, err := r.run(ctx, api.StartRequest{ID: fmt.Sprintf("%s-%d", id, page), Kind: api.KindList, List: &req})
			if err != nil {
				yield(api.Record{}, fmt.Errorf("list the backups: %w", err))
				return
			}
			for _, record := range res.Records {
				if !yield(record, nil) {
					return
				}
			}
			if res.Next == "" {
				return
			}
			req.After = res.Next
		}
	}
}

// Stats measures a backup. ErrNotFound as of Find.
func (r *Repository) Stats(ctx context.Context, id string, req api.StatsRequest, progress func(api.Progress)) (api.StatsResult, error) {
	req.KeyID = r.KeyID()
	res, err := r.follow(ctx, api.StartRequest{ID: id, Kind: api.KindStats, Stats: &req}, progress)
	if err != nil {
		return api.StatsResult{}, told("measure the backup", err)
	}
	return *res.Stats, nil
}

// Verify checks one backup, or all under a prefix or of the repository. Problems of
// the backups are in the result; an error says that they could not be looked at.
// ErrNotFound as of Find, if one is named.
func (r *Repository) Verify(ctx context.Context, id string, req api.VerifyRequest, progress func(api.Progress)) (api.VerifyResult, error) {
	req.KeyID = r.KeyID()
	res, err := r.follow(ctx, api.StartRequest{ID: id, Kind: api.KindVerify, Verify: &req}, progress)
	if err != nil {
		return api.VerifyResult{}, told("verify the backups", err)
	}
	return *res.Verify, nil
}

// told is an error of an operation in our words.
func told(what string, err error) error {
	var p *api.Problem
	if errors.As(err, &p) && p.Code == api.CodeNotFound {
		return fmt.Errorf("%s: %w", what, ErrNotFound)
	}
	return fmt.Errorf("%s: %w", what, err)
}

func (r *Repository) one(ctx context.Context, req api.StartRequest, what string) (api.Record, error) {
	res, err := r.run(ctx, req)
	switch {
	case err != nil:
		return api.Record{}, told(what, err)
	case len(res.Records) == 0:
		return api.Record{}, fmt.Errorf("%s: %w", what, ErrNotFound)
	}
	return res.Records[0], nil
}

func (r *Repository) run(ctx context.Context, req api.StartRequest) (*api.Result, error) {
	return r.follow(ctx, req, func(api.Progress) {})
}

func (r *Repository) follow(ctx context.Context, req api.StartRequest, progress func(api.Progress)) (res *api.Result, err error) {
	req.Tenant = r.tenant.NamespaceUID
	err = r.ask(ctx, func(agent *agentclient.Client) (err error) {
		res, err = agent.Run(ctx, req, progress)
		return err
	})
	return res, err
}

// agentTimeout bounds how long a ready server's agent may be out of reach.
const agentTimeout = 30 * time.Second

// connect reaches the server's own agent, and says of which revision the server is. A pod
// that was replaced meanwhile is waited for, and so is a container that crashed: whoever
// waits for his turn, or has a snapshot to record, would fail for it.
func (r *Repository) connect(ctx context.Context) (_ *agentclient.Client, revision string, _ error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	revision = r.rs.Status.Revision
	if r.agent != nil {
		return r.agent, revision, nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, agentTimeout, fmt.Errorf("out of reach for %s", agentTimeout))
	defer cancel()
	// Its pods say whether it is ready still. The status does, too, until the Reconciler
	// has seen that the pod is gone.
	rs := r.rs
	for {
		agent, err := r.manager.agentOf(ctx, rs)
		if err == nil {
			r.agent = agent
			return agent, revision, nil
		}
		if !errors.Is(err, errReplaced) && !apierrors.IsNotFound(err) || pause.For(ctx, replacedPause) != nil {
			return nil, "", fmt.Errorf("reach repository server %s: %w", r.ID(), err)
		}
		if rs, err = r.manager.awaitReady(ctx, r.ID(), revision, agentTimeout); err != nil {
			return nil, "", fmt.Errorf("reach repository server %s: %w", r.ID(), err)
		}
	}
}

// replacedPause is how often a server whose pod has just gone is looked at.
const replacedPause = 200 * time.Millisecond
