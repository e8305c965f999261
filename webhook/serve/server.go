// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/webhook"

	"github.com/kanister-kopia/kanister-kopia/webhook/decide"
	"github.com/kanister-kopia/kanister-kopia/webhook/render"
)

// minVersion of Kubernetes. An older API server would drop restartPolicy from our
// init container, and the pod would wait for it for ever.
var minVersion = version.MustParseGeneric("1.30.0")

// Options of the server.
type Options struct {
	// Host and Port to serve admission on; "" is every address.
	Host string
	Port int
	// CertDir holds tls.crt and tls.key.
	CertDir string
	// HealthAddress and MetricsAddress are host:port; "0" switches one off.
	HealthAddress  string
	MetricsAddress string
	// Agent is what is injected.
	Agent render.Options
	Log   *slog.Logger
}

// Run serves until ctx is done.
func Run(ctx context.Context, config *rest.Config, o Options) error {
	ctrl.SetLogger(logr.FromSlogHandler(o.Log.Handler()))
	if err := checkVersion(config); err != nil {
		return err
	}
	clk := clock.RealClock{}
	cert := NewCertificate(o.CertDir, clk, o.Log)
	server := NewServer(o.Host, o.Port, cert)

	mgr, err := ctrl.NewManager(config, manager.Options{
		WebhookServer:          server,
		HealthProbeBindAddress: o.HealthAddress,
		Metrics:                metricsserver.Options{BindAddress: o.MetricsAddress},
		Cache:                  cacheOptions(),
	})
	if err != nil {
		return fmt.Errorf("set up the webhook: %w", err)
	}
	namespaces := &cachedNamespaces{cache: mgr.GetCache(), live: mgr.GetAPIReader(), clock: clk}
	// The manager runs the server only once it was asked for it.
	Register(mgr.GetWebhookServer(), Injector{
		Namespaces: namespaces,
		Options:    o.Agent,
		Metrics:    NewMetrics(metrics.Registry),
		Log:        o.Log,
		Clock:      clk,
	})
	// Informers start with their first use; that must not be the first pod.
	for _, kind := range watched() {
		if _, err := mgr.GetCache().GetInformer(ctx, kind, cache.BlockUntilSynced(false)); err != nil {
			return fmt.Errorf("watch namespaces and their limits: %w", err)
		}
	}

	synced := &afterCaches{}
	if err := errors.Join(
		mgr.Add(cert),
		mgr.Add(synced),
		mgr.AddHealthzCheck("ping", healthz.Ping),
		mgr.AddReadyzCheck("certificate", cert.Ready),
		mgr.AddReadyzCheck("listening", server.StartedChecker()),
		mgr.AddReadyzCheck("namespaces", synced.ready),
	); err != nil {
		return fmt.Errorf("set up the webhook: %w", err)
	}
	if err := mgr.Start(ctx); err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// NewServer returns an admission server that takes its certificate from cert.
func NewServer(host string, port int, cert *Certificate) webhook.Server {
	return webhook.NewServer(webhook.Options{Host: host, Port: port, TLSOpts: []func(*tls.Config){func(c *tls.Config) {
		c.MinVersion = tls.VersionTLS13
		c.GetCertificate = cert.Get
	}}})
}

// Register serves both modes; i.Mode is ignored.
func Register(server webhook.Server, i Injector) {
	for _, mode := range []decide.Mode{decide.ModeEnabled, decide.ModeAll} {
		injector := i
		injector.Mode = mode
		server.Register(Path(mode), &injector)
	}
}

func checkVersion(config *rest.Config) error {
	client, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return fmt.Errorf("read the version of Kubernetes: %w", err)
	}
	info, err := client.ServerVersion()
	if err != nil {
		return fmt.Errorf("read the version of Kubernetes: %w", err)
	}
	v, err := version.ParseGeneric(info.GitVersion)
	if err != nil {
		return fmt.Errorf("read the version of Kubernetes: %w", err)
	}
	if v.LessThan(minVersion) {
		return fmt.Errorf("Kubernetes %s is too old: native sidecars need %s or newer", v, minVersion) // a name
	}
	return nil
}

// afterCaches is started by the manager when its caches are in sync.
type afterCaches struct{ synced atomic.Bool }

func (a *afterCaches) Start(ctx context.Context) error {
	a.synced.Store(true)
	<-ctx.Done()
	return nil
}

func (a *afterCaches) NeedLeaderElection() bool { return false }

func (a *afterCaches) ready(*http.Request) error {
	if !a.synced.Load() {
		return errors.New("namespaces are still being read")
	}
	return nil
}
