// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
)

// Kopia serves all users together with few calls at once, and each call has its answer until
// its client takes it. So an operation says to Kopia only what it needs, which is small, and
// Kopia waits for no client.

// sessionRequests are the fields of Kopia's SessionRequest that pass: an operation begins a
// session, looks for manifests, reads and writes them, and flushes. Contents move past Kopia
// (contents.go), and who deletes or notifies is not let in (internal/grpcapi of Kopia v0.23).
var sessionRequests = map[uint64]bool{
	1:           true, // request_id
	10:          true, // initialize_session
	12:          true, // flush
	15:          true, // get_manifest
	putManifest: true,
	17:          true, // find_manifests
}

const putManifest = 16

const (
	// mostRequest is far more than any of these takes, in bytes.
	mostRequest = 256 << 10
	// mostSaved is far more than the manifests of any operation take together, in bytes: Kopia
	// has all manifests of a repository in memory. A snapshot of a week saves one every few
	// minutes, of some KiB each.
	mostSaved = 16 << 20
	// mostUntaken is far more than any operation leaves of Kopia's answers, in bytes.
	mostUntaken = 8 << 20
	// grpcHeader is before each message: whether it is compressed, and its length.
	grpcHeader = 1 + 4
)

// The wire types of Protocol Buffers that there are still.
const (
	protoVarint  = 0
	protoFixed64 = 1
	protoBytes   = 2
	protoFixed32 = 5
)

// requests are what a client says to Kopia, without what does not pass. Kopia answers a
// request of which nothing is left with an error, and the stream goes on.
type requests struct {
	io.Closer
	in      *bufio.Reader
	saved   *atomic.Int64 // bytes of the session's manifests
	message []byte
	rest    []byte // of message, what was not read yet
}

func newRequests(body io.ReadCloser, saved *atomic.Int64) *requests {
	return &requests{Closer: body, in: bufio.NewReader(body), saved: saved}
}

func (q *requests) Read(p []byte) (int, error) {
	if len(q.rest) == 0 {
		if err := q.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, q.rest)
	q.rest = q.rest[n:]
	return n, nil
}

// next reads a message. io.EOF is between two of them.
func (q *requests) next() error {
	var header [grpcHeader]byte
	if _, err := io.ReadFull(q.in, header[:]); err != nil {
		return err
	}
	if header[0] != 0 {
		return errors.New("read request: it is compressed, which no client of ours does")
	}
	in := &limited{q.in, int64(binary.BigEndian.Uint32(header[1:]))}
	q.message = append(q.message[:0], header[:]...)
	for in.left > 0 {
		if err := q.field(in); err != nil {
			return fmt.Errorf("read request: %w", err)
		}
	}
	binary.BigEndian.PutUint32(q.message[1:], uint32(len(q.message)-grpcHeader))
	q.rest = q.message
	return nil
}

// field reads one, and keeps it if it passes.
func (q *requests) field(in *limited) error {
	tag, err := binary.ReadUvarint(in)
	if err != nil {
		return err
	}
	passes := sessionRequests[tag>>3]
	if tag>>3 == putManifest && q.saved.Add(in.left) > mostSaved {
		passes = false
	}
	var skip uint64
	switch kind := tag & 7; kind {
	case protoVarint:
		value, err := binary.ReadUvarint(in)
		if err == nil && passes && len(q.message) < mostRequest {
			q.message = binary.AppendUvarint(binary.AppendUvarint(q.message, tag), value)
		}
		return err
	case protoFixed64:
		skip = 8
	case protoFixed32:
		skip = 4
	case protoBytes:
		if skip, err = binary.ReadUvarint(in); err != nil {
			return err
		}
		if passes && skip+uint64(len(q.message)) <= mostRequest && skip <= uint64(in.left) {
			q.message = binary.AppendUvarint(binary.AppendUvarint(q.message, tag), skip)
			n := len(q.message)
			q.message = append(q.message, make([]byte, skip)...)
			_, err := io.ReadFull(in, q.message[n:])
			return err
		}
	default:
		return fmt.Errorf("a field of type %d", kind)
	}
	if skip > uint64(in.left) {
		return io.ErrUnexpectedEOF
	}
	_, err = io.CopyN(io.Discard, in, int64(skip))
	return err
}

// limited reads what is left of a message.
type limited struct {
	r    *bufio.Reader
	left int64
}

func (l *limited) ReadByte() (byte, error) {
	if l.left <= 0 {
		return 0, io.ErrUnexpectedEOF
	}
	b, err := l.r.ReadByte()
	if err == nil {
		l.left--
	} else if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return b, err
}

func (l *limited) Read(p []byte) (int, error) {
	n, err := l.r.Read(p[:min(int64(len(p)), l.left)])
	l.left -= int64(n)
	return n, err
}

// answers are what Kopia says, taken from it at once, for a client who takes it when he
// likes. untaken counts what the streams of his session have of it; when that is too much,
// over is called and there is no more.
type answers struct {
	body    io.ReadCloser
	untaken *atomic.Int64
	over    func()

	mu   sync.Mutex // protects the following
	more sync.Cond
	kept bytes.Buffer
	err  error // behind what is kept
}

func newAnswers(body io.ReadCloser, untaken *atomic.Int64, over func()) *answers {
	a := &answers{body: body, untaken: untaken, over: over}
	a.more.L = &a.mu
	go a.take() // ends with the body
	return a
}

var errUntaken = errors.New("the client does not take its answers")

func (a *answers) take() {
	block := make([]byte, 32<<10)
	for {
		n, err := a.body.Read(block)
		if a.untaken.Add(int64(n)) > mostUntaken {
			n, err = a.drop(n), errUntaken
		}
		a.mu.Lock()
		if a.err != nil {
			n = a.drop(n) // it was closed
		}
		a.kept.Write(block[:n])
		if a.err == nil {
			a.err = err
		}
		ended := a.err != nil
		a.more.Broadcast()
		a.mu.Unlock()
		if errors.Is(err, errUntaken) {
			a.over()
		}
		if ended {
			return
		}
	}
}

// drop gives up n bytes. None are left.
func (a *answers) drop(n int) int {
	a.untaken.Add(-int64(n))
	return 0
}

func (a *answers) Read(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for a.kept.Len() == 0 && a.err == nil {
		a.more.Wait()
	}
	if a.kept.Len() == 0 {
		return 0, a.err
	}
	n, _ := a.kept.Read(p)
	a.untaken.Add(-int64(n))
	if a.kept.Len() == 0 {
		a.kept = bytes.Buffer{} // one that was large stays so
	}
	return n, nil
}

func (a *answers) Close() error {
	a.mu.Lock()
	if a.err == nil {
		a.err = io.ErrClosedPipe
	}
	a.drop(a.kept.Len())
	a.kept = bytes.Buffer{}
	a.more.Broadcast()
	a.mu.Unlock()
	return a.body.Close()
}
