// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"sync"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/object"
)

// calmWriter keeps flushes and the writing of contents apart. A checkpoint flushes
// while files are read and written, and Kopia's client, which sends contents beside
// each other, counts them in a way that does not bear a flush at the same time: it
// panics, now and then, and the backup with it (Kopia v0.23.1). Our own stream bears it.
type calmWriter struct {
	repo.RepositoryWriter
	writing sync.RWMutex // held for writing by a flush
}

// NewObjectWriter writes contents in the calls of its writer, not behind them: then
// nothing of it goes on that a flush does not know. The client sends in parallel all
// the same.
func (w *calmWriter) NewObjectWriter(ctx context.Context, o object.WriterOptions) object.Writer {
	o.AsyncWrites = 0
	return &calmObject{w.RepositoryWriter.NewObjectWriter(ctx, o), &w.writing}
}

func (w *calmWriter) ConcatenateObjects(ctx context.Context, ids []object.ID, o repo.ConcatenateOptions) (object.ID, error) {
	w.writing.RLock()
	defer w.writing.RUnlock()
	return w.RepositoryWriter.ConcatenateObjects(ctx, ids, o)
}

func (w *calmWriter) Flush(ctx context.Context) error {
	w.writing.Lock()
	defer w.writing.Unlock()
	return w.RepositoryWriter.Flush(ctx)
}

type calmObject struct {
	object.Writer
	writing *sync.RWMutex
}

func (o *calmObject) Write(p []byte) (int, error) {
	o.writing.RLock()
	defer o.writing.RUnlock()
	return o.Writer.Write(p)
}

func (o *calmObject) Checkpoint() (object.ID, error) {
	o.writing.RLock()
	defer o.writing.RUnlock()
	return o.Writer.Checkpoint()
}

func (o *calmObject) Result() (object.ID, error) {
	o.writing.RLock()
	defer o.writing.RUnlock()
	return o.Writer.Result()
}
