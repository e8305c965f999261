// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"time"

	"github.com/kopia/kopia/repo/blob"
	"github.com/kopia/kopia/repo/content"
	"k8s.io/utils/lru"
)

// readAhead is a storage whose packs are read a segment at a time where they are read
// in order. Kopia asks the storage for each content alone, and the content of a small
// file is a small part of a pack: a restore of 20,000 small files would be 20,000
// requests, each written to Kopia's cache and synced. A restore walks in the order of
// the backup, so what was packed side by side is read side by side.
//
// Packs never change, so a segment is never stale. Reads that are large, or jump about,
// go to the storage as they are: a segment is read only where it is likely to be used.
type readAhead struct {
	blob.Storage

	mu       sync.Mutex // protects the following
	packs    *lru.Cache // *pack by blob.ID
	segments *lru.Cache // *segment by segmentKey
	room     [][]byte   // of segments that nobody has any more, of segmentRoom bytes each
}

const (
	readAheadType = "read-ahead"
	// segmentBytes take a few times the latency of a storage to be read.
	segmentBytes = 4 << 20
	// segmentRoom is what a segment is read into without growing.
	segmentRoom = segmentBytes + bytes.MinRead
	// mostSegments bounds the memory; restores under way need one each.
	mostSegments = 8
	// mostRoom is kept for the next segments: making 4 MiB anew costs as much as decrypting them.
	mostRoom  = 2
	mostPacks = 1024
	// smallRead is below what is worth a request of its own.
	smallRead = 512 << 10
	// nearBytes is how far apart reads of one order may be: several are under way.
	nearBytes = 4 << 20
	// nearReads in a row are an order.
	nearReads = 3
	// aheadTimeout is for what nobody waits for yet.
	aheadTimeout = time.Minute
)

// pack is what is known of the reads of one pack.
type pack struct {
	size int64 // 0: not known
	next int64 // where the last small read ended
	near int   // small reads in a row that began near where another ended
}

type segmentKey struct {
	pack  blob.ID
	index int64
}

// segment is a part of a pack. What it holds is set when done is closed, and stays as long
// as it has users.
type segment struct {
	done chan struct{}
	data []byte
	err  error

	// The lock of readAhead protects the following.
	users   int
	evicted bool
}

// readAheadOptions are kept in Kopia's connection file, with the storage's own.
type readAheadOptions struct {
	Storage blob.ConnectionInfo `json:"storage"`
}

func init() {
	blob.AddSupportedStorage(readAheadType, readAheadOptions{}, func(ctx context.Context, o *readAheadOptions, isCreate bool) (blob.Storage, error) {
		st, err := blob.NewStorage(ctx, o.Storage, isCreate)
		if err != nil {
			return nil, err
		}
		return newReadAhead(st), nil
	})
}

func newReadAhead(st blob.Storage) *readAhead {
	r := &readAhead{Storage: st, packs: lru.New(mostPacks)}
	r.segments = lru.NewWithEvictionFunc(mostSegments, func(_ lru.Key, evicted any) { // the lock is held
		s := evicted.(*segment)
		s.evicted = true
		r.recycle(s)
	})
	return r
}

// ConnectionInfo implements blob.Storage.
func (r *readAhead) ConnectionInfo() blob.ConnectionInfo {
	return blob.ConnectionInfo{Type: readAheadType, Config: &readAheadOptions{Storage: r.Storage.ConnectionInfo()}}
}

// GetBlob implements blob.Storage.
func (r *readAhead) GetBlob(ctx context.Context, id blob.ID, offset, length int64, output blob.OutputBuffer) error {
	if length <= 0 || length > smallRead || offset < 0 || !isPack(id) || !r.inOrder(id, offset, length) {
		return r.direct(ctx, id, offset, length, output)
	}
	output.Reset()
	for at := offset; at < offset+length; {
		n, err := r.copy(ctx, id, at, offset+length-at, output)
		if err != nil {
			// The storage says itself what is wrong with this read, if it is.
			return r.direct(ctx, id, offset, length, output)
		}
		at += n
	}
	packReads.WithLabelValues("memory").Inc()
	return nil
}

// copy writes at most length bytes of one segment, and at least one.
func (r *readAhead) copy(ctx context.Context, id blob.ID, at, length int64, output blob.OutputBuffer) (int64, error) {
	s, err := r.segment(ctx, id, at/segmentBytes)
	if err != nil {
		return 0, err
	}
	defer r.release(s)
	from := at % segmentBytes
	if from >= int64(len(s.data)) {
		return 0, blob.ErrInvalidRange
	}
	n, err := output.Write(s.data[from:min(int64(len(s.data)), from+length)])
	return int64(n), err
}

