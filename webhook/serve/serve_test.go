// SPDX-License-Identifier: Apache-2.0

package serve_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
	"github.com/kanister-kopia/kanister-kopia/webhook/decide"
	"github.com/kanister-kopia/kanister-kopia/webhook/render"
	"github.com/kanister-kopia/kanister-kopia/webhook/serve"
)

// fakeNamespaces is a cache with what it has in it; "broken" cannot be read and
// "panics" is a bug of ours.
type fakeNamespaces map[string]decide.Namespace

func (f fakeNamespaces) Get(_ context.Context, name string) (decide.Namespace, error) {
	if name == "panics" {
		panic("a bug")
	}
	if ns, ok := f[name]; ok {
		return ns, nil
	}
	return decide.Namespace{}, errors.New("read namespace " + name + ": connection refused")
}

type server struct {
	url     string
	client  *http.Client
	reg     *prometheus.Registry
	certDir string
	cert    *serve.Certificate
}

// start runs the real server on loopback with a certificate from files.
func start(t testing.TB) *server {
	t.Helper()
	s := &server{certDir: t.TempDir(), reg: prometheus.NewRegistry()}
	log := slog.New(slog.NewJSONHandler(io.Discard, nil))
	s.cert = serve.NewCertificate(s.certDir, clock.RealClock{}, log)
	if err := s.cert.Ready(nil); err == nil {
		t.Error("ready before a certificate is loaded")
	}
	roots := writeCertificate(t, s.certDir, time.Now().Add(time.Hour))

	port := testenv.Port(t)
	srv := serve.NewServer("127.0.0.1", port, s.cert)
	serve.Register(srv, serve.Injector{
		Namespaces: fakeNamespaces{"shop": {Name: "shop"}},
		Options:    render.Options{Image: "agent", Version: "v1"},
		Metrics:    serve.NewMetrics(s.reg),
		Log:        log,
		Clock:      clock.RealClock{},
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- s.cert.Start(ctx) }()
	go func() { done <- srv.Start(ctx) }()
	t.Cleanup(func() {
		s.client.CloseIdleConnections()
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Errorf("server: %v", err)
			}
		}
	})

	s.url = fmt.Sprintf("https://127.0.0.1:%d", port)
	s.client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "kanister-kopia-webhook.kanister-kopia.svc"},
	}}
	eventually(t, func() error {
		if err := s.cert.Ready(nil); err != nil {
			return err
		}
		resp, err := s.client.Get(s.url)
		if err == nil {
			err = resp.Body.Close()
		}
		return err
	})
	return s
}

func eventually(t testing.TB, check func() error) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			t.Fatal(err)
		case <-tick.C:
		}
	}
}

func writeCertificate(t testing.TB, dir string, notAfter time.Time) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: "webhook"},
		DNSNames:     []string{"kanister-kopia-webhook.kanister-kopia.svc"},
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: notAfter,
		IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"tls.crt": {Type: "CERTIFICATE", Bytes: der},
		"tls.key": {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	return roots
}

