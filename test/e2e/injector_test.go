// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// Namespaces of these specs.
const (
	injected   = "e2e-injected"   // enabled
	everything = "e2e-everything" // all, Pod Security restricted
	baseline   = "e2e-baseline"   // enabled, Pod Security baseline
	rooted     = "e2e-rooted"     // enabled, Pod Security privileged, root agents allowed
	narrow     = "e2e-narrow"     // enabled, LimitRange and ResourceQuota
)

var _ = Describe("the injector", Ordered, func() {
	BeforeAll(func(ctx SpecContext) {
		// Last of all, after what the specs themselves put back.
		DeferCleanup(func(ctx SpecContext) {
			for _, name := range []string{injected, everything, baseline, rooted, narrow} {
				Expect(client.IgnoreNotFound(cluster.Delete(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}))).To(Succeed())
			}
		}, NodeTimeout(short))
		for name, meta := range map[string]metav1.ObjectMeta{
			injected:   {Labels: map[string]string{names.InjectionLabel: "enabled"}},
			everything: {Labels: map[string]string{names.InjectionLabel: "all", "pod-security.kubernetes.io/enforce": "restricted"}},
			baseline:   {Labels: map[string]string{names.InjectionLabel: "enabled", "pod-security.kubernetes.io/enforce": "baseline"}},
			rooted: {
				Labels:      map[string]string{names.InjectionLabel: "enabled", "pod-security.kubernetes.io/enforce": "privileged"},
				Annotations: map[string]string{names.PrivilegedAgentsAnnotation: "true"},
			},
			narrow: {Labels: map[string]string{names.InjectionLabel: "enabled"}},
		} {
			Expect(cluster.DeleteNamespace(ctx, name)).To(Succeed())
			meta.Name = name
			Expect(cluster.Create(ctx, &corev1.Namespace{ObjectMeta: meta})).To(Succeed())
			Expect(cluster.Bind(ctx, name, "kanister-kopia-namespace")).To(Succeed())
		}
	}, NodeTimeout(long))

	It("lets Jobs complete", func(ctx SpecContext) {
		once := int32(0)
		template := template(labelled, func(p *corev1.PodSpec) {
			p.RestartPolicy = corev1.RestartPolicyNever
			p.Containers[0].Command = []string{"true"}
		})
		Expect(cluster.Create(ctx, &batchv1.Job{
			ObjectMeta: metav1.ObjectMeta{Namespace: injected, Name: "once"},
			Spec:       batchv1.JobSpec{BackoffLimit: &once, Template: template},
		})).To(Succeed())
		_, err := cluster.Kubectl(ctx, "wait", "--for=condition=Complete", "job/once", "-n", injected, "--timeout=2m")
		Expect(err).NotTo(HaveOccurred())
		pods := podsOf(ctx, injected, "job-name", "once")
		Expect(pods).To(HaveLen(1))
		Expect(hasAgent(&pods[0])).To(BeTrue())
	}, SpecTimeout(short))

	It("lets DaemonSets roll", func(ctx SpecContext) {
		set := &appsv1.DaemonSet{
			ObjectMeta: metav1.ObjectMeta{Namespace: injected, Name: "everywhere"},
			Spec:       appsv1.DaemonSetSpec{Selector: selector("everywhere"), Template: template(labelled, nil)},
		}
		set.Spec.Template.Labels["app"] = "everywhere"
		Expect(cluster.Create(ctx, set)).To(Succeed())
		Expect(cluster.Rollout(ctx, injected, "daemonset/everywhere")).To(Succeed())
		_, err := cluster.Kubectl(ctx, "rollout", "restart", "-n", injected, "daemonset/everywhere")
		Expect(err).NotTo(HaveOccurred())
		Expect(cluster.Rollout(ctx, injected, "daemonset/everywhere")).To(Succeed())
		for _, pod := range running(ctx, injected, "everywhere") {
			Expect(hasAgent(&pod)).To(BeTrue())
		}
	}, SpecTimeout(short))

	It("lets a Deployment scale from 0 to 50 and back", func(ctx SpecContext) {
		Expect(cluster.Create(ctx, deployment(injected, "many", 0, labelled, nil))).To(Succeed())
		scale(ctx, injected, "many", 50)
		Expect(cluster.Rollout(ctx, injected, "deployment/many")).To(Succeed())
		pods := running(ctx, injected, "many")
		Expect(pods).To(HaveLen(50))
		for _, pod := range pods {
			Expect(hasAgent(&pod)).To(BeTrue(), pod.Name)
		}
		scale(ctx, injected, "many", 0)
		Eventually(func() int { return len(podsOf(ctx, injected, "app", "many")) }, long, time.Second).Should(BeZero())
	}, SpecTimeout(long))

	DescribeTable("keeps to the Pod Security of the namespace",
		func(spec SpecContext, namespace string, labels map[string]string, wantUID int64) {
			ctx, cancel := context.WithTimeout(spec, short)
			defer cancel()
			Expect(cluster.Create(ctx, claimed(namespace, "data", corev1.ReadWriteOncePod))).To(Succeed())
			Expect(cluster.Create(ctx, deployment(namespace, "secure", 1, labels, func(p *corev1.PodSpec) {
				p.Volumes[0] = corev1.Volume{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}
				if wantUID == 0 {
					p.SecurityContext.RunAsUser = nil
					p.SecurityContext.RunAsNonRoot = nil
				}
			}))).To(Succeed())
			Expect(cluster.Rollout(ctx, namespace, "deployment/secure")).To(Succeed())
			pods := running(ctx, namespace, "secure")
			Expect(pods).To(HaveLen(1))
			Expect(hasAgent(&pods[0])).To(BeTrue())
			status := pods[0].Status.InitContainerStatuses[0]
			Expect(status.State.Running).NotTo(BeNil(), "%+v", status)
			Expect(status.User.Linux.UID).To(Equal(wantUID))
		},
		Entry("restricted, opted in as a whole, with a ReadWriteOncePod claim", everything, map[string]string{}, int64(1000)),
		Entry("baseline", baseline, labelled, int64(1000)),
		Entry("privileged, where root agents are allowed", rooted, labelled, int64(0)),
	)

	It("fits into LimitRange and ResourceQuota, and lets the pod start without it where it does not fit", func(ctx SpecContext) {
		list := func(cpu, memory string) corev1.ResourceList {
			return corev1.ResourceList{"cpu": resource.MustParse(cpu), "memory": resource.MustParse(memory)}
		}
		Expect(cluster.Create(ctx, &corev1.LimitRange{ObjectMeta: metav1.ObjectMeta{Namespace: narrow, Name: "narrow"}, Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{
			{
				Type: corev1.LimitTypeContainer, Min: list("20m", "64Mi"), Max: list("500m", "256Mi"), Default: list("200m", "128Mi"),
				MaxLimitRequestRatio: corev1.ResourceList{"memory": resource.MustParse("4")},
			},
		}}})).To(Succeed())
		// Two pods of 64Mi with their agents of 64Mi, or one more without.
		Expect(cluster.Create(ctx, &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: narrow, Name: "narrow"}, Spec: corev1.ResourceQuotaSpec{
			Hard: corev1.ResourceList{"requests.memory": resource.MustParse("330Mi"), "limits.cpu": resource.MustParse("10")},
		}})).To(Succeed())
		Eventually(func(g Gomega) {
			var q corev1.ResourceQuota
			g.Expect(cluster.Get(ctx, client.ObjectKey{Namespace: narrow, Name: "narrow"}, &q)).To(Succeed())
			g.Expect(q.Status.Hard).NotTo(BeEmpty())
		}, short, time.Second).Should(Succeed())
		// The webhook sees the rules a moment later.
		Eventually(func(g Gomega) {
			pod := trial(narrow, tiny)
			g.Expect(cluster.Create(ctx, pod, client.DryRunAll)).To(Succeed())
			g.Expect(hasAgent(pod)).To(BeTrue())
		}, short, time.Second).Should(Succeed())

		Expect(cluster.Create(ctx, deployment(narrow, "narrow", 2, labelled, tiny))).To(Succeed())
		Expect(cluster.Rollout(ctx, narrow, "deployment/narrow")).To(Succeed())
		for _, pod := range running(ctx, narrow, "narrow") {
			Expect(hasAgent(&pod)).To(BeTrue())
			Expect(pod.Spec.InitContainers[0].Resources.Limits).To(HaveLen(2))
		}
		scale(ctx, narrow, "narrow", 3)
		Expect(cluster.Rollout(ctx, narrow, "deployment/narrow")).To(Succeed())
		without := 0
		for _, pod := range running(ctx, narrow, "narrow") {
			if !hasAgent(&pod) {
				without++
			}
		}
		Expect(without).To(Equal(1))
		Eventually(func() string { return eventsOf(ctx, narrow, "Deployment", "narrow") }, short, time.Second).
			Should(And(ContainSubstring("BackupQuotaExceeded"), ContainSubstring("ResourceQuota narrow has")))
	}, SpecTimeout(long))

	It("starts pods when the CA is not published yet", func(ctx SpecContext) {
		ca := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: injected, Name: names.CAConfigMap}}
		Expect(cluster.Delete(ctx, ca)).To(Succeed())
		Expect(cluster.Create(ctx, deployment(injected, "early", 1, labelled, nil))).To(Succeed())
		Expect(cluster.Rollout(ctx, injected, "deployment/early")).To(Succeed())
		// The controller looks at the namespace again.
		_, err := cluster.Kubectl(ctx, "annotate", "namespace", injected, "touched=now")
		Expect(err).NotTo(HaveOccurred())
		Eventually(func() error { return cluster.Get(ctx, client.ObjectKeyFromObject(ca), ca) }, short, time.Second).Should(Succeed())
		Expect(cluster.Delete(ctx, deployment(injected, "early", 1, labelled, nil))).To(Succeed())
	}, SpecTimeout(short))

	It("misses no pod of a roll-out while its certificate is rotated", func(ctx SpecContext) {
		Expect(cluster.Create(ctx, deployment(injected, "rolling", 6, labelled, nil))).To(Succeed())
		Expect(cluster.Rollout(ctx, injected, "deployment/rolling")).To(Succeed())
		before := certificatesRead(ctx)
		Expect(before).To(HaveLen(2), "two replicas")
		serial := certificate(ctx)
		// What cmctl renew does.
		_, err := cluster.Kubectl(ctx, "patch", "certificate", "webhook-tls", "-n", names.ControlPlaneNamespace, "--subresource=status", "--type=merge", "-p",
			fmt.Sprintf(`{"status":{"conditions":[{"type":"Ready","status":"True","lastTransitionTime":%[1]q},{"type":"Issuing","status":"True","reason":"ManuallyTriggered","lastTransitionTime":%[1]q}]}}`, time.Now().UTC().Format(time.RFC3339)))
		Expect(err).NotTo(HaveOccurred())
		Eventually(func() string { return certificate(ctx) }, short, time.Second).ShouldNot(Equal(serial))
		_, err = cluster.Kubectl(ctx, "rollout", "restart", "-n", injected, "deployment/rolling")
		Expect(err).NotTo(HaveOccurred())
		// Admissions go on until both replicas have read the new files.
		asked := 0
		Eventually(func(g Gomega) {
			for range 20 {
				pod := trial(injected, nil)
				Expect(cluster.Create(ctx, pod, client.DryRunAll)).To(Succeed())
				Expect(hasAgent(pod)).To(BeTrue(), "admission %d failed", asked)
				asked++
			}
			after := certificatesRead(ctx)
			for name, n := range before {
				g.Expect(after).To(HaveKeyWithValue(name, BeNumerically(">", n)))
			}
		}, long, 100*time.Millisecond).Should(Succeed())
		GinkgoWriter.Printf("%d admissions while the certificate was rotated\n", asked)
		Expect(cluster.Rollout(ctx, injected, "deployment/rolling")).To(Succeed())
		for _, pod := range running(ctx, injected, "rolling") {
			Expect(hasAgent(&pod)).To(BeTrue(), pod.Name)
		}
	}, SpecTimeout(long))

	It("refuses what has no agent in a strict namespace", func(ctx SpecContext) {
		pod := trial(baseline, nil)
		Expect(cluster.Create(ctx, pod, client.DryRunAll)).To(Succeed())
		_, err := cluster.Kubectl(ctx, "label", "namespace", baseline, names.StrictLabel+"=true")
		Expect(err).NotTo(HaveOccurred())
		pod = trial(baseline, nil)
		Expect(cluster.Create(ctx, pod, client.DryRunAll)).To(Succeed())
		Expect(hasAgent(pod)).To(BeTrue())
		// Nothing to back up, but backups asked for.
		Eventually(func() error {
			pod := trial(baseline, nil)
			delete(pod.Annotations, names.VolumesAnnotation)
			return cluster.Create(ctx, pod, client.DryRunAll)
		}, short, time.Second).Should(MatchError(ContainSubstring("has no Kopia agent")))
	}, SpecTimeout(short))

	It("is missed by no application: pods start without it, and their owner is told", func(ctx SpecContext) {
		_, err := cluster.Kubectl(ctx, "rollout", "restart", "-n", injected, "deployment/rolling")
		Expect(err).NotTo(HaveOccurred())
		scale(ctx, names.ControlPlaneNamespace, "kanister-kopia-webhook", 0)
		DeferCleanup(func(ctx SpecContext) {
			scale(ctx, names.ControlPlaneNamespace, "kanister-kopia-webhook", 2)
			Expect(cluster.Rollout(ctx, names.ControlPlaneNamespace, "deployment/kanister-kopia-webhook")).To(Succeed())
			answers(ctx)
		}, NodeTimeout(short))
		_, err = cluster.Kubectl(ctx, "delete", "pods", "-n", names.ControlPlaneNamespace, "-l", "app.kubernetes.io/name=kanister-kopia-webhook", "--grace-period=0", "--force")
		Expect(err).NotTo(HaveOccurred())
		Expect(cluster.Rollout(ctx, injected, "deployment/rolling")).To(Succeed())
		// A replica answers on connections that the API server holds until it is killed.
		Eventually(func(g Gomega) {
			pod := trial(injected, nil)
			g.Expect(cluster.Create(ctx, pod, client.DryRunAll)).To(Succeed())
			g.Expect(hasAgent(pod)).To(BeFalse())
		}, short, time.Second).Should(Succeed())
		_, err = cluster.Kubectl(ctx, "rollout", "restart", "-n", injected, "deployment/rolling")
		Expect(err).NotTo(HaveOccurred())
		Expect(cluster.Rollout(ctx, injected, "deployment/rolling")).To(Succeed())
		Eventually(func() string { return eventsOf(ctx, injected, "Deployment", "rolling") }, short, time.Second).
			Should(And(ContainSubstring("BackupAgentMissing"), ContainSubstring("kubectl rollout restart -n "+injected+" deployment/rolling")))
		Expect(controllerMetrics(ctx)).To(ContainSubstring(`kanister_kopia_pods_without_agent{namespace="` + injected + `",owner="rolling",owner_kind="Deployment",reason="agent-missing"}`))
		// Whoever creates a pod is told at once, by the API server alone.
		_, err = cluster.Kubectl(ctx, "run", "trial", "-n", injected, "--image=trial", "--labels="+names.InjectLabel+"=true", "--dry-run=server", "--warnings-as-errors")
		Expect(err).To(MatchError(ContainSubstring("has no Kopia agent")))
	}, SpecTimeout(long))

	It("does what the Event says to repair it", func(ctx SpecContext) {
		_, err := cluster.Kubectl(ctx, "rollout", "restart", "-n", injected, "deployment/rolling")
		Expect(err).NotTo(HaveOccurred())
		Expect(cluster.Rollout(ctx, injected, "deployment/rolling")).To(Succeed())
		for _, pod := range running(ctx, injected, "rolling") {
			Expect(hasAgent(&pod)).To(BeTrue(), pod.Name)
		}
		Eventually(func() string { return controllerMetrics(ctx) }, short, time.Second).ShouldNot(ContainSubstring(`owner="rolling"`))
		Expect(cluster.Delete(ctx, deployment(injected, "rolling", 1, labelled, nil))).To(Succeed())
	}, SpecTimeout(long))

	It("stops injecting where the agent's image cannot be pulled", func(ctx SpecContext) {
		image := agentImage(ctx)
		setAgentImage(ctx, "kanister-kopia.local/agent:missing")
		DeferCleanup(func(ctx SpecContext) {
			setAgentImage(ctx, image)
			Expect(client.IgnoreNotFound(cluster.Delete(ctx, holds()))).To(Succeed())
		}, NodeTimeout(long))
		Expect(cluster.Create(ctx, deployment(injected, "stuck", 1, labelled, nil))).To(Succeed())
		Eventually(func() map[string]string {
			m := holds()
			_ = cluster.Get(ctx, client.ObjectKeyFromObject(m), m)
			return m.Data
		}, short, time.Second).Should(HaveKeyWithValue(injected, ContainSubstring("Err")))
		Expect(eventsOf(ctx, injected, "Deployment", "stuck")).To(And(ContainSubstring("BackupAgentNotStarting"), ContainSubstring("Pull")))
		Expect(controllerMetrics(ctx)).To(ContainSubstring(`kanister_kopia_injection_on_hold{namespace="` + injected + `"} 1`))
		// Others are not concerned.
		Expect(holdOf(ctx, baseline)).To(BeEmpty())
		// As the Event says: a pod that is deleted now is made anew without an agent.
		Eventually(func(g Gomega) {
			_, err := cluster.Kubectl(ctx, "delete", "pods", "-n", injected, "-l", "app=stuck", "--grace-period=0", "--force")
			g.Expect(err).NotTo(HaveOccurred())
			_, err = cluster.Kubectl(ctx, "rollout", "status", "-n", injected, "deployment/stuck", "--timeout=20s")
			g.Expect(err).NotTo(HaveOccurred())
		}, short, time.Second).Should(Succeed())
		Expect(hasAgent(&running(ctx, injected, "stuck")[0])).To(BeFalse())
	}, SpecTimeout(long))
})

