// SPDX-License-Identifier: Apache-2.0

//go:build integration

package serve_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/kanister-kopia/kanister-kopia/internal/randompod"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/webhook/decide"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// moreRandomPods tries that many pods instead of the usual number:
//
//	go test -tags integration -run Integration ./webhook/serve -random-pods 20000
var moreRandomPods = flag.Int("random-pods", 0, "random pods to try on each API server")

// TestIntegrationAdmission runs the webhook's program, with the rights and the
// configuration of manifests/, behind a real API server, and creates pods.
func TestIntegrationAdmission(t *testing.T) {
	for _, server := range []struct {
		name   string
		start  func(testing.TB) *rest.Config
		random int
	}{
		{"newest", testenv.StartAPIServer, 1500},
		{"oldest", testenv.StartOldestAPIServer, 500},
	} {
		t.Run(server.name, func(t *testing.T) {
			a := startAdmission(t, server.start(t))
			t.Run("goldens", a.goldens)
			t.Run("random pods", func(t *testing.T) { a.randomPods(t, cmp.Or(*moreRandomPods, server.random)) })
			t.Run("never asked", a.neverAsked)
			t.Run("no webhook", a.policies)
			t.Run("label in the wrong place", a.labelPlace)
		})
	}
}

// cluster is an API server with everything of the injector.
type cluster struct {
	client   client.Client
	warnings *warnings
	webhook  admissionregistrationv1.MutatingWebhookConfiguration
}

// warnings collects what the API server warns about.
type warnings struct {
	mu   sync.Mutex
	list []string
}

func (w *warnings) HandleWarningHeader(_ int, _ string, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list = append(w.list, text)
}

func (w *warnings) take() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	text := strings.Join(w.list, "\n")
	w.list = nil
	return text
}

func startAdmission(t *testing.T, config *rest.Config) *cluster {
	t.Helper()
	a := &cluster{warnings: &warnings{}}
	config = rest.CopyConfig(config)
	config.QPS, config.WarningHandler = -1, a.warnings
	var err error
	a.client, err = client.New(config, client.Options{})
	must(t, err)
	ctx := t.Context()

	must(t, a.client.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: names.ControlPlaneNamespace}}))
	for _, file := range []string{"webhook/rbac.yaml", "policies/agent.yaml", "policies/label-place.yaml"} {
		for _, obj := range manifest(t, file) {
			must(t, a.client.Create(ctx, obj))
		}
	}

	ca, dir, port, health := testenv.NewCA(t), t.TempDir(), testenv.Port(t), testenv.Port(t)
	ca.IssueTo(t, dir, testenv.Leaf{IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Usage: x509.ExtKeyUsageServerAuth})
	kubeconfig := testenv.Kubeconfig(t, config, names.ControlPlaneNamespace+":kanister-kopia-webhook")
	testenv.Start(t, func(c *exec.Cmd) { c.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig) }, testenv.Program(t, "webhook"),
		"serve", "--agent-image=agent:test", "--host=127.0.0.1", fmt.Sprintf("--port=%d", port), "--cert-dir="+dir,
		fmt.Sprintf("--health-address=127.0.0.1:%d", health), "--metrics-address=0")

	must(t, runtime.DefaultUnstructuredConverter.FromUnstructured(manifest(t, "webhook/webhook.yaml")[0].Object, &a.webhook))
	for i := range a.webhook.Webhooks {
		w := &a.webhook.Webhooks[i]
		url := fmt.Sprintf("https://127.0.0.1:%d%s", port, *w.ClientConfig.Service.Path)
		w.ClientConfig = admissionregistrationv1.WebhookClientConfig{URL: &url, CABundle: ca.PEM}
		// Here, a call that fails is to be seen.
		fail := admissionregistrationv1.Fail
		w.FailurePolicy = &fail
	}
	must(t, a.client.Create(ctx, a.webhook.DeepCopy()))

	a.namespace(t, "warm-up", map[string]string{names.InjectionLabel: "enabled"}, nil)
	testenv.Eventually(t, 3*time.Minute, "the webhook and the policy are in force", func() bool {
		a.warnings.take()
		pod, err := a.create(ctx, "warm-up", withClaim())
		return err == nil && agentOf(pod) != nil
	})
	unfit := withClaim()
	unfit.Spec.HostNetwork = true
	testenv.Eventually(t, 3*time.Minute, "the policy is in force", func() bool {
		a.warnings.take()
		_, err := a.create(ctx, "warm-up", unfit)
		return err == nil && strings.Contains(a.warnings.take(), "ValidatingAdmissionPolicy 'kanister-kopia-agent'")
	})
	var policies admissionregistrationv1.ValidatingAdmissionPolicyList
	must(t, a.client.List(ctx, &policies))
	for _, p := range policies.Items {
		if c := p.Status.TypeChecking; c != nil && len(c.ExpressionWarnings) > 0 {
			t.Errorf("policy %s does not type-check: %v", p.Name, c.ExpressionWarnings)
		}
	}
	return a
}

