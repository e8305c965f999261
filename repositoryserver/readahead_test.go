// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/blob/filesystem"
)

// counted is a real storage that counts what is read of it, and may fail.
type counted struct {
	blob.Storage
	reads, bytes atomic.Int64
	fail         atomic.Bool
}

var errGone = errors.New("the storage is gone")

func (c *counted) GetBlob(ctx context.Context, id blob.ID, offset, length int64, output blob.OutputBuffer) error {
	c.reads.Add(1)
	if c.fail.Load() {
		return errGone
	}
	err := c.Storage.GetBlob(ctx, id, offset, length, output)
	c.bytes.Add(int64(output.Length()))
	return err
}

// aPack puts random bytes into a storage, as a pack.
func aPack(t *testing.T, id blob.ID, size int) (*counted, []byte) {
	t.Helper()
	st, err := filesystem.New(t.Context(), &filesystem.Options{Path: t.TempDir()}, true)
	if err != nil {
		t.Fatal(err)
	}
	content := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(content)
	if err := st.PutBlob(t.Context(), id, slice(content), blob.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	return &counted{Storage: st}, content
}

func readPart(t *testing.T, r *readAhead, id blob.ID, content []byte, from, length int) {
	t.Helper()
	var got buffer
	if err := r.GetBlob(t.Context(), id, int64(from), int64(length), &got); err != nil {
		t.Errorf("read %d at %d: %v", length, from, err)
	} else if !bytes.Equal(got.Bytes(), content[from:from+length]) {
		t.Errorf("read %d at %d: other bytes", length, from)
	}
}

const (
	piece    = 10_007 // no divisor of a segment: pieces lie across borders
	packSize = 10<<20 + 123
)

// Small reads in order are few of the storage, whoever of several comes first; every
// byte is right, to the last.
func TestReadAheadInOrder(t *testing.T) {
	for _, id := range []blob.ID{"p1", "q1"} {
		st, content := aPack(t, id, packSize)
		r := newReadAhead(st)
		places := make(chan int)
		var readers sync.WaitGroup
		for range 8 {
			readers.Go(func() {
				for from := range places {
					readPart(t, r, id, content, from, min(piece, packSize-from))
				}
			})
		}
		for from := 0; from < packSize; from += piece {
			places <- from
		}
		close(places)
		readers.Wait()
		// Three segments, and what was read before there was an order.
		if n := st.reads.Load(); n > 3+8+nearReads {
			t.Errorf("%s: %d reads of the storage for %d pieces", id, n, packSize/piece+1)
		}
	}
}

// Reads that jump about, large ones, and those of other blobs are the storage's: no
// more is read than was asked for.
func TestReadAheadOnlyWhatIsNear(t *testing.T) {
	const size = 64 << 20
	st, content := aPack(t, "p1", size)
	r := newReadAhead(st)
	want := int64(0)
	for i := range 40 {
		readPart(t, r, "p1", content, (i%8)*(8<<20)+i, piece)
		want += piece
	}
	for i := range 10 {
		readPart(t, r, "p1", content, i*(smallRead+1), smallRead+1)
		want += smallRead + 1
	}
	other, index := aPack(t, "xn0_1", 1<<20)
	r.Storage = other
	for i := range 10 {
		readPart(t, r, "xn0_1", index, i*piece, piece)
		want += piece
	}
	if got := st.bytes.Load() + other.bytes.Load(); got != want {
		t.Errorf("%d bytes were read of the storage, %d were asked for", got, want)
	}
}

// What the storage refuses is refused in its own words, and read again when it is back.
func TestReadAheadFailure(t *testing.T) {
	st, content := aPack(t, "p1", packSize)
	r := newReadAhead(st)
	const before = nearReads - 1 // the next one is of an order, and nothing is read ahead yet
	for i := range before {
		readPart(t, r, "p1", content, i*piece, piece)
	}
	st.fail.Store(true)
	var got buffer
	if err := r.GetBlob(t.Context(), "p1", before*piece, piece, &got); !errors.Is(err, errGone) {
		t.Errorf("error %v, want the storage's", err)
	}
	if n := st.reads.Load(); n != before+2 {
		t.Errorf("%d reads of the storage, want %d, one of the segment and one of the piece", n, before+2)
	}
	st.fail.Store(false)
	readPart(t, r, "p1", content, before*piece, piece)
	readPart(t, r, "p1", content, segmentBytes+5, piece)
	for _, outside := range [][2]int64{{packSize - 5, 10}, {packSize + 5, 10}} {
		if err := r.GetBlob(t.Context(), "p1", outside[0], outside[1], &got); err == nil {
			t.Errorf("%d bytes at %d are outside the pack and were read", outside[1], outside[0])
		}
	}
	if err := r.GetBlob(t.Context(), "p2", 0, 10, &got); !errors.Is(err, blob.ErrBlobNotFound) {
		t.Errorf("a pack that is not there: %v", err)
	}
}

// Who waits for what another one reads does not wait longer than he wants to.
func TestReadAheadEndsWithItsContext(t *testing.T) {
	st, _ := aPack(t, "p1", packSize)
	r := newReadAhead(st)
	if _, mine := r.claim("p1", 0); !mine {
		t.Fatal("somebody else reads it")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := r.segment(ctx, "p1", 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

// A connection file of Kopia's leads to the same storage, read the same way.
func TestReadAheadConnection(t *testing.T) {
	st, content := aPack(t, "p1", piece)
	again, err := blob.NewStorage(t.Context(), newReadAhead(st).ConnectionInfo(), false)
	if err != nil {
		t.Fatal(err)
	}
	r, ok := again.(*readAhead)
	if !ok {
		t.Fatalf("it is %T", again)
	}
	readPart(t, r, "p1", content, 0, piece)
}

// slice is a blob.Bytes.
type slice []byte

func (s slice) Length() int                        { return len(s) }
func (s slice) WriteTo(w io.Writer) (int64, error) { return bytes.NewReader(s).WriteTo(w) }
func (s slice) Reader() io.ReadSeekCloser {
	return struct {
		*bytes.Reader
		io.Closer
	}{bytes.NewReader(s), io.NopCloser(nil)}
}
