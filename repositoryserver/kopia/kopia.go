// SPDX-License-Identifier: Apache-2.0

// Package kopia runs Kopia's own repository server inside this process: the code
// of its command line, on a Unix socket that only this process's user can reach.
// It makes users known to it, with passwords that never leave the process and its
// child, and speaks just enough of its protocol to tell that a login works.
package kopia

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/kopia/kopia/cli"
)

// Options of a Server.
type Options struct {
	// ConfigFile connects to the repository; Password opens it.
	ConfigFile, Password string
	// Dir is private, short enough for a socket's path, and in memory.
	Dir string
	Log *slog.Logger
	Now func() time.Time
}

// Server is Kopia's server, running.
type Server struct {
	opt     Options
	socket  string
	ca      []byte
	control string // password of the control user
	roots   *x509.CertPool
	client  *http.Client
	users   *users
	ended   chan struct{} // closed after err is set
	err     error
}

const (
	controlUser = "server-control"
	baseURL     = "https://" + serverName
	// maxConcurrency is how many requests Kopia handles at once over all streams;
	// each may hold one content of a few MiB, or wait for the storage.
	maxConcurrency = 16
	startTimeout   = 2 * time.Minute // a repository with a thousand sources needs 17 s
)

// Start starts Kopia's server and returns when it answers. Kopia ends the process
// itself if it cannot open the repository, after saying so in the log; Open of
// package repository has been through that just before.
//
// Kopia asks for SIGTERM, SIGINT and SIGHUP while it starts and would drop its
// clients on the first; Start takes them away from everybody in this process, so
// the caller must ask for its own after Start.
func Start(ctx context.Context, opt Options) (*Server, error) {
	s := &Server{
		opt: opt, socket: filepath.Join(opt.Dir, "kopia.sock"), control: newPassword(),
		ended: make(chan struct{}), roots: x509.NewCertPool(),
	}
	if len(s.socket) > 100 {
		return nil, fmt.Errorf("start kopia: the path %s is too long for a socket", s.socket)
	}
	certFile, keyFile := filepath.Join(opt.Dir, "kopia.crt"), filepath.Join(opt.Dir, "kopia.key")
	var err error
	if s.ca, err = makeIdentity(certFile, keyFile, opt.Now()); err != nil {
		return nil, err
	}
	s.roots.AppendCertsFromPEM(s.ca)
	s.client = &http.Client{Transport: s.Transport()}
	if s.users, err = newUsers(filepath.Join(opt.Dir, "htpasswd"), s.refresh, s.login); err != nil {
		return nil, err
	}
	if err := os.Remove(s.socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("start kopia: %w", err)
	}
	app := cli.NewApp()
	app.SetLoggerFactory(logger(opt.Log), io.Discard)
	// A dead server must be seen as such even when Kopia is about to exit.
	flags := kingpin.New("kopia", "").ErrorWriter(io.Discard).UsageWriter(io.Discard)
	app.Attach(flags)
	// These are a slice in this process, not the process's arguments.
	args := []string{
		"--config-file=" + opt.ConfigFile, "--password=" + opt.Password, "--no-persist-credentials",
		"--disable-repository-log", "--error-notifications=never",
		"server", "start", "--no-ui", "--address=unix:" + s.socket,
		"--tls-cert-file=" + certFile, "--tls-key-file=" + keyFile,
		"--htpasswd-file=" + s.users.file,
		"--server-control-username=" + controlUser, "--server-control-password=" + s.control,
		"--refresh-interval=1h", "--max-concurrency=" + strconv.Itoa(max(maxConcurrency, 2*runtime.GOMAXPROCS(0))),
		"--no-log-scheduler", "--no-persistent-logs", "--shutdown-grace-period=5s",
		"--no-check-for-updates",
	}
	go func() {
		defer close(s.ended)
		if _, err := flags.Parse(args); err != nil {
			s.err = fmt.Errorf("run kopia: %w", err)
		}
	}()
	if err := s.awaitStart(ctx); err != nil {
		return nil, err
	}
	signal.Reset(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	// Kopia has read its key.
	if err := os.Remove(keyFile); err != nil {
		return nil, fmt.Errorf("start kopia: %w", err)
	}
	return s, nil
}

func (s *Server) awaitStart(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := s.controlCall(ctx, http.MethodGet, "status"); err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-s.ended:
			return fmt.Errorf("start kopia: it ended: %w", s.err)
		case <-ctx.Done():
			return fmt.Errorf("start kopia: no answer: %w", ctx.Err())
		}
	}
}

// newPassword has 256 random bits.
func newPassword() string {
	secret := make([]byte, 32)
	rand.Read(secret) // never fails
	return base64.RawURLEncoding.EncodeToString(secret)
}

// Transport makes a transport of its own connections to Kopia, HTTP/2 only.
func (s *Server) Transport() *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	return &http.Transport{
		Protocols:          protocols,
		DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", s.socket)
		},
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: s.roots, ServerName: serverName},
		IdleConnTimeout: time.Minute,
	}
}

// URL and CA let a child process reach Kopia.
func (s *Server) URL() string { return "unix+https://" + s.socket }

// CA is the PEM bundle to trust for URL.
func (s *Server) CA() string { return string(s.ca) }

// Ended is closed when the server has ended, wanted or not; Err says why then.
func (s *Server) Ended() <-chan struct{} { return s.ended }

// Err is nil after a wanted end. It may be called after Ended is closed.
func (s *Server) Err() error { return s.err }

// User makes a user known, if he is not yet, and returns his private password. It
// returns when a login with it works.
func (s *Server) User(ctx context.Context, username, hostname string) (string, error) {
	return s.users.ensure(ctx, username, hostname)
}

// Known returns the private password of a user that User made known.
func (s *Server) Known(username, hostname string) (string, bool) {
	return s.users.lookup(username, hostname)
}

// refresh makes Kopia read its password file again, among other things.
func (s *Server) refresh(ctx context.Context) error {
	return s.controlCall(ctx, http.MethodPost, "refresh")
}

func (s *Server) login(ctx context.Context, username, hostname, password string) error {
	return Login(ctx, s.client, baseURL, Credentials{username, hostname, password})
}

func (s *Server) controlCall(ctx context.Context, method, call string) error {
	req, err := http.NewRequestWithContext(ctx, method, baseURL+"/api/v1/control/"+call, http.NoBody)
	if err != nil {
		return err
	}
	req.SetBasicAuth(controlUser, s.control)
	resp, err := s.client.Do(req)
	if err != nil {
		return fmt.Errorf("ask kopia for %s: %w", call, err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20)); err != nil {
		return fmt.Errorf("ask kopia for %s: %w", call, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("ask kopia for %s: it answers %s", call, resp.Status)
	}
	return nil
}

// Stop ends the server: its streams are cut and the repository is closed. It
// returns when that is done, or when ctx ends.
func (s *Server) Stop(ctx context.Context) error {
	defer s.client.CloseIdleConnections()
	select {
	case <-s.ended:
		return s.err
	default:
	}
	if err := s.controlCall(ctx, http.MethodPost, "shutdown"); err != nil {
		return fmt.Errorf("stop kopia: %w", err)
	}
	// Kopia waits for connections to become idle: this must not be one.
	s.client.CloseIdleConnections()
	select {
	case <-s.ended:
		return s.err
	case <-ctx.Done():
		return fmt.Errorf("stop kopia: %w", ctx.Err())
	}
}
