// SPDX-License-Identifier: Apache-2.0

package agentconn

import (
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	corev1 "k8s.io/api/core/v1"
)

// CertificateDir is a mounted Secret of type kubernetes.io/tls. It is read again
// when a file changed, so that a renewed certificate is used without a restart.
type CertificateDir struct {
	dir string

	mu      sync.Mutex
	cert    *tls.Certificate
	version string
}

// NewCertificateDir reads dir once, so that a missing certificate shows at start.
func NewCertificateDir(dir string) (*CertificateDir, error) {
	d := &CertificateDir{dir: dir}
	_, err := d.Certificate()
	return d, err
}

// Certificate returns the present one. While the files are being replaced, the
// last good one is returned.
func (d *CertificateDir) Certificate() (*tls.Certificate, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	certFile, keyFile := filepath.Join(d.dir, corev1.TLSCertKey), filepath.Join(d.dir, corev1.TLSPrivateKeyKey)
	version := ""
	for _, file := range []string{certFile, keyFile} {
		info, err := os.Stat(file)
		if err != nil {
			return d.last(err)
		}
		version += fmt.Sprintf("%s %d;", info.ModTime(), info.Size())
	}
	if version == d.version {
		return d.cert, nil
	}
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return d.last(err)
	}
	d.cert, d.version = &cert, version
	return d.cert, nil
}

func (d *CertificateDir) last(err error) (*tls.Certificate, error) {
	if d.cert != nil {
		return d.cert, nil
	}
	return nil, fmt.Errorf("read the client certificate: %w", err)
}
