// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// clientAuth decides which client certificates the agent accepts: of the control
// plane's CA, for client authentication, within their dates, and with the
// controller's name.
type clientAuth struct {
	dir string
	now func() time.Time

	mu    sync.Mutex // protects the following
	raw   []byte
	roots *x509.CertPool
}

// pool reads the CA bundle again if it has changed: ConfigMaps change under a
// running pod. Without a bundle nobody is let in.
func (a *clientAuth) pool() (*x509.CertPool, error) {
	raw, err := os.ReadFile(filepath.Join(a.dir, names.CAKey))
	if err != nil {
		return nil, fmt.Errorf("read CA bundle: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.roots != nil && bytes.Equal(raw, a.raw) {
		return a.roots, nil
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(raw) {
		return nil, errors.New("read CA bundle: it holds no certificate")
	}
	a.raw, a.roots = raw, roots
	return roots, nil
}

// tls is a configuration that lets in whom it should. What is wrong with a certificate,
// crypto/tls tells the client: that it is not good now is another word than that its CA
// is not known.
func (a *clientAuth) tls(own tls.Certificate) *tls.Config {
	config := &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{own},
		NextProtos:   []string{"h2", "http/1.1"},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		Time:         a.now,
		// A ticket would let a client in after its certificate is no longer good.
		SessionTicketsDisabled: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			if state.PeerCertificates[0].VerifyHostname(names.ControllerDNSName) != nil {
				return fmt.Errorf("verify client certificate: it does not name %s", names.ControllerDNSName)
			}
			return nil
		},
	}
	config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		roots, err := a.pool()
		if err != nil {
			return nil, err
		}
		c := config.Clone()
		c.ClientCAs = roots
		return c, nil
	}
	return config
}
