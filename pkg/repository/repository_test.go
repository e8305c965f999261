// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/param"
)

var tenant = kopiav1alpha1.Tenant{ClusterID: "cluster-uid", Namespace: "shop", NamespaceUID: "shop-uid"}

func profile() *param.Profile {
	return &param.Profile{
		Location:   param.Location{Type: param.LocationTypeS3Compliant, Bucket: "backups", Endpoint: "https://s3.example.com/", Prefix: "/team/"},
		Credential: param.Credential{Type: param.CredentialTypeKeyPair, KeyPair: &param.KeyPair{ID: "id", Secret: "key"}},
	}
}

func storage(t *testing.T, p *param.Profile, tenant kopiav1alpha1.Tenant, keyID string) kopiav1alpha1.Storage {
	t.Helper()
	s, err := storageOf(p, tenant, keyID)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A repository is a trust domain: everything that separates two has its part in the id.
func TestRepositoryID(t *testing.T) {
	id := func(change func(*param.Profile, *kopiav1alpha1.Tenant, *string)) string {
		p, tn, key := profile(), tenant, DefaultKeyID
		change(p, &tn, &key)
		return repositoryID(storage(t, p, tn, key), tn, key)
	}
	same := id(func(*param.Profile, *kopiav1alpha1.Tenant, *string) {})
	if got := id(func(p *param.Profile, _ *kopiav1alpha1.Tenant, _ *string) {
		p.Location.Endpoint, p.Location.Prefix = "S3.example.com", "team"
	}); got != same {
		t.Errorf("two ways to write one place are two repositories: %s and %s", same, got)
	}
	seen := map[string]string{same: "the first"}
	for name, change := range map[string]func(*param.Profile, *kopiav1alpha1.Tenant, *string){
		"bucket":               func(p *param.Profile, _ *kopiav1alpha1.Tenant, _ *string) { p.Location.Bucket = "other" },
		"endpoint":             func(p *param.Profile, _ *kopiav1alpha1.Tenant, _ *string) { p.Location.Endpoint = "s3.example.org" },
		"prefix":               func(p *param.Profile, _ *kopiav1alpha1.Tenant, _ *string) { p.Location.Prefix = "team2" },
		"key":                  func(_ *param.Profile, _ *kopiav1alpha1.Tenant, k *string) { *k = "abc" },
		"cluster":              func(_ *param.Profile, t *kopiav1alpha1.Tenant, _ *string) { t.ClusterID = "other" },
		"namespace made anew":  func(_ *param.Profile, t *kopiav1alpha1.Tenant, _ *string) { t.NamespaceUID = "other" },
		"namespace's odd name": func(_ *param.Profile, t *kopiav1alpha1.Tenant, _ *string) { t.Namespace, t.NamespaceUID = "0-", "x" },
	} {
		got := id(change)
		if other, ok := seen[got]; ok {
			t.Errorf("another %s gives the id of %s", name, other)
		}
		seen[got] = name
		if !regexp.MustCompile(`^[a-z]([a-z0-9-]*[a-z0-9])?$`).MatchString(got) || len(got) > 41 {
			t.Errorf("%s: %q cannot name a Service", name, got)
		}
	}
}

func TestTokens(t *testing.T) {
	id := repositoryID(storage(t, profile(), tenant, DefaultKeyID), tenant, DefaultKeyID)
	token := Token(id, "op/id")
	if token != Token(id, "op/id") || token == Token(id, "op/tag") || token == Token(id+"x", "op/id") {
		t.Error("tokens are not one to one with repository and seed")
	}
	if !regexp.MustCompile(`^[a-z0-9-]{1,63}$`).MatchString(token) {
		t.Errorf("token %q", token)
	}
	if got, err := repositoryOf(token); err != nil || got != id {
		t.Errorf("token %s names %q, %v, want %s", token, got, err, id)
	}
	for _, bad := range []string{"", "-", "abc", "8f3ab2c1", id, "../" + token, token + "x", strings.ToUpper(token), "a/b-" + strings.Repeat("a", TokenLength)} {
		if got, err := repositoryOf(bad); !errors.Is(err, ErrNotFound) {
			t.Errorf("token %q names %q, %v, want not found", bad, got, err)
		}
	}
}

func TestDeriveKey(t *testing.T) {
	text, empty := "correct horse", ""
	if k, err := deriveKey(nil, tenant); err != nil || k.id != DefaultKeyID || k.password != "" {
		t.Errorf("no key: %+v, %v", k, err)
	}
	if _, err := deriveKey(&empty, tenant); err == nil {
		t.Error("an empty key is accepted")
	}
	one, err := deriveKey(&text, tenant)
	if err != nil {
		t.Fatal(err)
	}
	again, _ := deriveKey(&text, tenant)
	other := tenant
	other.NamespaceUID = "other"
	elsewhere, _ := deriveKey(&text, other)
	switch {
	case one != again:
		t.Error("the same key twice differs")
	case one.id == elsewhere.id || one.password == elsewhere.password:
		t.Error("two namespaces with one key share something")
	case strings.Contains(one.password, one.id) || strings.Contains(one.id+one.password, text):
		t.Error("the id or the password shows the other, or the key")
	}
}

func TestStorageOf(t *testing.T) {
	s := storage(t, profile(), tenant, "abc").S3
	if s.Prefix != "team/cluster-uid/shop-shop-uid/abc/" || s.Endpoint != "s3.example.com" {
		t.Errorf("storage %+v", s)
	}
	for endpoint, want := range map[string]string{
		"":                       "",
		"http://minio:9000/":     "http://minio:9000",
		"HTTPS://S3.Example.com": "s3.example.com",
		"[2001:db8::1]:9000":     "[2001:db8::1]:9000",
		"https://user:secret@s3": "!user or password",
		"ftp://s3":               "!neither https nor http",
		"https://s3/some/path":   "!without path",
		"https://s3?x=y":         "!without path",
	} {
		got, err := normalEndpoint(endpoint)
		if text, bad := strings.CutPrefix(want, "!"); bad {
			if err == nil || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "secret") {
				t.Errorf("%q: error %v, want %q and no secret", endpoint, err, text)
			}
		} else if err != nil || got != want {
			t.Errorf("%q: %q, %v, want %q", endpoint, got, err, want)
		}
	}
	for _, c := range []struct {
		change func(*param.Profile)
		want   string
	}{
		{func(p *param.Profile) { p.Location.Bucket = "" }, "bucket is not set"},
		{func(p *param.Profile) { p.Location.Type = param.LocationTypeKopia }, "Unsupported type 'kopia' for the location: give the action a Profile of the bucket"},
		{func(p *param.Profile) { p.Location.Type = "tape" }, "Location type not supported"},
	} {
		p := profile()
		c.change(p)
		if _, err := storageOf(p, tenant, DefaultKeyID); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v, want %q", err, c.want)
		}
	}
	if _, err := storageOf(nil, tenant, DefaultKeyID); err == nil || err.Error() != "Profile must be non-nil" {
		t.Errorf("no Profile: error %v", err)
	}
}

