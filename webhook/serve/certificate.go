// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"time"

	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/certwatcher"
)

// certificateRetry is how often a certificate that is not there yet is looked for.
const certificateRetry = time.Second

// Certificate is the serving certificate, read again whenever its files change.
// It may be missing at the start: the server listens and is not ready.
type Certificate struct {
	dir     string
	log     *slog.Logger
	clock   clock.Clock
	watcher atomic.Pointer[certwatcher.CertWatcher]
}

// NewCertificate serves tls.crt and tls.key of a directory. Nothing is read before Start.
func NewCertificate(dir string, clk clock.Clock, log *slog.Logger) *Certificate {
	return &Certificate{dir: dir, clock: clk, log: log}
}

// Start waits for the files and follows them until ctx is done.
func (c *Certificate) Start(ctx context.Context) error {
	told := false
	for {
		watcher, err := certwatcher.New(filepath.Join(c.dir, "tls.crt"), filepath.Join(c.dir, "tls.key"))
		if err == nil {
			c.watcher.Store(watcher)
			c.log.Info("certificate loaded", "dir", c.dir)
			return watcher.Start(ctx)
		}
		if !told {
			c.log.Warn("no certificate yet; is cert-manager running?", "dir", c.dir, "error", err.Error())
			told = true
		}
		select {
		case <-ctx.Done():
			return nil
		case <-c.clock.After(certificateRetry):
		}
	}
}

// NeedLeaderElection says that every replica serves.
func (c *Certificate) NeedLeaderElection() bool { return false }

// Get is for tls.Config.GetCertificate.
func (c *Certificate) Get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if w := c.watcher.Load(); w != nil {
		return w.GetCertificate(hello)
	}
	return nil, errors.New("no certificate is loaded yet")
}

// Ready is a readiness check: a certificate is loaded and in its validity.
func (c *Certificate) Ready(*http.Request) error {
	cert, err := c.Get(nil)
	if err != nil {
		return err
	}
	if now := c.clock.Now(); cert.Leaf != nil && (now.Before(cert.Leaf.NotBefore) || now.After(cert.Leaf.NotAfter)) {
		return fmt.Errorf("the certificate is valid from %s to %s only", cert.Leaf.NotBefore.UTC().Format(time.RFC3339), cert.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}
