// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"path/filepath"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

// StartAPIServer starts a real API server and etcd with the CRDs of manifests/.
func StartAPIServer(t testing.TB) *rest.Config {
	t.Helper()
	env := &envtest.Environment{
		BinaryAssetsDirectory:    filepath.Join(Root(t), "build", "envtest"),
		CRDDirectoryPaths:        []string{filepath.Join(Root(t), "manifests", "crds")},
		ErrorIfCRDPathMissing:    true,
		ControlPlaneStartTimeout: 2 * time.Minute,
		ControlPlaneStopTimeout:  time.Minute,
	}
	config, err := env.Start()
	must(t, err)
	t.Cleanup(func() {
		if err := env.Stop(); err != nil {
			t.Log("stop API server:", err)
		}
	})
	return config
}