var labelled = map[string]string{names.InjectLabel: "true"}

// template is of a restricted pod with an emptyDir that is to be mirrored: no
// provisioner is waited for.
func template(labels map[string]string, change func(*corev1.PodSpec)) corev1.PodTemplateSpec {
	uid, grace, yes, no := int64(1000), int64(0), true, false
	t := corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{}, Annotations: map[string]string{names.VolumesAnnotation: "data"}},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &grace,
			SecurityContext: &corev1.PodSecurityContext{
				RunAsUser: &uid, FSGroup: &uid, RunAsNonRoot: &yes,
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			Containers: []corev1.Container{{
				Name: "app", Image: "kanister-kopia.local/busybox:dev", ImagePullPolicy: corev1.PullIfNotPresent,
				Command:      []string{"sleep", "1000000"},
				VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/data"}},
				SecurityContext: &corev1.SecurityContext{
					AllowPrivilegeEscalation: &no, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				},
			}},
			Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}},
		},
	}
	for k, v := range labels {
		t.Labels[k] = v
	}
	if change != nil {
		change(&t.Spec)
	}
	return t
}

// trial is a pod to be created on trial.
func trial(namespace string, change func(*corev1.PodSpec)) *corev1.Pod {
	t := template(labelled, change)
	pod := &corev1.Pod{ObjectMeta: t.ObjectMeta, Spec: t.Spec}
	pod.Namespace, pod.Name = namespace, "trial"
	return pod
}