func withClaim() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Labels: map[string]string{names.InjectLabel: "true"}},
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{{Name: "app", Image: "app", VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}}},
			Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"},
			}}},
		},
	}
}

// goldens: what the API server stores is the golden's pod, and creating that again
// changes nothing.
func (a *cluster) goldens(t *testing.T) {
	inputs, err := filepath.Glob("../render/testdata/*.yaml")
	must(t, err)
	count := 0
	for _, input := range inputs {
		if strings.HasSuffix(input, ".golden.yaml") {
			continue
		}
		count++
		name := strings.TrimSuffix(filepath.Base(input), ".yaml")
		t.Run(name, func(t *testing.T) {
			raw, err := os.ReadFile(input)
			must(t, err)
			head, body, _ := bytes.Cut(raw, []byte("\n---\n"))
			var ns corev1.Namespace
			var pod corev1.Pod
			must(t, yaml.Unmarshal(head, &ns))
			must(t, yaml.Unmarshal(body, &pod))
			if strings.HasPrefix(ns.Name, "kube-") || ns.Name == names.ControlPlaneNamespace {
				t.Skip("a namespace that the API server never asks about")
			}
			// Pods of a running cluster have a token, and a ServiceAccount that it is for;
			// the plug-in that sets both does not run here.
			if pod.Spec.ServiceAccountName == "" {
				pod.Spec.ServiceAccountName = "default"
			}
			golden, err := os.ReadFile(strings.TrimSuffix(input, ".yaml") + ".golden.yaml")
			must(t, err)
			reason, _, _ := strings.Cut(strings.TrimPrefix(string(golden), "# "), ":")
			var want corev1.Pod
			must(t, yaml.Unmarshal(golden, &want))

			without := a.twins(t, "g-"+name, ns.Labels, ns.Annotations)
			bare, bareErr := a.create(t.Context(), without, &pod)
			if bareErr != nil {
				t.Fatalf("no pod that could be, also without an agent: %v", bareErr)
			}
			a.warnings.take()
			got, err := a.create(t.Context(), "g-"+name, &pod)
			if decide.Reason(reason) == decide.Malformed {
				if !apierrors.IsBadRequest(err) || !strings.Contains(err.Error(), names.Group+"/") {
					t.Fatalf("not refused with the key: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatalf("accepted without the agent, refused with it: %v", err)
			}
			warned := a.warnings.take()
			if injected := decide.Reason(reason) == decide.Injected; (agentOf(got) != nil) != injected {
				t.Fatalf("agent %v, but the golden says %s", agentOf(got) != nil, reason)
			} else if injected && strings.Contains(warned, "kanister-kopia-agent") {
				t.Errorf("the policy is not content with what we inject: %s", warned)
			}
			same(t, bare, got)
			if agent, expected := agentOf(got), agentOf(&want); agent != nil {
				expected.Image, agent.Image = "", ""
				if diff := gocmp.Diff(expected, agent); diff != "" {
					t.Errorf("agent (-golden +stored)\n%s", diff)
				}
				again := got.DeepCopy()
				again.ResourceVersion, again.UID, again.Status = "", "", corev1.PodStatus{}
				twice, err := a.create(t.Context(), "g-"+name, again)
				must(t, err)
				twice.UID, got.UID, twice.CreationTimestamp = "", "", got.CreationTimestamp
				agentOf(got).Image = agentOf(twice).Image
				if diff := gocmp.Diff(got.Spec, twice.Spec); diff != "" {
					t.Errorf("created once more (-once +twice)\n%s", diff)
				}
			}
		})
	}
	t.Logf("%d goldens", count)
}

// randomPods: whatever the API server accepts, it accepts with the agent, in
// namespaces of every kind; and nothing else in the pod changes.
func (a *cluster) randomPods(t *testing.T, count int) {
	ctx := t.Context()
	kinds := []string{"plain", "baseline", "restricted", "limits", "quota", "openshift", "root"}
	for _, kind := range kinds {
		labels, annotations := map[string]string{names.InjectionLabel: "all"}, map[string]string{}
		switch kind {
		case "baseline", "restricted":
			labels["pod-security.kubernetes.io/enforce"] = kind
		case "openshift":
			annotations["openshift.io/sa.scc.uid-range"] = "1000/1000"
		case "root":
			annotations[names.PrivilegedAgentsAnnotation] = "true"
		}
		for _, namespace := range []string{"r-" + kind, a.twins(t, "r-"+kind, labels, annotations)} {
			switch kind {
			case "limits":
				must(t, a.client.Create(ctx, &corev1.LimitRange{
					ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "limits"},
					Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{
						{
							Type: corev1.LimitTypeContainer, Min: list("20m", "64Mi"), Max: list("2", "1Gi"),
							Default: list("1", "512Mi"), DefaultRequest: list("500m", "256Mi"),
							MaxLimitRequestRatio: corev1.ResourceList{"memory": resource.MustParse("4")},
						},
						{Type: corev1.LimitTypePod, Max: list("4", "3Gi")},
					}},
				}))
			case "quota":
				hard := corev1.ResourceList{"requests.cpu": resource.MustParse("2500m"), "requests.memory": resource.MustParse("2200Mi"), "limits.memory": resource.MustParse("3Gi"), "limits.cpu": resource.MustParse("5")}
				quota := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "quota"}, Spec: corev1.ResourceQuotaSpec{Hard: hard}}
				must(t, a.client.Create(ctx, quota))
				// No controller counts here.
				quota.Status = corev1.ResourceQuotaStatus{Hard: hard, Used: corev1.ResourceList{"requests.cpu": resource.MustParse("0"), "requests.memory": resource.MustParse("0"), "limits.memory": resource.MustParse("1Gi"), "limits.cpu": resource.MustParse("0")}}
				must(t, a.client.Status().Update(ctx, quota))
			}
		}
	}
	// The webhook's view of these rules comes by a watch.
	testenv.Eventually(t, 3*time.Minute, "the webhook knows the limits", func() bool {
		big := withClaim()
		big.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: list("500m", "512Mi"), Limits: list("1", "1Gi")}
		a.warnings.take()
		pod, err := a.create(ctx, "r-limits", big)
		return err == nil && agentOf(pod) != nil && agentOf(pod).Resources.Requests.Memory().Cmp(resource.MustParse("128Mi")) == 0
	})
	testenv.Eventually(t, 3*time.Minute, "the webhook knows the quota", func() bool {
		big := withClaim()
		big.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: list("1", "1Gi"), Limits: list("2", "2Gi")}
		pod, err := a.create(ctx, "r-quota", big)
		return err == nil && agentOf(pod) == nil && strings.Contains(a.warnings.take(), "ResourceQuota quota has")
	})

	outcome := map[string]int{}
	for seed := range count {
		kind := kinds[seed%len(kinds)]
		r := rand.New(rand.NewPCG(uint64(seed), 2))
		pod := randompod.Pod(r)
		if kind == "baseline" || kind == "restricted" {
			pod = randompod.Restrict(r, pod)
		}
		bare, bareErr := a.create(ctx, "r-"+kind+"-without", pod)
		if bareErr != nil {
			outcome["not accepted without the agent either"]++
			continue
		}
		got, err := a.create(ctx, "r-"+kind, pod)
		switch {
		case apierrors.IsBadRequest(err) && strings.Contains(err.Error(), "accepted:"):
			outcome["malformed"]++
			continue
		case err != nil:
			raw, _ := yaml.Marshal(pod)
			t.Errorf("seed %d in a namespace of kind %s: accepted without the agent, refused with it: %v\n%s", seed, kind, err, raw)
			continue
		case agentOf(got) != nil:
			outcome["injected"]++
		default:
			outcome["left alone"]++
		}
		if !same(t, bare, got) {
			t.Errorf("seed %d in a namespace of kind %s", seed, kind)
		}
	}
	t.Logf("%d random pods: %v", count, outcome)
	if outcome["injected"] < count/4 {
		t.Errorf("too few pods were injected to say anything: %v", outcome)
	}
}

