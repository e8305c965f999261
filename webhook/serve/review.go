// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kjson "sigs.k8s.io/json"
)

// maxReview in bytes: the API server takes no object larger than 3 MiB, and the
// rest of a review of a CREATE is small.
const maxReview = 4 << 20

// request is what is read of an admissionv1.AdmissionRequest. The pod is decoded
// together with the rest. controller-runtime's handler looks at it as bytes first
// and at the whole review twice more, which took half of an admission's time.
type request struct {
	UID         types.UID                   `json:"uid"`
	Resource    metav1.GroupVersionResource `json:"resource"`
	SubResource string                      `json:"subResource"`
	Name        string                      `json:"name"`
	Namespace   string                      `json:"namespace"`
	Operation   admissionv1.Operation       `json:"operation"`
	// Pod is nil if it could not be decoded; why says the error then.
	Pod *corev1.Pod `json:"object"`
	why error
}

// readReview reads a review of an HTTP request. The error is for whoever sent it.
func readReview(w http.ResponseWriter, r *http.Request) (*request, error) {
	if t := r.Header.Get("Content-Type"); t != "application/json" {
		return nil, fmt.Errorf("read review: content type is %q, expected application/json", t)
	}
	var body bytes.Buffer
	if n := r.ContentLength; n > 0 && n <= maxReview {
		// A little more, so that the end is seen without growing.
		body.Grow(int(n) + bytes.MinRead)
	}
	if _, err := body.ReadFrom(http.MaxBytesReader(w, r.Body, maxReview)); err != nil {
		return nil, fmt.Errorf("read review: %w", err)
	}
	return decodeReview(body.Bytes())
}

func decodeReview(body []byte) (*request, error) {
	var review struct {
		metav1.TypeMeta `json:",inline"`
		Request         *request `json:"request"`
	}
	err := kjson.UnmarshalCaseSensitivePreserveInts(body, &review)
	if err != nil {
		// A pod that we cannot decode must not keep us from answering.
		var rest struct {
			metav1.TypeMeta `json:",inline"`
			Request         *struct {
				request `json:",inline"`
				Pod     json.RawMessage `json:"object"`
			} `json:"request"`
		}
		if kjson.UnmarshalCaseSensitivePreserveInts(body, &rest) != nil || rest.Request == nil {
			return nil, fmt.Errorf("read review: %w", err)
		}
		review.TypeMeta, review.Request = rest.TypeMeta, &rest.Request.request
		review.Request.Pod, review.Request.why = nil, fmt.Errorf("decode pod: %w", err)
	}
	if review.APIVersion != admissionv1.SchemeGroupVersion.String() || review.Kind != "AdmissionReview" {
		return nil, fmt.Errorf("read review: it is a %s of %s, expected an AdmissionReview of %s", review.Kind, review.APIVersion, admissionv1.SchemeGroupVersion)
	}
	if review.Request == nil {
		return nil, errors.New("read review: it holds no request")
	}
	if review.Request.Pod == nil && review.Request.why == nil {
		review.Request.why = errors.New("decode pod: there is none")
	}
	return review.Request, nil
}

func writeReview(w io.Writer, resp *admissionv1.AdmissionResponse) error {
	return json.NewEncoder(w).Encode(admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "AdmissionReview"},
		Response: resp,
	})
}
