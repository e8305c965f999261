// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http/httptest"
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
		"The difference between the request time and the current time is too large.": true,
		"connection refused": false,
	} {
		if got := (Options{}).scrubbed(errors.New(text)).Error(); strings.Contains(got, "clock of this node") != want {
			t.Errorf("%q", got)
		}
	}
}

// How long nothing was used is what passed, whatever the wall clock says.
func TestIdleDespiteClock(t *testing.T) {
	open := newSessions(1, time.Now)
	operations, err := operation.New(operation.Options{StateDir: t.TempDir(), Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	routes := sessionRoutes(open, nil, operations, &storageWatch{now: time.Now})
	// A wall clock that was set is a reading whose wall part and monotonic part disagree;
	// a test cannot make one. But whoever compares without the monotonic part has lost it.
	if a := open.activity(); a.LastUsed == a.LastUsed.Round(0) {
		t.Error("the time of the last use has lost its monotonic reading")
	}
	open.now = func() time.Time { return time.Now().Add(time.Hour) }
	answer := httptest.NewRecorder()
	routes["GET /v1/activity"](answer, httptest.NewRequest("GET", "/v1/activity", nil))
	var a api.Activity
	if err := json.NewDecoder(answer.Body).Decode(&a); err != nil || a.IdleSeconds != 3600 || a.LastUsed.Location() != time.UTC {
		t.Errorf("%v: %+v: nothing was used for an hour", err, a)
	}
}