// neverAsked: about a pod that did not opt in, the API server asks nobody. A
// webhook that nobody answers for, and that may not fail, shows whom it asks.
func (a *cluster) neverAsked(t *testing.T) {
	ctx := t.Context()
	dead := a.webhook.DeepCopy()
	dead.Name, dead.ResourceVersion = "dead", ""
	for i := range dead.Webhooks {
		url := fmt.Sprintf("https://127.0.0.1:%d/", testenv.Port(t))
		dead.Webhooks[i].ClientConfig.URL = &url
	}
	for name, labels := range map[string]map[string]string{
		"asked-enabled": {names.InjectionLabel: "enabled"}, "asked-all": {names.InjectionLabel: "all"},
		"asked-other": {names.InjectionLabel: "maybe"}, "asked-plain": nil, "kube-asked": {names.InjectionLabel: "all"},
	} {
		a.namespace(t, name, labels, nil)
	}
	must(t, a.client.Create(ctx, dead))
	defer func() { must(t, a.client.Delete(context.WithoutCancel(ctx), dead)) }()
	testenv.Eventually(t, 3*time.Minute, "the dead webhook is in force", func() bool {
		_, err := a.create(ctx, "asked-enabled", withClaim())
		return err != nil
	})
	label := func(value string) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Labels = map[string]string{names.InjectLabel: value} }
	}
	none := func(p *corev1.Pod) { p.Labels = nil }
	emptyDir := func(p *corev1.Pod) {
		p.Labels = nil
		p.Spec.Volumes[0].VolumeSource = corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}
	}
	for _, tc := range []struct {
		name, namespace string
		change          func(*corev1.Pod)
		asked           bool
	}{
		{"labelled", "asked-enabled", label("true"), true},
		{"not labelled", "asked-enabled", none, false},
		{"opted out", "asked-enabled", label("false"), false},
		{"another word", "asked-enabled", label("yes"), false},
		{"all: a claim", "asked-all", none, true},
		{"all: an emptyDir", "asked-all", emptyDir, false},
		{"all: an emptyDir, listed", "asked-all", func(p *corev1.Pod) { emptyDir(p); p.Annotations = map[string]string{names.VolumesAnnotation: "data"} }, true},
		{"all: opted out", "asked-all", label("false"), false},
		{"all: one of our own", "asked-all", func(p *corev1.Pod) { p.Labels = map[string]string{names.ManagedByLabel: names.ManagedByValue} }, false},
		{"another mode", "asked-other", label("true"), false},
		{"no mode", "asked-plain", label("true"), false},
		{"a namespace of the system", "kube-asked", label("true"), false},
		{"the control plane", names.ControlPlaneNamespace, label("true"), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pod := withClaim()
			tc.change(pod)
			if _, err := a.create(ctx, tc.namespace, pod); (err != nil) != tc.asked {
				t.Errorf("asked %v, want %v: %v", err != nil, tc.asked, err)
			}
		})
	}
}

