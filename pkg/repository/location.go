// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"cmp"
	"net/url"
	"path"
	"slices"
	"strings"

	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
)

// location is where a repository's blobs are: a place (bucket, container, claim)
// and a folder of it.
type location struct {
	place  []string
	prefix string
}

// locationOf is the location of a storage; an external server's has no place.
func locationOf(s kopiav1alpha1.Storage) location {
	switch {
	case s.S3 != nil:
		return location{[]string{"s3", s.S3.Bucket, serviceOf(s.S3.Endpoint)}, s.S3.Prefix}
	case s.GCS != nil:
		return location{[]string{"gcs", s.GCS.Bucket}, s.GCS.Prefix}
	case s.Azure != nil:
		return location{[]string{"azure", cmp.Or(s.Azure.Domain, azureDomains[""]), s.Azure.Account, s.Azure.Container}, s.Azure.Prefix}
	case s.Filesystem != nil:
		return location{[]string{"filesystem", s.Filesystem.Claim}, strings.TrimLeft(path.Join("/", s.Filesystem.Path)+"/", "/")}
	}
	return location{}
}

// serviceOf is the S3 service behind an endpoint. All of Amazon's lead to the same
// buckets, whatever their region; a name there is one bucket's.
func serviceOf(endpoint string) string {
	normal, err := normalEndpoint(endpoint) // a hand-written one need not be
	if err != nil {
		return endpoint
	}
	u, err := url.Parse("//" + strings.TrimPrefix(normal, "http://"))
	if err == nil && strings.HasSuffix(u.Hostname(), ".amazonaws.com") {
		return ""
	}
	return normal
}

// samePlace says that two storages are in one bucket, container or claim.
func (l location) samePlace(other location) bool { return slices.Equal(l.place, other.place) }

// overlaps says that two repositories would see each other's blobs: one folder is
// the other, or within it.
func (l location) overlaps(other location) bool {
	return len(l.place) > 0 && l.samePlace(other) &&
		(strings.HasPrefix(l.prefix, other.prefix) || strings.HasPrefix(other.prefix, l.prefix))
}

// sameRepository says that two RepositoryServers are of one tenant, key and location. Their
// names differ where the storage's endpoint was changed in one: names are made of the first.
func sameRepository(a, b *kopiav1alpha1.RepositoryServer) bool {
	at, other := locationOf(a.Spec.Storage), locationOf(b.Spec.Storage)
	return a.Spec.Tenant != nil && tenantOf(a) == tenantOf(b) && a.Spec.KeyID == b.Spec.KeyID &&
		len(at.place) > 0 && at.samePlace(other) && at.prefix == other.prefix
}

// takenBy is the older RepositoryServer at the same location, "" if there is none.
// Of two of the same second the first by name counts as the older.
func takenBy(rs *kopiav1alpha1.RepositoryServer, all []kopiav1alpha1.RepositoryServer) string {
	mine := locationOf(rs.Spec.Storage)
	for i := range all {
		other := &all[i]
		if other.Name == rs.Name || !mine.overlaps(locationOf(other.Spec.Storage)) {
			continue
		}
		age := other.CreationTimestamp.Compare(rs.CreationTimestamp.Time)
		if age < 0 || age == 0 && other.Name < rs.Name {
			return other.Name
		}
	}
	return ""
}
