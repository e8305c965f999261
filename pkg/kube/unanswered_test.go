// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
)

// The texts about size are those of a real API server: one is etcd's, one is of the
// client's way there.
func TestUnanswered(t *testing.T) {
	kind := schema.GroupResource{Resource: "actionsets"}
	for _, c := range []struct {
		err  error
		want bool
	}{
		{&url.Error{Op: "Put", URL: "https://api", Err: errors.New("connection refused")}, true},
		{fmt.Errorf("write: %w", apierrors.NewServiceUnavailable("etcd is away")), true},
		{apierrors.NewTooManyRequests("later", 1), true},
		{apierrors.NewInternalError(errors.New("etcdserver: leader changed")), true},
		{apierrors.NewInternalError(errors.New("etcdserver: request is too large")), false},
		{apierrors.NewInternalError(errors.New("rpc error: code = ResourceExhausted desc = trying to send message larger than max (2098352 vs. 2097152)")), false},
		{apierrors.NewRequestEntityTooLargeError("limit is 3145728"), false},
		{apierrors.NewNotFound(kind, "x"), false},
		{apierrors.NewConflict(kind, "x", errors.New("changed")), false},
		{apierrors.NewForbidden(kind, "x", errors.New("no")), false},
		{ErrGone, false},
		{nil, false},
		{errors.New("Key 'k' not found in secret 'a:b'"), false},
		{context.Canceled, false},
	} {
		if got := Unanswered(c.err); got != c.want {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
	}
}

// Whoever waits goes on when the API server answers again, whatever it asks for; what
// the caller's own look at the object says is the end.
func TestAwaitUnanswered(t *testing.T) {
	refused := &url.Error{Op: "Get", URL: "https://api", Err: errors.New("connection refused")}
	synctest.Test(t, func(t *testing.T) {
		var asked []string
		refuse := map[int]bool{0: true, 1: true, 3: true} // the first look, a watch, the look after one
		ask := func(what string) error {
			asked = append(asked, what)
			if refuse[len(asked)-1] {
				return refused
			}
			return nil
		}
		c := interceptor.NewClient(nil, interceptor.Funcs{
			Get: func(_ context.Context, _ client.WithWatch, _ client.ObjectKey, _ client.Object, _ ...client.GetOption) error {
				return ask("get")
			},
			Watch: func(context.Context, client.WithWatch, client.ObjectList, ...client.ListOption) (watch.Interface, error) {
				return watch.NewFake(), ask("watch")
			},
		})
		looks, own := 0, error(nil)
		await := func(ctx context.Context) error {
			return Await(ctx, c, client.ObjectKey{Name: "x"}, &corev1.Pod{}, &corev1.PodList{}, func(*corev1.Pod) (bool, error) {
				looks++
				return own == nil, own
			})
		}
		if err := await(t.Context()); err != nil || looks != 1 || !slices.Equal(asked, []string{"get", "watch", "watch", "get", "watch", "get"}) {
			t.Errorf("asked for %q, looked %d times: %v", asked, looks, err)
		}
		asked, looks, refuse, own = nil, 0, nil, fmt.Errorf("read its log: %w", refused)
		if err := await(t.Context()); !errors.Is(err, own) || looks != 1 {
			t.Errorf("looked %d times, error %v, want the caller's", looks, err)
		}
		enough := errors.New("enough")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, enough)
		defer cancel()
		asked, refuse, own = nil, map[int]bool{0: true}, nil
		if err := await(ctx); !errors.Is(err, enough) || len(asked) != 1 {
			t.Errorf("asked for %q when its time was over: %v, want the context's cause", asked, err)
		}
	})
}