// policies: with no webhook configured (as if it were down), whoever creates an
// opted-in pod is told; in a strict namespace he is refused.
func (a *cluster) policies(t *testing.T) {
	ctx := t.Context()
	strict := func(mode string) map[string]string {
		return map[string]string{names.InjectionLabel: mode, names.StrictLabel: "true"}
	}
	for name, labels := range map[string]map[string]string{
		"enabled": {names.InjectionLabel: "enabled"}, "all": {names.InjectionLabel: "all"}, "neither": {names.StrictLabel: "true"},
		"enabled-strict": strict("enabled"), "all-strict": strict("all"), "kube-odd": strict("all"),
	} {
		a.namespace(t, name, labels, nil)
	}
	injected, err := a.create(ctx, "enabled", withClaim())
	must(t, err)
	onlyDevice := func(p *corev1.Pod) {
		c := &p.Spec.Containers[0]
		c.VolumeDevices, c.VolumeMounts = []corev1.VolumeDevice{{Name: "data", DevicePath: "/dev/data"}}, nil
	}
	raw := withClaim()
	onlyDevice(raw)
	withDevice, err := a.create(ctx, "enabled", raw)
	must(t, err)
	for _, p := range []*corev1.Pod{injected, withDevice} {
		p.ResourceVersion, p.UID, p.Namespace, p.Status = "", "", "", corev1.PodStatus{}
	}
	must(t, a.client.Delete(ctx, a.webhook.DeepCopy()))
	t.Cleanup(func() { must(t, a.client.Create(context.Background(), a.webhook.DeepCopy())) })
	testenv.Eventually(t, 3*time.Minute, "the webhook is gone", func() bool {
		a.warnings.take()
		pod, err := a.create(ctx, "enabled", withClaim())
		return err == nil && agentOf(pod) == nil
	})

	unlabelled := func(p *corev1.Pod) { p.Labels = nil }
	const none, missing = "", "has no Kopia agent"
	for _, tc := range []struct {
		name   string
		in     string // namespace; also tried in the strict one
		from   *corev1.Pod
		change func(*corev1.Pod)
		want   string // in the warning or refusal; none: nothing is said
	}{
		{name: "labelled", in: "enabled", want: missing},
		{name: "not labelled", in: "enabled", change: unlabelled, want: none},
		{name: "opted out", in: "enabled", change: func(p *corev1.Pod) { p.Labels[names.InjectLabel] = "false" }, want: none},
		{name: "all: with a claim", in: "all", change: unlabelled, want: missing},
		{name: "all: with a block device", in: "all", change: func(p *corev1.Pod) { unlabelled(p); onlyDevice(p) }, want: missing},
		{name: "with its agent and a block device only", in: "enabled", from: withDevice, want: none},
		{name: "the device lost", in: "enabled", from: withDevice, change: func(p *corev1.Pod) { agentOf(p).VolumeDevices = nil }, want: "lost its volumes"},
		{name: "all: opted out", in: "all", change: func(p *corev1.Pod) { p.Labels[names.InjectLabel] = "false" }, want: none},
		{name: "all: nothing to back up", in: "all", change: func(p *corev1.Pod) {
			unlabelled(p)
			p.Spec.Volumes[0].VolumeSource = corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}
		}, want: none},
		{name: "all: a claim that nobody mounts", in: "all", change: func(p *corev1.Pod) { unlabelled(p); p.Spec.Containers[0].VolumeMounts = nil }, want: none},
		{name: "all: credentials", in: "all", change: func(p *corev1.Pod) {
			unlabelled(p)
			p.Spec.Volumes[0].VolumeSource = corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: "secrets-store.csi.k8s.io"}}
		}, want: none},
		{name: "all: host network", in: "all", change: func(p *corev1.Pod) { unlabelled(p); p.Spec.HostNetwork = true }, want: none},
		{name: "labelled, host network", in: "all", change: func(p *corev1.Pod) { p.Spec.HostNetwork = true }, want: missing},
		{name: "one of our own", in: "all", change: func(p *corev1.Pod) { p.Labels[names.ManagedByLabel] = names.ManagedByValue }, want: none},
		{name: "with its agent", in: "enabled", from: injected, want: none},
		{name: "all: with its agent", in: "all", from: injected, want: none},
		{name: "restartPolicy lost", in: "enabled", from: injected, change: func(p *corev1.Pod) { agentOf(p).RestartPolicy = nil }, want: "lost restartPolicy: Always"},
		{name: "volumes lost", in: "enabled", from: injected, change: func(p *corev1.Pod) { agentOf(p).VolumeMounts = agentOf(p).VolumeMounts[:2] }, want: "lost its volumes"},
		{name: "token given", in: "enabled", from: injected, change: func(p *corev1.Pod) {
			mounts := agentOf(p).VolumeMounts
			mounts[len(mounts)-1].Name = "data"
		}, want: "service account token"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pod := withClaim()
			if tc.from != nil {
				pod = tc.from.DeepCopy()
			}
			if tc.change != nil {
				tc.change(pod)
			}
			a.warnings.take()
			_, err := a.create(ctx, tc.in, pod)
			must(t, err)
			if said := a.warnings.take(); strings.Contains(said, "kanister-kopia-agent") != (tc.want != none) || !strings.Contains(said, tc.want) {
				t.Errorf("warned %q, want %q", said, tc.want)
			}
			_, err = a.create(ctx, tc.in+"-strict", pod)
			if tc.want == none {
				must(t, err)
			} else if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("in a strict namespace: %v", err)
			}
			// Neither where nobody opted in, nor in a namespace of the system.
			for _, elsewhere := range []string{"neither", "kube-odd"} {
				if _, err = a.create(ctx, elsewhere, pod); err != nil {
					t.Errorf("in namespace %s: %v", elsewhere, err)
				}
			}
		})
	}
}

