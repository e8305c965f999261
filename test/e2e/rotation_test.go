// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kanister-kopia/kanister-kopia/pkg/agentconn"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/pkg/repository"
)

// rotated is the namespace of this spec.
const rotated = "e2e-rotation"

// probeCertificate is like the controller's own, from whatever CA the issuer has now.
const probeCertificate = `
apiVersion: cert-manager.io/v1
kind: Certificate
metadata: {name: e2e-rotation, namespace: kanister-kopia}
spec:
  secretName: e2e-rotation
  dnsNames: [` + names.ControllerDNSName + `]
  usages: [client auth]
  privateKey: {algorithm: ECDSA, size: 256}
  issuerRef: {name: kanister-kopia, kind: Issuer}
`

// What docs/security.md tells an administrator to do, step by step. The kubelet is asked
// to look at the pods' volumes at once: by itself it does so within two minutes.
var _ = Describe("the control plane's CA exchanged under running pods", Ordered, func() {
	app := &application{namespace: rotated}
	var old *tls.Certificate
	var uid, restarts string

	secret := func(ctx context.Context, name string) (*corev1.Secret, error) {
		var s corev1.Secret
		err := cluster.Get(ctx, client.ObjectKey{Namespace: names.ControlPlaneNamespace, Name: name}, &s)
		return &s, err
	}
	// renew has cert-manager make a Secret's certificate anew.
	renew := func(ctx context.Context, name string) {
		GinkgoHelper()
		before, err := secret(ctx, name)
		Expect(err).NotTo(HaveOccurred())
		_, err = cluster.Kubectl(ctx, "delete", "secret", "-n", names.ControlPlaneNamespace, name)
		Expect(err).NotTo(HaveOccurred())
		Eventually(func(g Gomega) {
			now, err := secret(ctx, name)
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(now.Data[corev1.TLSCertKey]).NotTo(Or(BeEmpty(), Equal(before.Data[corev1.TLSCertKey])))
		}).WithContext(ctx).WithTimeout(short).Should(Succeed(), name)
	}
	certificate := func(ctx context.Context, name string) *tls.Certificate {
		GinkgoHelper()
		s, err := secret(ctx, name)
		Expect(err).NotTo(HaveOccurred())
		c, err := tls.X509KeyPair(s.Data[corev1.TLSCertKey], s.Data[corev1.TLSPrivateKeyKey])
		Expect(err).NotTo(HaveOccurred())
		return &c
	}
	// look has the kubelet look at the volumes of all that has certificates.
	looks := 0
	look := func(ctx context.Context) {
		GinkgoHelper()
		looks++
		note := fmt.Sprintf("e2e/look=%d", looks)
		for _, args := range [][]string{{"-n", rotated, "--all"}, {"-n", names.ControlPlaneNamespace, "--all"}} {
			_, err := cluster.Kubectl(ctx, append([]string{"annotate", "pod", "--overwrite", note}, args...)...)
			Expect(err).NotTo(HaveOccurred())
		}
	}
	published := func(ctx context.Context) (int, error) {
		var m corev1.ConfigMap
		err := cluster.Get(ctx, client.ObjectKey{Namespace: rotated, Name: names.CAConfigMap}, &m)
		return strings.Count(m.Data[names.CAKey], "BEGIN CERTIFICATE"), err
	}
	// publishes waits until so many CAs are published.
	publishes := func(ctx context.Context, n int) {
		GinkgoHelper()
		look(ctx)
		Eventually(published).WithContext(ctx).WithTimeout(short).WithPolling(time.Second).Should(Equal(n))
		look(ctx)
	}
	// agents are those that run: the application's and the repository server's.
	agents := func(ctx context.Context) map[client.ObjectKey]string {
		GinkgoHelper()
		all := map[client.ObjectKey]string{{Namespace: rotated, Name: "app"}: names.AgentContainer}
		servers := serversOf(ctx, app)
		Expect(servers).To(HaveLen(1))
		for _, pod := range podsOf(ctx, names.ControlPlaneNamespace, names.RepositoryLabel, servers[0].Name) {
			if pod.DeletionTimestamp == nil && pod.Labels[names.ComponentLabel] == "repository-server" {
				all[client.ObjectKeyFromObject(&pod)] = repository.Container
			}
		}
		return all
	}
	// asks connects to an agent with a certificate.
	asks := func(ctx context.Context, with *tls.Certificate, pod client.ObjectKey, container string) error {
		GinkgoHelper()
		c, err := agentconn.New(cluster.Config, func() (*tls.Certificate, error) { return with, nil })
		Expect(err).NotTo(HaveOccurred())
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		agent, err := c.Connect(ctx, pod.Namespace, pod.Name, container)
		if err == nil {
			agent.Close()
		}
		return err
	}
	lifeOf := func(ctx context.Context) (string, string) {
		GinkgoHelper()
		var pod corev1.Pod
		Expect(cluster.Get(ctx, client.ObjectKey{Namespace: rotated, Name: "app"}, &pod)).To(Succeed())
		restarts := 0
		for _, s := range append(pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses...) {
			restarts += int(s.RestartCount)
		}
		return string(pod.UID), fmt.Sprint(restarts)
	}

	BeforeAll(func(ctx SpecContext) {
		keys, err := cluster.StartS3(ctx)
		Expect(err).NotTo(HaveOccurred())
		Expect(cluster.PutProfile(ctx, trialProfile, keys, trialProfile)).To(Succeed())
		Expect(cluster.Blueprint(ctx, filesBlueprint)).To(Succeed())
		app.start(ctx, nil)
		Expect(app.backup(ctx)).To(Succeed())
		old = certificate(ctx, "controller-client-tls")
		uid, restarts = lifeOf(ctx)
		DeferCleanup(func(ctx SpecContext) {
			Expect(cluster.DeleteNamespace(ctx, rotated)).To(Succeed())
			_, err := cluster.Kubectl(ctx, "delete", "certificate,secret", "-n", names.ControlPlaneNamespace, "e2e-rotation", "--ignore-not-found")
			Expect(err).NotTo(HaveOccurred())
		}, NodeTimeout(short))
	}, NodeTimeout(long))

	It("is trusted beside the old one before anything comes from it", func(ctx SpecContext) {
		renew(ctx, "kanister-kopia-ca")
		publishes(ctx, 2)
		_, err := cluster.KubectlWithInput(ctx, probeCertificate, "apply", "-f", "-")
		Expect(err).NotTo(HaveOccurred())
		Eventually(func() error { _, err := secret(ctx, "e2e-rotation"); return err }).WithContext(ctx).WithTimeout(short).Should(Succeed())
		next := certificate(ctx, "e2e-rotation")
		for pod, container := range agents(ctx) {
			Eventually(func() error { return asks(ctx, next, pod, container) }).WithContext(ctx).WithTimeout(short).Should(Succeed(), "the next CA, in %s", pod)
			Eventually(func() error { return asks(ctx, old, pod, container) }).WithContext(ctx).WithTimeout(short).Should(Succeed(), "the old CA, in %s", pod)
		}
		Expect(app.backup(ctx)).To(Succeed())
	}, SpecTimeout(long))

	It("has the servers' certificates made anew while a backup runs", func(ctx SpecContext) {
		_, err := cluster.Exec(ctx, rotated, "app", "app", "mkdir -p /data/tree && head -c 200000000 /dev/urandom > /data/tree/large")
		Expect(err).NotTo(HaveOccurred())
		done := make(chan error, 1)
		go func() {
			defer GinkgoRecover()
			done <- app.backup(ctx)
		}()
		for _, rs := range serversOf(ctx, app) {
			renew(ctx, rs.Name+"-tls")
		}
		look(ctx)
		Eventually(done).WithContext(ctx).WithTimeout(short).Should(Receive(Succeed()))
		Expect(app.backup(ctx)).To(Succeed())
	}, SpecTimeout(long))

	It("is the only one when the controller's certificate comes from it", func(ctx SpecContext) {
		renew(ctx, "webhook-tls")
		renew(ctx, "controller-webhook-tls")
		renew(ctx, "controller-client-tls")
		publishes(ctx, 1)
		next := certificate(ctx, "controller-client-tls")
		for pod, container := range agents(ctx) {
			Eventually(func() error { return asks(ctx, old, pod, container) }).WithContext(ctx).WithTimeout(short).
				Should(MatchError(ContainSubstring("unknown certificate authority")), "the old CA, in %s", pod)
			Eventually(func() error { return asks(ctx, next, pod, container) }).WithContext(ctx).WithTimeout(short).Should(Succeed(), "the new CA, in %s", pod)
		}
		Expect(app.backup(ctx)).To(Succeed())
		backup := app.kept[len(app.kept)-1]
		_, err := files(ctx, "restore", rotated, trialProfile, map[string]string{"to": "/data/back"}, backup.set)
		Expect(err).NotTo(HaveOccurred())
		Expect(listing(ctx, rotated, "app", "/data/back/data/tree")).To(Equal(backup.tree))
		first := app.kept[0]
		_, err = files(ctx, "restore", rotated, trialProfile, map[string]string{"to": "/data/first"}, first.set)
		Expect(err).NotTo(HaveOccurred())
		Expect(listing(ctx, rotated, "app", "/data/first/data/tree")).To(Equal(first.tree))
	}, SpecTimeout(long))

	It("restarts no pod of an application, and pods still get agents", func(ctx SpecContext) {
		id, count := lifeOf(ctx)
		Expect(id).To(Equal(uid))
		Expect(count).To(Equal(restarts))
		Eventually(func(g Gomega) {
			pod := filesPod(rotated, "another", labelled)
			g.Expect(cluster.Create(ctx, pod, client.DryRunAll)).To(Succeed())
			g.Expect(hasAgent(pod)).To(BeTrue())
		}).WithContext(ctx).WithTimeout(short).WithPolling(time.Second).Should(Succeed())
	}, SpecTimeout(short))
})
