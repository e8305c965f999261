// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"testing"
	"time"

	certmanagerv1 "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// The certificate is for the name that agents dial, of the issuer that the spec names.
func TestCertificate(t *testing.T) {
	for name, c := range map[string]struct {
		tls  *kopiav1alpha1.TLS
		want cmmeta.IssuerReference
	}{
		"nothing said": {nil, cmmeta.IssuerReference{Name: "kanister-kopia", Kind: "Issuer"}},
		"an issuer": {
			&kopiav1alpha1.TLS{Issuer: &kopiav1alpha1.Issuer{Name: "theirs", Kind: "ClusterIssuer", Group: "example.com"}},
			cmmeta.IssuerReference{Name: "theirs", Kind: "ClusterIssuer", Group: "example.com"},
		},
	} {
		rs := &kopiav1alpha1.RepositoryServer{
			ObjectMeta: metav1.ObjectMeta{Namespace: "control", Name: "shop-x"}, Spec: kopiav1alpha1.RepositoryServerSpec{TLS: c.tls},
		}
		cert := buildCertificate(rs, "kanister-kopia")
		if diff := cmp.Diff(c.want, cert.Spec.IssuerRef); diff != "" {
			t.Errorf("%s: issuer:\n%s", name, diff)
		}
		if diff := cmp.Diff([]string{"shop-x.control.svc", "shop-x.control.svc.cluster.local"}, cert.Spec.DNSNames); diff != "" || serverURL(rs) != "https://shop-x.control.svc:51515" {
			t.Errorf("%s: agents dial %s; names:\n%s", name, serverURL(rs), diff)
		}
		if diff := cmp.Diff([]certmanagerv1.KeyUsage{certmanagerv1.UsageServerAuth}, cert.Spec.Usages); diff != "" {
			t.Errorf("%s: usages:\n%s", name, diff)
		}
		if d, r := cert.Spec.Duration.Duration, cert.Spec.RenewBefore.Duration; d != 30*24*time.Hour || r != 10*24*time.Hour {
			t.Errorf("%s: valid for %s, renewed %s before the end", name, d, r)
		}
		// The pod mounts what cert-manager writes.
		mounted := ""
		for _, v := range buildDeployment(rs, Image{}, "r", 1).Spec.Template.Spec.Volumes {
			if v.Name == "tls" {
				mounted = v.Secret.SecretName
			}
		}
		if cert.Spec.SecretName != "shop-x-tls" || mounted != cert.Spec.SecretName {
			t.Errorf("%s: written into %s, mounted from %s", name, cert.Spec.SecretName, mounted)
		}
	}
}

// A server that runs has the certificate that it was started with, whatever its spec says
// by now, and agents trust that one's CA.
func TestCAOfRunningServer(t *testing.T) {
	plane, first, second := testenv.NewCA(t).PEM, testenv.NewCA(t).PEM, testenv.NewCA(t).PEM
	secret := func(name string, ca []byte) *corev1.Secret {
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "control", Name: name}, Data: map[string][]byte{names.CAKey: ca}}
	}
	own := func(name string) *kopiav1alpha1.TLS { return &kopiav1alpha1.TLS{Secret: name} }
	for name, c := range map[string]struct {
		started, now *kopiav1alpha1.TLS
		want         string
	}{
		"another Secret":   {own("first"), own("second"), string(first)},
		"ours no more":     {nil, own("second"), string(plane)},
		"ours from now on": {own("first"), nil, string(first)},
		"the same":         {own("second"), own("second"), string(second)},
	} {
		rs := &kopiav1alpha1.RepositoryServer{ObjectMeta: metav1.ObjectMeta{Namespace: "control", Name: "shop-x"}}
		rs.Spec.TLS, rs.Status.Revision = c.started, "r"
		template := buildDeployment(rs, Image{}, "r", 1).Spec.Template
		pod := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
		pod.Namespace, pod.Name = "control", "shop-x-1"
		pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		rs.Spec.TLS = c.now
		m := &Manager{
			Client: clusterOf(t, pod, secret("first", first), secret("second", second), secret("shop-x-tls", plane)), Namespace: "control",
			CA: func() ([]byte, error) { return plane, nil },
		}
		if got, err := m.caOf(t.Context(), rs); got != c.want || err != nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// Agents trust the CA that a server's certificate comes from also where the control
// plane's is another one already, or still.
func TestCAOfServer(t *testing.T) {
	plane, older := testenv.NewCA(t).PEM, testenv.NewCA(t).PEM
	secret := func(name string, ca []byte) *corev1.Secret {
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "control", Name: name}, Data: map[string][]byte{names.CAKey: ca}}
	}
	for name, c := range map[string]struct {
		tls     *kopiav1alpha1.TLS
		secrets []client.Object
		want    string // "": an error
	}{
		"not issued yet":       {nil, nil, string(plane)},
		"of the same CA":       {nil, []client.Object{secret("shop-x-tls", plane)}, string(plane)},
		"of an older one":      {nil, []client.Object{secret("shop-x-tls", older)}, string(plane) + string(older)},
		"somebody's own":       {&kopiav1alpha1.TLS{Secret: "own"}, []client.Object{secret("own", older)}, string(older)},
		"somebody's, not here": {&kopiav1alpha1.TLS{Secret: "own"}, nil, ""},
	} {
		rs := &kopiav1alpha1.RepositoryServer{
			ObjectMeta: metav1.ObjectMeta{Namespace: "control", Name: "shop-x"}, Spec: kopiav1alpha1.RepositoryServerSpec{TLS: c.tls},
		}
		m := &Manager{
			Client: fake.NewClientBuilder().WithObjects(c.secrets...).Build(), Namespace: "control",
			CA: func() ([]byte, error) { return plane, nil },
		}
		if got, err := m.caOf(t.Context(), rs); got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestCertificateIsReady(t *testing.T) {
	condition := func(kind certmanagerv1.CertificateConditionType, status cmmeta.ConditionStatus, message string) certmanagerv1.CertificateCondition {
		return certmanagerv1.CertificateCondition{Type: kind, Status: status, Message: message}
	}
	issuing := condition(certmanagerv1.CertificateConditionIssuing, cmmeta.ConditionTrue, "renewing")
	for name, c := range map[string]struct {
		conditions []certmanagerv1.CertificateCondition
		ready      bool
		message    string
	}{
		"not seen":         {nil, false, "cert-manager has not answered yet: look at the Certificate of this name if it does not soon"},
		"first one":        {[]certmanagerv1.CertificateCondition{issuing}, false, "cert-manager has not answered yet: look at the Certificate of this name if it does not soon"},
		"no such issuer":   {[]certmanagerv1.CertificateCondition{condition(certmanagerv1.CertificateConditionReady, cmmeta.ConditionFalse, "no issuer")}, false, "no issuer"},
		"issued, renewing": {[]certmanagerv1.CertificateCondition{issuing, condition(certmanagerv1.CertificateConditionReady, cmmeta.ConditionTrue, "ok")}, true, "ok"},
	} {
		ready, message := certificateReady(&certmanagerv1.Certificate{Status: certmanagerv1.CertificateStatus{Conditions: c.conditions}})
		if ready != c.ready || message != c.message {
			t.Errorf("%s: %t, %q", name, ready, message)
		}
	}
}
