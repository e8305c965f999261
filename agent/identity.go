// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// identityFile holds the agent's key. It is private to the agent's container and
// lives as long as its pod, so a caller's pin survives a restart of the container.
const identityFile = "agent.key"

// IdentityMessage is the log message that carries the hash of the agent's key, in
// the attribute IdentityAttribute. Another container of the pod could take the
// agent's port while it restarts; it cannot write the agent's log.
const (
	IdentityMessage   = "agent identity"
	IdentityAttribute = "spkiSHA256"
)

// Identity is the agent's own key, with a certificate that only carries it.
type Identity struct {
	Certificate tls.Certificate
	// SPKISHA256 is the hex SHA-256 of the key's SubjectPublicKeyInfo: what callers pin.
	SPKISHA256 string
}

// LoadIdentity reads the key in dir, or makes one.
func LoadIdentity(dir string, now time.Time) (*Identity, error) {
	file := filepath.Join(dir, identityFile)
	raw, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		raw, err = makeKey(file)
	}
	if err != nil {
		return nil, fmt.Errorf("load agent key: %w", err)
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		return nil, fmt.Errorf("load agent key: %s is not PEM; remove it and restart the agent", file)
	}
	key, err := x509.ParseECPrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("load agent key: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "kopia-agent"},
		NotBefore:    now.Add(-time.Hour), NotAfter: now.AddDate(10, 0, 0), // trusted by its key, not by its dates
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{"localhost"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make agent certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &Identity{
		Certificate: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		SPKISHA256:  SPKIHash(cert),
	}, nil
}

// SPKIHash is the hex SHA-256 of a certificate's public key.
func SPKIHash(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

func makeKey(file string) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	raw := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	if err := os.WriteFile(file+".new", raw, 0o600); err != nil {
		return nil, err
	}
	return raw, os.Rename(file+".new", file)
}
