// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repositoryserver_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/object"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/contents"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// A valid password takes a part of the server's memory, which others' operations have left,
// whatever is done with it.
func TestIntegrationHostileMemory(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.plain = true                                // the race detector's memory is not the server's
	w.environment = []string{"GOMEMLIMIT=614MiB"} // as in a pod of 768
	s := w.serve()
	const most = 450 << 20
	holds := func(what string) {
		t.Helper()
		if rss := w.residentOf(s.Process); rss > most {
			t.Errorf("%s: the server has %d MiB", what, rss>>20)
		}
	}

	// Streams that write as much as a pack takes, and never flush.
	c := w.session(s, "writes", "pvc.data")
	ctx := w.context()
	var last *contents.Writer
	for i := range 16 {
		conn, err := tls.Dial("tcp", strings.TrimPrefix(c.URL, "https://"), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{contents.Protocol}})
		w.must(err)
		stream, err := contents.Open(conn, contents.Login{Username: c.Username, Hostname: c.Hostname, Password: c.Password})
		w.must(err)
		defer stream.Close()
		last, err = contents.NewWriter(ctx, stream, func(int64) {})
		w.must(err)
		for n, prefix := range []content.IDPrefix{"", "k"} {
			for piece := range 19 {
				o := last.NewObjectWriter(ctx, object.WriterOptions{Prefix: prefix, Splitter: "FIXED-1M"})
				_, err := o.Write(fresh(byte(100*n+piece), byte(i)))
				w.must(err)
				_, err = o.Result()
				w.must(err)
			}
		}
		holds(fmt.Sprintf("%d streams that write", i+1))
	}
	if err := last.Flush(ctx); err != nil {
		t.Errorf("the last stream that writes: %v", err)
	}
	w.must(s.agent.EndSession(ctx, "writes"))

	// Requests that Kopia takes longer for than it takes to ask.
	says := w.talk(w.session(s, "asks", "pvc.data"))
	label := func(field int, name, value string) string {
		return protoText(field, protoText(1, name)+protoText(2, value))
	}
	source := func(field int, path string) string {
		return label(field, "type", "snapshot") + label(field, "username", "pvc.data") + label(field, "hostname", host) + label(field, "path", path)
	}
	snapshot := protoText(1, "{}") + source(2, "/")
	w.must(says(10, ""))
	for range 9_000 {
		w.must(says(16, snapshot))
	}
	w.must(says(12, ""))
	search := source(1, "/none") + protoText(9, strings.Repeat("x", 200<<10))
	asking := make(chan error, 1)
	asks, stop := context.WithCancel(ctx)
	go func() {
		for asks.Err() == nil {
			if err := says(17, search); err != nil {
				asking <- err
				return
			}
		}
		asking <- nil
	}()
	end := time.Now().Add(8 * time.Second)
	testenv.Eventually(t, time.Minute, "it has been asked for a while", func() bool {
		holds("who asks on and on")
		return t.Failed() || time.Now().After(end)
	})
	if _, err := s.agent.StartSession(ctx, api.SessionRequest{ID: "another", Username: "pvc.data", Hostname: otherHost}); err != nil {
		t.Errorf("another's session: %v", err)
	}
	stop()
	if err := <-asking; err != nil {
		t.Errorf("who asks on and on is cut: %v", err)
	}
}

// fresh is a content that nobody has written.
func fresh(a, b byte) []byte {
	data := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{a, b}).Read(data)
	return data
}

// residentOf is a process's memory in bytes.
func (w *world) residentOf(p *testenv.Process) int64 {
	w.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Cmd.Process.Pid))
	w.must(err)
	var kib int64
	for line := range strings.Lines(string(raw)) {
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &kib); err == nil {
			return kib << 10
		}
	}
	w.Fatal("the process says nothing of its memory")
	return 0
}

// talk speaks Kopia's protocol without waiting for its answers, which are taken.
func (w *world) talk(c *api.Credentials) func(kind int, body string) error {
	w.Helper()
	requests, body, roundTrip := w.dialKopia(c)
	go func() {
		resp, err := roundTrip()
		if err == nil {
			defer resp.Body.Close()
			_, err = io.Copy(io.Discard, resp.Body)
		}
		body.CloseWithError(fmt.Errorf("the stream has ended: %w", err))
	}()
	return func(kind int, body string) error {
		_, err := requests.Write(protoMessage(kind, body))
		return err
	}
}
