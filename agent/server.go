// SPDX-License-Identifier: Apache-2.0

// Package agent is the agent's HTTP server: operations over mutual TLS, on
// loopback. The sidecar, the mover and the repository server's own agent are this
// one server with other kinds of operations.
package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/operation"
)

// Config of a Server.
type Config struct {
	// Operations serves /v1/operations.
	Operations *operation.Manager
	// Info serves /v1/info.
	Info func() api.Info
	// Routes adds further routes, behind the same TLS.
	Routes map[string]http.HandlerFunc
	// StateDir keeps the agent's key, CADir holds ca.crt.
	StateDir, CADir string
	// Log takes what is logged, and Out is where that goes to.
	Log *slog.Logger
	Out *Log
	Now func() time.Time
}

// Server serves the agent's API.
type Server struct {
	config   Config
	identity *Identity
	http     *http.Server
}

// NewServer loads the agent's key and logs its hash, which callers pin: now, and again
// and again while it serves.
func NewServer(config Config) (*Server, error) {
	identity, err := LoadIdentity(config.StateDir, config.Now())
	if err != nil {
		return nil, err
	}
	auth := &clientAuth{dir: config.CADir, now: config.Now}
	s := &Server{config: config, identity: identity}
	s.http = &http.Server{
		Handler:           s.routes(),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		// Who found no identity in the log comes, and looks again.
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				config.Out.met()
			}
		},
		ErrorLog:  slog.NewLogLogger(config.Log.Handler(), slog.LevelDebug),
		TLSConfig: auth.tls(identity.Certificate),
	}
	config.Out.introduce(identity.SPKISHA256)
	return s, nil
}

// Handler is what is served, without the TLS that is before it.
func (s *Server) Handler() http.Handler { return s.http.Handler }

// Serve serves until Close.
func (s *Server) Serve(l net.Listener) error {
	err := s.http.ServeTLS(l, "", "")
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve agent API: %w", err)
}

// Close ends Serve and cuts its connections: to a caller that proves nothing.
func (s *Server) Close() error { return s.http.Close() }

// maxBody is larger than any request: a record is a few KiB.
const maxBody = 1 << 20

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	for _, routes := range []map[string]http.HandlerFunc{s.operations(), s.config.Routes} {
		for pattern, handler := range routes {
			if pattern != "GET /v1/info" { // it tells what is spoken, whoever asks
				handler = spoken(handler)
			}
			mux.HandleFunc(pattern, handler)
		}
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		own, pattern := mux.Handler(r)
		if pattern != "" {
			mux.ServeHTTP(w, r)
			return
		}
		// The mux's own answer is text: only its status counts, and what it allows.
		answer := &unheard{header: http.Header{}, status: http.StatusNotFound}
		own.ServeHTTP(answer, r)
		if allow := answer.header.Get("Allow"); allow != "" {
			w.Header().Set("Allow", allow)
		}
		WriteJSON(w, 0, nil, &api.Problem{Status: max(answer.status, http.StatusNotFound), Code: api.CodeUnsupported, Title: fmt.Sprintf("%s %q is not served here", r.Method, r.URL.Path)})
	})
}

// unheard is an answer of which nothing is sent.
type unheard struct {
	header http.Header
	status int
}

func (u *unheard) Header() http.Header         { return u.header }
func (u *unheard) WriteHeader(status int)      { u.status = status }
func (u *unheard) Write(p []byte) (int, error) { return len(p), nil }

// spoken refuses requests of a version that is not spoken here: what they mean is
// not known.
func spoken(handler http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if said := r.Header.Get(api.ProtocolHeader); said != "" {
			if version, err := strconv.Atoi(said); err != nil || !api.Spoken.Has(version) {
				WriteJSON(w, 0, nil, &api.Problem{Status: 400, Code: api.CodeProtocol, Title: fmt.Sprintf("the request is of protocol %q, the agent speaks %s", said, api.Spoken)})
				return
			}
		}
		handler(w, r)
	}
}

// operations are the routes that every agent serves: docs/agent-api.yaml.
func (s *Server) operations() map[string]http.HandlerFunc {
	ops := s.config.Operations
	return map[string]http.HandlerFunc{
		"POST /v1/operations": func(w http.ResponseWriter, r *http.Request) {
			var req api.StartRequest
			if !ReadJSON(w, r, &req) {
				return
			}
			req.Tenant = r.Header.Get(api.TenantHeader)
			op, err := ops.Start(req)
			WriteJSON(w, http.StatusOK, op, err)
		},
		"GET /v1/operations": func(w http.ResponseWriter, _ *http.Request) {
			WriteJSON(w, http.StatusOK, ops.List(), nil)
		},
		"GET /v1/operations/{id}": func(w http.ResponseWriter, r *http.Request) {
			op, err := ops.Get(r.PathValue("id"))
			WriteJSON(w, http.StatusOK, op, err)
		},
		"PATCH /v1/operations/{id}": func(w http.ResponseWriter, r *http.Request) {
			var req api.PatchRequest
			if !ReadJSON(w, r, &req) {
				return
			}
			if req.RateLimit == nil {
				WriteJSON(w, 0, nil, &api.Problem{Status: 400, Code: api.CodeBadRequest, Title: "change operation: rateLimit is missing"})
				return
			}
			op, err := ops.Limit(r.PathValue("id"), *req.RateLimit)
			WriteJSON(w, http.StatusOK, op, err)
		},
		"DELETE /v1/operations/{id}": func(w http.ResponseWriter, r *http.Request) {
			op, err := ops.Cancel(r.PathValue("id"))
			WriteJSON(w, http.StatusOK, op, err)
		},
		"GET /v1/operations/{id}/events": s.events,
		"GET /v1/info": func(w http.ResponseWriter, _ *http.Request) {
			// Who asks who we are asks for an operation next, and finds it prepared.
			ops.Expect()
			WriteJSON(w, http.StatusOK, s.config.Info(), nil)
		},
	}
}

// events streams an operation's changes until it is done. The end of the stream
// means nothing: whoever reads it asks for the operation again.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	if _, err := s.config.Operations.Get(id); err != nil {
		WriteJSON(w, 0, nil, err)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	flush := http.NewResponseController(w)
	_ = s.config.Operations.Watch(r.Context(), id, func(op api.Operation) error {
		raw, err := json.Marshal(op)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "data: %s\n\n", raw); err != nil {
			return err
		}
		return flush.Flush()
	})
}

// ReadJSON reads a request's body; it answers and returns false if it cannot.
func ReadJSON(w http.ResponseWriter, r *http.Request, into any) bool {
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	decoder.DisallowUnknownFields()
	err := decoder.Decode(into)
	if err == nil {
		if _, more := decoder.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("something follows the request")
		}
	}
	if err != nil {
		WriteJSON(w, 0, nil, &api.Problem{Status: 400, Code: api.CodeBadRequest, Title: fmt.Sprintf("read request: %v", err)})
		return false
	}
	return true
}

// WriteJSON answers with a value, or with a problem if err is set.
func WriteJSON(w http.ResponseWriter, status int, value any, err error) {
	if err != nil {
		var p *api.Problem
		if !errors.As(err, &p) {
			p = &api.Problem{Code: api.CodeInternal, Title: err.Error()}
		}
		if p.Status == 0 {
			p.Status = http.StatusInternalServerError
		}
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(p.Status)
		_ = json.NewEncoder(w).Encode(p)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(value)
}
