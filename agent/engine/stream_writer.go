// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/object"

	"github.com/kanister-kopia/kanister-kopia/agent/contents"
)

// streamWriter is a write session of Kopia's whose contents go through a stream. Kopia
// keeps the manifests.
type streamWriter struct {
	repo.RepositoryWriter
	contents *contents.Writer
}

func newStreamWriter(ctx context.Context, session repo.RepositoryWriter, s *contents.Stream, onUpload func(int64)) (repo.RepositoryWriter, error) {
	w, err := contents.NewWriter(ctx, s, onUpload)
	if err != nil {
		return nil, err
	}
	return &streamWriter{session, w}, nil
}

func (w *streamWriter) NewObjectWriter(ctx context.Context, o object.WriterOptions) object.Writer {
	return w.contents.NewObjectWriter(ctx, o)
}

func (w *streamWriter) ConcatenateObjects(ctx context.Context, ids []object.ID, o repo.ConcatenateOptions) (object.ID, error) {
	return w.contents.ConcatenateObjects(ctx, ids, o)
}

func (w *streamWriter) OpenObject(ctx context.Context, id object.ID) (object.Reader, error) {
	return w.contents.OpenObject(ctx, id)
}

func (w *streamWriter) VerifyObject(ctx context.Context, id object.ID) ([]content.ID, error) {
	return w.contents.VerifyObject(ctx, id)
}

func (w *streamWriter) ContentInfo(ctx context.Context, id content.ID) (content.Info, error) {
	return w.contents.ContentInfo(ctx, id)
}

// PrefetchContents is Kopia's hint to fill a cache; there is none.
func (w *streamWriter) PrefetchContents(context.Context, []content.ID, string) []content.ID {
	return nil
}

// Flush flushes contents first: a manifest names nothing that is not in the storage.
func (w *streamWriter) Flush(ctx context.Context) error {
	if err := w.contents.Flush(ctx); err != nil {
		return err
	}
	return w.RepositoryWriter.Flush(ctx)
}