func tiny(p *corev1.PodSpec) {
	p.Containers[0].Resources.Requests = corev1.ResourceList{"cpu": resource.MustParse("50m"), "memory": resource.MustParse("64Mi")}
}

func selector(app string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}
}

func deployment(namespace, name string, replicas int32, labels map[string]string, change func(*corev1.PodSpec)) *appsv1.Deployment {
	d := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       appsv1.DeploymentSpec{Replicas: &replicas, Selector: selector(name), Template: template(labels, change)},
	}
	d.Spec.Template.Labels["app"] = name
	return d
}

func claimed(namespace, name string, mode corev1.PersistentVolumeAccessMode) *corev1.PersistentVolumeClaim {
	c := claim(namespace)
	c.Name, c.Spec.AccessModes = name, []corev1.PersistentVolumeAccessMode{mode}
	return c
}

func scale(ctx context.Context, namespace, name string, replicas int) {
	GinkgoHelper()
	_, err := cluster.Kubectl(ctx, "scale", "-n", namespace, "deployment/"+name, fmt.Sprintf("--replicas=%d", replicas))
	Expect(err).NotTo(HaveOccurred())
}

func podsOf(ctx context.Context, namespace, key, value string) []corev1.Pod {
	GinkgoHelper()
	var pods corev1.PodList
	Expect(cluster.List(ctx, &pods, client.InNamespace(namespace), client.MatchingLabels{key: value})).To(Succeed())
	return pods.Items
}

