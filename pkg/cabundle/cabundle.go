// SPDX-License-Identifier: Apache-2.0

// Package cabundle publishes the control plane's CA where agents run: ConfigMap
// names.CAConfigMap in every opted-in namespace, in the control plane's own, and,
// on demand, wherever a mover is started. It is public data. Agents read it again
// when it changes, so rotation restarts nobody.
//
// What is published is the CA that the controller's certificate comes from and, if it
// is another one, the issuer's present CA: agents trust the next one before anything
// comes from it, and the old one until the controller's certificate does.
package cabundle

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/kanister-kopia/kanister-kopia/internal/pause"
	"github.com/kanister-kopia/kanister-kopia/pkg/kube"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// refresh is how soon a ConfigMap that somebody changed is put right. The ConfigMaps
// are not watched: that would need the right to read every ConfigMap of the cluster.
const refresh = 5 * time.Minute

// watchPeriod is how soon another CA is published, everywhere: what comes from it is
// refused until agents have it.
const watchPeriod = 5 * time.Second

// Publisher keeps the ConfigMaps.
type Publisher struct {
	// Client writes ConfigMaps and reads namespaces.
	Client client.Client
	// ControlPlane is the namespace that always has the ConfigMap.
	ControlPlane string
	// Bundle returns the CA, in PEM.
	Bundle func() ([]byte, error)
}

// FromFiles returns a Bundle that reads files at every call and accepts nothing but
// certificates: the CA that our certificate chains to, and those that the next ones
// may. A file of the latter may be missing.
func FromFiles(name string, next ...string) func() ([]byte, error) {
	return func() ([]byte, error) {
		var bundle []byte
		for i, name := range append([]string{name}, next...) {
			data, err := os.ReadFile(name)
			if i > 0 && errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("read the CA: %w", err)
			}
			if err := check(data); err != nil {
				return nil, fmt.Errorf("read the CA from %s: %w", name, err)
			}
			bundle = Join(bundle, data)
		}
		return bundle, nil
	}
}

// Join adds the certificates of one bundle to another that has them not yet.
func Join(bundle, more []byte) []byte {
	have := map[string]bool{}
	for block, rest := pem.Decode(bundle); block != nil; block, rest = pem.Decode(rest) {
		have[string(block.Bytes)] = true
	}
	for block, rest := pem.Decode(more); block != nil; block, rest = pem.Decode(rest) {
		if !have[string(block.Bytes)] {
			have[string(block.Bytes)] = true
			bundle = append(bundle, pem.EncodeToMemory(block)...)
		}
	}
	return bundle
}

// check makes sure that what is published is public: certificates and no key.
func check(data []byte) error {
	found := false
	for len(bytes.TrimSpace(data)) > 0 {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return errors.New("it is not PEM")
		}
		if block.Type != "CERTIFICATE" {
			return fmt.Errorf("it holds a %q: only certificates are published", block.Type)
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return err
		}
		found = true
	}
	if !found {
		return errors.New("it is empty")
	}
	return nil
}

// Publish makes the ConfigMap in a namespace as it should be.
func (p *Publisher) Publish(ctx context.Context, namespace string) error {
	bundle, err := p.Bundle()
	if err != nil {
		return fmt.Errorf("publish the CA in namespace %s: %w", namespace, err)
	}
	err = kube.Apply(ctx, p.Client, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace,
			Name:      names.CAConfigMap,
			Labels:    map[string]string{names.ManagedByLabel: names.ManagedByValue},
		},
		Data: map[string]string{names.CAKey: string(bundle)},
	})
	if apierrors.IsForbidden(err) {
		return fmt.Errorf("publish the CA in namespace %s: %w (bind ClusterRole kanister-kopia-namespace to the controller there)", namespace, err)
	}
	if err != nil {
		return fmt.Errorf("publish the CA in namespace %s: %w", namespace, err)
	}
	return nil
}

// wanted says whether agents may run in a namespace at any time.
func (p *Publisher) wanted(ns client.Object) bool {
	if ns.GetName() == p.ControlPlane {
		return true
	}
	v := ns.GetLabels()[names.InjectionLabel]
	return v == names.InjectionEnabled || v == names.InjectionAll
}

// SetupWithManager starts it with the manager.
func (p *Publisher) SetupWithManager(mgr ctrl.Manager) error {
	changed := make(chan event.GenericEvent)
	if err := mgr.Add(manager.RunnableFunc(func(ctx context.Context) error { return p.watch(ctx, watchPeriod, changed) })); err != nil {
		return err
	}
	return ctrl.NewControllerManagedBy(mgr).
		Named("cabundle").
		For(&corev1.Namespace{}, builder.WithPredicates(predicate.NewPredicateFuncs(p.wanted))).
		WatchesRawSource(source.Channel(changed, &handler.EnqueueRequestForObject{})).
		Complete(p)
}

// watch tells of every namespace when the CA has changed, until ctx ends.
func (p *Publisher) watch(ctx context.Context, period time.Duration, changed chan<- event.GenericEvent) error {
	last, _ := p.Bundle()
	for pause.For(ctx, period) == nil {
		now, err := p.Bundle()
		if err != nil || bytes.Equal(now, last) {
			continue // the files may be about to be replaced
		}
		var all corev1.NamespaceList
		if err := p.Client.List(ctx, &all); err != nil {
			log.FromContext(ctx).Info("another CA is not published yet", "error", err.Error())
			continue
		}
		log.FromContext(ctx).Info("the CA has changed: it is published")
		for i := range all.Items {
			if !p.wanted(&all.Items[i]) {
				continue
			}
			select {
			case changed <- event.GenericEvent{Object: &all.Items[i]}:
			case <-ctx.Done():
				return nil
			}
		}
		last = now
	}
	return nil
}

// Reconcile publishes in one namespace.
func (p *Publisher) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	var ns corev1.Namespace
	if err := p.Client.Get(ctx, req.NamespacedName, &ns); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if ns.DeletionTimestamp != nil || !p.wanted(&ns) {
		return ctrl.Result{}, nil
	}
	if err := p.Publish(ctx, ns.Name); err != nil {
		return ctrl.Result{}, err
	}
	return ctrl.Result{RequeueAfter: refresh}, nil
}
