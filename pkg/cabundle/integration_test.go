// SPDX-License-Identifier: Apache-2.0

//go:build integration

package cabundle_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
	"github.com/kanister-kopia/kanister-kopia/pkg/cabundle"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

func TestIntegrationPublish(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	c, err := client.NewWithWatch(testenv.StartAPIServer(t), client.Options{})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(err)
	for name, labels := range map[string]map[string]string{
		"control": nil, "enabled": {names.InjectionLabel: "enabled"}, "all": {names.InjectionLabel: "all"},
		"other": {names.InjectionLabel: "no"}, "plain": nil,
	} {
		must(c.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}))
	}
	file := filepath.Join(t.TempDir(), "ca.crt")
	first := testenv.NewCA(t).PEM
	must(os.WriteFile(file, first, 0o600))
	p := &cabundle.Publisher{Client: c, ControlPlane: "control", Bundle: cabundle.FromFiles(file)}
	reconcile := func(namespace string) error {
		_, err := p.Reconcile(ctx, ctrl.Request{NamespacedName: types.NamespacedName{Name: namespace}})
		return err
	}
	published := func(namespace string) string {
		t.Helper()
		var m corev1.ConfigMap
		err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: names.CAConfigMap}, &m)
		if !apierrors.IsNotFound(err) {
			must(err)
		}
		return m.Data[names.CAKey]
	}
	for _, namespace := range []string{"control", "enabled", "all", "other", "plain", "gone"} {
		must(reconcile(namespace))
		want := string(first)
		if namespace == "other" || namespace == "plain" || namespace == "gone" {
			want = ""
		}
		if got := published(namespace); got != want {
			t.Errorf("namespace %s has %d bytes, want %d", namespace, len(got), len(want))
		}
	}

	// A renewed CA replaces the old one; what others put beside it stays.
	var m corev1.ConfigMap
	must(c.Get(ctx, client.ObjectKey{Namespace: "enabled", Name: names.CAConfigMap}, &m))
	m.Labels["team"] = "a"
	m.Data[names.CAKey] = "somebody's mistake"
	must(c.Update(ctx, &m))
	second := testenv.NewCA(t).PEM
	must(os.WriteFile(file, second, 0o600))
	must(reconcile("enabled"))
	if published("enabled") != string(second) {
		t.Error("the renewed CA is not published")
	}
	must(c.Get(ctx, client.ObjectKeyFromObject(&m), &m))
	if m.Labels["team"] != "a" {
		t.Error("a label that is not ours is gone")
	}

	// Nothing but certificates is ever published.
	for what, content := range map[string]string{
		"a key": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "nothing": "", "noise": "hello",
	} {
		must(os.WriteFile(file, []byte(content), 0o600))
		if err := p.Publish(ctx, "all"); err == nil {
			t.Errorf("%s is published", what)
		}
	}
	if published("all") != string(first) {
		t.Error("a refused bundle changed what was published")
	}
}
