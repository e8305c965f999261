// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"bytes"
	"encoding/binary"
	"io"
	"math"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
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

// aSession is one of an operation that backs /data up.
func aSession(t testing.TB) *session {
	t.Helper()
	open := newSessions(mostSessions, time.Now)
	if _, err := open.start(api.SessionRequest{ID: "1", Username: "u", Hostname: "h", SourcePath: "/data"}); err != nil {
		t.Fatal(err)
	}
	return open.by["1"]
}

// heardBy is what Kopia hears of what is said in a session. It answers all at once.
func heardBy(t testing.TB, said io.Reader) io.Reader {
	one := aSession(t)
	one.unanswered = semaphore.NewWeighted(math.MaxInt64)
	one.flushes.SetLimit(rate.Inf)
	return newRequests(t.Context(), io.NopCloser(said), one, &unanswered{room: one.unanswered})
}

// puts is a request that saves one with such labels, each a name and a value.
func puts(data string, labels ...string) string {
	var all []string
	for i := 0; i < len(labels); i += 2 {
		all = append(all, text(manifestLabels, text(1, labels[i])+text(2, labels[i+1])))
	}
	return text(putManifest, text(1, data)+strings.Join(all, ""))
}

// Of what a client says, Kopia hears what an operation needs.
func TestFrontRequests(t *testing.T) {
	id := number(1, 1<<63) // a negative one has the most bytes
	large, mine := strings.Repeat("x", mostRequest), puts("a", "path", "/data")
	for name, c := range map[string]struct{ said, heard string }{
		"nothing":                    {"", ""},
		"needed":                     {message(id, text(10, "begin")) + message(puts("data", "path", "/data"), id), message(id, text(10, "begin")) + message(puts("data", "path", "/data"), id)},
		"content":                    {message(id, text(14, "id")) + message(id, text(12, "")), message(id) + message(id, text(12, ""))},
		"large content":              {message(id, text(13, large+large)) + message(id, text(17, "x")), message(id) + message(id, text(17, "x"))},
		"deletion":                   {message(id, text(18, "x")), message(id)},
		"retention":                  {message(id, text(20, "x")), message(id)},
		"notice":                     {message(id, text(21, "x")), message(id)},
		"one behind another":         {message(id, text(15, "x"), text(14, "x")), message(id, text(15, "x"))},
		"with a context":             {message(id, text(2, "x"), text(15, "x")), message(id, text(15, "x"))},
		"what nobody knows":          {message(id, "\xa1\x0612345678", "\xa5\x061234", number(15, 1), text(15, "x")), message(id, number(15, 1), text(15, "x"))},
		"large manifest":             {message(id, text(16, large)), message(id)},
		"one manifest, then another": {message(id, mine, puts("b", "path", "/data")), message(id, mine)},
		"another's, then one":        {message(id, puts("b", "path", "/other"), mine), message(id)},
		"another source's":           {message(id, puts("data", "path", "/other")) + message(id, mine), message(id) + message(id, mine)},
		"two paths":                  {message(id, puts("data", "path", "/data", "path", "/other")), message(id)},
		"two paths, other":           {message(id, puts("data", "path", "/other", "path", "/data")), message(id)},
		"no path":                    {message(id, puts("data", "type", "snapshot")), message(id)},
		"of more labels":             {message(id, puts("data", "type", "snapshot", "path", "/data", "tag:a", "b")), message(id, puts("data", "type", "snapshot", "path", "/data", "tag:a", "b"))},
		"a label of three":           {message(id, text(16, text(2, text(1, "path")+text(2, "/data")+text(2, "/other")))), message(id)},
		"no label":                   {message(id, text(16, text(2, "noise"))), message(id)},
		"no manifest":                {message(id, text(16, "noise")), message(id)},
		"empty":                      {message(), message()},
		"many of one":                {message(strings.Repeat(number(1, 7), mostRequest)), message(strings.Repeat(number(1, 7), mostRequest)[:mostRequest-grpcHeader+1])},
	} {
		for how, in := range map[string]io.Reader{"at once": strings.NewReader(c.said), "in parts": iotest.HalfReader(strings.NewReader(c.said))} {
			if got, err := io.ReadAll(heardBy(t, in)); err != nil || string(got) != c.heard {
				t.Errorf("%s, %s: %.100q, %v, want %.100q", name, how, got, err, c.heard)
			}
		}
	}
	for name, said := range map[string]string{
		"compressed":     "\x01" + message(id)[1:],
		"too long":       "\x00\xff\xff\xff\xff" + text(13, "x"),
		"cut":            message(id, text(16, "x"))[:12],
		"header cut":     "\x00\x00",
		"beyond its end": message(id, "\x82\x01\x7f") + message(id),
		"no length":      message(id, "\x82\x01"),
		"a group":        message(id, "\x83\x01"),
		"no number":      message(strings.Repeat("\xff", 20)),
		"fixed, cut":     message(id, "\xa1\x061234"),
	} {
		if got, err := io.ReadAll(heardBy(t, strings.NewReader(said))); err == nil || len(got) > len(message(id)) {
			t.Errorf("%s: %q passes, %v", name, got, err)
		}
	}
}

