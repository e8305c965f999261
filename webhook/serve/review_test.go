// SPDX-License-Identifier: Apache-2.0

package serve_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admission/v1"
	"k8s.io/utils/clock"

	"github.com/kanister-kopia/kanister-kopia/webhook/decide"
	"github.com/kanister-kopia/kanister-kopia/webhook/render"
	"github.com/kanister-kopia/kanister-kopia/webhook/serve"
)

func injector() *serve.Injector {
	return &serve.Injector{
		Mode:       decide.ModeEnabled,
		Namespaces: fakeNamespaces{"shop": {Name: "shop"}},
		Options:    render.Options{Image: "agent", Version: "v1"},
		Metrics:    serve.NewMetrics(prometheus.NewRegistry()),
		Log:        slog.New(slog.DiscardHandler),
		Clock:      clock.RealClock{},
	}
}

func send(h http.Handler, contentType, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
	r.Header.Set("Content-Type", contentType)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// What is no review gets an HTTP error that says why: for the API server that is
// a call that failed, and the pod is admitted.
func TestNoReview(t *testing.T) {
	for _, tc := range []struct{ name, contentType, body, want string }{
		{"another content type", "text/plain", "{}", `content type is "text/plain"`},
		{"nothing", "application/json", "", "read review"},
		{"not JSON", "application/json", "{", "read review"},
		{"another version", "application/json", `{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview","request":{}}`, "expected an AdmissionReview of admission.k8s.io/v1"},
		{"another kind", "application/json", `{"apiVersion":"v1","kind":"Pod"}`, "it is a Pod of v1"},
		{"no request", "application/json", `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`, "it holds no request"},
		{"too large", "application/json", `{"x":"` + strings.Repeat("x", 5<<20) + `"}`, "too large"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := send(injector(), tc.contentType, tc.body)
			if w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), tc.want) {
				t.Errorf("%d %s", w.Code, w.Body)
			}
		})
	}
}

// FuzzReview: whatever is sent, the answer is an HTTP error or a review that allows
// the request, unless it refuses a parameter.
func FuzzReview(f *testing.F) {
	pod := fmt.Sprintf(claimPod, labelled, `{"kopia.kanister.io/run-as":"5"}`, false)
	f.Add(string(review(f, "shop", "CREATE", []byte(pod))))
	f.Add(string(review(f, "shop", "DELETE", []byte("null"))))
	f.Add(string(review(f, "broken", "CREATE", []byte(`{"spec":[]}`))))
	f.Add(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"object":1}}`)
	f.Fuzz(func(t *testing.T, body string) {
		w := send(injector(), "application/json", body)
		if w.Code == http.StatusBadRequest {
			return
		}
		var answer admissionv1.AdmissionReview
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || w.Code != http.StatusOK || answer.Response == nil {
			t.Fatalf("%d %s: %v", w.Code, w.Body, err)
		}
		if r := answer.Response; !r.Allowed && !strings.Contains(r.Result.Message, "accepted:") {
			t.Errorf("refused: %+v", r.Result)
		}
	})
}
