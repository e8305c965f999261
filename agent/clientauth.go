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

// verify implements tls.Config.VerifyConnection.
func (a *clientAuth) verify(state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("a client certificate is required")
	}
	roots, err := a.pool()
	if err != nil {
		return err
	}
	leaf := state.PeerCertificates[0]
	intermediates := x509.NewCertPool()
	for _, c := range state.PeerCertificates[1:] {
		intermediates.AddCert(c)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: a.now(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}); err != nil {
		return fmt.Errorf("verify client certificate: %w", err)
	}
	if err := leaf.VerifyHostname(names.ControllerDNSName); err != nil {
		return fmt.Errorf("verify client certificate: it does not name %s", names.ControllerDNSName)
	}
	return nil
}
