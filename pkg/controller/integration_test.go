// SPDX-License-Identifier: Apache-2.0

//go:build integration

package controller_test

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/controller"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// objects of a file of manifests/.
func objects(t testing.TB, name string) []*unstructured.Unstructured {
	t.Helper()
	f, err := os.Open(filepath.Join(testenv.Root(t), "manifests", name))
	must(t, err)
	defer f.Close()
	var out []*unstructured.Unstructured
	for decoder := yaml.NewYAMLOrJSONDecoder(f, 4096); ; {
		u := &unstructured.Unstructured{}
		if decoder.Decode(&u.Object) != nil {
			return out
		}
		if u.Object != nil {
			out = append(out, u)
		}
	}
}

// kustomized are the objects of a folder of manifests/, as kubectl renders it.
func kustomized(t testing.TB, folder string) (out []*unstructured.Unstructured) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), testenv.Tool(t, "kubectl"), "kustomize", filepath.Join(testenv.Root(t), "manifests", folder))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	raw, err := cmd.Output()
	if err != nil {
		t.Fatalf("render %q: %v: %s", folder, err, &stderr)
	}
	for decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(raw), 4096); ; {
		u := &unstructured.Unstructured{}
		if err := decoder.Decode(&u.Object); errors.Is(err, io.EOF) {
			return out
		} else if err != nil {
			t.Fatalf("render %q: %v", folder, err)
		}
		out = append(out, u)
	}
}

// TestIntegrationClusterWide: the overlay goes on top of manifests/ and gives the controller
// the rights of the data functions in all namespaces, those of no other role.
func TestIntegrationClusterWide(t *testing.T) {
	c, err := client.New(testenv.StartAPIServer(t), client.Options{})
	must(t, err)
	ctx := t.Context()
	must(t, c.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: names.ControlPlaneNamespace}}))
	for _, o := range kustomized(t, "") {
		if o.GroupVersionKind().Group == rbacv1.GroupName || o.GetKind() == "ServiceAccount" {
			must(t, c.Create(ctx, o))
		}
	}
	may := func(verb, group, resource, subresource string) bool {
		t.Helper()
		review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User: "system:serviceaccount:" + names.ControlPlaneNamespace + ":kanister-kopia-controller",
			ResourceAttributes: &authorizationv1.ResourceAttributes{
				Namespace: "anywhere", Verb: verb, Group: group, Resource: resource, Subresource: subresource,
			},
		}}
		must(t, c.Create(ctx, review))
		return review.Status.Allowed
	}
	for _, bound := range []bool{false, true} {
		if bound {
			for _, o := range kustomized(t, "overlays/cluster-wide") {
				must(t, c.Create(ctx, o))
			}
		}
		for _, r := range [][4]string{{"create", "", "pods"}, {"create", "", "pods", "portforward"}, {"get", "apps", "statefulsets"}} {
			testenv.Eventually(t, time.Minute, fmt.Sprintf("with the overlay (%t), the right to %s is %t", bound, r, bound), func() bool {
				return may(r[0], r[1], r[2], r[3]) == bound
			})
		}
		for _, r := range [][4]string{{"get", "", "secrets"}, {"create", "", "pods", "exec"}, {"update", "apps", "statefulsets", "scale"}} {
			if may(r[0], r[1], r[2], r[3]) {
				t.Errorf("with the overlay (%t), it may %s", bound, r)
			}
		}
	}
}

type warnings struct{ texts chan string }

func (w warnings) HandleWarningHeader(_ int, _ string, text string) { w.texts <- text }

