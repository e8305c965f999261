// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"errors"
	"io"
	"os"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apilabels "k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/yaml"

	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/mover"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// The policies of manifests/ are of our pods: they name labels, which nothing else checks.
func TestNetworkPolicies(t *testing.T) {
	f, err := os.Open("../../manifests/policies/network.yaml")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	policies := map[string]networkingv1.NetworkPolicy{}
	for decoder := yaml.NewYAMLOrJSONDecoder(f, 4096); ; {
		var p networkingv1.NetworkPolicy
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		policies[p.Name] = p
	}
	matches := func(s *metav1.LabelSelector, l map[string]string) bool {
		t.Helper()
		selector, err := metav1.LabelSelectorAsSelector(s)
		if err != nil {
			t.Fatal(err)
		}
		return selector.Matches(apilabels.Set(l))
	}
	rs := &kopiav1alpha1.RepositoryServer{ObjectMeta: metav1.ObjectMeta{Namespace: names.ControlPlaneNamespace, Name: "id"}}
	server := buildDeployment(rs, Image{}, "r", 1).Spec.Template.Labels
	maintenance := buildMaintenancePod(rs, Image{}, modeQuick, "run").Labels
	moverPod, err := mover.Build(mover.Spec{Prefix: "restore-data-", OperationID: "o", Namespace: "shop", Claims: []string{"data"}}, "agent", corev1.PullNever)
	if err != nil {
		t.Fatal(err)
	}

	servers, nobody := policies["repository-servers"], policies["repository-maintenance"]
	for name, p := range policies {
		if p.Namespace != names.ControlPlaneNamespace || !slices.Equal(p.Spec.PolicyTypes, []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}) {
			t.Errorf("policy %s is of namespace %s, types %v", name, p.Namespace, p.Spec.PolicyTypes)
		}
	}
	if !matches(&servers.Spec.PodSelector, server) || matches(&servers.Spec.PodSelector, maintenance) {
		t.Errorf("the servers' policy selects %v", servers.Spec.PodSelector)
	}
	if !matches(&nobody.Spec.PodSelector, maintenance) || matches(&nobody.Spec.PodSelector, server) || len(nobody.Spec.Ingress) > 0 {
		t.Errorf("maintenance's policy selects %v and lets %v in", nobody.Spec.PodSelector, nobody.Spec.Ingress)
	}
	// Who may come: by port, by the labels of his namespace and of his pod.
	admitted := func(port int32, namespace, pod map[string]string) bool {
		for _, rule := range servers.Spec.Ingress {
			if !slices.ContainsFunc(rule.Ports, func(p networkingv1.NetworkPolicyPort) bool { return p.Port.IntVal == port }) {
				continue
			}
			if len(rule.From) == 0 || slices.ContainsFunc(rule.From, func(from networkingv1.NetworkPolicyPeer) bool {
				return from.IPBlock == nil && from.NamespaceSelector != nil && matches(from.NamespaceSelector, namespace) &&
					(from.PodSelector == nil || matches(from.PodSelector, pod))
			}) {
				return true
			}
		}
		return false
	}
	app := map[string]string{"app": "shop"}
	inject := func(switched string) map[string]string { return map[string]string{names.InjectLabel: switched} }
	in := func(mode string) map[string]string { return map[string]string{names.InjectionLabel: mode} }
	for name, c := range map[string]struct {
		port           int32
		namespace, pod map[string]string
		want           bool
	}{
		"a pod with an agent":                        {names.RepositoryPort, in(names.InjectionEnabled), inject("true"), true},
		"one beside it, without":                     {names.RepositoryPort, in(names.InjectionEnabled), app, false},
		"one where all pods have":                    {names.RepositoryPort, in(names.InjectionAll), app, true},
		"one that is to have none there":             {names.RepositoryPort, in(names.InjectionAll), inject("false"), false},
		"a temporary pod of ours, anywhere":          {names.RepositoryPort, nil, moverPod.Labels, true},
		"a pod of another namespace":                 {names.RepositoryPort, nil, inject("true"), false},
		"one of a namespace that says something":     {names.RepositoryPort, in("disabled"), inject("true"), false},
		"Kopia's own server":                         {15516, in(names.InjectionEnabled), inject("true"), false},
		"the agent's API":                            {names.AgentPort, nil, moverPod.Labels, false},
		"who scrapes metrics":                        {names.AgentHealthPort, map[string]string{names.MetricsLabel: "true"}, app, true},
		"who scrapes metrics, at the repository":     {names.RepositoryPort, map[string]string{names.MetricsLabel: "true"}, app, false},
		"a pod with an agent, at the metrics":        {names.AgentHealthPort, in(names.InjectionEnabled), inject("true"), false},
		"a pod of another namespace, at the metrics": {names.AgentHealthPort, nil, app, false},
	} {
		if got := admitted(c.port, c.namespace, c.pod); got != c.want {
			t.Errorf("%s: admitted %t", name, got)
		}
	}
}
