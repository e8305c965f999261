// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sigs.k8s.io/controller-runtime/pkg/client"

	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/test/scenario"
)

const (
	// Namespaces of these specs: one that has opted in, and a neighbour.
	guest    = "e2e-net-guest"
	stranger = "e2e-net-stranger"
	// networkProfile is theirs.
	networkProfile = "e2e-network"
	// otherPort is open in no pod of ours.
	otherPort = 8080
)

// What becomes of a connection. Both kinds of cluster drop what a policy forbids, so a pod
// that refuses was reached, too.
const (
	reached = "reached"
	refused = "refused"
	dropped = "dropped"
)

var _ = Describe("the network", Ordered, func() {
	var saved *crv1alpha1.ActionSet
	var server, s3 corev1.Pod

	save := func(ctx context.Context) (*crv1alpha1.ActionSet, error) {
		return files(ctx, "backup", guest, networkProfile, map[string]string{"pod": "app", "path": "/data"}, nil)
	}

	BeforeAll(func(ctx SpecContext) {
		DeferCleanup(func(ctx SpecContext) {
			for _, namespace := range []string{guest, stranger} {
				Expect(cluster.DeleteNamespace(ctx, namespace)).To(Succeed())
			}
		}, NodeTimeout(short))
		keys, err := cluster.StartS3(ctx)
		Expect(err).NotTo(HaveOccurred())
		Expect(cluster.PutProfile(ctx, networkProfile, keys, networkProfile)).To(Succeed())
		Expect(cluster.Blueprint(ctx, filesBlueprint)).To(Succeed())
		for namespace, labels := range map[string]map[string]string{
			guest: {names.InjectionLabel: names.InjectionEnabled}, stranger: nil,
		} {
			Expect(cluster.DeleteNamespace(ctx, namespace)).To(Succeed())
			Expect(cluster.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace, Labels: labels}})).To(Succeed())
			Expect(cluster.Bind(ctx, namespace, "kanister-kopia-namespace")).To(Succeed())
			Expect(cluster.Create(ctx, claim(namespace))).To(Succeed())
			Expect(cluster.Create(ctx, filesPod(namespace, "app", labelled))).To(Succeed())
		}
		for _, namespace := range []string{guest, stranger} {
			_, err := cluster.Kubectl(ctx, "wait", "--for=condition=Ready", "pod/app", "-n", namespace, "--timeout=3m")
			Expect(err).NotTo(HaveOccurred())
		}
		_, err = cluster.Exec(ctx, guest, "app", "app", "echo kept > /data/file")
		Expect(err).NotTo(HaveOccurred())
		saved, err = save(ctx)
		Expect(err).NotTo(HaveOccurred())
		repo, err := cluster.RepositoryOf(ctx, saved.Status.Actions[0].Artifacts["files"].KeyValue["backupID"])
		Expect(err).NotTo(HaveOccurred())
		servers := podsOf(ctx, names.ControlPlaneNamespace, names.RepositoryLabel, repo.Name)
		Expect(servers).To(HaveLen(1))
		server = servers[0]
		s3 = running(ctx, scenario.S3Namespace, "s3")[0]
	}, NodeTimeout(long))

	It("leads pods with an agent to a repository server, and no other", func(ctx SpecContext) {
		repository := at(server, names.RepositoryPort)
		Expect(tried(ctx, guest, "app", repository)).To(HaveKeyWithValue(repository, reached))
		Expect(tried(ctx, stranger, "app", repository)).To(HaveKeyWithValue(repository, dropped))
		insidePod(ctx, filesPod(guest, "plain", nil), func(func(string) string) {
			Expect(tried(ctx, guest, "plain", repository)).To(HaveKeyWithValue(repository, dropped), "a pod without an agent")
		})
		label := func(label string) {
			_, err := cluster.Kubectl(ctx, "label", "namespace", stranger, names.InjectionLabel+label)
			Expect(err).NotTo(HaveOccurred())
		}
		label("=" + names.InjectionAll)
		eventually(ctx, stranger, "app", repository, reached)
		label("-")
		eventually(ctx, stranger, "app", repository, dropped)
	}, SpecTimeout(short))

	It("leads nobody to another port of it", func(ctx SpecContext) {
		for _, namespace := range []string{guest, stranger} {
			Expect(tried(ctx, namespace, "app",
				at(server, names.AgentHealthPort), at(server, names.AgentPort), at(server, 15516), at(server, otherPort), at(s3, otherPort),
			)).To(Equal(map[string]string{
				at(server, names.AgentHealthPort): dropped,
				at(server, names.AgentPort):       dropped,
				at(server, 15516):                 dropped, // Kopia's own
				at(server, otherPort):             dropped,
				at(s3, otherPort):                 refused, // what it looks like where no policy is
			}), namespace)
		}
	}, SpecTimeout(short))

	It("leads a namespace that may ask for metrics to them, and the kubelet", func(ctx SpecContext) {
		metrics := at(server, names.AgentHealthPort)
		label := func(label string) {
			_, err := cluster.Kubectl(ctx, "label", "namespace", stranger, names.MetricsLabel+label)
			Expect(err).NotTo(HaveOccurred())
		}
		label("=true")
		eventually(ctx, stranger, "app", metrics, reached)
		Expect(tried(ctx, guest, "app", metrics)).To(HaveKeyWithValue(metrics, dropped))
		repository := at(server, names.RepositoryPort)
		Expect(tried(ctx, stranger, "app", repository)).To(HaveKeyWithValue(repository, dropped), "it leads to metrics only")
		label("-")
		eventually(ctx, stranger, "app", metrics, dropped)
		Expect(cluster.Get(ctx, client.ObjectKeyFromObject(&server), &server)).To(Succeed())
		Expect(server.Status.ContainerStatuses).To(HaveEach(HaveField("Ready", true)), "the kubelet asks it, too")
	}, SpecTimeout(short))

	It("leads a temporary pod of ours to it from every namespace", func(ctx SpecContext) {
		_, err := files(ctx, "restore", stranger, networkProfile, map[string]string{"to": "/data/back"}, saved)
		Expect(err).NotTo(HaveOccurred())
		out, err := cluster.Exec(ctx, stranger, "app", "app", "cat /data/back/data/file")
		Expect(err).NotTo(HaveOccurred())
		Expect(strings.TrimSpace(out)).To(Equal("kept"))
	}, SpecTimeout(short))

	It("leads nobody to a maintenance pod", func(ctx SpecContext) {
		// One that waits to be called, which ours do not.
		pod := trial(names.ControlPlaneNamespace, func(p *corev1.PodSpec) {
			p.Containers[0].Command = []string{"httpd", "-f", "-p", fmt.Sprint(otherPort)}
		})
		pod.Name, pod.Labels = "e2e-network", nil
		DeferCleanup(func(ctx SpecContext) {
			_, err := cluster.Kubectl(ctx, "delete", "pod", "-n", pod.Namespace, pod.Name, "--ignore-not-found", "--wait", "--now")
			Expect(err).NotTo(HaveOccurred())
		}, NodeTimeout(short))
		Expect(cluster.Create(ctx, pod)).To(Succeed())
		_, err := cluster.Kubectl(ctx, "wait", "--for=condition=Ready", "pod/"+pod.Name, "-n", pod.Namespace, "--timeout=3m")
		Expect(err).NotTo(HaveOccurred())
		Expect(cluster.Get(ctx, client.ObjectKeyFromObject(pod), pod)).To(Succeed())
		for _, namespace := range []string{guest, stranger} {
			eventually(ctx, namespace, "app", at(*pod, otherPort), reached)
		}
		_, err = cluster.Kubectl(ctx, "label", "pod", "-n", pod.Namespace, pod.Name,
			names.ManagedByLabel+"="+names.ManagedByValue, names.ComponentLabel+"=repository-maintenance")
		Expect(err).NotTo(HaveOccurred())
		for _, namespace := range []string{guest, stranger} {
			eventually(ctx, namespace, "app", at(*pod, otherPort), dropped)
		}
	}, SpecTimeout(short))

	It("tells a namespace that denies everything what to allow, and works with the sample", func(ctx SpecContext) {
		storage := at(s3, 9000)
		Expect(tried(ctx, guest, "app", storage)).To(HaveKeyWithValue(storage, reached))
		Expect(cluster.Create(ctx, &networkingv1.NetworkPolicy{
			ObjectMeta: metav1.ObjectMeta{Namespace: guest, Name: "deny"},
			Spec:       networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}},
		})).To(Succeed())
		eventually(ctx, guest, "app", storage, dropped)
		_, err := save(ctx)
		Expect(err).To(MatchError(And(
			ContainSubstring("connect to repository server"), ContainSubstring("the namespace needs egress to "),
			ContainSubstring(".kanister-kopia.svc:51515 and to DNS"), ContainSubstring(sampleEgress),
		)))

		_, err = cluster.Kubectl(ctx, "apply", "-n", guest, "-f", filepath.Join(cluster.Root, sampleEgress))
		Expect(err).NotTo(HaveOccurred())
		eventually(ctx, guest, "app", at(server, names.RepositoryPort), reached)
		saved, err := save(ctx)
		Expect(err).NotTo(HaveOccurred())
		_, err = files(ctx, "restore", guest, networkProfile, map[string]string{"to": "/data/back"}, saved)
		Expect(err).NotTo(HaveOccurred())
		Expect(tried(ctx, guest, "app", storage)).To(HaveKeyWithValue(storage, dropped), "the sample allows no more")
	}, SpecTimeout(short))
})

