// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"cmp"
	"fmt"
	"time"

	certmanagerv1 "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// Leaves are short and renewed early; the server reloads them without a restart.
const (
	certificateDuration = 30 * 24 * time.Hour
	certificateRenewal  = 10 * 24 * time.Hour
)

// ownSecret is the Secret with a certificate that somebody brings; "": cert-manager does.
func ownSecret(rs *kopiav1alpha1.RepositoryServer) string {
	if rs.Spec.TLS == nil {
		return ""
	}
	return rs.Spec.TLS.Secret
}

// secretPause is how often one that is not there yet is looked for: phases wait for it.
const secretPause = 15 * time.Second

func tlsSecretName(rs *kopiav1alpha1.RepositoryServer) string {
	return cmp.Or(ownSecret(rs), rs.Name+"-tls")
}

// mountedSecret is the Secret with the certificate of a server's pod.
func mountedSecret(pod *corev1.Pod) string {
	for _, v := range pod.Spec.Volumes {
		if v.Name == tlsVolume && v.Secret != nil {
			return v.Secret.SecretName
		}
	}
	return ""
}

const tlsVolume = "tls"

// host is the name that agents dial and verify.
func host(rs *kopiav1alpha1.RepositoryServer) string {
	return fmt.Sprintf("%s.%s.svc", rs.Name, rs.Namespace)
}

func serverURL(rs *kopiav1alpha1.RepositoryServer) string {
	if rs.Spec.External != nil {
		return rs.Spec.External.URL
	}
	return fmt.Sprintf("https://%s:%d", host(rs), names.RepositoryPort)
}

// buildCertificate asks cert-manager for the server's certificate, from the control
// plane's issuer if the spec names none.
func buildCertificate(rs *kopiav1alpha1.RepositoryServer, issuer string) *certmanagerv1.Certificate {
	from := cmmeta.IssuerReference{Name: issuer, Kind: certmanagerv1.IssuerKind}
	if t := rs.Spec.TLS; t != nil && t.Issuer != nil {
		from = cmmeta.IssuerReference{Name: t.Issuer.Name, Kind: t.Issuer.Kind, Group: t.Issuer.Group}
	}
	return &certmanagerv1.Certificate{
		ObjectMeta: ownedMeta(rs, rs.Name),
		Spec: certmanagerv1.CertificateSpec{
			SecretName:  tlsSecretName(rs),
			DNSNames:    []string{host(rs), host(rs) + ".cluster.local"},
			Usages:      []certmanagerv1.KeyUsage{certmanagerv1.UsageServerAuth},
			Duration:    &metav1.Duration{Duration: certificateDuration},
			RenewBefore: &metav1.Duration{Duration: certificateRenewal},
			PrivateKey: &certmanagerv1.CertificatePrivateKey{
				Algorithm:      certmanagerv1.ECDSAKeyAlgorithm,
				Size:           256,
				RotationPolicy: certmanagerv1.RotationPolicyAlways,
			},
			IssuerRef: from,
		},
	}
}