// running are the pods of an app that are not on their way out.
func running(ctx context.Context, namespace, app string) []corev1.Pod {
	GinkgoHelper()
	var list []corev1.Pod
	for _, pod := range podsOf(ctx, namespace, "app", app) {
		if pod.DeletionTimestamp == nil && pod.Status.Phase == corev1.PodRunning {
			list = append(list, pod)
		}
	}
	return list
}

func hasAgent(pod *corev1.Pod) bool {
	for _, c := range pod.Spec.InitContainers {
		if c.Name == names.AgentContainer {
			return true
		}
	}
	return false
}

// eventsOf is what kubectl describe would show: reasons and messages.
func eventsOf(ctx context.Context, namespace, kind, name string) string {
	GinkgoHelper()
	out, err := cluster.Kubectl(ctx, "get", "events", "-n", namespace, "--field-selector", "involvedObject.kind="+kind+",involvedObject.name="+name,
		"-o", `jsonpath={range .items[*]}{.type} {.reason}: {.message}{"\n"}{end}`)
	Expect(err).NotTo(HaveOccurred())
	return out
}

func controllerMetrics(ctx context.Context) string {
	GinkgoHelper()
	var text strings.Builder
	for _, pod := range podsOf(ctx, names.ControlPlaneNamespace, "app.kubernetes.io/name", "kanister-kopia-controller") {
		text.WriteString(podMetrics(ctx, pod.Name))
	}
	return text.String()
}

