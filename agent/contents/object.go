// SPDX-License-Identifier: Apache-2.0

package contents

import (
	"bytes"
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
// sent while the next one is read, whatever AsyncWrites says. Of a hole one piece is hashed
// and sent, and the others are the same.
type objectWriter struct {
	ctx      context.Context
	objects  *object.Manager
	options  object.WriterOptions
	splitter *splitter

	mu     sync.Mutex // protects the following: Checkpoint comes beside Write
	piece  object.Writer
	length int64                        // of the piece
	blank  bool                         // the piece has only zeros, and they are not written to it
	zeros  object.IndirectObjectEntry   // the last part that was blank
	parts  []object.IndirectObjectEntry // complete but for the last one while it is being sent
	sent   chan sentPiece               // the last one, while it is being sent
	err    error
}

type sentPiece struct {
	id    object.ID
	blank bool
	err   error
}

func newObjectWriter(ctx context.Context, objects *object.Manager, o object.WriterOptions, average int) *objectWriter {
	o.Splitter, o.AsyncWrites = largestPiece, 0
	w := &objectWriter{ctx: ctx, objects: objects, options: o, splitter: newSplitter(average), blank: true}
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
		if w.blank && !AllZero(rest) {
			if err := w.fill(); err != nil {
				return written, err
			}
		}
		if !w.blank {
			if _, err := w.piece.Write(rest); err != nil {
				return written, err
			}
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

// fill writes the zeros of a blank piece to it, which is blank no more.
func (w *objectWriter) fill() error {
	w.blank = false
	for left := w.length; left > 0 && w.err == nil; {
		var n int
		n, w.err = w.piece.Write(zeros[:min(left, int64(len(zeros)))])
		left -= int64(n)
	}
	return w.err
}

var zeros [64 << 10]byte

// AllZero says whether there is nothing but zeros. It compares the bytes with themselves,
// one further: many at once.
func AllZero(b []byte) bool {
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1])
}

// send ends the piece and begins the next one. It waits for the one before.
func (w *objectWriter) send() error {
	if err := w.wait(); err != nil {
		return err
	}
	blank := w.blank
	if blank {
		if w.zeros.Length == w.length {
			w.add(w.zeros.Object)
			return nil
		}
		if err := w.fill(); err != nil {
			return err
		}
	}
	piece, sent := w.piece, make(chan sentPiece, 1)
	w.add(object.EmptyID)
	w.piece = w.objects.NewWriter(w.ctx, w.options)
	w.sent, w.blank = sent, true
	go func() { // ends with the stream, and Close waits for it
		id, err := piece.Result()
		_ = piece.Close() // gives its memory back, and cannot fail
		sent <- sentPiece{id, blank, err}
	}()
	return nil
}

// add makes the piece a part. Its id may come later.
func (w *objectWriter) add(id object.ID) {
	part := object.IndirectObjectEntry{Length: w.length, Object: id}
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
		last := &w.parts[len(w.parts)-1]
		last.Object, w.err = s.id, s.err
		if s.blank && s.err == nil {
			w.zeros = *last
		}
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
		if w.blank {
			if err := w.fill(); err != nil {
				return object.EmptyID, err
			}
		}
		id, err := w.piece.Result()
		if err != nil {
			w.err = err
			return object.EmptyID, err
		}
		w.add(id)
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
