// SPDX-License-Identifier: Apache-2.0

// Package client speaks to an agent. It never infers an outcome from a connection:
// after any fault it asks again.
package client

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/internal/pause"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// Options of a Client.
type Options struct {
	// Dial reaches the agent's port.
	Dial func(ctx context.Context) (net.Conn, error)
	// Certificate is the client's; it is asked for at each connection, so it may rotate.
	Certificate func() (*tls.Certificate, error)
	// Pin is the hex SHA-256 of the agent's public key, from its log.
	Pin string
	// Protocols that the caller speaks; default api.Spoken.
	Protocols api.Protocols
	// Silence is how long a connection may say nothing before it is asked whether it
	// is still there, and how long it may take to answer; default 15 s.
	Silence time.Duration
}

// Client speaks to one agent, over one connection that carries events and questions.
type Client struct {
	http      *http.Client
	transport *http.Transport
	protocols api.Protocols
	// protocol is the version that the agent and we speak; 0 before it was asked.
	protocol atomic.Int64
}

// ErrPin says that whoever answered does not hold the pinned key.
var ErrPin = errors.New("the agent's key is not the pinned one")

// ErrGone is wrapped by a Dial that knows that trying again is no use: the
// agent's pod has been deleted.
var ErrGone = errors.New("the agent's pod is gone")

// ErrDetached is the cause of a context whose caller goes away and will ask again:
// the operation is left running.
var ErrDetached = errors.New("the caller goes away, the operation goes on")

// final says whether trying again cannot help.
func final(err error) bool {
	var p *api.Problem
	return errors.As(err, &p) && p.Code != api.CodeNotFound || errors.Is(err, ErrPin) || errors.Is(err, ErrGone)
}

// New returns a client. It dials when it is used.
func New(o Options) *Client {
	c := &Client{protocols: cmp.Or(o.Protocols, api.Spoken)}
	silence := cmp.Or(o.Silence, 15*time.Second)
	c.transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return o.Dial(ctx) },
		TLSClientConfig: &tls.Config{
			MinVersion: tls.VersionTLS13,
			// The agent's certificate is its own; its key is what is checked. The
			// handshake proves that the agent holds it.
			InsecureSkipVerify: true,
			VerifyConnection: func(state tls.ConnectionState) error {
				if len(state.PeerCertificates) == 0 {
					return ErrPin
				}
				sum := sha256.Sum256(state.PeerCertificates[0].RawSubjectPublicKeyInfo)
				if subtle.ConstantTimeCompare([]byte(hex.EncodeToString(sum[:])), []byte(o.Pin)) != 1 {
					return ErrPin
				}
				return nil
			},
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return o.Certificate() },
		},
		ForceAttemptHTTP2: true,
		// A way that ends in nowhere is found out: an operation may have no news for long.
		HTTP2:               &http.HTTP2Config{SendPingTimeout: silence, PingTimeout: silence},
		MaxConnsPerHost:     1,
		IdleConnTimeout:     time.Minute,
		TLSHandshakeTimeout: 15 * time.Second,
	}
	c.http = &http.Client{Transport: c.transport}
	return c
}

// Close drops idle connections.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

const base = "https://agent/v1/"

// do asks for something in the version that both sides speak. It is asked for at
// the beginning, and again when an agent turns out to be another one by now.
func (c *Client) do(ctx context.Context, method, path string, body, into any) error {
	if version := int(c.protocol.Load()); version > 0 {
		err := c.ask(ctx, method, path, version, body, into)
		var p *api.Problem
		if !errors.As(err, &p) || p.Code != api.CodeProtocol {
			return err
		}
	}
	if _, err := c.Info(ctx); err != nil {
		return err
	}
	version := int(c.protocol.Load())
	return c.ask(ctx, method, path, version, body, into)
}

func (c *Client) ask(ctx context.Context, method, path string, version int, body, into any) error {
	var reader io.Reader
	if body != nil {
		body, err := api.Written(body, version)
		if err != nil {
			return err
		}
		raw, err := json.Marshal(body)
		if err != nil {
			return err
		}
		reader = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, base+path, reader)
	if err != nil {
		return err
	}
	if version > 0 {
		req.Header.Set(api.ProtocolHeader, strconv.Itoa(version))
	}
	if start, ok := body.(api.StartRequest); ok && start.Tenant != "" {
		req.Header.Set(api.TenantHeader, start.Tenant)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("ask agent: %w", c.explained(ctx, err))
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		return problem(resp)
	}
	if into == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		return fmt.Errorf("read agent's answer: %w", err)
	}
	return nil
}