func podMetrics(ctx context.Context, pod string) string {
	GinkgoHelper()
	out, err := cluster.Kubectl(ctx, "get", "--raw", "/api/v1/namespaces/"+names.ControlPlaneNamespace+"/pods/"+pod+":8080/proxy/metrics")
	Expect(err).NotTo(HaveOccurred())
	return out
}

// certificatesRead is how often each replica of the webhook has read its files.
func certificatesRead(ctx context.Context) map[string]int {
	GinkgoHelper()
	read := map[string]int{}
	for _, pod := range podsOf(ctx, names.ControlPlaneNamespace, "app.kubernetes.io/name", "kanister-kopia-webhook") {
		for line := range strings.Lines(podMetrics(ctx, pod.Name)) {
			var n int
			if _, err := fmt.Sscanf(line, "certwatcher_read_certificate_total %d", &n); err == nil {
				read[pod.Name] = n
			}
		}
	}
	return read
}

func certificate(ctx context.Context) string {
	GinkgoHelper()
	var secret corev1.Secret
	Expect(cluster.Get(ctx, client.ObjectKey{Namespace: names.ControlPlaneNamespace, Name: "webhook-tls"}, &secret)).To(Succeed())
	return string(secret.Data[corev1.TLSCertKey])
}

func webhookDeployment(ctx context.Context) *appsv1.Deployment {
	GinkgoHelper()
	var d appsv1.Deployment
	Expect(cluster.Get(ctx, client.ObjectKey{Namespace: names.ControlPlaneNamespace, Name: "kanister-kopia-webhook"}, &d)).To(Succeed())
	return &d
}

