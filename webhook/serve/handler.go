// SPDX-License-Identifier: Apache-2.0

// Package serve is the admission server: it reads a pod, asks webhook/decide,
// renders with webhook/render and answers. Nothing that goes wrong here costs a
// pod its admission; only a malformed parameter is refused.
package serve

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"

	"github.com/kanister-kopia/kanister-kopia/webhook/decide"
	"github.com/kanister-kopia/kanister-kopia/webhook/render"
)

// Path is where the webhook of a mode is served. One path per mode: the API
// server chose by the labels of the namespace, and it may know newer ones than we.
func Path(mode decide.Mode) string { return "/inject/" + string(mode) }

// Injector answers admission requests of one mode.
type Injector struct {
	Mode       decide.Mode
	Namespaces Namespaces
	Options    render.Options
	Metrics    *Metrics
	Log        *slog.Logger
	Clock      clock.PassiveClock
}

var _ http.Handler = (*Injector)(nil)

// ServeHTTP answers one review. It allows every pod but a malformed one: a response
// that does not allow is final for the API server, whatever the failure policy.
func (i *Injector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := i.Clock.Now()
	req, err := readReview(w, r)
	if err != nil {
		// No review, no answer to it: for the API server this is a failed call.
		i.Log.Error("bad request", "error", err.Error())
		i.Metrics.observe(decide.InternalError, i.Clock.Since(start))
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	d, resp := i.answer(r.Context(), req)
	resp.UID = req.UID
	w.Header().Set("Content-Type", "application/json")
	if err := writeReview(w, resp); err != nil {
		i.Log.Error("the answer could not be sent", "uid", req.UID, "error", err.Error())
	}
	i.Metrics.observe(d.Reason, i.Clock.Since(start))
}

// answer is admit, whatever happens in it.
func (i *Injector) answer(ctx context.Context, req *request) (d decide.Decision, resp *admissionv1.AdmissionResponse) {
	defer func() {
		if r := recover(); r != nil {
			d = decide.Decision{Reason: decide.InternalError, Detail: fmt.Sprint(r)}
			i.Log.Error("panic while injecting", "uid", req.UID, "namespace", req.Namespace, "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
			resp = allow(d)
		}
	}()
	return i.admit(ctx, req)
}

func (i *Injector) admit(ctx context.Context, req *request) (decide.Decision, *admissionv1.AdmissionResponse) {
	if req.Operation != admissionv1.Create || req.Resource.Group != "" || req.Resource.Resource != "pods" || req.SubResource != "" {
		d := decide.Decision{Reason: decide.NotAPodCreation}
		return d, allow(d)
	}
	pod := req.Pod
	if pod == nil {
		return i.fail(req, decide.InternalError, req.why)
	}
	ns, err := i.Namespaces.Get(ctx, req.Namespace)
	if err != nil {
		return i.fail(req, decide.NamespaceUnknown, err)
	}

	ns.Mode = i.Mode
	d := decide.Decide(pod, ns)
	log := i.Log.With("namespace", req.Namespace, "pod", podName(pod), "uid", req.UID, "mode", i.Mode)
	switch {
	case d.Deny():
		log.Info("pod refused", "reason", d.Reason, "detail", d.Detail)
		return d, deny(d)
	case !d.Inject():
		log.Info("pod not injected", "reason", d.Reason, "detail", d.Detail)
		return d, allow(d)
	}

	edit := render.Inject(pod, d.Plan, i.Options)
	resp := allow(d)
	if edit.Empty() {
		d.Reason = decide.UpToDate
	} else {
		patch, err := json.Marshal(edit.Patch(pod))
		if err != nil {
			return i.fail(req, decide.InternalError, fmt.Errorf("marshal patch: %w", err))
		}
		patchType := admissionv1.PatchTypeJSONPatch
		resp.Patch, resp.PatchType = patch, &patchType
	}
	log.Info("pod injected", "reason", d.Reason, "volumes", d.Plan.Volumes, "devices", d.Plan.Devices, "runAs", d.Plan.RunAs.Why, "qos", d.Plan.QoS)
	return d, resp
}

func (i *Injector) fail(req *request, reason decide.Reason, err error) (decide.Decision, *admissionv1.AdmissionResponse) {
	d := decide.Decision{Reason: reason, Detail: err.Error()}
	i.Log.Error("pod not injected", "namespace", req.Namespace, "pod", req.Name, "uid", req.UID, "reason", reason, "error", err.Error())
	d.Warnings = []string{"no backup agent: " + d.Message()}
	return d, allow(d)
}

func allow(d decide.Decision) *admissionv1.AdmissionResponse {
	return &admissionv1.AdmissionResponse{
		Allowed:  true,
		Result:   &metav1.Status{Code: http.StatusOK},
		Warnings: d.Warnings,
	}
}

func deny(d decide.Decision) *admissionv1.AdmissionResponse {
	return &admissionv1.AdmissionResponse{
		Allowed: false,
		Result: &metav1.Status{
			Status:  metav1.StatusFailure,
			Code:    http.StatusBadRequest,
			Reason:  metav1.StatusReasonBadRequest,
			Message: d.Message(),
		},
	}
}

// podName is the name, or what a controller gave for one to be made from.
func podName(pod *corev1.Pod) string {
	if pod.Name == "" && pod.GenerateName != "" {
		return pod.GenerateName + "*"
	}
	return pod.Name
}
