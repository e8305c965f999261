// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/kopia/kopia/snapshot"
	"google.golang.org/protobuf/encoding/protowire"
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
	flush:       true,
	15:          true, // get_manifest
	putManifest: true,
	17:          true, // find_manifests
}

const (
	flush       = 12
	putManifest = 16
	// labels of a manifest are a map in it.
	manifestLabels = 2
)

const (
	// mostRequest is far more than any of these takes, in bytes.
	mostRequest = 256 << 10
	// mostSaved is far more than the manifests of any operation take together, in bytes: Kopia
	// has all manifests of a repository in memory. A snapshot of a week saves one every few
	// minutes, of some KiB each.
	mostSaved = 16 << 20
	// mostManifests is far more than any operation saves: what one of a week does in as many
	// minutes.
	mostManifests = 10_000
	// mostMessage is more than Kopia takes, in bytes: who says more is no client of it.
	mostMessage = 64 << 20
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
	ctx        context.Context
	in         *bufio.Reader
	session    *session
	unanswered *unanswered
	message    []byte
	manifest   bool   // a manifest was looked at in message
	flushes    bool   // it is one of the session's flushes
	rest       []byte // of message, what was not read yet
}

func newRequests(ctx context.Context, body io.ReadCloser, session *session, unanswered *unanswered) *requests {
	return &requests{Closer: body, ctx: ctx, in: bufio.NewReader(body), session: session, unanswered: unanswered}
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

// next reads a message, and waits until Kopia may hear it. io.EOF is between two of them.
func (q *requests) next() error {
	in, err := nextMessage(q.in)
	if err != nil {
		return err
	}
	if in.left > mostMessage {
		return fmt.Errorf("read request: it has %d bytes", in.left)
	}
	q.manifest, q.flushes = false, false
	q.message = append(q.message[:0], make([]byte, grpcHeader)...)
	for in.left > 0 {
		if err := q.field(in); err != nil {
			return fmt.Errorf("read request: %w", err)
		}
	}
	if err := q.unanswered.add(q.ctx); err != nil {
		return err
	}
	if q.flushes {
		if err := q.session.flushes.Wait(q.ctx); err != nil {
			return err
		}
	}
	binary.BigEndian.PutUint32(q.message[1:], uint32(len(q.message)-grpcHeader))
	q.rest = q.message
	return nil
}

// field reads one, and keeps it if it passes.
func (q *requests) field(in *limited) error {
	tag, n, err := in.field()
	if err != nil {
		return err
	}
	number, begin := tag>>3, len(q.message)
	passes := sessionRequests[number]
	if tag&7 == protoVarint {
		if passes && begin < mostRequest {
			q.message = binary.AppendUvarint(binary.AppendUvarint(q.message, tag), n)
		}
		return nil
	}
	if number == putManifest {
		// Of two in one message Kopia makes one.
		passes, q.manifest = !q.manifest, true
	}
	if tag&7 != protoBytes || !passes || n+uint64(begin) > mostRequest {
		_, err := io.CopyN(io.Discard, in, int64(n))
		return err
	}
	q.message = binary.AppendUvarint(binary.AppendUvarint(q.message, tag), n)
	value := len(q.message)
	q.message = append(q.message, make([]byte, n)...)
	if _, err := io.ReadFull(in, q.message[value:]); err != nil {
		return err
	}
	q.flushes = q.flushes || number == flush
	if number == putManifest && !q.session.mayPut(q.message[value:]) {
		q.message = q.message[:begin]
	}
	return nil
}

// mayPut says whether a session may save a manifest, and counts it: so many, of the one
// source that its operation is of. Whoever could choose its path would make a source with
// each of them, and Kopia looks through all manifests for each source.
func (one *session) mayPut(request []byte) bool {
	return (one.sourcePath == "" || labelOf(request, snapshot.PathLabel) == one.sourcePath) &&
		one.manifests.Add(1) <= mostManifests && one.saved.Add(int64(len(request))) <= mostSaved
}

// labelOf is a label of Kopia's PutManifestRequest, "" where it has none, or has it more than
// once, or says anything else than one name and one value in it.
func labelOf(request []byte, label string) string {
	found := ""
	for len(request) > 0 {
		number, kind, n := protowire.ConsumeField(request)
		if n < 0 {
			return ""
		}
		field := request[:n]
		request = request[n:]
		if number != manifestLabels {
			continue
		}
		_, _, n = protowire.ConsumeTag(field)
		entry, m := protowire.ConsumeBytes(field[n:])
		if kind != protowire.BytesType || m < 0 {
			return ""
		}
		name, value, ok := mapEntry(entry)
		switch {
		case !ok:
			return ""
		case name == label && found != "":
			return ""
		case name == label:
			found = value
		}
	}
	return found
}

// mapEntry reads one of a map of strings; not ok: it has not one name and one value.
func mapEntry(entry []byte) (name, value string, ok bool) {
	text := map[protowire.Number]string{}
	for len(entry) > 0 {
		number, kind, n := protowire.ConsumeTag(entry)
		if n < 0 || kind != protowire.BytesType {
			return "", "", false
		}
		s, m := protowire.ConsumeString(entry[n:])
		if _, twice := text[number]; m < 0 || twice {
			return "", "", false
		}
		text[number] = s
		entry = entry[n+m:]
	}
	return text[1], text[2], len(text) == 2 && text[1] != ""
}

// nextMessage begins one of gRPC's. io.EOF is between two of them.
func nextMessage(in *bufio.Reader) (*limited, error) {
	var header [grpcHeader]byte
	if _, err := io.ReadFull(in, header[:]); err != nil {
		return nil, err
	}
	if header[0] != 0 {
		return nil, errors.New("read message: it is compressed, which neither side does")
	}
	return &limited{in, int64(binary.BigEndian.Uint32(header[1:]))}, nil
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

// field reads a field's tag, and its number, or how many bytes of it follow.
func (l *limited) field() (tag, n uint64, err error) {
	if tag, err = binary.ReadUvarint(l); err != nil {
		return 0, 0, err
	}
	switch kind := tag & 7; kind {
	case protoVarint:
		n, err = binary.ReadUvarint(l)
		return tag, n, err
	case protoFixed64:
		n = 8
	case protoFixed32:
		n = 4
	case protoBytes:
		if n, err = binary.ReadUvarint(l); err != nil {
			return 0, 0, err
		}
	default:
		return 0, 0, fmt.Errorf("a field of type %d", kind)
	}
	if n > uint64(l.left) {
		return 0, 0, io.ErrUnexpectedEOF
	}
	return tag, n, nil
}
