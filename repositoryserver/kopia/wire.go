// SPDX-License-Identifier: Apache-2.0

package kopia

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// SessionPath is the one call of Kopia's protocol: a stream of requests and
// answers in both directions.
const SessionPath = "/kopia_repository.KopiaRepository/Session"

// Credentials of one user, as Kopia's clients send them.
type Credentials struct{ Username, Hostname, Password string }

// Field numbers of repository_server.proto.
const (
	fieldRequestID     = 1
	fieldError         = 2
	fieldHasMore       = 3
	fieldInitialize    = 10
	fieldFindManifests = 17
)

// Login tells whether the server at base lets a user in.
func Login(ctx context.Context, client *http.Client, base string, c Credentials) error {
	return converse(ctx, client, base, c, [][]byte{initialize(1)}, func(id uint64, field protowire.Number, _ []byte) (bool, error) {
		if id == 1 && field == fieldInitialize {
			return true, nil
		}
		return false, fmt.Errorf("unexpected answer %d", field)
	})
}

// CountManifests tells how many manifests with these labels the user sees. Kopia's
// own client would do, but takes its trust in certificates from the whole process.
func CountManifests(ctx context.Context, client *http.Client, base string, c Credentials, labels map[string]string) (int, error) {
	n := 0
	err := converse(ctx, client, base, c, [][]byte{initialize(1), find(2, labels)}, func(id uint64, field protowire.Number, body []byte) (bool, error) {
		switch {
		case id == 1 && field == fieldInitialize:
			return false, nil
		case id == 2 && field == fieldFindManifests:
			err := eachField(body, func(number protowire.Number, _ []byte, _ uint64) {
				if number == 1 {
					n++
				}
			})
			return true, err
		default:
			return false, fmt.Errorf("unexpected answer %d to request %d", field, id)
		}
	})
	return n, err
}

// converse sends requests and hands each answer to each, until that is done.
func converse(ctx context.Context, client *http.Client, base string, c Credentials, requests [][]byte, each func(id uint64, field protowire.Number, body []byte) (done bool, err error)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var sent bytes.Buffer
	for _, r := range requests {
		sent.WriteByte(0) // not compressed
		_ = binary.Write(&sent, binary.BigEndian, uint32(len(r)))
		sent.Write(r)
	}
	// The end of our side would end the session before it answers.
	body := io.MultiReader(&sent, untilDone{ctx})
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+SessionPath, io.NopCloser(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("TE", "trailers")
	req.Header.Set("Kopia-Username", c.Username)
	req.Header.Set("Kopia-Hostname", c.Hostname)
	req.Header.Set("Kopia-Password", c.Password)
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("open session: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("open session: the server answers %s", resp.Status)
	}
	for {
		answer, err := readFrame(resp.Body)
		if err != nil {
			if status := grpcStatus(resp); status != nil {
				err = status
			}
			return fmt.Errorf("read answer: %w", err)
		}
		done, err := decode(answer, each)
		if done || err != nil {
			return err
		}
	}
}

// untilDone is a body that has nothing more to say.
type untilDone struct{ ctx context.Context }

func (u untilDone) Read([]byte) (int, error) {
	<-u.ctx.Done()
	return 0, io.EOF
}

// Refused is a gRPC status other than OK.
type Refused struct{ Status, Message string }

func (r *Refused) Error() string { return fmt.Sprintf("refused with status %s: %s", r.Status, r.Message) }

func grpcStatus(resp *http.Response) error {
	for _, h := range []http.Header{resp.Trailer, resp.Header} {
		if s := h.Get("Grpc-Status"); s != "" && s != "0" {
			message, err := url.PathUnescape(h.Get("Grpc-Message"))
			if err != nil {
				message = h.Get("Grpc-Message")
			}
			return &Refused{Status: s, Message: message}
		}
	}
	return nil
}

// maxAnswer is far more than the answers looked for here.
const maxAnswer = 1 << 20

func readFrame(r io.Reader) ([]byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[1:])
	if head[0] != 0 || size > maxAnswer {
		return nil, errors.New("the answer is compressed or too large")
	}
	raw := make([]byte, size)
	_, err := io.ReadFull(r, raw)
	return raw, err
}

func initialize(id uint64) []byte {
	var body []byte
	body = protowire.AppendTag(body, 1, protowire.BytesType)
	body = protowire.AppendString(body, "probe")
	body = protowire.AppendTag(body, 2, protowire.VarintType)
	body = protowire.AppendVarint(body, 1) // read only
	return request(id, fieldInitialize, body)
}

func find(id uint64, labels map[string]string) []byte {
	var body []byte
	for k, v := range labels {
		var entry []byte
		entry = protowire.AppendTag(entry, 1, protowire.BytesType)
		entry = protowire.AppendString(entry, k)
		entry = protowire.AppendTag(entry, 2, protowire.BytesType)
		entry = protowire.AppendString(entry, v)
		body = protowire.AppendTag(body, 1, protowire.BytesType)
		body = protowire.AppendBytes(body, entry)
	}
	return request(id, fieldFindManifests, body)
}

func request(id uint64, field protowire.Number, body []byte) []byte {
	var b []byte
	b = protowire.AppendTag(b, fieldRequestID, protowire.VarintType)
	b = protowire.AppendVarint(b, id)
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return protowire.AppendBytes(b, body)
}

func decode(raw []byte, each func(uint64, protowire.Number, []byte) (bool, error)) (bool, error) {
	var id uint64
	var field protowire.Number
	var body []byte
	err := eachField(raw, func(number protowire.Number, bytes []byte, value uint64) {
		switch number {
		case fieldRequestID:
			id = value
		case fieldHasMore:
		default:
			field, body = number, bytes
		}
	})
	if err != nil {
		return false, err
	}
	if field == fieldError {
		message := ""
		err := eachField(body, func(number protowire.Number, bytes []byte, _ uint64) {
			if number == 2 {
				message = string(bytes)
			}
		})
		return false, errors.Join(fmt.Errorf("the server answers: %s", strings.TrimSpace(message)), err)
	}
	return each(id, field, body)
}

func eachField(raw []byte, fn func(number protowire.Number, bytes []byte, value uint64)) error {
	for len(raw) > 0 {
		number, kind, n := protowire.ConsumeTag(raw)
		if n < 0 {
			return protowire.ParseError(n)
		}
		raw = raw[n:]
		switch kind {
		case protowire.VarintType:
			value, n := protowire.ConsumeVarint(raw)
			if n < 0 {
				return protowire.ParseError(n)
			}
			fn(number, nil, value)
			raw = raw[n:]
		case protowire.BytesType:
			bytes, n := protowire.ConsumeBytes(raw)
			if n < 0 {
				return protowire.ParseError(n)
			}
			fn(number, bytes, 0)
			raw = raw[n:]
		default:
			n := protowire.ConsumeFieldValue(number, kind, raw)
			if n < 0 {
				return protowire.ParseError(n)
			}
			raw = raw[n:]
		}
	}
	return nil
}
