// SPDX-License-Identifier: Apache-2.0

// Package agentconn reaches the agent API inside a pod. The API listens on
// 127.0.0.1 of the pod, so the way there is the API server's pods/portforward;
// no port of the pod network is used and RBAC decides who may.
//
// The agent makes its own key and prints the key's hash; the hash is read with
// pods/log, which only the agent's own container can write to, and pinned before
// anything is sent (see agent/client). The agent in turn asks for the
// controller's certificate.
package agentconn
