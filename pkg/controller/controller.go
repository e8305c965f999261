// SPDX-License-Identifier: Apache-2.0

// Package controller wires the parts of the controller together.
package controller

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

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
	// TLSDir holds the controller's client certificate, CAFile what it chains to, and
	// NextCAFile, if it is there, what the next one will: the issuer's CA.
	TLSDir, CAFile, NextCAFile string
	// Issuer is the cert-manager Issuer of the control plane.
	Issuer string
	// IdleTimeout of repository servers; 0: they stay up.
	IdleTimeout time.Duration
	// MetricsAddress and HealthAddress; "0" for none.
	MetricsAddress, HealthAddress string
	// WebhookCertDir holds the certificate of the Blueprint webhook, which answers on
	// WebhookAddress; "" for none.
	WebhookCertDir, WebhookAddress string
	LeaderElection                 bool
	// Functions are run beside the project's own; two of one name panic.
	Functions []function.Func
	// PodStartTimeout is how long a temporary pod may take to run; 0: the default.
	PodStartTimeout time.Duration
	// ToolsImage: see function.Companion.
	ToolsImage string
	// RefuseSecretsInCommands: see actionset.Engine.
	RefuseSecretsInCommands bool
	Scheme                  *runtime.Scheme
	Log                     *slog.Logger
}

// allFunctions are the project's own and those of another program.
func allFunctions(data *function.Data, companion *function.Companion, extra []function.Func) *function.Registry {
	return function.NewRegistry(slices.Concat(data.Functions(), companion.Functions(), extra)...)
}

// The API server shares its time out fairly by itself; our own limit is there for the
// case that something loops. 200 ActionSets that start together need about 3,000
// requests.
const (
	requestsPerSecond = 500
	requestBurst      = 1000
)

// Run runs the controller until ctx ends.
func Run(ctx context.Context, config *rest.Config, o Options) error {
	config = rest.CopyConfig(config)
	config.QPS, config.Burst = requestsPerSecond, requestBurst
	admissionServer, err := webhookServer(o)
	if err != nil {
		return err
	}
	mgr, err := ctrl.NewManager(config, ctrl.Options{
		Scheme: o.Scheme,
		// Nothing outside the control plane is watched, but the namespaces themselves.
		Cache:                         cache.Options{DefaultNamespaces: map[string]cache.Config{o.Namespace: {}}},
		Metrics:                       metricsserver.Options{BindAddress: o.MetricsAddress},
		WebhookServer:                 admissionServer,
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
	// Kanister's field, so that lines of several clusters can be told apart.
	if ns, err := kube.CoreV1().Namespaces().Get(ctx, metav1.NamespaceDefault, metav1.GetOptions{}); err == nil {
		o.Log = o.Log.With("cluster_name", ns.UID)
	}
	certificate, err := agentconn.NewCertificateDir(o.TLSDir)
	if err != nil {
		return err
	}
	agents, err := agentconn.New(config, certificate.Certificate)
	if err != nil {
		return err
	}
	bundle := cabundle.FromFiles(o.CAFile, o.NextCAFile)
	publisher := &cabundle.Publisher{Client: mgr.GetClient(), ControlPlane: o.Namespace, Bundle: bundle}
	movers := &mover.Movers{Client: direct, Agents: agents, CA: publisher, Image: o.AgentImage, PullPolicy: o.PullPolicy, StartTimeout: o.PodStartTimeout, Log: o.Log}
	repositories := &repository.Manager{Client: direct, Namespace: o.Namespace, Agents: agents, CA: bundle, Clock: clock.RealClock{}}
	data := &function.Data{
		Client: direct, Movers: movers, Agents: agents, Clock: clock.RealClock{}, Log: o.Log,
		Repositories: repositories,
	}
	companion := &function.Companion{
		Client: direct, Kube: kube, Config: config, Movers: movers,
		Namespace: o.Namespace, PullPolicy: o.PullPolicy, ToolsImage: o.ToolsImage,
	}
	functions := allFunctions(data, companion, o.Functions)
	// One Event for each phase: the newer API would make one of all that differ in
	// their text alone.
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: kube.CoreV1().Events("")})
	defer broadcaster.Shutdown()
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
		&mover.Sweeper{
			Client: patient, Clock: clock.RealClock{}, Log: o.Log,
			Running: func(ctx context.Context) (func(string) bool, error) {
				return actionset.Running(ctx, direct, o.Namespace)
			},
		},
		&repository.Reconciler{
			Client: mgr.GetClient(), Manager: repositories, Namespace: o.Namespace, Issuer: o.Issuer,
			IdleTimeout: o.IdleTimeout, Clock: clock.RealClock{},
			Image: repository.Image{Name: o.ServerImage, PullPolicy: o.PullPolicy},
		},
		&actionset.Engine{
			Client: direct, Namespace: o.Namespace, Clock: clock.RealClock{}, Log: o.Log, Functions: functions,
			Metrics:                 actionset.NewMetrics(metrics.Registry),
			Events:                  broadcaster.NewRecorder(o.Scheme, corev1.EventSource{Component: actionset.Source}),
			RefuseSecretsInCommands: o.RefuseSecretsInCommands,
		},
	} {
		if err := part.SetupWithManager(mgr); err != nil {
			return fmt.Errorf("start the controller: %w", err)
		}
	}
	if o.HealthAddress != "0" {
		health, err := healthServer(o.HealthAddress)
		if err != nil {
			return err
		}
		if err := mgr.Add(health); err != nil {
			return fmt.Errorf("start the controller: %w", err)
		}
	}
	if o.WebhookCertDir != "" {
		mgr.GetWebhookServer().Register(BlueprintPath, &admission.Webhook{
			Handler: &blueprintValidator{decoder: admission.NewDecoder(o.Scheme), functions: functions},
		})
	}
	if err := mgr.Start(ctx); err != nil {
		return fmt.Errorf("run the controller: %w", err)
	}
	return nil
}
