// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repositoryserver_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"

	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
	"github.com/kanister-kopia/kanister-kopia/repositoryserver"
)

// cloud makes the server's process meet stand-ins under a cloud's own host names: a
// proxy brings its connections there, and it trusts the test's CA. So all but the
// stand-in is what runs against the cloud: host names, TLS, sign-in, the client.
func (w *world) cloud(ca *testenv.CA, hosts map[string]string) {
	w.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	w.must(err)
	proxy := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		to, known := hosts[r.Host]
		if r.Method != http.MethodConnect || !known {
			w.Errorf("the server wants %s %s", r.Method, r.Host)
			http.Error(rw, "unknown", http.StatusForbidden)
			return
		}
		there, err := net.Dial("tcp", to)
		if err != nil {
			http.Error(rw, err.Error(), http.StatusBadGateway)
			return
		}
		defer there.Close()
		rw.WriteHeader(http.StatusOK)
		here, _, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			return
		}
		defer here.Close()
		go func() {
			_, _ = io.Copy(there, here)
			_ = there.Close()
		}()
		_, _ = io.Copy(here, there)
	})}
	go func() { _ = proxy.Serve(l) }()
	w.Cleanup(func() { _ = proxy.Close() })
	roots := filepath.Join(w.TempDir(), "roots.crt")
	w.must(os.WriteFile(roots, ca.PEM, 0o600))
	w.environment = []string{"HTTPS_PROXY=http://" + l.Addr().String(), "SSL_CERT_FILE=" + roots}
}

// backsUpAndRestores is what each storage has to do, with maintenance in between.
func (w *world) backsUpAndRestores() {
	w.Helper()
	source := w.volume()
	testenv.MakeTree(w, source)
	s := w.serve()
	agent, _ := w.sidecar(source, nil)
	record := w.backup(s, agent, "op-1", "/")
	if _, message := w.maintain("--mode", "full", "--verify-percent", "100"); message != "" {
		w.Error(message)
	}
	folder, _ := w.restore(s, "op-2", record, "", "/")
	w.same(testenv.Tree(w, source), testenv.Tree(w, folder))
	w.noSecrets("the server's log", []byte(s.Log()))
}

func (w *world) listens(address string) {
	w.Helper()
	testenv.Eventually(w, 3*time.Minute, address+" listens", func() bool {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

// Azurite is what Microsoft has people test with. It comes by npm, so only whoever
// wants this test has it.
func TestIntegrationAzure(t *testing.T) {
	t.Parallel()
	azurite, err := exec.LookPath("azurite-blob")
	if err != nil {
		t.Skip("azurite-blob is not here: npm install -g azurite")
	}
	w := newWorld(t)
	const account, key, hostname = "shopbackups", "c2VjcmV0IHN0b3JhZ2Uga2V5IG9mIGEgdGVzdA==", "shopbackups.blob.core.windows.net"
	ca, dir, port := testenv.NewCA(t), t.TempDir(), testenv.Port(t)
	ca.IssueTo(t, dir, testenv.Leaf{DNS: []string{hostname}, Usage: x509.ExtKeyUsageServerAuth})
	testenv.Start(t, func(c *exec.Cmd) { c.Env = append(os.Environ(), "AZURITE_ACCOUNTS="+account+":"+key) }, azurite,
		"--silent", "--skipApiVersionCheck", "--location", filepath.Join(dir, "data"), "--blobHost", "127.0.0.1", "--blobPort", fmt.Sprint(port),
		"--cert", filepath.Join(dir, "tls.crt"), "--key", filepath.Join(dir, "tls.key"))
	address := fmt.Sprintf("127.0.0.1:%d", port)
	w.listens(address)
	w.cloud(ca, map[string]string{hostname + ":443": address})
	w.config.Storage = repositoryserver.StorageConfig{Type: "azure", Bucket: "backups", Prefix: "demo/", StorageAccount: account, StorageKey: key, StorageDomain: "blob.core.windows.net"}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.PEM)
	credential, err := azblob.NewSharedKeyCredential(account, key)
	w.must(err)
	client, err := azblob.NewClientWithSharedKeyCredential("https://"+hostname+"/", credential, &azblob.ClientOptions{ClientOptions: azcore.ClientOptions{
		Transport: &http.Client{Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: roots},
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, network, address)
			},
		}},
	}})
	w.must(err)
	_, err = client.CreateContainer(w.context(), w.config.Storage.Bucket, nil)
	w.must(err)
	w.backsUpAndRestores()
}

