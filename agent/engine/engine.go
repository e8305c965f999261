// SPDX-License-Identifier: Apache-2.0

// Package engine is what an operation's child process does with Kopia: one file a
// kind. It runs one operation and ends with its process; nothing here outlives a
// call, and nothing links a cloud storage.
package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

// Env is where a child finds things.
type Env struct {
	// VolumesDir holds the mirrored volumes by name.
	VolumesDir string
	// DevicesDir holds the volumes that are block devices.
	DevicesDir string
	// ScratchDir is private and writable; what is made there is removed.
	ScratchDir string
	// CheckpointInterval of snapshots; 0 is operation.DefaultCheckpointInterval.
	CheckpointInterval time.Duration
	Now                func() time.Time
	// Foreign is a repository behind somebody else's server.
	Foreign bool
	// Limits replace the request's rate limit; nil: nothing does.
	Limits <-chan int64
	// Pressure is where it is told that others wait; empty: they are not looked at.
	Pressure Pressure
}

// Run runs one operation to its end. report is called about once a second while
// data moves. Cancelling ctx ends the operation as cancelled, if Kopia obeys; the
// parent kills the process if it does not.
func Run(ctx context.Context, req api.StartRequest, env Env, report func(api.Progress)) (*api.Result, *api.Problem) {
	if req.Credentials == nil {
		return nil, &api.Problem{Code: api.CodeBadRequest, Title: "start operation: credentials are missing"}
	}
	logs := newLogTail(req.Credentials.Password)
	inner, cancel := context.WithCancelCause(logs.context(ctx))
	defer cancel(nil)
	logs.denied = func(err error) { cancel(&connectError{err}) }
	result, err := run(inner, req, env, newProgress(env.Now, report))
	if err != nil {
		if denied := context.Cause(inner); errors.As(denied, new(*connectError)) {
			err = denied
		}
		return nil, problemOf(ctx, req, err, logs)
	}
	return result, nil
}

func run(ctx context.Context, req api.StartRequest, env Env, p *progress) (*api.Result, error) {
	open := connect
	switch req.Kind {
	case api.KindRestore:
		open = connectToRead
	case api.KindSnapshot:
		open = connectToWrite
	case api.KindStats, api.KindVerify:
		open = connectForReaders
	}
	conn, err := open(ctx, req.Credentials, env.ScratchDir)
	if err != nil {
		return nil, err
	}
	defer conn.close()
	conn.foreign = env.Foreign
	stop := p.run()
	defer stop()
	limit, release := env.throttle(ctx, req.RateLimit)
	defer release()
	switch req.Kind {
	case api.KindSnapshot:
		return snapshotVolume(ctx, conn, req, env, p, limit)
	case api.KindRestore:
		return restoreVolume(ctx, conn, req, env, p, limit)
	case api.KindRecord:
		return writeRecord(ctx, conn, *req.Record)
	case api.KindFind:
		return findRecords(ctx, conn, *req.Find)
	case api.KindDelete:
		return deleteRecord(ctx, conn, *req.Delete)
	case api.KindList:
		return listRecords(ctx, conn, *req.List)
	case api.KindStats:
		return statsOf(ctx, conn, *req.Stats, p)
	case api.KindVerify:
		return verifyBackups(ctx, conn, *req.Verify, p, limit)
	case api.KindProbe:
		return seeCanary(ctx, conn)
	default:
		return nil, &api.Problem{Code: api.CodeUnsupported, Title: fmt.Sprintf("start operation: kind %q is not known", req.Kind)}
	}
}
