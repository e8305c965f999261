// SPDX-License-Identifier: Apache-2.0

package agentconn

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// Where there are no websockets a port is forwarded by SPDY. Nothing is sent on the stream
// for errors, and the end of either side is the end of the connection, with the far side's
// reason if it has one.
func TestPortForwardBySPDY(t *testing.T) {
	for name, c := range map[string]struct {
		far  func(data, failures httpstream.Stream) // what the far side does
		want string                                 // what is read, after "hello" is written
		err  string                                 // the end of reading
	}{
		"answers and ends": {func(data, failures httpstream.Stream) {
			hello := make([]byte, len("hello"))
			_, err := io.ReadFull(data, hello)
			fmt.Fprint(data, "heard ", string(hello), " ", err)
			failures.Close()
			data.Close()
		}, "heard hello <nil>", "EOF"},
		"ends at once": {func(data, _ httpstream.Stream) { data.Close() }, "", "EOF"},
		"nobody listens": {func(data, failures httpstream.Stream) {
			fmt.Fprint(failures, "connection refused")
			failures.Close()
			data.Close()
		}, "", "connection refused"},
		"fails in the midst": {func(data, failures httpstream.Stream) {
			fmt.Fprint(data, "half")
			fmt.Fprint(failures, "the pod is gone")
			failures.Close()
			data.Close()
		}, "half", "the pod is gone"},
	} {
		t.Run(name, func(t *testing.T) {
			s := startSPDY(t, c.far)
			conn, err := dialPort(t.Context(), &rest.Config{Host: s.URL}, s.target(t), 15555)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
			go func() { _, _ = conn.Write([]byte("hello")) }() // nobody may want it
			got, err := io.ReadAll(conn)
			if err == nil {
				err = io.EOF
			}
			if string(got) != c.want || err.Error() != c.err {
				t.Errorf("read %q, %v, want %q, %s", got, err, c.want, c.err)
			}
			s.ended(t)
			if n := s.websockets.Load(); n != 1 {
				t.Errorf("websockets are tried %d times, want once", n)
			}
		})
	}

	t.Run("the near side ends", func(t *testing.T) {
		heard := make(chan string, 1)
		s := startSPDY(t, func(data, _ httpstream.Stream) {
			got, _ := io.ReadAll(data)
			heard <- string(got)
		})
		conn, err := dialPort(t.Context(), &rest.Config{Host: s.URL}, s.target(t), 15555)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte("hello")); err != nil {
			t.Error(err)
		}
		conn.Close()
		if got := <-heard; !strings.HasPrefix("hello", got) { // what is under way may be lost
			t.Errorf("the far side heard %q", got)
		}
		s.ended(t)
	})
}

// spdyServer forwards one port, by SPDY alone.
type spdyServer struct {
	*httptest.Server
	websockets atomic.Int64
	gone       chan bool // when the connection is
}

func startSPDY(t *testing.T, far func(data, failures httpstream.Stream)) *spdyServer {
	s := &spdyServer{gone: make(chan bool)}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.EqualFold(r.Header.Get(httpstream.HeaderUpgrade), "websocket") {
			s.websockets.Add(1)
			http.Error(w, "no websockets here", http.StatusForbidden)
			return
		}
		if _, err := httpstream.Handshake(r, w, []string{portforward.PortForwardProtocolV1Name}); err != nil {
			t.Error(err)
			return
		}
		streams := make(chan httpstream.Stream, 2)
		conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(stream httpstream.Stream, _ <-chan struct{}) error {
			streams <- stream
			return nil
		})
		if conn == nil {
			t.Error("not upgraded")
			return
		}
		defer close(s.gone)
		failures, data := <-streams, <-streams
		for stream, kind := range map[httpstream.Stream]string{failures: corev1.StreamTypeError, data: corev1.StreamTypeData} {
			if h := stream.Headers(); h.Get(corev1.StreamType) != kind || h.Get(corev1.PortHeader) != "15555" || h.Get(corev1.PortForwardRequestIDHeader) != "0" {
				t.Errorf("a stream of %v, want %s", h, kind)
			}
		}
		if sent, err := io.ReadAll(failures); err != nil || len(sent) != 0 {
			t.Errorf("on the stream for errors: %q, %v, want that nothing comes", sent, err)
		}
		far(data, failures)
		<-conn.CloseChan()
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *spdyServer) target(t *testing.T) *url.URL {
	t.Helper()
	target, err := url.Parse(s.URL + "/api/v1/namespaces/shop/pods/db-0/portforward")
	if err != nil {
		t.Fatal(err)
	}
	return target
}

// ended waits until the connection has ended.
func (s *spdyServer) ended(t *testing.T) {
	t.Helper()
	select {
	case <-s.gone:
	case <-time.After(30 * time.Second):
		t.Error("the connection does not end")
	}
}
