// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"os"
	"path/filepath"
	"testing"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// Kubeconfig writes a file with which a program reaches the API server as the
// named ServiceAccount ("namespace:name"), with its rights and no more; "": as an admin.
func Kubeconfig(t testing.TB, config *rest.Config, serviceAccount string) string {
	t.Helper()
	user := &api.AuthInfo{ClientCertificateData: config.CertData, ClientKeyData: config.KeyData}
	if serviceAccount != "" {
		user.Impersonate = "system:serviceaccount:" + serviceAccount
	}
	file := filepath.Join(t.TempDir(), "kubeconfig")
	data, err := clientcmd.Write(api.Config{
		Clusters:       map[string]*api.Cluster{"test": {Server: config.Host, CertificateAuthorityData: config.CAData}},
		AuthInfos:      map[string]*api.AuthInfo{"test": user},
		Contexts:       map[string]*api.Context{"test": {Cluster: "test", AuthInfo: "test"}},
		CurrentContext: "test",
	})
	must(t, err)
	must(t, os.WriteFile(file, data, 0o600))
	return file
}