func review(t testing.TB, namespace string, op admissionv1.Operation, object []byte) []byte {
	t.Helper()
	b, err := json.Marshal(admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
		Request: &admissionv1.AdmissionRequest{
			UID:       types.UID("8d8f2c2e-0000-4000-8000-000000000001"),
			Kind:      metav1.GroupVersionKind{Version: "v1", Kind: "Pod"},
			Resource:  metav1.GroupVersionResource{Version: "v1", Resource: "pods"},
			Namespace: namespace,
			Operation: op,
			Object:    runtime.RawExtension{Raw: object},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (s *server) post(t *testing.T, mode decide.Mode, body []byte) *admissionv1.AdmissionResponse {
	t.Helper()
	resp, err := s.client.Post(s.url+serve.Path(mode), "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer admissionv1.AdmissionReview
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	if answer.Kind != "AdmissionReview" || answer.APIVersion != "admission.k8s.io/v1" || answer.Response == nil {
		t.Fatalf("got %+v, want an AdmissionReview with a response", answer)
	}
	if answer.Response.UID != "8d8f2c2e-0000-4000-8000-000000000001" {
		t.Errorf("the answer is for request %q", answer.Response.UID)
	}
	return answer.Response
}

const claimPod = `{"metadata":{"generateName":"db-","labels":%s,"annotations":%s},"spec":{"hostNetwork":%v,
"containers":[{"name":"db","image":"db","volumeMounts":[{"name":"data","mountPath":"/data"}]}],
"volumes":[{"name":"data","persistentVolumeClaim":{"claimName":"c"}}]}}`

const labelled = `{"kopia.kanister.io/inject":"true"}`

func TestAdmission(t *testing.T) {
	s := start(t)
	for _, tc := range []struct {
		name      string
		mode      decide.Mode
		namespace string
		op        admissionv1.Operation
		object    string
		allowed   bool
		injected  bool
		reason    decide.Reason
		message   string
		warning   string
	}{
		{name: "labelled", mode: "enabled", namespace: "shop", op: "CREATE", object: fmt.Sprintf(claimPod, labelled, "{}", false), allowed: true, injected: true, reason: decide.Injected},
		{name: "mode all", mode: "all", namespace: "shop", op: "CREATE", object: fmt.Sprintf(claimPod, "{}", "null", false), allowed: true, injected: true, reason: decide.Injected},
		{name: "not labelled", mode: "enabled", namespace: "shop", op: "CREATE", object: fmt.Sprintf(claimPod, "{}", "{}", false), allowed: true, reason: decide.NotLabelled},
		{name: "host network", mode: "enabled", namespace: "shop", op: "CREATE", object: fmt.Sprintf(claimPod, labelled, "{}", true), allowed: true, reason: decide.HostNetwork, warning: "host's network"},
		{
			name: "malformed", mode: "enabled", namespace: "shop", op: "CREATE",
			object: fmt.Sprintf(claimPod, labelled, `{"kopia.kanister.io/run-as":"postgres"}`, false), reason: decide.Malformed,
			message: `annotation kopia.kanister.io/run-as has value "postgres"; accepted: "<uid>" or "<uid>:<gid>"`,
		},
		{name: "update", mode: "enabled", namespace: "shop", op: "UPDATE", object: fmt.Sprintf(claimPod, labelled, "{}", false), allowed: true, reason: decide.NotAPodCreation},
		// What goes wrong on our side never costs a pod its admission.
		{name: "namespace unknown", mode: "enabled", namespace: "broken", op: "CREATE", object: fmt.Sprintf(claimPod, labelled, "{}", false), allowed: true, reason: decide.NamespaceUnknown, warning: "no backup agent"},
		{name: "not a pod", mode: "enabled", namespace: "shop", op: "CREATE", object: `{"spec":[]}`, allowed: true, reason: decide.InternalError, warning: "no backup agent"},
		{name: "bug", mode: "enabled", namespace: "panics", op: "CREATE", object: fmt.Sprintf(claimPod, labelled, "{}", false), allowed: true, reason: decide.InternalError},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := s.count(t, tc.reason)
			resp := s.post(t, tc.mode, review(t, tc.namespace, tc.op, []byte(tc.object)))
			if resp.Allowed != tc.allowed {
				t.Fatalf("allowed: got %v, want %v (%+v)", resp.Allowed, tc.allowed, resp.Result)
			}
			if got := s.count(t, tc.reason) - before; got != 1 {
				t.Errorf("metric of reason %s grew by %v, want 1", tc.reason, got)
			}
			if tc.message != "" && !strings.Contains(resp.Result.Message, tc.message) {
				t.Errorf("message %q does not say %q", resp.Result.Message, tc.message)
			}
			if got := strings.Join(resp.Warnings, "\n"); !strings.Contains(got, tc.warning) {
				t.Errorf("warnings %q do not say %q", got, tc.warning)
			}
			if (resp.Patch != nil) != tc.injected {
				t.Fatalf("patch %s, want one: %v", resp.Patch, tc.injected)
			}
			if tc.injected {
				pod := patched(t, []byte(tc.object), resp)
				if n := len(pod.Spec.InitContainers); n != 1 || pod.Spec.InitContainers[0].Image != "agent" {
					t.Errorf("init containers: %+v", pod.Spec.InitContainers)
				}
			}
		})
	}
}

// The API server calls again when another webhook changed the pod: nothing is left to do.
func TestSecondCall(t *testing.T) {
	s := start(t)
	object := []byte(fmt.Sprintf(claimPod, labelled, "{}", false))
	pod := patched(t, object, s.post(t, "enabled", review(t, "shop", "CREATE", object)))
	again, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	resp := s.post(t, "enabled", review(t, "shop", "CREATE", again))
	if !resp.Allowed || resp.Patch != nil {
		t.Errorf("got allowed=%v, patch %s; want no patch", resp.Allowed, resp.Patch)
	}
	if got := s.count(t, decide.UpToDate); got != 1 {
		t.Errorf("metric of reason %s: got %v, want 1", decide.UpToDate, got)
	}
}

func TestCertificateIsReloaded(t *testing.T) {
	s := start(t)
	roots := writeCertificate(t, s.certDir, time.Now().Add(2*time.Hour))
	renewed := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{RootCAs: roots, ServerName: "kanister-kopia-webhook.kanister-kopia.svc"},
	}}
	eventually(t, func() error {
		resp, err := renewed.Get(s.url)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
}

func TestExpiredCertificateIsNotReady(t *testing.T) {
	dir := t.TempDir()
	writeCertificate(t, dir, time.Now().Add(-time.Minute))
	cert := serve.NewCertificate(dir, clock.RealClock{}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- cert.Start(ctx) }()
	eventually(t, func() error {
		_, err := cert.Get(nil)
		return err
	})
	if err := cert.Ready(nil); err == nil || !strings.Contains(err.Error(), "valid from") {
		t.Errorf("got %v, want an error about its validity", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func (s *server) count(t *testing.T, reason decide.Reason) float64 {
	t.Helper()
	families, err := s.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "kanister_kopia_webhook_decisions_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == string(reason) {
				return m.GetCounter().GetValue()
			}
		}
	}
	t.Fatalf("no metric of reason %s", reason)
	return 0
}

func TestMetricsAreClean(t *testing.T) {
	reg := prometheus.NewRegistry()
	serve.NewMetrics(reg)
	if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
}

func patched(t *testing.T, object []byte, resp *admissionv1.AdmissionResponse) *corev1.Pod {
	t.Helper()
	if resp.PatchType == nil || *resp.PatchType != admissionv1.PatchTypeJSONPatch {
		t.Fatalf("patch type: %v", resp.PatchType)
	}
	patch, err := jsonpatch.DecodePatch(resp.Patch)
	if err != nil {
		t.Fatal(err)
	}
	out, err := patch.Apply(object)
	if err != nil {
		t.Fatal(err)
	}
	pod := &corev1.Pod{}
	if err := json.Unmarshal(out, pod); err != nil {
		t.Fatal(err)
	}
	return pod
}