func (r *readAhead) direct(ctx context.Context, id blob.ID, offset, length int64, output blob.OutputBuffer) error {
	if isPack(id) {
		packReads.WithLabelValues("storage").Inc()
	}
	return r.Storage.GetBlob(ctx, id, offset, length, output)
}

func isPack(id blob.ID) bool {
	return strings.HasPrefix(string(id), string(content.PackBlobIDPrefixRegular)) || strings.HasPrefix(string(id), string(content.PackBlobIDPrefixSpecial))
}

// inOrder notes a small read and says whether it is one of an order.
func (r *readAhead) inOrder(id blob.ID, offset, length int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.pack(id)
	if offset < p.next-nearBytes || offset > p.next+nearBytes {
		p.near = 0
	}
	p.near, p.next = min(p.near+1, nearReads), offset+length
	return p.near == nearReads
}

// pack is what is known of a pack. The lock is held.
func (r *readAhead) pack(id blob.ID) *pack {
	if p, ok := r.packs.Get(id); ok {
		return p.(*pack)
	}
	p := &pack{}
	r.packs.Add(id, p)
	return p
}

// segment reads a segment, once for all who want it at the same time, and begins with
// the next one: whoever reads in order wants it in a moment. The caller releases it.
func (r *readAhead) segment(ctx context.Context, id blob.ID, index int64) (*segment, error) {
	s, mine := r.claim(id, index)
	if mine {
		r.read(ctx, id, index, s)
		if s.err == nil && len(s.data) == segmentBytes {
			r.ahead(ctx, id, index+1)
		}
	}
	select {
	case <-s.done:
		if s.err == nil {
			return s, nil
		}
		r.release(s)
		return nil, s.err
	case <-ctx.Done():
		r.release(s)
		return nil, context.Cause(ctx)
	}
}

// ahead begins to read a segment that nobody waits for yet.
func (r *readAhead) ahead(ctx context.Context, id blob.ID, index int64) {
	s, mine := r.claim(id, index)
	if !mine {
		r.release(s)
		return
	}
	go func() { // ends with its read
		defer r.release(s)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), aheadTimeout)
		defer cancel()
		r.read(ctx, id, index, s)
	}()
}

// claim finds a segment, for the caller to release. If it is not there, or could not be
// read, the caller has to read it.
func (r *readAhead) claim(id blob.ID, index int64) (s *segment, mine bool) {
	key := segmentKey{id, index}
	r.mu.Lock()
	defer r.mu.Unlock()
	if found, ok := r.segments.Get(key); ok {
		s = found.(*segment)
		if !s.failed() {
			s.users++
			return s, false
		}
		r.segments.Remove(key)
	}
	s = &segment{done: make(chan struct{}), users: 1}
	r.segments.Add(key, s)
	return s, true
}

func (s *segment) failed() bool {
	select {
	case <-s.done:
		return s.err != nil
	default:
		return false
	}
}

func (r *readAhead) release(s *segment) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s.users--
	r.recycle(s)
}

// recycle takes the room of a segment that nobody has any more. The lock is held.
func (r *readAhead) recycle(s *segment) {
	if s.users > 0 || !s.evicted || cap(s.data) < segmentRoom {
		return
	}
	if len(r.room) < mostRoom {
		r.room = append(r.room, s.data[:0])
	}
	s.data = nil
}

// takeRoom is room for a segment of length bytes.
func (r *readAhead) takeRoom(length int64) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.room); n > 0 {
		room := r.room[n-1]
		r.room = r.room[:n-1]
		return room
	}
	if length == segmentBytes {
		return make([]byte, 0, segmentRoom)
	}
	return make([]byte, 0, length+bytes.MinRead) // the end of a pack
}

// read reads a segment from the storage, and the pack's size if it is not known.
func (r *readAhead) read(ctx context.Context, id blob.ID, index int64, s *segment) {
	defer close(s.done)
	size, err := r.size(ctx, id)
	if err != nil {
		s.err = err
		return
	}
	start := index * segmentBytes
	length := min(size-start, segmentBytes)
	if length <= 0 {
		s.err = blob.ErrInvalidRange
		return
	}
	b := buffer{*bytes.NewBuffer(r.takeRoom(length))}
	s.err = r.direct(ctx, id, start, length, &b)
	s.data = b.Bytes()
}

// size is the size of a pack.
func (r *readAhead) size(ctx context.Context, id blob.ID) (int64, error) {
	r.mu.Lock()
	p := r.pack(id)
	size := p.size
	r.mu.Unlock()
	if size > 0 {
		return size, nil
	}
	m, err := r.Storage.GetMetadata(ctx, id)
	if err != nil {
		return 0, err
	}
	r.mu.Lock()
	p.size = m.Length
	r.mu.Unlock()
	return m.Length, nil
}

// buffer is a blob.OutputBuffer.
type buffer struct{ bytes.Buffer }

func (b *buffer) Length() int { return b.Len() }