// sampleEgress is the policy that an agent asks for.
const sampleEgress = "manifests/samples/network/egress.yaml"

// at is an address of a pod, as nc wants it.
func at(pod corev1.Pod, port int) string { return fmt.Sprint(pod.Status.PodIP, " ", port) }

// tried is what becomes of connections from a pod to addresses.
func tried(ctx context.Context, namespace, pod string, addresses ...string) map[string]string {
	GinkgoHelper()
	out, err := cluster.Exec(ctx, namespace, pod, "app", `try() {
			said=$(nc -w 2 $1 -e true 2>&1) && said=`+reached+`
			case $said in *"timed out") said=`+dropped+`;; *"Connection refused") said=`+refused+`;; esac
			echo "$1=$said"
		}
		for a in "`+strings.Join(addresses, `" "`)+`"; do try "$a" & done; wait`)
	Expect(err).NotTo(HaveOccurred())
	fates := map[string]string{}
	for line := range strings.Lines(out) {
		address, fate, _ := strings.Cut(strings.TrimSpace(line), "=")
		fates[address] = fate
	}
	Expect(slices.Sorted(maps.Keys(fates))).To(Equal(slices.Sorted(slices.Values(addresses))), out)
	return fates
}

// eventually waits until what has changed is in force.
func eventually(ctx context.Context, namespace, pod, address, fate string) {
	GinkgoHelper()
	Eventually(func() map[string]string { return tried(ctx, namespace, pod, address) }).
		WithContext(ctx).WithTimeout(time.Minute).Should(HaveKeyWithValue(address, fate), "from "+namespace)
}