// TestIntegrationController runs two replicas of the program with the rights of
// manifests/: they start, answer the webhook, and the Events come from Kanister's
// source.
func TestIntegrationController(t *testing.T) {
	config := rest.CopyConfig(testenv.StartAPIServer(t))
	told := warnings{make(chan string, 100)}
	config.WarningHandler = told
	scheme := runtime.NewScheme()
	must(t, clientgoscheme.AddToScheme(scheme))
	must(t, crv1alpha1.AddToScheme(scheme))
	c, err := client.New(config, client.Options{Scheme: scheme})
	must(t, err)
	ctx := t.Context()
	must(t, c.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: names.ControlPlaneNamespace}}))
	for _, file := range []string{"controller/rbac.yaml", "controller/namespace-roles.yaml"} {
		for _, o := range objects(t, file) {
			must(t, c.Create(ctx, o))
		}
	}
	testenv.InstallCertificates(t, c)

	ca, tlsDir, hookDir := testenv.NewCA(t), t.TempDir(), t.TempDir()
	ca.IssueTo(t, tlsDir, testenv.Leaf{DNS: []string{names.ControllerDNSName}, Usage: x509.ExtKeyUsageClientAuth})
	must(t, os.WriteFile(filepath.Join(tlsDir, names.CAKey), ca.PEM, 0o600))
	ca.IssueTo(t, hookDir, testenv.Leaf{IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Usage: x509.ExtKeyUsageServerAuth})
	kubeconfig := testenv.Kubeconfig(t, config, names.ControlPlaneNamespace+":kanister-kopia-controller")
	var hooks [2]int
	var replicas [2]*testenv.Process
	for i := range hooks {
		health := testenv.Port(t)
		hooks[i] = testenv.Port(t)
		replicas[i] = testenv.Start(t, func(cmd *exec.Cmd) { cmd.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig) }, testenv.Program(t, "controller"),
			"serve", "--refuse-secrets-in-commands", "--agent-image=agent:test", "--repository-server-image=server:test", "--tls-dir="+tlsDir, "--metrics-address=0",
			fmt.Sprintf("--health-address=127.0.0.1:%d", health), "--webhook-cert-dir="+hookDir, fmt.Sprintf("--webhook-address=127.0.0.1:%d", hooks[i]))
		testenv.Eventually(t, 3*time.Minute, "replica is healthy", func() bool {
			r, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/v0/healthz", health))
			if err != nil {
				return false
			}
			defer r.Body.Close()
			return r.StatusCode == http.StatusOK
		})
	}

	var hook admissionregistrationv1.ValidatingWebhookConfiguration
	for _, o := range objects(t, "controller/blueprint-webhook.yaml") {
		if o.GetKind() == "ValidatingWebhookConfiguration" {
			must(t, runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &hook))
		}
	}
	if *hook.Webhooks[0].ClientConfig.Service.Path != controller.BlueprintPath || *hook.Webhooks[0].FailurePolicy != admissionregistrationv1.Ignore {
		t.Errorf("webhook %+v", hook.Webhooks[0])
	}
	// The one that waits for its turn answers as well: the second is asked.
	url := fmt.Sprintf("https://127.0.0.1:%d%s", hooks[1], controller.BlueprintPath)
	hook.Webhooks[0].ClientConfig = admissionregistrationv1.WebhookClientConfig{URL: &url, CABundle: ca.PEM}
	must(t, c.Create(ctx, &hook))

	blueprint := func(namespace, name, fn string, args map[string]any) *crv1alpha1.Blueprint {
		return &crv1alpha1.Blueprint{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
			Actions:    map[string]*crv1alpha1.BlueprintAction{"backup": {Phases: []crv1alpha1.BlueprintPhase{{Name: "p", Func: fn, Args: args}}}},
		}
	}
	testenv.Eventually(t, 2*time.Minute, "the webhook is in force", func() bool {
		bad := blueprint(names.ControlPlaneNamespace, "bad", "NoSuch", nil)
		err := c.Create(ctx, bad)
		if err == nil {
			must(t, c.Delete(ctx, bad))
			return false
		}
		want := "Invalid blueprint, Failed to validate action backup: Requested function {NoSuch} has not been registered"
		if !strings.Contains(err.Error(), want) {
			t.Fatalf("refused with %q, want %q in it", err, want)
		}
		return true
	})
	must(t, c.Create(ctx, blueprint("default", "elsewhere", "NoSuch", nil)))
	good := blueprint(names.ControlPlaneNamespace, "good", "KubeTask", map[string]any{"image": "i", "command": []any{"{{ toJson .Profile }}"}})
	must(t, c.Create(ctx, good))
	if text := <-told.texts; !strings.Contains(text, "phase p renders .Profile into a command of KubeTask") {
		t.Errorf("warning %q", text)
	}
	good.Actions["backup"].Phases[0].Args = map[string]any{"image": "i"}
	if err := c.Update(ctx, good); err == nil || !strings.Contains(err.Error(), "Required arg missing: command") {
		t.Errorf("an update that breaks it: %v", err)
	}

	as := &crv1alpha1.ActionSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: names.ControlPlaneNamespace, Name: "none"},
		Spec:       &crv1alpha1.ActionSetSpec{},
	}
	must(t, c.Create(ctx, as))
	testenv.Eventually(t, 2*time.Minute, "an Event of the end", func() bool {
		var events corev1.EventList
		must(t, c.List(ctx, &events, client.InNamespace(names.ControlPlaneNamespace)))
		for _, e := range events.Items {
			if e.InvolvedObject.Kind == "ActionSet" && e.Reason == "Update Complete" {
				if e.Source.Component != "Kanister Controller" {
					t.Fatalf("an Event from %q", e.Source.Component)
				}
				return true
			}
		}
		return false
	})

	// The flag is heeded, and the log has Kanister's fields.
	refused := &crv1alpha1.ActionSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: names.ControlPlaneNamespace, Name: "refused", Labels: map[string]string{"kanister.io/JobID": "job-7"}},
		Spec: &crv1alpha1.ActionSetSpec{Actions: []crv1alpha1.ActionSpec{{
			Name: "backup", Blueprint: good.Name, Object: crv1alpha1.ObjectReference{Kind: "namespace", Name: "default", Namespace: "default"},
		}}},
	}
	must(t, c.Create(ctx, refused))
	testenv.Eventually(t, 2*time.Minute, "a secret in a command is refused", func() bool {
		must(t, c.Get(ctx, client.ObjectKeyFromObject(refused), refused))
		return refused.Status != nil && refused.Status.State.Done()
	})
	if s := refused.Status; s.State != crv1alpha1.StateFailed || !strings.Contains(s.Error.Message, "refuse secrets in commands: phase p renders .Profile") {
		t.Errorf("%s: %q", s.State, s.Error.Message)
	}
	var cluster corev1.Namespace
	must(t, c.Get(ctx, client.ObjectKey{Name: metav1.NamespaceDefault}, &cluster))
	line := map[string]any{
		"level": "error", "msg": "ActionSet refused", "ActionSet": "refused", "kanister.io/JobID": "job-7", "cluster_name": string(cluster.UID),
	}
	testenv.Eventually(t, time.Minute, "a line of the log", func() bool {
		return logged(replicas[0].Log(), line) != nil || logged(replicas[1].Log(), line) != nil
	})
}

// logged returns a line of a log in JSON that has these fields, nil if there is none.
func logged(log string, fields map[string]any) map[string]any {
	for l := range strings.Lines(log) {
		var line map[string]any
		if json.Unmarshal([]byte(l), &line) != nil {
			continue
		}
		has := true
		for key, value := range fields {
			has = has && line[key] == value
		}
		if has {
			return line
		}
	}
	return nil
}