// One session's manifests do not fill the memory of everybody's server, in bytes or in
// number, whatever else it says.
func TestFrontRequestsSaved(t *testing.T) {
	const size = mostRequest / 2
	large, small := message(puts(strings.Repeat("x", size), "path", "/data")), message(puts("", "path", "/data"))
	for name, c := range map[string]struct {
		one                string
		times, least, most int // of what passes, in messages
	}{
		"large": {large, 2 * mostSaved / size, mostSaved / size * 9 / 10, mostSaved / size},
		"small": {small, 2 * mostManifests, mostManifests, mostManifests},
		// What does not pass takes nothing from the others, and gives them nothing.
		"with noise": {message(strings.Repeat("\x80\x01\x00", 1<<12)) + message(strings.Repeat(text(putManifest, ""), 100)) + large, 2 * mostSaved / size, mostSaved / size * 9 / 10, mostSaved / size},
	} {
		var said []io.Reader
		for range c.times {
			said = append(said, strings.NewReader(c.one))
		}
		heard, err := io.ReadAll(heardBy(t, io.MultiReader(said...)))
		passed := bytes.Count(heard, []byte("/data"))
		if err != nil || passed < c.least || passed > c.most {
			t.Errorf("%s: %d manifests pass of %d, want %d to %d; %v", name, passed, c.times, c.least, c.most, err)
		}
	}
}

// Of one session Kopia has a few requests at a time: the next is heard when one is answered to
// its end, and those of a stream that has ended keep no other waiting.
func TestFrontUnanswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := aSession(t)
		said := strings.Repeat(message(number(1, 1), text(17, "find")), 3*mostUnanswered)
		begin := func(said string) (u *unanswered, heard *atomic.Int64) {
			u, heard = &unanswered{room: one.unanswered}, &atomic.Int64{}
			q := newRequests(t.Context(), io.NopCloser(strings.NewReader(said)), one, u)
			go func() {
				for range len(said) {
					if _, err := q.Read(make([]byte, 1)); err != nil {
						return
					}
					heard.Add(1)
				}
			}()
			return u, heard
		}
		per := int64(len(said) / (3 * mostUnanswered))
		first, heard := begin(said)
		hears := func(what string, heard *atomic.Int64, want int64) {
			t.Helper()
			synctest.Wait()
			if got := heard.Load(); got != want*per {
				t.Errorf("%s: %d bytes are heard, want %d requests of %d", what, got, want, per)
			}
		}
		hears("at first", heard, mostUnanswered)
		answer := func(more uint64) {
			var untaken atomic.Int64
			a := newAnswers(io.NopCloser(strings.NewReader(message(number(1, 1), number(moreFollows, more), text(17, "found")))), &untaken, first, func() {})
			_, _ = io.ReadAll(a)
		}
		answer(1)
		hears("after an answer that more follows", heard, mostUnanswered)
		answer(0)
		hears("after an answer", heard, mostUnanswered+1)
		_, others := begin(said)
		hears("another stream", others, 0)
		first.end()
		answer(0) // too late
		synctest.Wait()
		hears("another stream, when the first has ended", others, mostUnanswered)
	})
}

// Who flushes all the time waits, and keeps only himself waiting.
func TestFrontFlushes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one := aSession(t)
		one.unanswered = semaphore.NewWeighted(math.MaxInt64)
		flushes := strings.Repeat(message(text(flush, "")), 2*mostFlushes)
		q := newRequests(t.Context(), io.NopCloser(strings.NewReader(flushes)), one, &unanswered{room: one.unanswered})
		began := time.Now()
		n, err := io.ReadAll(q)
		if took := time.Since(began); err != nil || len(n) != len(flushes) || took < (mostFlushes-1)*flushPause || took > (mostFlushes+1)*flushPause {
			t.Errorf("%d flushes took %s of that clock, %v", 2*mostFlushes, took, err)
		}
	})
}

// Whatever is said, what passes has nothing else in it, and is no longer.
func FuzzFrontRequests(f *testing.F) {
	f.Add([]byte(message(number(1, 7), text(16, "manifest"), text(13, "content")) + message(text(12, ""))))
	f.Fuzz(func(t *testing.T, said []byte) {
		heard, _ := io.ReadAll(heardBy(t, bytes.NewReader(said)))
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
	none := &unanswered{}
	said := strings.Repeat(message(number(1, 7), text(17, "answer")), 20_000)
	a := newAnswers(io.NopCloser(strings.NewReader(said)), &one.untaken, none, func() { t.Error("it was too much") })
	testenv.Eventually(t, time.Minute, "all of it is taken from Kopia", func() bool { return one.untaken.Load() == int64(len(said)) })
	if got, err := io.ReadAll(a); err != nil || string(got) != said || one.untaken.Load() != 0 {
		t.Errorf("%d bytes, %v, want %d; %d are left", len(got), err, len(said), one.untaken.Load())
	}
	a = newAnswers(io.NopCloser(strings.NewReader(said)), &one.untaken, none, func() { t.Error("it was too much") })
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadAll(a); err == nil {
		t.Error("it was closed, and ends as if all had been said")
	}
	testenv.Eventually(t, time.Minute, "nothing is left of it", func() bool { return one.untaken.Load() == 0 })
}
