// SPDX-License-Identifier: Apache-2.0

//go:build integration

package kube_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
	"github.com/kanister-kopia/kanister-kopia/pkg/kube"
)

func TestIntegrationAwait(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	c, err := client.NewWithWatch(testenv.StartAPIServer(t), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "m"}}
	key := client.ObjectKeyFromObject(m)
	await := func(ctx context.Context, done func(*corev1.ConfigMap) (bool, error)) error {
		return kube.Await(ctx, c, key, &corev1.ConfigMap{}, &corev1.ConfigMapList{}, done)
	}
	has := func(want string) func(*corev1.ConfigMap) (bool, error) {
		return func(m *corev1.ConfigMap) (bool, error) { return m.Data["k"] == want, nil }
	}
	if err := await(ctx, has("x")); !errors.Is(err, kube.ErrGone) {
		t.Errorf("not there: error %v", err)
	}
	if err := c.Create(ctx, m); err != nil {
		t.Fatal(err)
	}
	seen := make(chan struct{}, 10)
	ended := make(chan error, 1)
	go func() {
		ended <- await(ctx, func(m *corev1.ConfigMap) (bool, error) { seen <- struct{}{}; return m.Data["k"] == "x", nil })
	}()
	<-seen // it has looked, and waits
	m.Data = map[string]string{"k": "x"}
	if err := c.Update(ctx, m); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("a change is not seen: %v", err)
	}
	why := errors.New("the reason")
	stopped, stop := context.WithCancelCause(ctx)
	stop(why)
	if err := await(stopped, has("never")); !errors.Is(err, why) {
		t.Errorf("error %v, want the context's cause", err)
	}
	for len(seen) > 0 {
		<-seen
	}
	go func() {
		ended <- await(ctx, func(*corev1.ConfigMap) (bool, error) { seen <- struct{}{}; return false, nil })
	}()
	<-seen
	if err := c.Delete(ctx, m); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, kube.ErrGone) || !strings.Contains(err.Error(), "default/m") {
		t.Errorf("deleted meanwhile: error %v, want one that names it", err)
	}
}
