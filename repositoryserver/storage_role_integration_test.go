// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repositoryserver_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// A role is assumed at the endpoint's token service, and what it gives is used and
// shown nowhere. The S3 gateway has no such service and takes no session token: this
// one gives out the gateway's own keys.
func TestIntegrationRole(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const role, own = "arn:aws:iam::123456789012:role/backup", "own-secret-0123456789"
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(w.s3.CA.PEM)
	gateway := &url.URL{Scheme: "https", Host: w.s3.Endpoint}
	var assumed, used atomic.Int64
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(gateway)
			r.Out.Host = r.In.Host // it is signed
		},
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}},
	}
	endpoint := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.URL.Path != "/" {
			if strings.Contains(r.Header.Get("Authorization"), "Credential="+w.s3.AccessKey+"/") {
				used.Add(1)
			}
			proxy.ServeHTTP(rw, r)
			return
		}
		if err := r.ParseForm(); err != nil {
			t.Error(err)
		}
		if r.Form.Get("Action") != "AssumeRole" || r.Form.Get("RoleArn") != role || !strings.Contains(r.Header.Get("Authorization"), "Credential=own-key/") {
			t.Errorf("the token service is asked for %v", r.Form)
		}
		assumed.Add(1)
		fmt.Fprintf(rw, `<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>
			<AccessKeyId>%s</AccessKeyId><SecretAccessKey>%s</SecretAccessKey><SessionToken></SessionToken><Expiration>%s</Expiration>
			</Credentials></AssumeRoleResult></AssumeRoleResponse>`, w.s3.AccessKey, w.s3.SecretKey, time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
	}))
	cert, key := w.s3.CA.Issue(t, testenv.Leaf{IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Usage: x509.ExtKeyUsageServerAuth})
	pair, err := tls.X509KeyPair(cert, key)
	w.must(err)
	endpoint.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	endpoint.StartTLS()
	t.Cleanup(endpoint.Close)

	w.config.Storage.Endpoint = endpoint.Listener.Addr().String()
	w.config.Storage.AccessKeyID, w.config.Storage.SecretAccessKey, w.config.Storage.RoleARN = "own-key", own, role
	source := w.volume()
	w.must(os.WriteFile(filepath.Join(source, "f"), []byte("x"), 0o600))
	s := w.serve()
	agent, _ := w.sidecar(source, nil)
	record := w.backup(s, agent, "op-1", "/")
	folder, _ := w.restore(s, "op-2", record, "", "/")
	w.same(testenv.Tree(w, source), testenv.Tree(w, folder))
	if assumed.Load() == 0 || used.Load() == 0 {
		t.Errorf("the role was assumed %d times, and what it gave was used %d times", assumed.Load(), used.Load())
	}
	for _, secret := range []string{own, w.s3.SecretKey} {
		if strings.Contains(s.Log(), secret) {
			t.Errorf("the server's log shows %s", secret)
		}
	}
}
