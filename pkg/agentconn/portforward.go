// SPDX-License-Identifier: Apache-2.0

package agentconn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/kanister-kopia/kanister-kopia/agent/client"
)

// portForward opens one connection to a port of a pod's loopback. Nothing listens
// on this side. Websockets first; SPDY for API servers and proxies without them.
// It returns client.ErrGone if there is no such pod.
func (c *Connector) portForward(ctx context.Context, namespace, pod string, port int) (net.Conn, error) {
	target := c.clientset.CoreV1().RESTClient().Post().
		Resource("pods").Namespace(namespace).Name(pod).SubResource("portforward").URL()
	return dialPort(ctx, c.config, target, port)
}

// dialPort dials through the portforward subresource at target.
func dialPort(ctx context.Context, config *rest.Config, target *url.URL, port int) (net.Conn, error) {
	dialer, err := newDialer(config, target)
	if err != nil {
		return nil, fmt.Errorf("forward port %d: %w", port, err)
	}
	upstream, err := dialStreams(ctx, dialer)
	if isGone(err) {
		// One that comes back by the name, as a StatefulSet's does, is another, with another key.
		return nil, fmt.Errorf("%w: %w", client.ErrGone, err)
	}
	if err != nil {
		return nil, fmt.Errorf("forward port %d: %w", port, err)
	}
	conn, err := newConn(ctx, upstream, port)
	if err != nil {
		upstream.Close()
		return nil, fmt.Errorf("forward port %d: %w", port, err)
	}
	return conn, nil
}

func newDialer(config *rest.Config, target *url.URL) (httpstream.Dialer, error) {
	overWebsocket, err := portforward.NewSPDYOverWebsocketDialerForStreaming(target, config)
	if err != nil {
		return nil, err
	}
	transport, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return nil, err
	}
	plain := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, target)
	return portforward.NewFallbackDialerForStreaming(overWebsocket, plain, func(err error) bool {
		return !isGone(err) && httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	}), nil
}

// isGone says that there is no such pod, in the API server's own words: who knows no
// websockets may say that, too, that nothing is found.
func isGone(err error) bool {
	var refused *httpstream.UpgradeFailureError
	return errors.As(err, &refused) && apierrors.IsNotFound(refused.Cause)
}

// dialStreams dials with a context, which the dialers do not take. A connection
// that comes too late is closed.
func dialStreams(ctx context.Context, dialer httpstream.Dialer) (httpstream.Connection, error) {
	type result struct {
		conn httpstream.Connection
		err  error
	}
	done := make(chan result, 1)
	go func() {
		conn, protocol, err := dialer.Dial(portforward.PortForwardProtocolV1Name)
		if err == nil && protocol != portforward.PortForwardProtocolV1Name {
			conn.Close()
			err = fmt.Errorf("the API server speaks protocol %q, not %q", protocol, portforward.PortForwardProtocolV1Name)
		}
		done <- result{conn, err}
	}()
	select {
	case r := <-done:
		return r.conn, r.err
	case <-ctx.Done():
		go func() {
			if r := <-done; r.err == nil {
				r.conn.Close()
			}
		}()
		return nil, ctx.Err()
	}
}

// endPatience is how long a far side may take to end one stream after the other: to say why
// it has ended, or to end after it has said why.
const endPatience = time.Second

// conn is one forwarded connection. The streams know no deadlines, so a pipe
// stands in front of them: what is written to and read from it obeys deadlines
// and Close, and two goroutines carry bytes between pipe and streams until either
// side ends.
type conn struct {
	net.Conn // the near end of the pipe
	upstream httpstream.Connection

	mu     sync.Mutex
	reason error // why the far side ended, if it said so
}

func newConn(ctx context.Context, upstream httpstream.Connection, port int) (*conn, error) {
	headers := http.Header{}
	headers.Set(corev1.StreamType, corev1.StreamTypeError)
	headers.Set(corev1.PortHeader, strconv.Itoa(port))
	headers.Set(corev1.PortForwardRequestIDHeader, "0")
	// A dead server would keep CreateStream waiting long after the caller left.
	stop := context.AfterFunc(ctx, func() { upstream.Close() })
	defer stop()
	failures, err := upstream.CreateStream(headers)
	if err != nil {
		return nil, fmt.Errorf("open the error stream: %w", err)
	}
	// Half closed at once: nothing is ever sent on it.
	if err := failures.Close(); err != nil {
		return nil, fmt.Errorf("open the error stream: %w", err)
	}
	headers.Set(corev1.StreamType, corev1.StreamTypeData)
	data, err := upstream.CreateStream(headers)
	if err != nil {
		return nil, fmt.Errorf("open the data stream: %w", err)
	}

	near, far := net.Pipe()
	c := &conn{Conn: near, upstream: upstream}
	reported := make(chan struct{})
	go func() {
		defer close(reported)
		message, err := io.ReadAll(io.LimitReader(failures, 4096))
		if err == nil && len(message) > 0 {
			c.mu.Lock()
			c.reason = errors.New(string(message))
			c.mu.Unlock()
			time.AfterFunc(endPatience, func() { upstream.Close() }) // with what came before
		}
	}()
	go func() {
		_, _ = io.Copy(far, data)
		// The reason, if there is one, comes on the other stream, which ends with this one: a
		// close would lose what of it was not read yet.
		late := time.AfterFunc(endPatience, func() { upstream.Close() })
		<-reported
		late.Stop()
		upstream.Close()
		far.Close()
	}()
	go func() {
		_, _ = io.Copy(data, far)
		// The near end was closed, and with it the connection: there is no half close.
		upstream.Close()
	}()
	return c, nil
}

// Read returns what the far side said instead of a bare end of file.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if errors.Is(err, io.EOF) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.reason != nil {
			err = c.reason
		}
	}
	return n, err
}