func TestKeys(t *testing.T) {
	pair := func(id, secret string) param.Credential {
		return param.Credential{Type: param.CredentialTypeKeyPair, KeyPair: &param.KeyPair{ID: id, Secret: secret}}
	}
	secret := func(kind string, data ...string) param.Credential {
		s := &corev1.Secret{Type: corev1.SecretType(kind), Data: map[string][]byte{}}
		for i := 0; i < len(data); i += 2 {
			s.Data[data[i]] = []byte(data[i+1])
		}
		return param.Credential{Type: param.CredentialTypeSecret, Secret: s}
	}
	const s3, gcs, azure = param.LocationTypeS3Compliant, param.LocationTypeGCS, param.LocationTypeAzure
	for name, c := range map[string]struct {
		location   param.LocationType
		credential param.Credential
		want       storageKeys
		err        string
	}{
		"pair":               {s3, pair("i", "s"), storageKeys{AccessKeyID: "i", SecretAccessKey: "s"}, ""},
		"no pair":            {s3, param.Credential{Type: param.CredentialTypeKeyPair}, storageKeys{}, "Empty KeyPair field"},
		"half a pair":        {s3, pair("", "s"), storageKeys{}, "Access key ID is not set"},
		"the other half":     {s3, pair("i", ""), storageKeys{}, "Secret access key is not set"},
		"magic":              {s3, param.Credential{Type: "magic"}, storageKeys{}, "Unsupported type 'magic' for credentials"},
		"Kopia server":       {s3, param.Credential{Type: param.CredentialTypeKopia, KopiaServerSecret: &param.KopiaServerCreds{Password: "s3cret"}}, storageKeys{}, "Unsupported type 'kopia' for credentials: give the action a Profile of the bucket"},
		"any Secret":         {s3, secret("Opaque"), storageKeys{}, awsSecretType},
		"Secret":             {s3, secret(awsSecretType, "aws_access_key_id", "i", "aws_secret_access_key", "s"), storageKeys{AccessKeyID: "i", SecretAccessKey: "s"}, ""},
		"role":               {s3, secret(awsSecretType, "aws_access_key_id", "i", "aws_secret_access_key", "s", "role", "r"), storageKeys{AccessKeyID: "i", SecretAccessKey: "s", RoleARN: "r"}, ""},
		"session":            {s3, secret(awsSecretType, "aws_access_key_id", "i", "aws_secret_access_key", "s", "aws_session_token", "t"), storageKeys{AccessKeyID: "i", SecretAccessKey: "s", SessionToken: "t"}, ""},
		"a misspelled role":  {s3, secret(awsSecretType, "aws_access_key_id", "i", "aws_secret_access_key", "s3cret", "rolle", "r"), storageKeys{}, `Secret has an unknown field "rolle"`},
		"Google":             {gcs, secret(gcpSecretType, "gcp_project_id", "p", "service-account.json", "{}"), storageKeys{ServiceAccount: "{}"}, ""},
		"Google, pair":       {gcs, pair("project", `{"type":"service_account"}`), storageKeys{ServiceAccount: `{"type":"service_account"}`}, ""},
		"Google, no JSON":    {gcs, pair("project", "s3cret"), storageKeys{}, "not JSON"},
		"Google, Amazon's":   {gcs, secret(awsSecretType), storageKeys{}, gcpSecretType},
		"Azure":              {azure, secret(azureSecretType, "azure_storage_account_id", "a", "azure_storage_key", "k", "azure_storage_environment", "AzureChinaCloud"), storageKeys{StorageAccount: "a", StorageKey: "k", StorageDomain: "blob.core.chinacloudapi.cn"}, ""},
		"Azure, pair":        {azure, pair("a", "k"), storageKeys{StorageAccount: "a", StorageKey: "k", StorageDomain: "blob.core.windows.net"}, ""},
		"Azure, on the moon": {azure, secret(azureSecretType, "azure_storage_account_id", "a", "azure_storage_key", "k", "azure_storage_environment", "Moon"), storageKeys{}, "Moon"},
		"Azure, too much":    {azure, secret(azureSecretType, "azure_storage_account_id", "a", "azure_storage_key", "s3cret", "key", "k"), storageKeys{}, `Secret has an unknown field "key"`},
		"Azure, without key": {azure, secret(azureSecretType, "azure_storage_account_id", "a"), storageKeys{}, "Secret access key is not set"},
		"Azure, no Secret":   {azure, param.Credential{Type: param.CredentialTypeSecret}, storageKeys{}, azureSecretType},
	} {
		p := &param.Profile{Location: param.Location{Type: c.location}, Credential: c.credential}
		got, err := keysOf(p)
		switch {
		case c.err == "" && (err != nil || got != c.want):
			t.Errorf("%s: %v, or other keys than wanted", name, err)
		case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err) || strings.Contains(err.Error(), "s3cret")):
			t.Errorf("%s: error %v, want %q", name, err, c.err)
		}
	}
}

