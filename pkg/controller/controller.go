// SPDX-License-Identifier: Apache-2.0

// Package controller wires the parts of the controller together.
package controller

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/kanister-kopia/kanister-kopia/pkg/actionset"
	"github.com/kanister-kopia/kanister-kopia/pkg/agentconn"
	"github.com/kanister-kopia/kanister-kopia/pkg/cabundle"
	"github.com/kanister-kopia/kanister-kopia/pkg/coverage"
	"github.com/kanister-kopia/kanister-kopia/pkg/function"
	"github.com/kanister-kopia/kanister-kopia/pkg/mover"
	"github.com/kanister-kopia/kanister-kopia/pkg/repository"
)

// Options of Run.
type Options struct {
	// Namespace of the control plane.
	Namespace string
	// AgentImage and ServerImage are run with PullPolicy.
	AgentImage, ServerImage string
	PullPolicy              corev1.PullPolicy
	// TLSDir holds the controller's client certificate, CAFile what it chains to.
	TLSDir, CAFile string
	// Issuer is the cert-manager Issuer of the control plane.
	Issuer string
	// IdleTimeout of repository servers; 0: they stay up.
	IdleTimeout time.Duration
	// MetricsAddress and HealthAddress; "0" for none.
	MetricsAddress, HealthAddress string
	LeaderElection                bool
	Scheme                        *runtime.Scheme
	Log                           *slog.Logger
}

// Run runs the controller until ctx ends.
func Run(ctx context.Context, config *rest.Config, o Options) error {
	mgr, err := ctrl.NewManager(config, ctrl.Options{
		Scheme: o.Scheme,
		// Nothing outside the control plane is watched, but the namespaces themselves.
		Cache:                         cache.Options{DefaultNamespaces: map[string]cache.Config{o.Namespace: {}}},
		Metrics:                       metricsserver.Options{BindAddress: o.MetricsAddress},
		HealthProbeBindAddress:        o.HealthAddress,
		LeaderElection:                o.LeaderElection,
		LeaderElectionID:              "kanister-kopia-controller",
		LeaderElectionNamespace:       o.Namespace,
		LeaderElectionReleaseOnCancel: true,
	})
	if err != nil {
		return fmt.Errorf("start the controller: %w", err)
	}
	// Phases decide on what is there now, not on what a cache remembers.
	direct, err := client.NewWithWatch(config, client.Options{Scheme: o.Scheme, Mapper: mgr.GetRESTMapper(), HTTPClient: mgr.GetHTTPClient()})
	if err != nil {
		return fmt.Errorf("make a client: %w", err)
	}
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make a client: %w", err)
	}
	certificate, err := agentconn.NewCertificateDir(o.TLSDir)
	if err != nil {
		return err
	}
	agents, err := agentconn.New(config, certificate.Certificate)
	if err != nil {
		return err
	}
	bundle := cabundle.FromFile(o.CAFile)
	publisher := &cabundle.Publisher{Client: mgr.GetClient(), ControlPlane: o.Namespace, Bundle: bundle}
	movers := &mover.Movers{Client: direct, Agents: agents, CA: publisher, Image: o.AgentImage, PullPolicy: o.PullPolicy}
	repositories := &repository.Manager{Client: direct, Namespace: o.Namespace, Agents: agents, CA: bundle, Clock: clock.RealClock{}}
	data := &function.Data{
		Client: direct, Movers: movers, Agents: agents, Clock: clock.RealClock{}, Log: o.Log,
		Repositories: repositories,
	}
	companion := &function.Companion{
		Client: direct, Kube: kube, Config: config, Movers: movers,
		Namespace: o.Namespace, PullPolicy: o.PullPolicy, Log: o.Log,
	}
	resolutions := actionset.NewResolutions()
	if err := metrics.Registry.Register(resolutions); err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	// Looking at all pods of all opted-in namespaces must not slow the phases down.
	slow := rest.CopyConfig(config)
	slow.QPS, slow.Burst = 50, 50
	patient, err := client.New(slow, client.Options{Scheme: o.Scheme, Mapper: mgr.GetRESTMapper()})
	if err != nil {
		return fmt.Errorf("make a client: %w", err)
	}
	detector := &coverage.Detector{
		Client: patient, ControlPlane: o.Namespace, Clock: clock.RealClock{}, Log: o.Log,
		Events: mgr.GetEventRecorder("kanister-kopia-controller"),
	}
	if err := metrics.Registry.Register(detector.Collector()); err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	if err := metrics.Registry.Register(&repository.Collector{Client: mgr.GetClient(), Namespace: o.Namespace}); err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	for _, part := range []interface{ SetupWithManager(ctrl.Manager) error }{
		detector,
		publisher,
		&repository.Reconciler{
			Client: mgr.GetClient(), Manager: repositories, Namespace: o.Namespace, Issuer: o.Issuer,
			IdleTimeout: o.IdleTimeout, Clock: clock.RealClock{},
			Image: repository.Image{Name: o.ServerImage, PullPolicy: o.PullPolicy},
		},
		&actionset.Engine{
			Client: direct, Namespace: o.Namespace, Clock: clock.RealClock{}, Log: o.Log, Resolutions: resolutions,
			Events:    mgr.GetEventRecorder("kanister-kopia-controller"),
			Functions: function.NewRegistry(append(data.Functions(), companion.Functions()...)...),
		},
	} {
		if err := part.SetupWithManager(mgr); err != nil {
			return fmt.Errorf("start the controller: %w", err)
		}
	}
	if err := mgr.AddHealthzCheck("ping", healthz.Ping); err != nil {
		return err
	}
	if err := mgr.AddReadyzCheck("ping", healthz.Ping); err != nil {
		return err
	}
	if err := mgr.Start(ctx); err != nil {
		return fmt.Errorf("run the controller: %w", err)
	}
	return nil
}
