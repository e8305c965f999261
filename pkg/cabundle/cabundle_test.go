// SPDX-License-Identifier: Apache-2.0

package cabundle

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// The issuer's CA is published beside the one that our certificate comes from, once if
// they are the same.
func TestFromFiles(t *testing.T) {
	dir := t.TempDir()
	own, next := filepath.Join(dir, "own"), filepath.Join(dir, "next")
	old, young := testenv.NewCA(t).PEM, testenv.NewCA(t).PEM
	bundle := FromFiles(own, next)
	for _, step := range []struct {
		name      string
		own, next []byte
		want      []byte // nil: an error
	}{
		{"no CA", nil, old, nil},
		{"no issuer's", old, nil, old},
		{"the same", old, old, old},
		{"another is about to come", old, young, slices.Concat(old, young)},
		{"it has come", young, young, young},
		{"two, of which one is known", slices.Concat(old, young), young, slices.Concat(old, young)},
		{"nonsense is about to come", young, []byte("nonsense"), nil},
	} {
		for file, content := range map[string][]byte{own: step.own, next: step.next} {
			_ = os.Remove(file)
			if content == nil {
				continue
			}
			if err := os.WriteFile(file, content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := bundle(); !bytes.Equal(got, step.want) || (err == nil) != (step.want != nil) {
			t.Errorf("%s: %v, %q", step.name, err, got)
		}
	}
}

// Another CA is told of everywhere where agents may be, at once and once; files that
// are about to be replaced are waited for.
func TestWatch(t *testing.T) {
	namespace := func(name, label string) *corev1.Namespace {
		return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{names.InjectionLabel: label}}}
	}
	c := fake.NewClientBuilder().WithObjects(namespace("control", ""), namespace("shop", names.InjectionEnabled), namespace("other", "")).Build()
	synctest.Test(t, func(t *testing.T) {
		type files struct {
			ca  string
			err error
		}
		var now atomic.Pointer[files]
		now.Store(&files{ca: "a"})
		p := &Publisher{Client: c, ControlPlane: "control", Bundle: func() ([]byte, error) {
			f := now.Load()
			return []byte(f.ca), f.err
		}}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		changed := make(chan event.GenericEvent, 10)
		go func() { _ = p.watch(ctx, time.Second, changed) }()
		told := func() (namespaces []string) {
			time.Sleep(3 * time.Second) // of the bubble
			synctest.Wait()
			for len(changed) > 0 {
				namespaces = append(namespaces, (<-changed).Object.GetName())
			}
			slices.Sort(namespaces)
			return namespaces
		}
		for _, step := range []struct {
			ca   string
			err  error
			want []string
		}{
			{"a", nil, nil}, {"b", os.ErrNotExist, nil}, {"b", nil, []string{"control", "shop"}}, {"b", nil, nil},
		} {
			now.Store(&files{step.ca, step.err})
			if got := told(); !slices.Equal(got, step.want) {
				t.Errorf("after %q (%v): told of %q, want %q", step.ca, step.err, got, step.want)
			}
		}
	})
}
