// SPDX-License-Identifier: Apache-2.0

package repository

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// buildService is where agents reach the server.
func buildService(rs *kopiav1alpha1.RepositoryServer) *corev1.Service {
	https := "https"
	return &corev1.Service{
		ObjectMeta: ownedMeta(rs, rs.Name),
		Spec: corev1.ServiceSpec{
			Selector: labels(rs),
			Ports: []corev1.ServicePort{{
				Name:        repositoryPortName,
				Port:        names.RepositoryPort,
				TargetPort:  intstr.FromString(repositoryPortName),
				Protocol:    corev1.ProtocolTCP,
				AppProtocol: &https,
			}},
		},
	}
}

const repositoryPortName = "repository"
