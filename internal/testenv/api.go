// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
)

// API is a real API server as a test uses it: with a client that knows all of the
// project's types and reads without a cache.
type API struct {
	testing.TB
	client.WithWatch
	Config *rest.Config
}

// NewAPI starts an API server and makes namespaces in it.
func NewAPI(t testing.TB, namespaces ...string) *API {
	t.Helper()
	a := &API{TB: t, Config: rest.CopyConfig(StartAPIServer(t))}
	a.Config.QPS, a.Config.Burst = 500, 1000 // as the controller
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		clientgoscheme.AddToScheme, apiextensionsv1.AddToScheme, crv1alpha1.AddToScheme, kopiav1alpha1.AddToScheme,
	} {
		must(t, add(scheme))
	}
	var err error
	a.WithWatch, err = client.NewWithWatch(a.Config, client.Options{Scheme: scheme})
	must(t, err)
	for _, name := range namespaces {
		a.Must(a.Create(a.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}))
	}
	return a
}

// In is the same API server in a subtest.
func (a *API) In(t testing.TB) *API {
	out := *a
	out.TB = t
	return &out
}

// Must ends the test if there is an error.
func (a *API) Must(err error) {
	a.Helper()
	must(a, err)
}

// Context ends with the test, and after a minute: a test that hangs says where.
func (a *API) Context() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	a.Cleanup(cancel)
	return ctx
}