// explained says why an agent does not take our certificate, and what to do. The refusal
// comes after the handshake, when a question is on its way already, and may get lost
// with it: whoever then says nothing but that he waits is told.
func (c *Client) explained(ctx context.Context, err error) error {
	lost := func(part string) bool { return strings.Contains(err.Error(), part) }
	if slices.ContainsFunc([]string{"could not be established", "broken pipe", "connection reset", "EOF", "closed"}, lost) {
		if why := c.refusal(ctx); why != nil {
			err = why
		}
	}
	for alert, hint := range map[string]string{
		"tls: expired certificate":           "by the clock of the agent's node the controller's certificate is not good now: look at that clock, and at the certificate's dates",
		"tls: unknown certificate authority": "the agent trusts other CAs than the one that the controller's certificate comes from: look at ConfigMap " + names.CAConfigMap + " of its namespace",
	} {
		if lost(alert) {
			return fmt.Errorf("%w (%s)", err, hint)
		}
	}
	return err
}

// refusal connects, asks for nothing, and returns what the agent says if it refuses us.
func (c *Client) refusal(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, refusalTimeout)
	defer cancel()
	raw, err := c.transport.DialContext(ctx, "tcp", "")
	if err != nil {
		return nil
	}
	defer raw.Close()
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer stop()
	config := c.transport.TLSClientConfig.Clone()
	config.NextProtos = []string{"h2"} // an agent speaks first in it
	conn := tls.Client(raw, config)
	if _, err := conn.Read(make([]byte, 1)); err != nil && strings.Contains(err.Error(), "remote error") {
		return err
	}
	return nil
}

const refusalTimeout = 5 * time.Second

func problem(resp *http.Response) error {
	p := &api.Problem{}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(p); err != nil || p.Title == "" {
		return &api.Problem{Status: resp.StatusCode, Code: api.CodeInternal, Title: "agent answered " + resp.Status}
	}
	return p
}

// Start starts an operation; the same request again is the same operation.
func (c *Client) Start(ctx context.Context, req api.StartRequest) (op api.Operation, err error) {
	return op, c.do(ctx, http.MethodPost, "operations", req, &op)
}

// Get returns an operation as it is now.
func (c *Client) Get(ctx context.Context, id string) (op api.Operation, err error) {
	return op, c.do(ctx, http.MethodGet, "operations/"+url.PathEscape(id), nil, &op)
}

// List returns all operations that the agent knows.
func (c *Client) List(ctx context.Context) (ops []api.Operation, err error) {
	return ops, c.do(ctx, http.MethodGet, "operations", nil, &ops)
}

// Limit changes the rate limit of an operation, in bytes a second; 0 is none.
func (c *Client) Limit(ctx context.Context, id string, limit int64) (op api.Operation, err error) {
	return op, c.do(ctx, http.MethodPatch, "operations/"+url.PathEscape(id), api.PatchRequest{RateLimit: &limit}, &op)
}

// Cancel asks an operation to end.
func (c *Client) Cancel(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodDelete, "operations/"+url.PathEscape(id), nil, nil)
}

// Info describes the agent. It is an error if both sides speak no common version.
func (c *Client) Info(ctx context.Context) (info api.Info, err error) {
	// Asked in no version: the answer says which ones there are.
	if err := c.ask(ctx, http.MethodGet, "info", 0, nil, &info); err != nil {
		return api.Info{}, err
	}
	version, err := api.Negotiate(c.protocols, info.Protocols())
	if err != nil {
		return api.Info{}, err
	}
	c.protocol.Store(int64(version))
	return info, nil
}

// StartSession asks a repository server for a password; the same id again gives the same one.
func (c *Client) StartSession(ctx context.Context, req api.SessionRequest) (s api.Session, err error) {
	return s, c.do(ctx, http.MethodPost, "sessions", req, &s)
}

// EndSession ends a session; one that is not known has ended.
func (c *Client) EndSession(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodDelete, "sessions/"+url.PathEscape(id), nil, nil)
}

// Activity says what uses a repository server.
func (c *Client) Activity(ctx context.Context) (a api.Activity, err error) {
	return a, c.do(ctx, http.MethodGet, "activity", nil, &a)
}

// Drain asks a repository server to let nobody in any more, if nothing has used it
// for so long; Draining of the answer says whether it does.
func (c *Client) Drain(ctx context.Context, idle time.Duration) (a api.Activity, err error) {
	return a, c.do(ctx, http.MethodPost, "drain", api.DrainRequest{IdleSeconds: int64(idle.Seconds())}, &a)
}

