// SPDX-License-Identifier: Apache-2.0

//go:build integration

package testenv_test

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/client-go/discovery"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
	"github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
)

// TestIntegrationOldestAPIServer: the API server that tests take for the oldest
// supported one is that, and has what the product relies on.
func TestIntegrationOldestAPIServer(t *testing.T) {
	// As under `make integration`: it must not make the oldest the newest.
	t.Setenv("KUBEBUILDER_ASSETS", filepath.Join(testenv.Root(t), "build", "envtest"))
	oldest, newest := connect(t, testenv.StartOldestAPIServer(t)), connect(t, testenv.StartAPIServer(t))

	accepted := webhookMinVersion(t)
	if v := oldest.version(t); v.Major() != accepted.Major() || v.Minor() != accepted.Minor() || v.LessThan(accepted) {
		t.Errorf("the oldest API server is %s, and the webhook's oldest is %s", v, accepted)
	}
	if o, n := oldest.version(t), newest.version(t); !o.LessThan(n) {
		t.Errorf("the oldest API server is %s, the newest %s", o, n)
	}
	for name, server := range map[string]*apiServer{"oldest": oldest, "newest": newest} {
		t.Run(name, func(t *testing.T) {
			t.Run("policies", server.servesPolicies)
			t.Run("native sidecar", server.keepsSidecar)
			t.Run("rules of CRDs", server.enforcesRules)
		})
	}

	// What an API server does not know of a CRD it drops without a word.
	want, got := newest.crds(t), oldest.crds(t)
	if files, _ := filepath.Glob(filepath.Join(testenv.Root(t), "manifests", "crds", "*_*.yaml")); len(want) == 0 || len(want) != len(files) {
		t.Errorf("%d CRDs from %d files", len(want), len(files))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the oldest API server keeps less of the CRDs:\n%s", diff)
	}
}

// webhookMinVersion is read from the source: nobody but this test needs it exported.
func webhookMinVersion(t *testing.T) *version.Version {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(testenv.Root(t), "webhook", "serve", "server.go"))
	must(t, err)
	found := regexp.MustCompile(`minVersion = version\.MustParseGeneric\("([^"]+)"\)`).FindSubmatch(raw)
	if found == nil {
		t.Fatal("the webhook's minVersion was not found")
	}
	return version.MustParseGeneric(string(found[1]))
}

type apiServer struct {
	client    client.Client
	discovery *discovery.DiscoveryClient
}

func connect(t *testing.T, config *rest.Config) *apiServer {
	t.Helper()
	scheme := runtime.NewScheme()
	must(t, clientgoscheme.AddToScheme(scheme))
	must(t, v1alpha1.AddToScheme(scheme))
	c, err := client.New(config, client.Options{Scheme: scheme})
	must(t, err)
	d, err := discovery.NewDiscoveryClientForConfig(config)
	must(t, err)
	must(t, c.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "app"}}))
	return &apiServer{client: c, discovery: d}
}

func (s *apiServer) version(t *testing.T) *version.Version {
	t.Helper()
	info, err := s.discovery.ServerVersion()
	must(t, err)
	v, err := version.ParseGeneric(info.GitVersion)
	must(t, err)
	return v
}

func (s *apiServer) servesPolicies(t *testing.T) {
	list, err := s.discovery.ServerResourcesForGroupVersion("admissionregistration.k8s.io/v1")
	must(t, err)
	served := map[string]bool{}
	for _, r := range list.APIResources {
		served[r.Kind] = true
	}
	for _, kind := range []string{"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding", "MutatingWebhookConfiguration"} {
		if !served[kind] {
			t.Errorf("%s is not served", kind)
		}
	}
}

// Before 1.28 the field was dropped: the agent would have been a plain init
// container, for which the pod waits for ever.
func (s *apiServer) keepsSidecar(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	always := corev1.ContainerRestartPolicyAlways
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "app", Name: "sidecar"},
		Spec: corev1.PodSpec{
			InitContainers: []corev1.Container{{Name: "agent", Image: "agent:test", RestartPolicy: &always}},
			Containers:     []corev1.Container{{Name: "app", Image: "app:test"}},
		},
	}
	must(t, s.client.Create(ctx, pod))
	var stored corev1.Pod
	must(t, s.client.Get(ctx, client.ObjectKeyFromObject(pod), &stored))
	if got := stored.Spec.InitContainers[0].RestartPolicy; got == nil || *got != always {
		t.Errorf("restartPolicy of the init container is %v", got)
	}
}

func (s *apiServer) enforcesRules(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	server := &v1alpha1.RepositoryServer{
		ObjectMeta: metav1.ObjectMeta{Namespace: "app", Name: "server"},
		Spec: v1alpha1.RepositoryServerSpec{
			Storage: v1alpha1.Storage{S3: &v1alpha1.S3Storage{Bucket: "bucket", Prefix: "prefix/"}},
			Tenant:  &v1alpha1.Tenant{ClusterID: "cluster", Namespace: "app", NamespaceUID: "uid"},
			KeyID:   "default",
		},
	}
	must(t, s.client.Create(ctx, server))
	for message, change := range map[string]func(*v1alpha1.RepositoryServerSpec){
		"a repository belongs to one namespace for ever":     func(s *v1alpha1.RepositoryServerSpec) { s.Tenant.NamespaceUID = "other" },
		"another encryption key is another repository":       func(s *v1alpha1.RepositoryServerSpec) { s.KeyID = "other" },
		"bucket and prefix of a repository cannot change":    func(s *v1alpha1.RepositoryServerSpec) { s.Storage.S3.Prefix = "other/" },
		"spec.storage.s3.prefix in body should match '/$'":   func(s *v1alpha1.RepositoryServerSpec) { s.Storage.S3.Prefix = "prefix" },
		"spec.tenant.clusterID in body should be at least 1": func(s *v1alpha1.RepositoryServerSpec) { s.Tenant.ClusterID = "" },
	} {
		changed := server.DeepCopy()
		change(&changed.Spec)
		if err := s.client.Update(ctx, changed); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), message) {
			t.Errorf("instead of %q: %v", message, err)
		}
	}
	server.Spec.Storage.S3.Region = "elsewhere"
	must(t, s.client.Update(ctx, server))
}

// crds are the specs of our CRDs, which must be established and say no other.
func (s *apiServer) crds(t *testing.T) map[string]any {
	t.Helper()
	list := &unstructured.UnstructuredList{}
	list.SetAPIVersion("apiextensions.k8s.io/v1")
	list.SetKind("CustomResourceDefinitionList")
	must(t, s.client.List(t.Context(), list))
	specs := map[string]any{}
	for _, crd := range list.Items {
		specs[crd.GetName()] = crd.Object["spec"]
		conditions, _, err := unstructured.NestedSlice(crd.Object, "status", "conditions")
		must(t, err)
		state := map[any]any{}
		for _, c := range conditions {
			condition := c.(map[string]any)
			state[condition["type"]] = condition["status"]
		}
		if diff := cmp.Diff(map[any]any{"NamesAccepted": "True", "Established": "True"}, state); diff != "" {
			t.Errorf("conditions of %s:\n%s", crd.GetName(), diff)
		}
	}
	return specs
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
