// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

func TestNextLook(t *testing.T) {
	for _, c := range []struct {
		idle          int64
		timeout, want time.Duration
	}{
		{0, 5 * time.Minute, time.Minute},
		{290, 5 * time.Minute, 10 * time.Second},
		{300, 5 * time.Minute, leastPause}, // somebody here has it open
		{0, 20 * time.Second, 20 * time.Second},
		{1000, 0, time.Minute},
	} {
		if got := nextLook(api.Activity{IdleSeconds: c.idle}, c.timeout); got != c.want {
			t.Errorf("idle for %d s of %s: looks after %s, want %s", c.idle, c.timeout, got, c.want)
		}
	}
}

// Repositories that would see each other's blobs are refused, the younger one of two.
func TestLocations(t *testing.T) {
	s3 := func(bucket, endpoint, prefix string) kopiav1alpha1.Storage {
		return kopiav1alpha1.Storage{S3: &kopiav1alpha1.S3Storage{Bucket: bucket, Endpoint: endpoint, Prefix: prefix}}
	}
	claim := func(name, path string) kopiav1alpha1.Storage {
		return kopiav1alpha1.Storage{Filesystem: &kopiav1alpha1.FilesystemStorage{Claim: name, Path: path}}
	}
	azure := func(account, domain, container string) kopiav1alpha1.Storage {
		return kopiav1alpha1.Storage{Azure: &kopiav1alpha1.AzureStorage{Account: account, Domain: domain, Container: container, Prefix: "p/"}}
	}
	for name, c := range map[string]struct {
		a, b kopiav1alpha1.Storage
		want bool
	}{
		"the same":             {s3("b", "", "p/"), s3("b", "", "p/"), true},
		"written otherwise":    {s3("b", "https://S3.example.com/", "p/"), s3("b", "s3.example.com", "p/"), true},
		"within":               {s3("b", "", "p/"), s3("b", "", "p/q/"), true},
		"around":               {s3("b", "", "p/q/"), s3("b", "", "p/"), true},
		"beside":               {s3("b", "", "p/"), s3("b", "", "pq/"), false},
		"another bucket":       {s3("b", "", "p/"), s3("c", "", "p/"), false},
		"another endpoint":     {s3("b", "", "p/"), s3("b", "elsewhere", "p/"), false},
		"Amazon's by name":     {s3("b", "", "p/"), s3("b", "https://s3.amazonaws.com", "p/"), true},
		"Amazon's by region":   {s3("b", "s3.amazonaws.com", "p/"), s3("b", "http://s3.dualstack.eu-west-1.amazonaws.com:80", "p/"), true},
		"not Amazon's":         {s3("b", "", "p/"), s3("b", "notamazonaws.com", "p/"), false},
		"in China":             {s3("b", "", "p/"), s3("b", "s3.cn-north-1.amazonaws.com.cn", "p/"), false},
		"the usual port":       {s3("b", "minio", "p/"), s3("b", "https://minio:443/", "p/"), true},
		"the usual plain port": {s3("b", "http://minio", "p/"), s3("b", "http://minio:80", "p/"), true},
		"another port":         {s3("b", "minio", "p/"), s3("b", "minio:9000", "p/"), false},
		"one container":        {azure("x", "", "c"), azure("x", "blob.core.windows.net", "c"), true},
		"another account":      {azure("x", "", "c"), azure("y", "", "c"), false},
		"another cloud":        {azure("x", "", "c"), azure("x", "blob.core.chinacloudapi.cn", "c"), false},
		"another kind":         {s3("b", "", "p/"), kopiav1alpha1.Storage{GCS: &kopiav1alpha1.GCSStorage{Bucket: "b", Prefix: "p/"}}, false},
		"one claim":            {claim("c", ""), claim("c", "a/b"), true},
		"one claim, two paths": {claim("c", "/a/"), claim("c", "b"), false},
		"external servers":     {kopiav1alpha1.Storage{}, kopiav1alpha1.Storage{}, false},
	} {
		if got := locationOf(c.a).overlaps(locationOf(c.b)); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
		older := kopiav1alpha1.RepositoryServer{ObjectMeta: metav1.ObjectMeta{Name: "z", CreationTimestamp: *at(-time.Hour)}, Spec: kopiav1alpha1.RepositoryServerSpec{Storage: c.a}}
		younger := kopiav1alpha1.RepositoryServer{ObjectMeta: metav1.ObjectMeta{Name: "a", CreationTimestamp: *at(0)}, Spec: kopiav1alpha1.RepositoryServerSpec{Storage: c.b}}
		all := []kopiav1alpha1.RepositoryServer{younger, older}
		if got := takenBy(&younger, all); (got == "z") != c.want {
			t.Errorf("%s: the younger one is told %q", name, got)
		}
		if got := takenBy(&older, all); got != "" {
			t.Errorf("%s: the older one is told %q", name, got)
		}
	}
	// A repository of one key is never within that of another.
	one, two := storage(t, profile(), tenant, DefaultKeyID), storage(t, profile(), tenant, "pkey")
	if locationOf(one).overlaps(locationOf(two)) {
		t.Errorf("%s and %s overlap", one.S3.Prefix, two.S3.Prefix)
	}
}

