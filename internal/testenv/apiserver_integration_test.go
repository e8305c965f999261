// SPDX-License-Identifier: Apache-2.0

//go:build integration

package testenv_test

import (
	"context"
	"encoding/json"
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
	if limit := server.Spec.DeletionLimit; limit == nil || *limit != 200 {
		t.Errorf("a deletion limit of %v, want 200", limit)
	}
	server.Spec.Storage.S3.Region = "elsewhere"
	must(t, s.client.Update(ctx, server))
	s.refusesAtOnce(t)
	s.refusesChanges(t)
	s.printsColumns(t, server)
}

// repository is one that is accepted, but for a change.
func repository(change func(*v1alpha1.RepositoryServer)) *v1alpha1.RepositoryServer {
	rs := &v1alpha1.RepositoryServer{
		ObjectMeta: metav1.ObjectMeta{Namespace: "app", Name: "other"},
		Spec:       v1alpha1.RepositoryServerSpec{Namespaces: []string{"shop"}, Storage: bucket()},
	}
	change(rs)
	return rs
}

func bucket() v1alpha1.Storage {
	return v1alpha1.Storage{S3: &v1alpha1.S3Storage{Bucket: "b", Prefix: "p/"}}
}

var external = &v1alpha1.External{URL: "https://kopia.example.com:51515", CABundle: "CA", UserSecret: "user"}

