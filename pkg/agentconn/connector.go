// SPDX-License-Identifier: Apache-2.0

package agentconn

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/client"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

const (
	// identityTimeout bounds how long a running agent may take to log its identity
	// and to answer.
	identityTimeout = 30 * time.Second
	identityPause   = 200 * time.Millisecond
	// identityLimit is how much of the log is read. The identity is logged at the start of
	// a container, and again so often that each file of the log begins with it soon.
	identityLimit = 1 << 20
	// knockTimeout bounds how long an agent is waited for whose identity is not known.
	knockTimeout = 5 * time.Second
)

// Connector makes clients of agents in pods of one cluster.
type Connector struct {
	config      *rest.Config
	clientset   kubernetes.Interface
	certificate func() (*tls.Certificate, error)
	// dial reaches the agent's port in a pod; tests replace it.
	dial func(ctx context.Context, namespace, pod string) (net.Conn, error)
}

// New returns a Connector that shows the given client certificate.
func New(config *rest.Config, certificate func() (*tls.Certificate, error)) (*Connector, error) {
	clientset, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make a client for pod logs: %w", err)
	}
	c := &Connector{config: config, clientset: clientset, certificate: certificate}
	c.dial = func(ctx context.Context, namespace, pod string) (net.Conn, error) {
		return c.portForward(ctx, namespace, pod, names.AgentPort)
	}
	return c, nil
}

// Connect returns a client of the agent in a container of a pod, after the agent
// has answered with the key that it logged. It waits a while for an agent that
// has just been started.
func (c *Connector) Connect(ctx context.Context, namespace, pod, container string) (*client.Client, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, identityTimeout,
		fmt.Errorf("no answer within %s", identityTimeout))
	defer cancel()
	var agent *client.Client
	var last error
	err := wait.PollUntilContextCancel(ctx, identityPause, true, func(ctx context.Context) (bool, error) {
		var err error
		agent, err = c.try(ctx, namespace, pod, container)
		switch {
		case err == nil:
			return true, nil
		case apierrors.IsForbidden(err), apierrors.IsNotFound(err), apierrors.IsUnauthorized(err), isForeign(err):
			return false, err
		}
		// Not started yet, not listening yet, or restarted with a new key between
		// the two looks: the next try reads the log again.
		if ctx.Err() == nil || last == nil {
			last = err
		}
		return false, nil
	})
	if err == nil {
		return agent, nil
	}
	if last != nil && ctx.Err() != nil {
		err = fmt.Errorf("%w: %w", context.Cause(ctx), last)
	}
	return nil, fmt.Errorf("reach the agent in container %s of pod %s/%s: %w%s", container, namespace, pod, err, hint(err, namespace))
}

// isForeign says whether an agent has answered that speaks no version of ours.
func isForeign(err error) bool {
	var p *api.Problem
	return errors.As(err, &p) && p.Code == api.CodeProtocol
}

// hint says what to do about the errors that administrators meet.
func hint(err error, namespace string) string {
	if apierrors.IsForbidden(err) {
		return fmt.Sprintf(" (bind ClusterRole kanister-kopia-namespace to the controller in namespace %s)", namespace)
	}
	return ""
}

func (c *Connector) try(ctx context.Context, namespace, pod, container string) (*client.Client, error) {
	first := c.dialAhead(ctx, namespace, pod)
	defer first.discard()
	agentOf := func(pin string) *client.Client {
		return client.New(client.Options{
			Dial: func(ctx context.Context) (net.Conn, error) {
				if d, ok := first.take(ctx); ok {
					return d.conn, d.err
				}
				return c.dial(ctx, namespace, pod)
			},
			Certificate: c.certificate,
			Pin:         pin,
		})
	}
	pin, err := c.pin(ctx, namespace, pod, container)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		knock(ctx, agentOf(""))
	}
	if err != nil {
		return nil, err
	}
	agent := agentOf(pin)
	if _, err := agent.Info(ctx); err != nil {
		agent.Close()
		return nil, err
	}
	return agent, nil
}

// knock has an agent log its identity, which a kubelet may have put aside with an older
// file of the log: it does so for whoever comes. No key is the one that is wanted here, so
// the handshake ends before anything is told, or shown.
func knock(ctx context.Context, agent *client.Client) {
	ctx, cancel := context.WithTimeout(ctx, knockTimeout)
	defer cancel()
	defer agent.Close()
	_, _ = agent.Info(ctx)
}

// ahead is a connection that is opened before it is known whom it must lead to: while
// the log is read. Nothing is sent on it before.
type ahead struct {
	result chan dialed // one, then closed
	cancel context.CancelFunc
}

type dialed struct {
	conn net.Conn
	err  error
}

func (c *Connector) dialAhead(ctx context.Context, namespace, pod string) ahead {
	ctx, cancel := context.WithCancel(ctx)
	a := ahead{make(chan dialed, 1), cancel}
	go func() {
		defer close(a.result)
		conn, err := c.dial(ctx, namespace, pod)
		a.result <- dialed{conn, err}
	}()
	return a
}

// take waits for the connection; not ok if it was taken before.
func (a ahead) take(ctx context.Context) (d dialed, ok bool) {
	select {
	case d, ok := <-a.result:
		return d, ok
	case <-ctx.Done():
		return dialed{err: ctx.Err()}, true
	}
}

// discard closes a connection that nobody took.
func (a ahead) discard() {
	a.cancel()
	go func() {
		if d, ok := <-a.result; ok && d.err == nil {
			d.conn.Close()
		}
	}()
}

func (c *Connector) pin(ctx context.Context, namespace, pod, container string) (string, error) {
	limit := int64(identityLimit)
	log, err := c.clientset.CoreV1().Pods(namespace).GetLogs(pod, &corev1.PodLogOptions{
		Container: container, LimitBytes: &limit,
	}).Stream(ctx)
	if err != nil {
		return "", fmt.Errorf("read its log: %w", err)
	}
	defer log.Close()
	pin, err := client.PinFromLog(log)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return "", fmt.Errorf("it has not logged its identity yet; if it is of an older version and has run for long, its log was cut: restart the workload: %w", err)
	}
	return pin, err
}