func TestJudge(t *testing.T) {
	pod := func(revision string, status corev1.PodStatus) corev1.Pod {
		return corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{revisionAnnotation: revision}}, Status: status}
	}
	ready := corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
	crashed := corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{
		Name: Container, LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 1, Message: `{"level":"INFO","msg":"starting"}
{"level":"ERROR","msg":"bucket backups: the signature does not match"}
`}},
	}}}
	oom := corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{
		Name: Container, State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: "OOMKilled"}},
	}}}
	homeless := corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable, Message: "0/1 nodes"}}}
	// As the control plane and the kubelet leave it, each in its part.
	lost := pod("r", corev1.PodStatus{
		Phase:             corev1.PodRunning,
		Conditions:        []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionFalse}},
		ContainerStatuses: []corev1.ContainerStatus{{Name: Container, Ready: true}},
	})
	lost.Spec.NodeName = "node-7"
	unready := *lost.DeepCopy()
	unready.Status.ContainerStatuses[0].Ready = false // by the kubelet's word
	// It has come up, after one that had not.
	paused := crashed.DeepCopy()
	paused.Phase, paused.ContainerStatuses[0].Started = corev1.PodRunning, ptr.To(true)
	paused.ContainerStatuses[0].State.Running = &corev1.ContainerStateRunning{}
	refused := corev1.PodStatus{Phase: corev1.PodFailed, Reason: "OutOfcpu", Message: "Node didn't have enough resource"}
	given := pod("r", ready)
	given.DeletionTimestamp = at(0)
	for name, c := range map[string]struct {
		pods  []corev1.Pod
		phase kopiav1alpha1.Phase
		text  string
	}{
		"its node is lost":       {[]corev1.Pod{lost}, kopiav1alpha1.PhaseStarting, "node-7 does not answer"},
		"its probe fails":        {[]corev1.Pod{unready}, kopiav1alpha1.PhaseStarting, "starting"},
		"its readiness pauses":   {[]corev1.Pod{pod("r", *paused)}, kopiav1alpha1.PhaseStarting, "is not ready at the moment"},
		"it is given up":         {[]corev1.Pod{given}, kopiav1alpha1.PhaseStarting, "waiting"},
		"its successor starts":   {[]corev1.Pod{given, pod("r", homeless)}, kopiav1alpha1.PhaseStarting, "0/1 nodes"},
		"its successor is ready": {[]corev1.Pod{given, pod("r", ready)}, kopiav1alpha1.PhaseReady, "serving"},
		"after one refused":      {[]corev1.Pod{pod("r", refused), pod("r", ready)}, kopiav1alpha1.PhaseReady, "serving"},
		"one is refused":         {[]corev1.Pod{pod("r", refused)}, kopiav1alpha1.PhaseFailed, "OutOfcpu"},
		"none yet":               {nil, kopiav1alpha1.PhaseStarting, "waiting"},
		"ready":                  {[]corev1.Pod{pod("r", ready)}, kopiav1alpha1.PhaseReady, "serving"},
		"ready, of old":          {[]corev1.Pod{pod("old", ready)}, kopiav1alpha1.PhaseStarting, "waiting"},
		"crashed, in its words":  {[]corev1.Pod{pod("r", crashed)}, kopiav1alpha1.PhaseFailed, "bucket backups: the signature does not match"},
		"out of memory":          {[]corev1.Pod{pod("r", oom)}, kopiav1alpha1.PhaseFailed, "spec.resources.limits.memory"},
		"no node takes it (yet)": {[]corev1.Pod{pod("r", homeless)}, kopiav1alpha1.PhaseStarting, "0/1 nodes"},
	} {
		if v := judge(c.pods, "r"); v.phase != c.phase || !strings.Contains(v.message, c.text) {
			t.Errorf("%s: %+v, want %s with %q", name, v, c.phase, c.text)
		}
	}
}