// refusesAtOnce tries each rule for what may be made.
func (s *apiServer) refusesAtOnce(t *testing.T) {
	t.Helper()
	type spec = v1alpha1.RepositoryServerSpec
	volume := v1alpha1.Storage{Filesystem: &v1alpha1.FilesystemStorage{Claim: "c"}}
	lock := func(period time.Duration) *v1alpha1.Format {
		return &v1alpha1.Format{ObjectLock: &v1alpha1.ObjectLock{Mode: "Governance", Period: metav1.Duration{Duration: period}}}
	}
	long := func(d time.Duration) *metav1.Duration { return &metav1.Duration{Duration: d} }
	number := func(n int32) *int32 { return &n }
	const (
		oneStorage = "exactly one of storage.s3, storage.gcs, storage.azure, storage.filesystem and external is needed"
		owner      = "a repository belongs to one namespace (tenant), or is shared by those that it lists (namespaces)"
		notOurs    = "format, maintenance and tls of an external server are not ours to set"
		oneSource  = "exactly one of secret and issuer is needed"
		name       = "the name begins every backupID"
	)
	for what, c := range map[string]struct {
		message string // "": it is accepted
		change  func(*v1alpha1.RepositoryServer, *spec)
	}{
		"as it is":               {"", func(*v1alpha1.RepositoryServer, *spec) {}},
		"no storage":             {oneStorage, func(_ *v1alpha1.RepositoryServer, s *spec) { s.Storage = v1alpha1.Storage{} }},
		"two storages":           {oneStorage, func(_ *v1alpha1.RepositoryServer, s *spec) { s.Storage.Filesystem = volume.Filesystem }},
		"a storage and a server": {oneStorage, func(_ *v1alpha1.RepositoryServer, s *spec) { s.External = external }},
		"nobody's":               {owner, func(_ *v1alpha1.RepositoryServer, s *spec) { s.Namespaces = nil }},
		"one's and several's": {owner, func(_ *v1alpha1.RepositoryServer, s *spec) {
			s.Tenant = &v1alpha1.Tenant{ClusterID: "c", Namespace: "n", NamespaceUID: "u"}
		}},
		"shared, an encryptionKey": {"a shared repository has a password of its own: keyID is default", func(_ *v1alpha1.RepositoryServer, s *spec) { s.KeyID = "k" }},
		"somebody else's server":   {"", func(_ *v1alpha1.RepositoryServer, s *spec) { s.Storage, s.External = v1alpha1.Storage{}, external }},
		"theirs, with a format": {notOurs, func(_ *v1alpha1.RepositoryServer, s *spec) {
			s.Storage, s.External, s.Format = v1alpha1.Storage{}, external, &v1alpha1.Format{Splitter: "FIXED-4M"}
		}},
		"theirs, with maintenance": {notOurs, func(_ *v1alpha1.RepositoryServer, s *spec) {
			s.Storage, s.External, s.Maintenance = v1alpha1.Storage{}, external, &v1alpha1.Maintenance{}
		}},
		"theirs, with a certificate": {notOurs, func(_ *v1alpha1.RepositoryServer, s *spec) {
			s.Storage, s.External, s.TLS = v1alpha1.Storage{}, external, &v1alpha1.TLS{Secret: "s"}
		}},
		"a server without TLS": {"spec.external.url", func(_ *v1alpha1.RepositoryServer, s *spec) {
			e := *external
			e.URL = "http://kopia"
			s.Storage, s.External = v1alpha1.Storage{}, &e
		}},
		"object lock":             {"", func(_ *v1alpha1.RepositoryServer, s *spec) { s.Format = lock(48 * time.Hour) }},
		"object lock on a volume": {"object lock needs an S3 bucket", func(_ *v1alpha1.RepositoryServer, s *spec) { s.Storage, s.Format = volume, lock(48*time.Hour) }},
		"object lock for a day":   {"the period is at least 48h", func(_ *v1alpha1.RepositoryServer, s *spec) { s.Format = lock(47 * time.Hour) }},
		"object lock at Google's": {"object lock needs an S3 bucket", func(_ *v1alpha1.RepositoryServer, s *spec) {
			s.Storage, s.Format = v1alpha1.Storage{GCS: &v1alpha1.GCSStorage{Bucket: "b", Prefix: "p/"}}, lock(48*time.Hour)
		}},
		"object lock at Microsoft's": {"object lock needs an S3 bucket", func(_ *v1alpha1.RepositoryServer, s *spec) {
			s.Storage, s.Format = v1alpha1.Storage{Azure: &v1alpha1.AzureStorage{Account: "a", Container: "c", Prefix: "p/"}}, lock(48*time.Hour)
		}},
		"locks extended in time": {"", func(_ *v1alpha1.RepositoryServer, s *spec) {
			s.Format, s.Maintenance = lock(72*time.Hour), &v1alpha1.Maintenance{FullInterval: long(48 * time.Hour)}
		}},
		"locks extended too late": {"maintenance.fullInterval is at least 24h shorter", func(_ *v1alpha1.RepositoryServer, s *spec) {
			s.Format, s.Maintenance = lock(48*time.Hour), &v1alpha1.Maintenance{FullInterval: long(24*time.Hour + time.Minute)}
		}},
		"a long interval without locks": {"", func(_ *v1alpha1.RepositoryServer, s *spec) {
			s.Maintenance = &v1alpha1.Maintenance{FullInterval: long(720 * time.Hour)}
		}},
		"a lock of one's own mode": {"spec.format.objectLock.mode", func(_ *v1alpha1.RepositoryServer, s *spec) {
			s.Format = lock(48 * time.Hour)
			s.Format.ObjectLock.Mode = "governance"
		}},
		"a compression of one's own": {"spec.format.compression", func(_ *v1alpha1.RepositoryServer, s *spec) {
			s.Format = &v1alpha1.Format{Compression: "lz4"}
		}},
		"a key id of other letters": {"spec.keyID in body should match", func(_ *v1alpha1.RepositoryServer, s *spec) {
			s.Namespaces, s.Tenant, s.KeyID = nil, &v1alpha1.Tenant{ClusterID: "c", Namespace: "n", NamespaceUID: "u"}, "Key"
		}},
		"a key id that is too long": {"spec.keyID in body should match", func(_ *v1alpha1.RepositoryServer, s *spec) {
			s.Namespaces, s.Tenant, s.KeyID = nil, &v1alpha1.Tenant{ClusterID: "c", Namespace: "n", NamespaceUID: "u"}, strings.Repeat("k", 33)
		}},
		"no deletion limit":      {"", func(_ *v1alpha1.RepositoryServer, s *spec) { s.DeletionLimit = number(0) }},
		"a deletion limit below": {"spec.deletionLimit", func(_ *v1alpha1.RepositoryServer, s *spec) { s.DeletionLimit = number(-1) }},
		"nothing is verified": {"", func(_ *v1alpha1.RepositoryServer, s *spec) {
			s.Maintenance = &v1alpha1.Maintenance{VerifyPercent: number(0)}
		}},
		"everything is verified": {"", func(_ *v1alpha1.RepositoryServer, s *spec) {
			s.Maintenance = &v1alpha1.Maintenance{VerifyPercent: number(100)}
		}},
		"less than nothing is": {"spec.maintenance.verifyPercent", func(_ *v1alpha1.RepositoryServer, s *spec) {
			s.Maintenance = &v1alpha1.Maintenance{VerifyPercent: number(-1)}
		}},
		"more than everything is": {"spec.maintenance.verifyPercent", func(_ *v1alpha1.RepositoryServer, s *spec) {
			s.Maintenance = &v1alpha1.Maintenance{VerifyPercent: number(101)}
		}},
		"a splitter of one's own":   {"spec.format.splitter", func(_ *v1alpha1.RepositoryServer, s *spec) { s.Format = &v1alpha1.Format{Splitter: "FIXED-1K"} }},
		"it never stops":            {"", func(_ *v1alpha1.RepositoryServer, s *spec) { s.IdleTimeout = long(0) }},
		"it stops before it starts": {"idleTimeout is 0 (never stop) or positive", func(_ *v1alpha1.RepositoryServer, s *spec) { s.IdleTimeout = long(-time.Second) }},
		"quick maintenance all along": {"quickInterval is at least 1h", func(_ *v1alpha1.RepositoryServer, s *spec) {
			s.Maintenance = &v1alpha1.Maintenance{QuickInterval: long(time.Minute)}
		}},
		"full maintenance all along": {"fullInterval is at least 1h", func(_ *v1alpha1.RepositoryServer, s *spec) {
			s.Maintenance = &v1alpha1.Maintenance{FullInterval: long(time.Minute)}
		}},
		"no certificate": {oneSource, func(_ *v1alpha1.RepositoryServer, s *spec) { s.TLS = &v1alpha1.TLS{} }},
		"two certificates": {oneSource, func(_ *v1alpha1.RepositoryServer, s *spec) {
			s.TLS = &v1alpha1.TLS{Secret: "s", Issuer: &v1alpha1.Issuer{Name: "i"}}
		}},
		"a path out of the volume": {"spec.storage.filesystem.path", func(_ *v1alpha1.RepositoryServer, s *spec) {
			s.Storage = v1alpha1.Storage{Filesystem: &v1alpha1.FilesystemStorage{Claim: "c", Path: "../x"}}
		}},
		"the longest name": {"", func(rs *v1alpha1.RepositoryServer, _ *spec) { rs.Name = strings.Repeat("a", 41) }},
		"a longer one":     {name, func(rs *v1alpha1.RepositoryServer, _ *spec) { rs.Name = strings.Repeat("a", 42) }},
		"a digit first":    {name, func(rs *v1alpha1.RepositoryServer, _ *spec) { rs.Name = "1a" }},
		"a dot":            {name, func(rs *v1alpha1.RepositoryServer, _ *spec) { rs.Name = "a.b" }},
	} {
		err := s.client.Create(t.Context(), repository(func(rs *v1alpha1.RepositoryServer) { c.change(rs, &rs.Spec) }), client.DryRunAll)
		if c.message == "" && err != nil || c.message != "" && (!apierrors.IsInvalid(err) || !strings.Contains(err.Error(), c.message)) {
			t.Errorf("%s: instead of %q: %v", what, c.message, err)
		}
	}
}