const agentImageFlag = "--agent-image="

func agentImage(ctx context.Context) string {
	GinkgoHelper()
	for _, arg := range webhookDeployment(ctx).Spec.Template.Spec.Containers[0].Args {
		if image, ok := strings.CutPrefix(arg, agentImageFlag); ok {
			return image
		}
	}
	Fail("the webhook has no flag " + agentImageFlag)
	return ""
}

func setAgentImage(ctx context.Context, image string) {
	GinkgoHelper()
	d := webhookDeployment(ctx)
	args := d.Spec.Template.Spec.Containers[0].Args
	for i := range args {
		if strings.HasPrefix(args[i], agentImageFlag) {
			args[i] = agentImageFlag + image
		}
	}
	Expect(cluster.Update(ctx, d)).To(Succeed())
	Expect(cluster.Rollout(ctx, names.ControlPlaneNamespace, "deployment/kanister-kopia-webhook")).To(Succeed())
	// Old replicas still answer until they are gone.
	Eventually(func() int {
		return len(podsOf(ctx, names.ControlPlaneNamespace, "app.kubernetes.io/name", "kanister-kopia-webhook"))
	}, short, time.Second).Should(Equal(2))
	answers(ctx)
}

// answers waits until the API server reaches the webhook: the network learns of
// new replicas a moment after they are ready.
func answers(ctx context.Context) {
	GinkgoHelper()
	Eventually(func(g Gomega) {
		pod := trial(rooted, nil)
		g.Expect(cluster.Create(ctx, pod, client.DryRunAll)).To(Succeed())
		g.Expect(hasAgent(pod)).To(BeTrue())
	}, short, 200*time.Millisecond).Should(Succeed())
}

func holds() *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: names.ControlPlaneNamespace, Name: names.HoldConfigMap}}
}

func holdOf(ctx context.Context, namespace string) string {
	GinkgoHelper()
	m := holds()
	Expect(client.IgnoreNotFound(cluster.Get(ctx, client.ObjectKeyFromObject(m), m))).To(Succeed())
	return m.Data[namespace]
}
