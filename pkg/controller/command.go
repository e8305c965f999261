// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	certmanagerv1 "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"

	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/function"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/pkg/repository"
)

// Main is the command of the controller, with functions of another program beside
// its own. It ends the process.
func Main(extra ...function.Func) {
	err := command(os.Args[1:], os.Stdout, extra)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "controller:", err)
		os.Exit(1)
	}
}

func command(args []string, stdout io.Writer, extra []function.Func) error {
	name := "serve"
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		name, args = args[0], args[1:]
	}
	switch name {
	case "serve":
		return serve(args, stdout, extra)
	case "validate":
		return validate(args, stdout, extra)
	case "export-keys":
		return exportKeys(args)
	case "import-keys":
		return importKeys(args)
	default:
		return fmt.Errorf("unknown command %q; there are: serve, validate, export-keys, import-keys", name)
	}
}

func serve(args []string, stdout io.Writer, extra []function.Func) error {
	o := Options{Functions: extra}
	pull := string(corev1.PullIfNotPresent)
	fs := flag.NewFlagSet("controller", flag.ContinueOnError)
	fs.StringVar(&o.Namespace, "namespace", names.ControlPlaneNamespace, "the control-plane namespace, whose ActionSets are run")
	fs.StringVar(&o.AgentImage, "agent-image", "", "image of temporary pods with the agent (required)")
	fs.StringVar(&o.ServerImage, "repository-server-image", "", "image of repository servers (required)")
	fs.StringVar(&pull, "pull-policy", pull, "pull policy of both: Always, IfNotPresent or Never")
	fs.StringVar(&o.TLSDir, "tls-dir", "/etc/controller/tls", "directory with tls.crt, tls.key and ca.crt: what agents are shown and what is published")
	fs.StringVar(&o.NextCAFile, "next-ca", "/etc/controller/next-ca/ca.crt", "file with the CA of the issuer, published besides ca.crt: agents trust it before anything comes from it; it may be missing")
	fs.StringVar(&o.Issuer, "issuer", "kanister-kopia", "cert-manager Issuer of the control-plane namespace")
	fs.DurationVar(&o.IdleTimeout, "idle-timeout", repository.DefaultIdleTimeout, "how long a repository server stays up when nothing uses it; 0: for ever")
	fs.StringVar(&o.MetricsAddress, "metrics-address", ":8080", "address of /metrics; 0: none")
	fs.StringVar(&o.HealthAddress, "health-address", ":8000", "address of /healthz and /readyz, and of Kanister's /v0/healthz, /v0/readyz and /metrics; 0: none")
	fs.StringVar(&o.WebhookCertDir, "webhook-cert-dir", "", "directory with tls.crt and tls.key of the Blueprint webhook; empty: no webhook")
	fs.StringVar(&o.WebhookAddress, "webhook-address", ":9443", "address of the Blueprint webhook")
	fs.BoolVar(&o.LeaderElection, "leader-elect", true, "let one of several replicas work")
	fs.BoolVar(&o.RefuseSecretsInCommands, "refuse-secrets-in-commands", false, "fail an ActionSet whose Blueprint renders .Profile or a Secret into a command, instead of a Warning Event")
	if err := fs.Parse(args); err != nil {
		return err
	}
	switch {
	case fs.NArg() > 0:
		return fmt.Errorf("unexpected argument %q", fs.Arg(0))
	case o.AgentImage == "" || o.ServerImage == "":
		return errors.New("--agent-image and --repository-server-image are required")
	case o.IdleTimeout < 0:
		return fmt.Errorf("--idle-timeout=%s: it is 0 or more", o.IdleTimeout)
	}
	switch o.PullPolicy = corev1.PullPolicy(pull); o.PullPolicy {
	case corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever:
	default:
		return fmt.Errorf("--pull-policy=%s: accepted: Always, IfNotPresent, Never", pull)
	}
	var err error
	if o.PodStartTimeout, err = podStartTimeout(os.Getenv); err != nil {
		return err
	}
	o.ToolsImage = os.Getenv("KANISTER_TOOLS")
	o.CAFile = filepath.Join(o.TLSDir, names.CAKey)
	o.Log = newLog(stdout, os.Getenv("LOG_LEVEL"))
	ctrl.SetLogger(logr.FromSlogHandler(o.Log.Handler()))

	if o.Scheme, err = newScheme(); err != nil {
		return err
	}
	config, err := ctrl.GetConfig()
	if err != nil {
		return fmt.Errorf("find the cluster: %w", err)
	}
	return Run(ctrl.SetupSignalHandler(), config, o)
}

func newScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		clientgoscheme.AddToScheme, certmanagerv1.AddToScheme, crv1alpha1.AddToScheme, kopiav1alpha1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	return scheme, nil
}