// The server's pod holds the keys: nothing of them is outside the mounted Secret.
func TestDeploymentHoldsNoSecret(t *testing.T) {
	rs := &kopiav1alpha1.RepositoryServer{ObjectMeta: metav1.ObjectMeta{Namespace: "kanister-kopia", Name: "shop-x"}, Spec: kopiav1alpha1.RepositoryServerSpec{
		Storage: storage(t, profile(), tenant, DefaultKeyID), Tenant: &tenant, KeyID: DefaultKeyID,
	}}
	d := buildDeployment(rs, Image{Name: "server:1", PullPolicy: corev1.PullIfNotPresent}, "r", 1)
	spec := d.Spec.Template.Spec
	c := spec.Containers[0]
	switch {
	case *spec.AutomountServiceAccountToken:
		t.Error("it gets a token")
	case c.StartupProbe.HTTPGet.Path != "/readyz" || c.ReadinessProbe.HTTPGet.Path != "/readyz" || c.LivenessProbe.HTTPGet.Path != "/healthz":
		t.Errorf("it is asked for %s, %s, %s", c.StartupProbe.HTTPGet.Path, c.ReadinessProbe.HTTPGet.Path, c.LivenessProbe.HTTPGet.Path)
	case c.Resources.Limits.Memory().String() != "768Mi":
		t.Errorf("limits %v", c.Resources.Limits)
	case d.Spec.Strategy.RollingUpdate == nil || d.Spec.Strategy.RollingUpdate.MaxSurge.IntValue() != 0:
		t.Errorf("strategy %+v: the next pod waits for a node that is gone, or the last one does for the next", d.Spec.Strategy)
	}
	restricted(t, spec)
	for _, e := range c.Env {
		if e.ValueFrom != nil || strings.Contains(e.Value, "key") {
			t.Errorf("environment %+v", e)
		}
	}
	for _, v := range spec.Volumes {
		if v.Name == "kopia-agent-state" && (v.EmptyDir == nil || v.EmptyDir.Medium != corev1.StorageMediumMemory) {
			t.Error("Kopia's connection file, which holds the keys, is not in memory")
		}
	}
}

// restricted checks what the restricted Pod Security standard asks for, and that nothing of
// the container's own file system can be written.
func restricted(t *testing.T, spec corev1.PodSpec) {
	t.Helper()
	pod, c := spec.SecurityContext, spec.Containers[0].SecurityContext
	switch {
	case *spec.AutomountServiceAccountToken:
		t.Error("it gets a token")
	case !*pod.RunAsNonRoot || *pod.RunAsUser == 0 || !*c.RunAsNonRoot || *c.AllowPrivilegeEscalation || !*c.ReadOnlyRootFilesystem:
		t.Errorf("not restricted: %+v %+v", pod, c)
	case len(c.Capabilities.Drop) != 1 || c.Capabilities.Drop[0] != "ALL" || len(c.Capabilities.Add) > 0:
		t.Errorf("capabilities %+v", c.Capabilities)
	case pod.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault || c.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault:
		t.Errorf("seccomp %v, %v", pod.SeccompProfile, c.SeccompProfile)
	}
}
