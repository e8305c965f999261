// SPDX-License-Identifier: Apache-2.0

//go:build integration

package agentconn

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/client"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// An operation whose pod somebody deletes ends at once, not when it has been out of reach
// for minutes.
func TestIntegrationPodIsGone(t *testing.T) {
	none := func() (*tls.Certificate, error) { return &tls.Certificate{}, nil }
	connector, err := New(testenv.StartAPIServer(t), none)
	if err != nil {
		t.Fatal(err)
	}
	agent := client.New(client.Options{Certificate: none, Dial: func(ctx context.Context) (net.Conn, error) {
		return connector.dial(ctx, "default", "db-0")
	}})
	_, err = agent.Run(t.Context(), api.StartRequest{ID: "one"}, func(api.Progress) {})
	if !errors.Is(err, client.ErrGone) || !strings.Contains(err.Error(), `"db-0" not found`) {
		t.Errorf("%v, want that the pod is gone", err)
	}
}
