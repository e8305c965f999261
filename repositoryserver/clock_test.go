// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/operation"
)

// The certificate of the way to Kopia's server in this process is good at any time: a
// clock that is put right must not make it one of tomorrow.
func TestCertificateOfLoopbackIsOfAnyTime(t *testing.T) {
	var k kopiaServer
	if _, _, err := k.makeCertificate(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(k.certPEM)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	for _, off := range []time.Duration{0, -20 * 365 * 24 * time.Hour, 100 * 365 * 24 * time.Hour} {
		if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: "127.0.0.1", CurrentTime: time.Now().Add(off)}); err != nil {
			t.Errorf("by a clock that is off by %s: %v", off, err)
		}
	}
}

// What an object store says of a clock is told with what to do; nothing else is.
func TestClockOfStorage(t *testing.T) {
	for text, want := range map[string]bool{
		"The difference between the request time and the server's time is too large.": true,
		"connection refused": false,
	} {
		if got := (Options{}).scrubbed(errors.New(text)).Error(); strings.Contains(got, "clock of this node") != want {
			t.Errorf("%q", got)
		}
	}
}

// An operation of before a restart that has ended later than now, by a clock that was
// ahead, does not keep the server up until then.
func TestIdleDespiteClockThatWasAhead(t *testing.T) {
	dir, later := t.TempDir(), time.Now().Add(6*time.Hour)
	if err := os.MkdirAll(filepath.Join(dir, "operations"), 0o700); err != nil {
		t.Fatal(err)
	}
	kept, err := json.Marshal(map[string]any{"operation": api.Operation{ID: "a", Kind: api.KindFind, State: api.StateSucceeded, Created: later, Finished: &later}})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "operations", "a.json"), kept, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	operations, err := operation.New(operation.Options{StateDir: dir, Now: time.Now})
	if err != nil || len(operations.List()) != 1 {
		t.Fatal(err, operations.List())
	}
	began := time.Now().Add(-time.Hour)
	open := newSessions(1, func() time.Time { return began })
	open.now = time.Now
	routes := sessionRoutes(open, nil, operations, &storageWatch{now: time.Now})
	answer := httptest.NewRecorder()
	routes["GET /v1/activity"](answer, httptest.NewRequest("GET", "/v1/activity", nil))
	var a api.Activity
	if err := json.NewDecoder(bytes.NewReader(answer.Body.Bytes())).Decode(&a); err != nil || a.IdleSeconds < 3600 {
		t.Errorf("%v: %+v: nothing was used for an hour", err, a)
	}
}
