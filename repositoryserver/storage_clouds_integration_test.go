// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repositoryserver_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
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
