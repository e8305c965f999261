// SPDX-License-Identifier: Apache-2.0

package function

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kanister-kopia/kanister-kopia/pkg/mover"
)

// Companion is what the functions work with that Blueprints mix with the data
// functions. They need a role of their own, which an admin binds per namespace.
type Companion struct {
	// Client reads and watches without a cache.
	Client client.WithWatch
	Kube   kubernetes.Interface
	Config *rest.Config
	// Movers tells which user a claim's workload is.
	Movers *mover.Movers
	// Namespace of temporary pods that name none: the controller's.
	Namespace  string
	PullPolicy corev1.PullPolicy
	// ToolsImage is Kanister's KANISTER_TOOLS, for commands that look for it in their
	// environment; "" for none.
	ToolsImage string
}

// Functions are the companions.
func (c *Companion) Functions() []Func {
	return []Func{
		&kubeExec{c}, &kubeExecAll{c}, &kubeTask{c}, &multiContainerRun{c}, &prepareData{c},
		&scaleWorkload{c}, &kubeOps{c}, &wait{c}, &waitV2{wait{c}},
	}
}