// labelPlace: a label that does nothing is pointed out.
func (a *cluster) labelPlace(t *testing.T) {
	const deployment = `{apiVersion: apps/v1, kind: Deployment, metadata: {name: d, namespace: warm-up, labels: {kopia.kanister.io/inject: "true"}},
		spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b%s}}, spec: {containers: [{name: c, image: i}]}}}}`
	const cronJob = `{apiVersion: batch/v1, kind: CronJob, metadata: {name: d, namespace: warm-up, labels: {kopia.kanister.io/inject: "true"}},
		spec: {schedule: "* * * * *", jobTemplate: {spec: {template: {metadata: {labels: {a: b%s}}, spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}}}}`
	for _, tc := range []struct {
		name, text string
		warned     bool
	}{
		{"deployment", fmt.Sprintf(deployment, ""), true},
		{"deployment, also in its template", fmt.Sprintf(deployment, `, kopia.kanister.io/inject: "true"`), false},
		{"cron job", fmt.Sprintf(cronJob, ""), true},
		{"cron job, also in its template", fmt.Sprintf(cronJob, `, kopia.kanister.io/inject: "true"`), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			obj := parse(t, tc.text)
			a.warnings.take()
			must(t, a.client.Create(t.Context(), obj, client.DryRunAll))
			if said := a.warnings.take(); strings.Contains(said, "put it into the labels of its pod template") != tc.warned {
				t.Errorf("warned %q", said)
			}
		})
	}
}