// refusesChanges tries what is fixed when a repository is made.
func (s *apiServer) refusesChanges(t *testing.T) {
	t.Helper()
	type spec = v1alpha1.RepositoryServerSpec
	format := func(splitter string, period time.Duration) *v1alpha1.Format {
		f := &v1alpha1.Format{Splitter: splitter}
		if period > 0 {
			f.ObjectLock = &v1alpha1.ObjectLock{Mode: "Governance", Period: metav1.Duration{Duration: period}}
		}
		return f
	}
	const (
		kind     = "a repository stays in the kind of storage that it is in"
		splitter = "the splitter of a repository cannot change"
		lock     = "the object lock of a repository cannot change"
	)
	for what, c := range map[string]struct {
		message      string // "": it is accepted
		made, change func(*spec)
	}{
		"another bucket of Google": {"bucket and prefix of a repository cannot change", func(s *spec) { s.Storage = v1alpha1.Storage{GCS: &v1alpha1.GCSStorage{Bucket: "b", Prefix: "p/"}} }, func(s *spec) { s.Storage.GCS.Bucket = "c" }},
		"another container of Azure": {"container and prefix of a repository cannot change", func(s *spec) {
			s.Storage = v1alpha1.Storage{Azure: &v1alpha1.AzureStorage{Account: "a", Container: "c", Prefix: "p/"}}
		}, func(s *spec) { s.Storage.Azure.Prefix = "q/" }},
		"another account of Azure": {"container and prefix of a repository cannot change", func(s *spec) {
			s.Storage = v1alpha1.Storage{Azure: &v1alpha1.AzureStorage{Account: "a", Container: "c", Prefix: "p/"}}
		}, func(s *spec) { s.Storage.Azure.Account = "b" }},
		"another folder of a volume":  {"claim and path of a repository cannot change", func(s *spec) { s.Storage = v1alpha1.Storage{Filesystem: &v1alpha1.FilesystemStorage{Claim: "c"}} }, func(s *spec) { s.Storage.Filesystem.Path = "x" }},
		"another kind of storage":     {kind, func(*spec) {}, func(s *spec) { s.Storage = v1alpha1.Storage{GCS: &v1alpha1.GCSStorage{Bucket: "b", Prefix: "p/"}} }},
		"another bucket":              {"bucket and prefix of a repository cannot change", func(*spec) {}, func(s *spec) { s.Storage.S3.Bucket = "c" }},
		"somebody else's server, now": {kind, func(*spec) {}, func(s *spec) { s.Storage, s.External = v1alpha1.Storage{}, external }},
		"a storage of one's own, now": {kind, func(s *spec) { s.Storage, s.External = v1alpha1.Storage{}, external }, func(s *spec) { s.Storage, s.External = bucket(), nil }},
		"another server":              {"", func(s *spec) { s.Storage, s.External = v1alpha1.Storage{}, external }, func(s *spec) { e := *external; e.URL = "https://other"; s.External = &e }},
		"locks, extended too late": {"maintenance.fullInterval is at least 24h shorter", func(s *spec) { s.Format = format("", 48*time.Hour) }, func(s *spec) {
			s.Maintenance = &v1alpha1.Maintenance{FullInterval: &metav1.Duration{Duration: 720 * time.Hour}}
		}},
		"another splitter":            {splitter, func(s *spec) { s.Format = format("FIXED-4M", 0) }, func(s *spec) { s.Format.Splitter = "FIXED-8M" }},
		"a splitter, later":           {splitter, func(*spec) {}, func(s *spec) { s.Format = format("FIXED-8M", 0) }},
		"no splitter any more":        {splitter, func(s *spec) { s.Format = format("FIXED-4M", 0) }, func(s *spec) { s.Format = nil }},
		"a longer object lock":        {lock, func(s *spec) { s.Format = format("", 48*time.Hour) }, func(s *spec) { s.Format = format("", 72*time.Hour) }},
		"an object lock, later":       {lock, func(*spec) {}, func(s *spec) { s.Format = format("", 48*time.Hour) }},
		"other compression, any time": {"", func(*spec) {}, func(s *spec) { s.Format = &v1alpha1.Format{Compression: "zstd"} }},
	} {
		rs := repository(func(rs *v1alpha1.RepositoryServer) { c.made(&rs.Spec) })
		must(t, s.client.Create(t.Context(), rs))
		changed := rs.DeepCopy()
		c.change(&changed.Spec)
		err := s.client.Update(t.Context(), changed)
		if c.message == "" && err != nil || c.message != "" && (!apierrors.IsInvalid(err) || !strings.Contains(err.Error(), c.message)) {
			t.Errorf("%s: instead of %q: %v", what, c.message, err)
		}
		must(t, s.client.Delete(t.Context(), rs))
	}
}