// That deletions wait is said no longer than any of them can.
func TestDeletionsReleased(t *testing.T) {
	c := clocktesting.NewFakePassiveClock(noon.Add(10 * time.Minute))
	r := &Reconciler{Clock: c}
	rs := &kopiav1alpha1.RepositoryServer{Status: kopiav1alpha1.RepositoryServerStatus{Deletions: &kopiav1alpha1.Deletions{Since: metav1.NewTime(noon), Count: 2}}}
	if again := r.released(rs); again != 0 || len(rs.Status.Conditions) != 0 {
		t.Errorf("where none was held: again in %s, %+v", again, rs.Status.Conditions)
	}
	r.condition(rs, kopiav1alpha1.ConditionDeletionsHeld, true, "LimitReached", "they wait")
	if again := r.released(rs); again != 50*time.Minute || !meta.IsStatusConditionTrue(rs.Status.Conditions, kopiav1alpha1.ConditionDeletionsHeld) {
		t.Errorf("within the hour: again in %s, %+v", again, rs.Status.Conditions)
	}
	c.SetTime(noon.Add(deletionWindow))
	if again := r.released(rs); again != 0 || !meta.IsStatusConditionFalse(rs.Status.Conditions, kopiav1alpha1.ConditionDeletionsHeld) {
		t.Errorf("after it: again in %s, %+v", again, rs.Status.Conditions)
	}
}

func TestDeletionLimit(t *testing.T) {
	limit, none := int32(2), int32(0)
	rs := &kopiav1alpha1.RepositoryServer{Spec: kopiav1alpha1.RepositoryServerSpec{DeletionLimit: &limit}}
	now := noon
	try := func() time.Duration {
		next, wait := judgeDeletion(rs, now)
		if wait == 0 {
			rs.Status.Deletions = &next
		}
		return wait
	}
	for range limit {
		if wait := try(); wait != 0 {
			t.Fatalf("held within the limit for %s", wait)
		}
		now = now.Add(10 * time.Minute)
	}
	if wait := try(); wait != 40*time.Minute {
		t.Errorf("the third within the hour waits %s", wait)
	}
	rs.Annotations = map[string]string{names.DeletionsAllowedAnnotation: "yes"}
	if try() == 0 {
		t.Error("an acknowledgement that is no time counts")
	}
	rs.Annotations[names.DeletionsAllowedAnnotation] = now.Add(-time.Second).Format(time.RFC3339)
	if try() == 0 {
		t.Error("an acknowledgement of the past counts")
	}
	rs.Annotations[names.DeletionsAllowedAnnotation] = now.Add(time.Minute).Format(time.RFC3339)
	if wait := try(); wait != 0 {
		t.Errorf("held for %s though it is acknowledged", wait)
	}
	rs.Annotations = nil
	now = noon.Add(deletionWindow)
	if wait := try(); wait != 0 || rs.Status.Deletions.Count != 1 {
		t.Errorf("the next hour: waits %s, counts %d", wait, rs.Status.Deletions.Count)
	}
	rs.Spec.DeletionLimit = &none
	for range 10 {
		if wait := try(); wait != 0 {
			t.Errorf("held for %s without a limit", wait)
		}
	}
}
