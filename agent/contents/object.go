// SPDX-License-Identifier: Apache-2.0

package contents

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/kopia/kopia/repo/object"
)

// largestPiece is a splitter of Kopia's that cuts no piece of ours.
const largestPiece = "FIXED-8M"

// objectWriter writes an object as Kopia's does, piece by piece, but finds their ends
// itself: each piece is an object of Kopia's that is one content. One piece is hashed and
// sent while the next one is read, whatever AsyncWrites says.
type objectWriter struct {
	ctx      context.Context
	objects  *object.Manager
	options  object.WriterOptions
	splitter *splitter

	mu     sync.Mutex // protects the following: Checkpoint comes beside Write
	piece  object.Writer
	length int64                        // of the piece
	parts  []object.IndirectObjectEntry // complete but for the last one while it is being sent
	sent   chan sentPiece               // the last one, while it is being sent
	err    error
}

type sentPiece struct {
	id  object.ID
	err error
}

func newObjectWriter(ctx context.Context, objects *object.Manager, o object.WriterOptions, average int) *objectWriter {
	o.Splitter, o.AsyncWrites = largestPiece, 0
	w := &objectWriter{ctx: ctx, objects: objects, options: o, splitter: newSplitter(average)}
	w.piece = objects.NewWriter(ctx, o)
	return w
}

func (w *objectWriter) Write(data []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	written := 0
	for written < len(data) {
		rest := data[written:]
		n := w.splitter.next(rest)
		if n > 0 {
			rest = rest[:n]
		}
		if _, err := w.piece.Write(rest); err != nil {
			return written, err
		}
		w.length += int64(len(rest))
		written += len(rest)
		if n > 0 {
			if err := w.send(); err != nil {
				return written, err
			}
		}
	}
	return written, nil
}

// send ends the piece and begins the next one. It waits for the one before.
func (w *objectWriter) send() error {
	if err := w.wait(); err != nil {
		return err
	}
	piece, sent := w.piece, make(chan sentPiece, 1)
	w.add()
	w.piece = w.objects.NewWriter(w.ctx, w.options)
	w.sent = sent
	go func() { // ends with the stream, and Close waits for it
		id, err := piece.Result()
		_ = piece.Close() // gives its memory back, and cannot fail
		sent <- sentPiece{id, err}
	}()
	return nil
}

// add makes the piece a part, whose id comes later.
func (w *objectWriter) add() {
	part := object.IndirectObjectEntry{Length: w.length}
	if n := len(w.parts); n > 0 {
		part.Start = w.parts[n-1].Start + w.parts[n-1].Length
	}
	w.parts = append(w.parts, part)
	w.length = 0
}

// wait returns when all parts are complete. After an error there are no more.
func (w *objectWriter) wait() error {
	if w.sent != nil {
		s := <-w.sent
		w.sent = nil
		w.parts[len(w.parts)-1].Object = s.id
		w.err = s.err
	}
	return w.err
}

// Checkpoint is the object of the pieces so far, or none.
func (w *objectWriter) Checkpoint() (object.ID, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.wait(); err != nil {
		return object.EmptyID, err
	}
	return w.whole()
}

func (w *objectWriter) Result() (object.ID, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.wait(); err != nil {
		return object.EmptyID, err
	}
	if w.length > 0 || len(w.parts) == 0 {
		id, err := w.piece.Result()
		if err != nil {
			w.err = err
			return object.EmptyID, err
		}
		w.add()
		w.parts[len(w.parts)-1].Object = id
	}
	return w.whole()
}

// whole is the object of all parts: the only one, or a list of them as Kopia writes it.
func (w *objectWriter) whole() (object.ID, error) {
	switch len(w.parts) {
	case 0:
		return object.EmptyID, nil
	case 1:
		return w.parts[0].Object, nil
	}
	list := w.objects.NewWriter(w.ctx, object.WriterOptions{
		Description: "LIST(" + w.options.Description + ")", Prefix: "x",
		Compressor: w.options.MetadataCompressor, MetadataCompressor: w.options.MetadataCompressor,
	})
	defer list.Close()
	err := json.NewEncoder(list).Encode(struct {
		Stream  string                       `json:"stream"`
		Entries []object.IndirectObjectEntry `json:"entries"`
	}{"kopia:indirect", w.parts})
	if err != nil {
		return object.EmptyID, fmt.Errorf("write the list of an object's contents: %w", err)
	}
	id, err := list.Result()
	if err != nil {
		return object.EmptyID, err
	}
	return object.ParseID("I" + id.String())
}

// Close waits for what is being sent: its memory is in use. What went wrong is Result's to say.
func (w *objectWriter) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	_ = w.wait()
	return w.piece.Close()
}
