// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"errors"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	agentclient "github.com/kanister-kopia/kanister-kopia/agent/client"
	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
)

// way is how the agent of a server's pod is reached. It is kept: to find it takes several
// ways through the API server. Its connection closes itself when it is idle for a minute.
// In a container that was started again the agent has another key, which the way does not
// trust: whoever is told so forgets it.
type way struct {
	pod   types.UID
	agent *agentclient.Client
}

var errReplaced = errors.New("its pod is being replaced: run the action again")

// agentOf reaches the agent of a server that has come up. errReplaced: none of its pods has.
func (m *Manager) agentOf(ctx context.Context, rs *kopiav1alpha1.RepositoryServer) (*agentclient.Client, error) {
	pod, err := m.podOf(ctx, rs)
	if errors.Is(err, errReplaced) {
		m.forget(rs.Name, nil)
	}
	if err != nil {
		return nil, err
	}
	return m.reach(ctx, rs.Name, pod)
}

// podOf finds the pod of a server that has come up. errReplaced: none has.
func (m *Manager) podOf(ctx context.Context, rs *kopiav1alpha1.RepositoryServer) (*corev1.Pod, error) {
	var pods corev1.PodList
	if err := m.Client.List(ctx, &pods, client.InNamespace(rs.Namespace), client.MatchingLabels(labels(rs))); err != nil {
		return nil, err
	}
	for i := range pods.Items {
		if isUp(&pods.Items[i], rs.Status.Revision) {
			return &pods.Items[i], nil
		}
	}
	return nil, errReplaced
}

// isUp says that a pod of a revision has come up, also while its readiness pauses.
func isUp(pod *corev1.Pod, revision string) bool {
	return judge([]corev1.Pod{*pod}, revision).isUp()
}

func (m *Manager) reach(ctx context.Context, id string, pod *corev1.Pod) (*agentclient.Client, error) {
	m.mu.Lock()
	known, ok := m.ways[id]
	m.mu.Unlock()
	if ok && known.pod == pod.UID {
		return known.agent, nil
	}
	agent, err := m.Agents.Connect(ctx, pod.Namespace, pod.Name, Container)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ways == nil {
		m.ways = map[string]way{}
	}
	m.ways[id] = way{pod.UID, agent}
	return agent, nil
}

// forget has a server's agent found anew; nil: whichever it is.
func (m *Manager) forget(id string, agent *agentclient.Client) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if known, ok := m.ways[id]; ok && (agent == nil || agent == known.agent) {
		known.agent.Close() // whoever asks something meanwhile is answered
		delete(m.ways, id)
	}
}
