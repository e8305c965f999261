// SPDX-License-Identifier: Apache-2.0

//go:build e2e

// Package e2e asserts on a real cluster what the demo shows, and what goes wrong
// when it should. It runs on the cluster of `make cluster`, with what `make deploy`
// put there, and touches no other.
package e2e

import (
	"context"
	"crypto/tls"
	"testing"
	"time"

	"github.com/go-logr/logr"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/pkg/agentconn"
	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/test/scenario"
)

func TestE2E(t *testing.T) {
	RegisterFailHandler(Fail)
	log.SetLogger(logr.Discard())
	RunSpecs(t, "kanister-kopia")
}

var cluster *scenario.Cluster

var _ = BeforeSuite(func() {
	var err error
	cluster, err = scenario.Open()
	Expect(err).NotTo(HaveOccurred())
})

// How long a step of the story may take on a busy machine.
const (
	short = 4 * time.Minute
	long  = 10 * time.Minute
)

// killController ends all its replicas at once, without a word to them.
func killController(ctx context.Context) {
	GinkgoHelper()
	_, err := cluster.Kubectl(ctx, "delete", "pod", "-n", names.ControlPlaneNamespace, "--grace-period=0", "--force",
		"-l", "app.kubernetes.io/name=kanister-kopia-controller")
	Expect(err).NotTo(HaveOccurred())
}

// operationsIn are those that the agent in a pod knows of, asked as the controller asks.
func operationsIn(ctx context.Context, namespace, pod string) []api.Operation {
	GinkgoHelper()
	var secret corev1.Secret
	Expect(cluster.Get(ctx, client.ObjectKey{Namespace: names.ControlPlaneNamespace, Name: "controller-client-tls"}, &secret)).To(Succeed())
	shown, err := tls.X509KeyPair(secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey])
	Expect(err).NotTo(HaveOccurred())
	agents, err := agentconn.New(cluster.Config, func() (*tls.Certificate, error) { return &shown, nil })
	Expect(err).NotTo(HaveOccurred())
	agent, err := agents.Connect(ctx, namespace, pod, names.AgentContainer)
	Expect(err).NotTo(HaveOccurred())
	defer agent.Close()
	operations, err := agent.List(ctx)
	Expect(err).NotTo(HaveOccurred())
	return operations
}

// killing kills the controller once, while a phase of that name runs.
func killing(ctx context.Context, phase string, killed *bool) func(*crv1alpha1.ActionSet) {
	return func(as *crv1alpha1.ActionSet) {
		if *killed || as.Status == nil || as.Status.Progress.RunningPhase != phase {
			return
		}
		*killed = true
		killController(ctx)
	}
}
