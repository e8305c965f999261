// SPDX-License-Identifier: Apache-2.0

// Package testenv is what integration tests share: certificates, real processes
// and file trees to compare.
package testenv

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// CA issues certificates for one test.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	// PEM of the CA's certificate.
	PEM []byte
}

// Old is an age of certificates that are still good by a clock that is hours behind.
const Old = 12 * time.Hour

// NewCA makes a CA.
func NewCA(t testing.TB) *CA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-Old), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	return &CA{cert: cert, key: key, PEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// Leaf describes a certificate.
type Leaf struct {
	DNS    []string
	IPs    []net.IP
	Usage  x509.ExtKeyUsage
	Expiry time.Time     // default: in a day
	Age    time.Duration // since when it is good; default 2h
}

// Issue makes a certificate; the result is PEM.
func (ca *CA) Issue(t testing.TB, l Leaf) (certPEM, keyPEM []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	must(t, err)
	if l.Expiry.IsZero() {
		l.Expiry = time.Now().Add(24 * time.Hour)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-cmp.Or(l.Age, 2*time.Hour)), NotAfter: l.Expiry,
		DNSNames: l.DNS, IPAddresses: l.IPs, ExtKeyUsage: []x509.ExtKeyUsage{l.Usage}, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	must(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

// IssueTo writes tls.crt and tls.key into a folder, as a kubelet does.
func (ca *CA) IssueTo(t testing.TB, dir string, l Leaf) {
	t.Helper()
	cert, key := ca.Issue(t, l)
	Project(t, dir, map[string][]byte{"tls.crt": cert, "tls.key": key})
}

// Project shows files in a folder as a kubelet does those of a Secret or a ConfigMap: each
// is a link into ..data, a link to a folder that is another one with each change, so that
// all of them change at once, and no file is ever written to again.
func Project(t testing.TB, dir string, files map[string][]byte) {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o755))
	data, next := filepath.Join(dir, "..data"), filepath.Join(dir, "..data_tmp")
	old, _ := os.Readlink(data)
	now, err := os.MkdirTemp(dir, "..")
	must(t, err)
	must(t, os.Chmod(now, 0o755))
	for name, content := range files {
		must(t, os.WriteFile(filepath.Join(now, name), content, 0o600))
	}
	must(t, os.Symlink(filepath.Base(now), next))
	must(t, os.Rename(next, data))
	for name := range files {
		link, file := filepath.Join("..data", name), filepath.Join(dir, name)
		if to, _ := os.Readlink(file); to != link {
			must(t, os.RemoveAll(file)) // a test's own
			must(t, os.Symlink(link, file))
		}
	}
	if old != "" {
		must(t, os.RemoveAll(filepath.Join(dir, old)))
	}
}

// Certificate makes a client certificate for a Go client.
func (ca *CA) Certificate(t testing.TB, l Leaf) func() (*tls.Certificate, error) {
	t.Helper()
	certPEM, keyPEM := ca.Issue(t, l)
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	must(t, err)
	return func() (*tls.Certificate, error) { return &cert, nil }
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