const (
	firstPause = 200 * time.Millisecond
	longPause  = 5 * time.Second
	// patience is how long an agent may be out of reach while an operation runs.
	patience = 5 * time.Minute
	// cancelPatience is how long a cancelled operation may take to say so.
	cancelPatience = 20 * time.Second
)

// Run starts an operation and follows it to its end, over any fault of the
// connection. A failed operation is returned as *api.Problem. When ctx ends, the
// operation is cancelled and ctx's cause returned; with cause ErrDetached it is
// left alone.
func (c *Client) Run(ctx context.Context, req api.StartRequest, progress func(api.Progress)) (*api.Result, error) {
	op, err := c.follow(ctx, req, progress)
	if ctx.Err() != nil {
		if !errors.Is(context.Cause(ctx), ErrDetached) {
			c.abandon(context.WithoutCancel(ctx), req.ID)
		}
		return nil, context.Cause(ctx)
	}
	if err != nil {
		return nil, err
	}
	switch {
	case op.State == api.StateSucceeded && op.Result.Of(req.Kind):
		return op.Result, nil
	case op.State == api.StateSucceeded: // an agent is in the hands of its pod
		return nil, &api.Problem{Code: api.CodeInternal, Title: fmt.Sprintf("%s: the agent says that it succeeded, and not with what", req.Kind)}
	case op.Failure == nil:
		return nil, &api.Problem{Code: api.CodeInternal, Title: fmt.Sprintf("%s: ended as %s without a reason", op.Kind, op.State)}
	}
	return nil, op.Failure
}

func (c *Client) follow(ctx context.Context, req api.StartRequest, progress func(api.Progress)) (api.Operation, error) {
	wait, lost := firstPause, time.Time{}
	for {
		// Asking for the start is also asking how it goes, and gives fresh
		// credentials to an operation that lost its agent's memory.
		op, err := c.Start(ctx, req)
		if err == nil {
			wait, lost = firstPause, time.Time{}
			if op.State.Done() {
				// What it did in the end may have come over no stream.
				progress(op.Progress)
				return op, nil
			}
			err = c.watch(ctx, req.ID, func(now api.Operation) { op = now; progress(op.Progress) })
			// What the agent said last stands, however the stream ended.
			if op.State.Done() {
				return op, nil
			}
			if err == nil {
				continue
			}
		}
		if final(err) {
			return op, err
		}
		if ctx.Err() != nil {
			return op, ctx.Err()
		}
		now := time.Now()
		if lost.IsZero() {
			lost = now
		}
		if now.Sub(lost) > patience {
			return op, fmt.Errorf("the agent is out of reach for %s: %w", patience, err)
		}
		if pause.For(ctx, wait) != nil {
			return op, ctx.Err()
		}
		wait = min(2*wait, longPause)
	}
}

// watch reads the event stream until it ends, for whatever reason.
func (c *Client) watch(ctx context.Context, id string, fn func(api.Operation)) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"operations/"+url.PathEscape(id)+"/events", nil)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("follow operation: %w", c.explained(ctx, err))
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		return problem(resp)
	}
	lines := bufio.NewReader(resp.Body)
	for {
		line, err := lines.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("follow operation: %w", err)
		}
		data, ok := strings.CutPrefix(strings.TrimSpace(line), "data: ")
		if !ok {
			continue
		}
		var op api.Operation
		if err := json.Unmarshal([]byte(data), &op); err != nil {
			return fmt.Errorf("follow operation: %w", err)
		}
		fn(op)
	}
}

// abandon cancels an operation and waits a little for its end, so that nothing
// writes after the caller went on.
func (c *Client) abandon(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, cancelPatience)
	defer cancel()
	if c.Cancel(ctx, id) != nil {
		return
	}
	_ = c.watch(ctx, id, func(api.Operation) {})
}

// PinFromLog finds the hash of the agent's key in its log: the last one counts,
// the agent may have restarted. It returns io.ErrUnexpectedEOF if there is none yet.
func PinFromLog(log io.Reader) (string, error) {
	var pin string
	scanner := bufio.NewScanner(log)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		var line struct {
			Message string `json:"msg"`
			SPKI    string `json:"spkiSHA256"`
		}
		if json.Unmarshal(scanner.Bytes(), &line) == nil && line.Message == "agent identity" && len(line.SPKI) == 2*sha256.Size {
			pin = line.SPKI
		}
	}
	if err := scanner.Err(); err != nil {
		return "", fmt.Errorf("read agent's log: %w", err)
	}
	if pin == "" {
		return "", fmt.Errorf("the agent has not logged its identity: %w", io.ErrUnexpectedEOF)
	}
	return pin, nil
}
