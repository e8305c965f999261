// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

// StartAPIServer starts a real API server and etcd with the CRDs of manifests/.
func StartAPIServer(t testing.TB) *rest.Config {
	t.Helper()
	return startAPIServer(t, "envtest")
}

// StartOldestAPIServer is StartAPIServer of the oldest Kubernetes that we support.
func StartOldestAPIServer(t testing.TB) *rest.Config {
	t.Helper()
	return startAPIServer(t, "envtest-oldest")
}

// startAPIServer runs the programs in a folder of build/.
func startAPIServer(t testing.TB, folder string) *rest.Config {
	t.Helper()
	asset := func(name string) string {
		path := filepath.Join(Root(t), "build", folder, name)
		if _, err := os.Stat(path); err != nil {
			t.Fatalf("%s is missing: run 'make tools'", path)
		}
		return path
	}
	env := &envtest.Environment{
		CRDDirectoryPaths:     []string{filepath.Join(Root(t), "manifests", "crds")},
		ErrorIfCRDPathMissing: true,
		// Whatever the environment says: no test touches a cluster that it did not make.
		UseExistingCluster:       new(bool),
		ControlPlaneStartTimeout: 2 * time.Minute,
		ControlPlaneStopTimeout:  time.Minute,
	}
	// Each path by itself: envtest prefers $KUBEBUILDER_ASSETS to its BinaryAssetsDirectory.
	env.ControlPlane.GetAPIServer().Path = asset("kube-apiserver")
	env.ControlPlane.Etcd = &envtest.Etcd{Path: asset("etcd")}
	env.ControlPlane.KubectlPath = asset("kubectl")
	// Before the start: a CRD that does not install leaves etcd and API server running.
	t.Cleanup(func() {
		if err := env.Stop(); err != nil {
			t.Log("stop API server:", err)
		}
	})
	config, err := env.Start()
	must(t, err)
	return config
}