// fake-gcs-server is what people test with who use Google Cloud Storage. To build it takes
// longer than all else that the tests need, so only whoever wants this test has it.
func TestIntegrationGoogle(t *testing.T) {
	t.Parallel()
	program, err := exec.LookPath("fake-gcs-server")
	if err != nil {
		t.Skip("fake-gcs-server is not here: go install github.com/fsouza/fake-gcs-server@v1.56.1")
	}
	w := newWorld(t)
	const hostname = "storage.googleapis.com"
	address := fmt.Sprintf("127.0.0.1:%d", testenv.Port(t))
	_, port, _ := strings.Cut(address, ":")
	testenv.Start(t, nil, program, "-backend", "memory", "-scheme", "http", "-host", "127.0.0.1", "-port", port,
		"-public-host", hostname, "-external-url", "https://"+hostname, "-log-level", "error")
	w.listens(address)
	resp, err := http.Post("http://"+address+"/storage/v1/b?project=shop", "application/json", strings.NewReader(`{"name":"backups"}`))
	w.must(err)
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("make bucket: %s", resp.Status)
	}

	// It lets everybody in. What stands before it lets in who has a token, which it gives
	// for what is signed with the account's key.
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	w.must(err)
	token, bucket := rand.Text(), &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: address})
		r.Out.Host = r.In.Host
	}}
	const login = "oauth2.googleapis.com"
	google := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch {
		case r.Host == login && signed(r.PostFormValue("assertion"), &key.PublicKey) != nil:
			http.Error(rw, `{"error":"invalid_grant","error_description":"Invalid JWT Signature."}`, http.StatusBadRequest) // Google's answer
		case r.Host == login:
			rw.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(rw, `{"access_token":%q,"token_type":"Bearer","expires_in":3600}`, token)
		case r.Header.Get("Authorization") != "Bearer "+token:
			http.Error(rw, "Invalid Credentials", http.StatusUnauthorized)
		default:
			bucket.ServeHTTP(rw, r)
		}
	})}
	ca, tlsDir := testenv.NewCA(t), t.TempDir()
	ca.IssueTo(t, tlsDir, testenv.Leaf{DNS: []string{hostname, login}, Usage: x509.ExtKeyUsageServerAuth})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	w.must(err)
	go func() { _ = google.ServeTLS(l, filepath.Join(tlsDir, "tls.crt"), filepath.Join(tlsDir, "tls.key")) }()
	w.Cleanup(func() { _ = google.Close() })
	w.cloud(ca, map[string]string{hostname + ":443": l.Addr().String(), login + ":443": l.Addr().String()})

	w.config.Storage = repositoryserver.StorageConfig{Type: "gcs", Bucket: "backups", Prefix: "demo/", ServiceAccount: serviceAccount(w, key)}
	w.backsUpAndRestores()

	stranger, err := rsa.GenerateKey(rand.Reader, 2048)
	w.must(err)
	w.config.Storage.ServiceAccount = serviceAccount(w, stranger)
	p, _, _, _ := w.launch(w.config)
	<-p.Done
	if last := testenv.LastLine(p.Log()); !strings.Contains(last, "bucket backups of Google Cloud Storage") || !strings.Contains(last, "Invalid JWT Signature") {
		t.Errorf("with another account's key it ends with %q", last)
	}
	for _, line := range strings.Split(w.config.Storage.ServiceAccount, `\n`)[1:3] {
		if strings.Contains(p.Log(), line) {
			t.Error("its log holds the key")
		}
	}
}

// serviceAccount is the file that Google gives out for a key, as a Profile's Secret holds it.
func serviceAccount(w *world, key *rsa.PrivateKey) string {
	w.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	w.must(err)
	raw, err := json.Marshal(map[string]string{
		"type": "service_account", "project_id": "shop", "private_key_id": "1", "client_id": "1",
		"client_email": "backups@shop.iam.gserviceaccount.com", "token_uri": "https://oauth2.googleapis.com/token",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	})
	w.must(err)
	return string(raw)
}

// signed says whether a JSON web token is signed with a key (RS256).
func signed(token string, key *rsa.PublicKey) error {
	i := strings.LastIndexByte(token, '.')
	if i < 0 {
		return errors.New("no token")
	}
	signature, err := base64.RawURLEncoding.DecodeString(token[i+1:])
	if err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(token[:i]))
	return rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], signature)
}
