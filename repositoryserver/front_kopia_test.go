// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"bytes"
	"encoding/binary"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// message is one of gRPC's.
func message(fields ...string) string {
	text := strings.Join(fields, "")
	return string(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(text)))) + text
}

func number(field, value uint64) string {
	return string(binary.AppendUvarint(binary.AppendUvarint(nil, field<<3|protoVarint), value))
}

func text(field uint64, value string) string {
	return string(binary.AppendUvarint(binary.AppendUvarint(nil, field<<3|protoBytes), uint64(len(value)))) + value
}

// Of what a client says, Kopia hears what an operation needs.
func TestFrontRequests(t *testing.T) {
	id := number(1, 1<<63) // a negative one has the most bytes
	large := strings.Repeat("x", mostRequest)
	for name, c := range map[string]struct{ said, heard string }{
		"nothing":            {"", ""},
		"needed":             {message(id, text(10, "begin")) + message(text(16, "manifest"), id), message(id, text(10, "begin")) + message(text(16, "manifest"), id)},
		"content":            {message(id, text(14, "id")) + message(id, text(12, "")), message(id) + message(id, text(12, ""))},
		"large content":      {message(id, text(13, large+large)) + message(id, text(17, "x")), message(id) + message(id, text(17, "x"))},
		"deletion":           {message(id, text(18, "x")), message(id)},
		"retention":          {message(id, text(20, "x")), message(id)},
		"notice":             {message(id, text(21, "x")), message(id)},
		"one behind another": {message(id, text(15, "x"), text(14, "x")), message(id, text(15, "x"))},
		"with a context":     {message(id, text(2, "x"), text(15, "x")), message(id, text(15, "x"))},
		"what nobody knows":  {message(id, "\xa1\x0612345678", "\xa5\x061234", number(15, 1), text(15, "x")), message(id, number(15, 1), text(15, "x"))},
		"large manifest":     {message(id, text(16, large)), message(id)},
		"large one by one":   {message(id, text(16, large[:len(large)/2]), text(16, large[:len(large)/2])), message(id, text(16, large[:len(large)/2]))},
		"empty":              {message(), message()},
		"many of one":        {message(strings.Repeat(number(1, 7), mostRequest)), message(strings.Repeat(number(1, 7), mostRequest)[:mostRequest-grpcHeader+1])},
	} {
		for how, in := range map[string]io.Reader{"at once": strings.NewReader(c.said), "in parts": iotest.HalfReader(strings.NewReader(c.said))} {
			if got, err := io.ReadAll(newRequests(io.NopCloser(in), new(atomic.Int64))); err != nil || string(got) != c.heard {
				t.Errorf("%s, %s: %.100q, %v, want %.100q", name, how, got, err, c.heard)
			}
		}
	}
	for name, said := range map[string]string{
		"compressed":     "\x01" + message(id)[1:],
		"cut":            message(id, text(16, "x"))[:12],
		"header cut":     "\x00\x00",
		"beyond its end": message(id, "\x82\x01\x7f") + message(id),
		"no length":      message(id, "\x82\x01"),
		"a group":        message(id, "\x83\x01"),
		"no number":      message(strings.Repeat("\xff", 20)),
		"fixed, cut":     message(id, "\xa1\x061234"),
	} {
		if got, err := io.ReadAll(newRequests(io.NopCloser(strings.NewReader(said)), new(atomic.Int64))); err == nil || len(got) > len(message(id)) {
			t.Errorf("%s: %q passes, %v", name, got, err)
		}
	}
}

// One session's manifests do not fill the memory of everybody's server.
func TestFrontRequestsSaved(t *testing.T) {
	const size = mostRequest / 2
	one := message(text(16, strings.Repeat("x", size)))
	var said []io.Reader
	for range 2 * mostSaved / size {
		said = append(said, strings.NewReader(one))
	}
	heard, err := io.ReadAll(newRequests(io.NopCloser(io.MultiReader(said...)), new(atomic.Int64)))
	if err != nil || len(heard) < mostSaved*9/10 || len(heard) > mostSaved*11/10 {
		t.Errorf("%d bytes of manifests pass, want about %d; %v", len(heard), mostSaved, err)
	}
}

// Whatever is said, what passes has nothing else in it, and is no longer.
func FuzzFrontRequests(f *testing.F) {
	f.Add([]byte(message(number(1, 7), text(16, "manifest"), text(13, "content")) + message(text(12, ""))))
	f.Fuzz(func(t *testing.T, said []byte) {
		heard, _ := io.ReadAll(newRequests(io.NopCloser(bytes.NewReader(said)), new(atomic.Int64)))
		if len(heard) > len(said) {
			t.Errorf("%q becomes %q", said, heard)
		}
		for rest := heard; len(rest) > 0; {
			length := binary.BigEndian.Uint32(rest[1:])
			fields := rest[grpcHeader : grpcHeader+length]
			rest = rest[grpcHeader+length:]
			for len(fields) > 0 {
				tag, n := binary.Uvarint(fields)
				value, m := binary.Uvarint(fields[n:])
				if n <= 0 || m <= 0 || !sessionRequests[tag>>3] {
					t.Fatalf("%q passes", heard)
				}
				fields = fields[n+m:]
				if tag&7 == protoBytes {
					fields = fields[value:]
				}
			}
		}
	})
}

// Kopia is heard to the end, whoever listens to it.
func TestFrontAnswers(t *testing.T) {
	var one session
	said := strings.Repeat("answer", 100_000)
	a := newAnswers(io.NopCloser(strings.NewReader(said)), &one.untaken, func() { t.Error("it was too much") })
	testenv.Eventually(t, 20*time.Second, "all of it is taken from Kopia", func() bool { return one.untaken.Load() == int64(len(said)) })
	if got, err := io.ReadAll(a); err != nil || string(got) != said || one.untaken.Load() != 0 {
		t.Errorf("%d bytes, %v, want %d; %d are left", len(got), err, len(said), one.untaken.Load())
	}
	a = newAnswers(io.NopCloser(strings.NewReader(said)), &one.untaken, func() { t.Error("it was too much") })
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadAll(a); err == nil {
		t.Error("it was closed, and ends as if all had been said")
	}
	testenv.Eventually(t, 20*time.Second, "nothing is left of it", func() bool { return one.untaken.Load() == 0 })
}
