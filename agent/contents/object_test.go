// SPDX-License-Identifier: Apache-2.0

package contents

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/kopia/kopia/repo/object"
)

// An object has the id that Kopia's own writer gives it: it is the same pieces in the same
// list, whatever its size and however its bytes come.
func TestObjectIsKopias(t *testing.T) {
	for _, compressed := range []bool{true, false} {
		v := serve(t, &store{none: true})
		v.parameters.Splitter, v.parameters.Compression = "DYNAMIC-128K-BUZHASH", compressed
		w := v.writer(t, func(int64) {})
		o := object.WriterOptions{Compressor: "zstd-fastest", MetadataCompressor: "zstd-fastest", AsyncWrites: 1}
		data := noise(4, 6<<20)
		for _, hole := range [][2]int{{0, 300 << 10}, {2 << 20, 3 << 20}, {4<<20 + 1, 4<<20 + 130<<10}, {5 << 20, 6 << 20}} {
			clear(data[hole[0]:hole[1]])
		}
		random := rand.New(rand.NewPCG(3, 4))
		lists := 0
		for _, size := range []int{0, 1, 100, 64 << 10, 128<<10 - 1, 256 << 10, 256<<10 + 1, 1 << 20, 6 << 20} {
			t.Run(fmt.Sprintf("%d bytes, %v", size, compressed), func(t *testing.T) {
				ours := w.NewObjectWriter(t.Context(), o)
				defer ours.Close()
				if _, ok := ours.(*objectWriter); !ok {
					t.Fatalf("the writer is a %T", ours)
				}
				theirs := w.objects.NewWriter(t.Context(), o)
				defer theirs.Close()
				same := func(what string, id func(object.Writer) (object.ID, error)) object.ID {
					t.Helper()
					got, err := id(ours)
					must(t, err)
					want, err := id(theirs)
					must(t, err)
					if got != want {
						t.Errorf("%s: %s, want %s", what, got, want)
					}
					return got
				}
				for rest := data[:size]; len(rest) > 0; {
					part := rest[:min(len(rest), 1+random.IntN(200<<10))]
					rest = rest[len(part):]
					for _, to := range []object.Writer{ours, theirs} {
						n, err := to.Write(part)
						must(t, err)
						if n != len(part) {
							t.Fatalf("%d of %d bytes were written", n, len(part))
						}
					}
					same("checkpoint", object.Writer.Checkpoint)
				}
				id := same("result", object.Writer.Result)
				if _, list := id.IndexObjectID(); list {
					lists++
				}
			})
		}
		must(t, w.Flush(t.Context()))
		if lists < 3 {
			t.Errorf("%d objects of several pieces, want 3 at least", lists)
		}
	}
}

// A hole takes one content, and no question for each of its pieces.
func TestObjectHole(t *testing.T) {
	st := &store{none: true}
	v := serve(t, st)
	v.parameters.Splitter = "DYNAMIC-128K-BUZHASH"
	uploaded := 0
	w := v.writer(t, func(n int64) { uploaded += int(n) })
	o := w.NewObjectWriter(t.Context(), object.WriterOptions{})
	defer o.Close()
	chunk := make([]byte, 64<<10)
	for range 1024 {
		_, err := o.Write(chunk)
		must(t, err)
	}
	_, err := o.Result()
	must(t, err)
	must(t, w.Flush(t.Context()))
	// The zeros are one piece, which is at most 256 KiB, and the list of the parts.
	if uploaded > 256<<10+100<<10 {
		t.Errorf("%d bytes were sent for a hole of 64 MiB", uploaded)
	}
	if st.questions > 4 {
		t.Errorf("%d questions were asked for a hole", st.questions)
	}
}

// A piece that could not be sent fails the object, whichever it was.
func TestObjectNotWritten(t *testing.T) {
	v := serve(t, &store{none: true})
	v.parameters.Splitter = "DYNAMIC-128K-BUZHASH"
	w := v.writer(t, func(int64) {})
	gone := errors.New("the operation has ended")
	for _, size := range []int{100, 1 << 20} {
		ctx, cancel := context.WithCancelCause(t.Context())
		o := w.NewObjectWriter(ctx, object.WriterOptions{})
		cancel(gone)
		if _, err := o.Write(noise(5, size)); err != nil && !errors.Is(err, gone) {
			t.Errorf("%d bytes: %v, want %v", size, err, gone)
		}
		if id, err := o.Result(); !errors.Is(err, gone) {
			t.Errorf("%d bytes: the result is %v with error %v, want %v", size, id, err, gone)
		}
		if id, err := o.Checkpoint(); !errors.Is(err, gone) {
			t.Errorf("%d bytes: a checkpoint after that is %v with error %v, want %v", size, id, err, gone)
		}
		must(t, o.Close())
	}
}

// Objects of directories are Kopia's to write, and so are those of splitters that only it has.
func TestObjectOfKopia(t *testing.T) {
	v := serve(t, &store{none: true})
	w := v.writer(t, func(int64) {})
	for _, o := range []object.WriterOptions{{}, {Splitter: "DYNAMIC-8M-BUZHASH"}, {Prefix: "k", Splitter: "DYNAMIC-1M-BUZHASH"}} {
		written := w.NewObjectWriter(t.Context(), o)
		if _, ours := written.(*objectWriter); ours {
			t.Errorf("%+v is ours", o)
		}
		must(t, written.Close())
	}
}