// printsColumns reads what kubectl get shows.
func (s *apiServer) printsColumns(t *testing.T, server *v1alpha1.RepositoryServer) {
	t.Helper()
	hours := func(n time.Duration) *metav1.Time { t := metav1.NewTime(time.Now().Add(-n * time.Hour)); return &t }
	server.Status = v1alpha1.RepositoryServerStatus{
		Phase: v1alpha1.PhaseReady, Users: 3, LastUsed: hours(2), Maintenance: &v1alpha1.MaintenanceStatus{LastSuccess: hours(5)},
		Conditions: []metav1.Condition{
			{Type: v1alpha1.ConditionDegraded, Status: metav1.ConditionFalse, Reason: "Serving", LastTransitionTime: metav1.Now()},
			{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Serving", Message: "serving", LastTransitionTime: metav1.Now()},
		},
	}
	must(t, s.client.Status().Update(t.Context(), server))
	raw, err := s.discovery.RESTClient().Get().AbsPath("/apis/kopia.kanister.io/v1alpha1/namespaces/app/repositoryservers").
		SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").DoRaw(t.Context())
	must(t, err)
	var table metav1.Table
	must(t, json.Unmarshal(raw, &table))
	shown := map[string]any{}
	for i, column := range table.ColumnDefinitions {
		shown[column.Name] = table.Rows[0].Cells[i]
	}
	delete(shown, "Age") // seconds
	want := map[string]any{
		"Name": "server", "Namespace": "app", "Shared by": nil, "Key": "default", "Phase": "Ready", "Users": 3.0,
		"Last used": "120m", "Last maintenance": "5h", "Degraded": "False", "Message": "serving",
	}
	if diff := cmp.Diff(want, shown); diff != "" {
		t.Errorf("kubectl get shows:\n%s", diff)
	}
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
