// SPDX-License-Identifier: Apache-2.0

// Package contents is how an operation moves contents from and to our repository server:
// requests one way, answers the other, many under way on one TLS connection. Kopia's own
// protocol has a call for each content, and a small file is one: most of the time of a
// backup or a restore of small files went into these calls and not into files.
//
// Manifests (snapshots, records, policies) do not pass here: they go through Kopia, where
// its rules are.
//
// A server that does not speak it (Kopia's own, or an older one of ours) does not
// choose it in the TLS handshake; it is used through Kopia then.
package contents

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/kopia/kopia/repo/compression"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/object"
)

// Protocol is the protocol's name in the TLS handshake (ALPN).
const Protocol = "kanister-kopia-contents/1"

const (
	// MaxContent is more than Kopia's largest content has.
	MaxContent = 32 << 20
	maxLogin   = 4 << 10
	maxText    = 4 << 10
	// loginTimeout is for both ends' part of the login.
	loginTimeout = 30 * time.Second
)

// Login is what a stream begins with.
type Login struct {
	Username string `json:"username"`
	Hostname string `json:"hostname"`
	Password string `json:"password"`
}

// Parameters are what the server answers a login with: how the repository's contents are
// made. Kopia's own server tells every user the same.
type Parameters struct {
	Hash       string `json:"hash"`
	HMACSecret []byte `json:"hmacSecret"`
	Splitter   string `json:"splitter"`
	// Compression says whether the repository compresses contents; else objects are compressed.
	Compression bool `json:"compression"`
}

// GetHashFunction and GetHmacSecret make them Kopia's hashing.Parameters.
func (p Parameters) GetHashFunction() string { return p.Hash }
func (p Parameters) GetHmacSecret() []byte   { return p.HMACSecret }

// kind is what is asked. The number of a request is its place on the stream.
type kind byte

const (
	kindRead  kind = 'r' // a content by its id
	kindHas   kind = 'h' // whether there is a content of an id
	kindWrite kind = 'w' // a content: its id is the answer
	kindFlush kind = 'f' // whether all that was written is in the storage
)

// request is one question.
type request struct {
	kind        kind
	id          content.ID       // of a read, and whether there is one
	prefix      content.IDPrefix // write, and the rest
	compression compression.HeaderID
	data        []byte
}

// writePrefixes are those that snapshots give to contents: none for files, k for directories,
// x for the parts of objects that have several. Kopia has others for its own, and m, of
// manifests, may never be written here.
var writePrefixes = []content.IDPrefix{"", "k", "x"}

// IsDirectory says whether an object was written as a directory's: all of its contents have
// the prefix k, the list of them, too, and no other object's have (Kopia v0.23).
func IsDirectory(id object.ID) bool {
	for list, listed := id.IndexObjectID(); listed; list, listed = id.IndexObjectID() {
		id = list
	}
	first, _, _ := id.ContentID()
	return first.Prefix() == "k"
}

// verdict is how a login or a request ended.
type verdict byte

const (
	good verdict = iota
	notFound
	failed // the text says why
	denied // of a login
	busy   // of a login: try again
)

// Errors of a login.
var (
	ErrDenied = errors.New("access denied: no operation is going on with this user and password")
	ErrBusy   = errors.New("too many streams: try again later")
)

// frame is one answer; the login's has number 0.
type frame struct {
	number  uint32
	verdict verdict
	body    []byte
}

const frameHeader = 4 + 1 + 4

func writeFrame(w *bufio.Writer, f frame) error {
	header := make([]byte, 0, frameHeader)
	header = binary.BigEndian.AppendUint32(header, f.number)
	header = append(header, byte(f.verdict))
	header = binary.BigEndian.AppendUint32(header, uint32(len(f.body)))
	if _, err := w.Write(header); err != nil {
		return err
	}
	_, err := w.Write(f.body)
	return err
}

func readFrame(r *bufio.Reader) (frame, error) {
	var header [frameHeader]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return frame{}, err
	}
	f := frame{number: binary.BigEndian.Uint32(header[:]), verdict: verdict(header[4])}
	length, most := binary.BigEndian.Uint32(header[5:]), uint32(maxText)
	if f.verdict == good {
		most = MaxContent
	}
	if length > most {
		return frame{}, fmt.Errorf("an answer of %d bytes, at most %d are expected", length, most)
	}
	if length == 0 {
		return f, nil
	}
	f.body = bodies.get(int(length))
	_, err := io.ReadFull(r, f.body)
	return f, err
}

func writeRequest(w *bufio.Writer, r request) error {
	header := []byte{byte(r.kind)}
	switch r.kind {
	case kindRead, kindHas:
		text := r.id.String()
		header = append(append(header, byte(len(text))), text...)
	case kindWrite:
		header = append(append(header, byte(len(r.prefix))), r.prefix...)
		header = binary.BigEndian.AppendUint32(header, uint32(r.compression))
		header = binary.BigEndian.AppendUint32(header, uint32(len(r.data)))
	}
	if _, err := w.Write(header); err != nil {
		return err
	}
	_, err := w.Write(r.data)
	return err
}

// readRequest reads a request up to the data of a write, which are length bytes more.
func readRequest(r *bufio.Reader) (q request, length int, err error) {
	k, err := r.ReadByte()
	if err != nil {
		return q, 0, err
	}
	switch q.kind = kind(k); q.kind {
	case kindFlush:
		return q, 0, nil
	case kindRead, kindHas:
		text, err := readText(r)
		if err != nil {
			return q, 0, err
		}
		q.id, err = content.ParseID(text)
		return q, 0, err
	case kindWrite:
		prefix, err := readText(r)
		if err != nil {
			return q, 0, err
		}
		q.prefix = content.IDPrefix(prefix)
		var numbers [8]byte
		if _, err := io.ReadFull(r, numbers[:]); err != nil {
			return q, 0, err
		}
		q.compression = compression.HeaderID(binary.BigEndian.Uint32(numbers[:]))
		n := binary.BigEndian.Uint32(numbers[4:])
		if n > MaxContent {
			return q, 0, fmt.Errorf("a content of %d bytes, at most %d are taken", n, MaxContent)
		}
		return q, int(n), nil
	default:
		return q, 0, fmt.Errorf("a request of the unknown kind %q", k)
	}
}

// readText reads at most 255 bytes.
func readText(r *bufio.Reader) (string, error) {
	length, err := r.ReadByte()
	if err != nil {
		return "", err
	}
	text := make([]byte, length)
	_, err = io.ReadFull(r, text)
	return string(text), err
}

func writeLogin(w *bufio.Writer, l Login) error {
	raw, err := json.Marshal(l)
	if err != nil {
		return err
	}
	if err := binary.Write(w, binary.BigEndian, uint16(len(raw))); err != nil {
		return err
	}
	_, err = w.Write(raw)
	return err
}

// readLogin reads not a byte more than the login.
func readLogin(r io.Reader) (Login, error) {
	var l Login
	var length uint16
	if err := binary.Read(r, binary.BigEndian, &length); err != nil {
		return l, err
	}
	if length > maxLogin {
		return l, fmt.Errorf("a login of %d bytes, at most %d are expected", length, maxLogin)
	}
	raw := make([]byte, length)
	if _, err := io.ReadFull(r, raw); err != nil {
		return l, err
	}
	return l, json.Unmarshal(raw, &l)
}

// deadline bounds what is done until it is lifted.
func deadline(c net.Conn) (lift func()) {
	_ = c.SetDeadline(time.Now().Add(loginTimeout))
	return func() { _ = c.SetDeadline(time.Time{}) }
}
