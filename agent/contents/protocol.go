// SPDX-License-Identifier: Apache-2.0

// Package contents is how a restore reads from our repository server: the ids of
// contents one way, the contents the other, many under way on one TLS connection.
// Kopia's own protocol has a call for each content, and a small file is one: most of
// the time of a restore of small files went into these calls and not into files.
//
// A server that does not speak it (Kopia's own, or an older one of ours) does not
// choose it in the TLS handshake; it is read through Kopia then.
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

	"github.com/kopia/kopia/repo/content"
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
	f.body = make([]byte, length)
	_, err := io.ReadFull(r, f.body)
	return f, err
}

func writeID(w *bufio.Writer, id content.ID) error {
	text := id.String()
	if err := w.WriteByte(byte(len(text))); err != nil {
		return err
	}
	_, err := w.WriteString(text)
	return err
}

func readID(r *bufio.Reader) (content.ID, error) {
	length, err := r.ReadByte()
	if err != nil {
		return content.EmptyID, err
	}
	text := make([]byte, length)
	if _, err := io.ReadFull(r, text); err != nil {
		return content.EmptyID, err
	}
	return content.ParseID(string(text))
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
