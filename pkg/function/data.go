// SPDX-License-Identifier: Apache-2.0

package function

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	agentclient "github.com/kanister-kopia/kanister-kopia/agent/client"
	"github.com/kanister-kopia/kanister-kopia/pkg/mover"
	"github.com/kanister-kopia/kanister-kopia/pkg/repository"
)

// version is an output of the data functions: Kanister's default version.
const version = "v0.0.0"

// Data is what the data functions work with.
type Data struct {
	// Client reads without a cache.
	Client       client.WithWatch
	Repositories *repository.Manager
	Movers       *mover.Movers
	Agents       repository.Connector
	Clock        clock.PassiveClock
	Log          *slog.Logger
}

// Functions are the data functions.
func (d *Data) Functions() []Func {
	return []Func{
		&backupData{d}, &backupDataAll{d}, &backupDataStats{d}, &copyVolumeData{d},
		&restoreData{d}, &restoreDataAll{d}, &deleteData{d}, &deleteDataAll{d},
		&checkRepository{d}, &locationDelete{d},
	}
}

// session mints a password for one operation. Call end: the password stops working when
// it returns, unless the controller goes away (the next one asks for the same session), or
// the server does not answer (it is told when it does).
func (d *Data) session(ctx context.Context, repo *repository.Repository, id string, open opensSession) (credentials *api.Credentials, end func(), err error) {
	credentials, err = open(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	return credentials, sync.OnceFunc(func() {
		if detached(ctx) {
			return
		}
		if err := repo.EndSession(ctx, id); err != nil {
			// The operation's outcome stands.
			d.Log.Warn("session not ended yet: the server is told when it answers", "error", err)
		}
	}), nil
}

// opensSession is Session or ReadSession of the repository, for somebody.
type opensSession func(ctx context.Context, id string) (*api.Credentials, error)

// detached says that the controller goes away and what runs is to go on.
func detached(ctx context.Context) bool {
	return errors.Is(context.Cause(ctx), agentclient.ErrDetached)
}

// ref names the repository that the arguments of a data function mean.
func ref(call Call, namespace string) (repository.Ref, error) {
	r := repository.Ref{Profile: call.Params.Profile, Namespace: namespace}
	key, err := encryptionKey(call.Args)
	if err != nil {
		return r, err
	}
	r.EncryptionKey = key
	return r, decode(call.Args, "insecureTLS", &r.InsecureTLS)
}

// open opens the repository of a namespace; what does not exist yet is made. Close
// it.
func (d *Data) open(ctx context.Context, call Call, namespace string) (*repository.Repository, error) {
	r, err := ref(call, namespace)
	if err != nil {
		return nil, err
	}
	return d.Repositories.Open(ctx, r)
}

// findBackup opens the repository that a backup is in and reads its record. The
// operation's name is part of the look-up's. Close the repository.
func (d *Data) findBackup(ctx context.Context, call Call, operation, namespace, prefix string, by api.FindRequest) (*repository.Repository, api.Record, error) {
	r, err := ref(call, namespace)
	if err != nil {
		return nil, api.Record{}, err
	}
	token := cmp.Or(by.BackupID, by.BackupTag)
	repo, err := d.Repositories.OpenBackup(ctx, token, r)
	if err != nil {
		return nil, api.Record{}, err
	}
	by.Prefix = prefix
	record, err := repo.Find(ctx, operation+"-find", by)
	if err != nil {
		repo.Close()
		if errors.Is(err, repository.ErrNotFound) {
			err = notFound(token, prefix)
		}
		return nil, api.Record{}, err
	}
	return repo, record, nil
}

func notFound(token, prefix string) error {
	return fmt.Errorf("backup %s under prefix %s: %w", token, prefix, repository.ErrNotFound)
}