// create creates a pod on trial: everything but storing it.
func (a *cluster) create(ctx context.Context, namespace string, pod *corev1.Pod) (*corev1.Pod, error) {
	pod = pod.DeepCopy()
	pod.Namespace = namespace
	err := a.client.Create(ctx, pod, client.DryRunAll)
	return pod, err
}

// twins makes a namespace and one that differs in not having opted in; it returns
// the latter's name.
func (a *cluster) twins(t *testing.T, name string, labels, annotations map[string]string) string {
	t.Helper()
	a.namespace(t, name, labels, annotations)
	without := map[string]string{}
	for k, v := range labels {
		if k != names.InjectionLabel {
			without[k] = v
		}
	}
	a.namespace(t, name+"-without", without, annotations)
	return name + "-without"
}

func (a *cluster) namespace(t *testing.T, name string, labels, annotations map[string]string) {
	t.Helper()
	must(t, a.client.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels, Annotations: annotations}}))
}

// manifest reads the objects of a file of manifests/.
func manifest(t *testing.T, file string) []*unstructured.Unstructured {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("../../manifests", file))
	must(t, err)
	var list []*unstructured.Unstructured
	for _, document := range bytes.Split(raw, []byte("\n---\n")) {
		list = append(list, parse(t, string(document)))
	}
	return list
}

func parse(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	u := &unstructured.Unstructured{}
	must(t, yaml.Unmarshal([]byte(text), &u.Object))
	return u
}

// same reports whether two pods differ in nothing but the agent.
func same(t *testing.T, without, with *corev1.Pod) bool {
	t.Helper()
	if a, b := without.Status.QOSClass, with.Status.QOSClass; a != b {
		t.Errorf("QoS class %s became %s", a, b)
		return false
	}
	if strings.Contains(with.Annotations["kubernetes.io/limit-ranger"], names.AgentContainer) {
		t.Errorf("LimitRanger had to set something: %s", with.Annotations["kubernetes.io/limit-ranger"])
	}
	diff := gocmp.Diff(withoutAgent(without), withoutAgent(with))
	if diff != "" {
		t.Errorf("something else changed (-without +with the agent)\n%s", diff)
	}
	return diff == ""
}

func withoutAgent(pod *corev1.Pod) *corev1.Pod {
	pod = pod.DeepCopy()
	pod.Name, pod.Namespace, pod.UID, pod.CreationTimestamp, pod.ManagedFields = "", "", "", metav1.Time{}, nil
	delete(pod.Annotations, names.StatusAnnotation)
	delete(pod.Annotations, "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes")
	if len(pod.Annotations) == 0 {
		pod.Annotations = nil
	}
	var containers []corev1.Container
	for _, c := range pod.Spec.InitContainers {
		if c.Name != names.AgentContainer {
			containers = append(containers, c)
		}
	}
	var volumes []corev1.Volume
	for _, v := range pod.Spec.Volumes {
		if !strings.HasPrefix(v.Name, "kopia-agent-") {
			volumes = append(volumes, v)
		}
	}
	pod.Spec.InitContainers, pod.Spec.Volumes = containers, volumes
	return pod
}

func agentOf(pod *corev1.Pod) *corev1.Container {
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; c.Name == names.AgentContainer {
			return c
		}
	}
	return nil
}

func list(cpu, memory string) corev1.ResourceList {
	return corev1.ResourceList{"cpu": resource.MustParse(cpu), "memory": resource.MustParse(memory)}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
