// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kanister-kopia/kanister-kopia/agent"
	"github.com/kanister-kopia/kanister-kopia/agent/api"
	agentclient "github.com/kanister-kopia/kanister-kopia/agent/client"
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

// agentAt has every server's agent say what it speaks, and answer as a handler does.
type agentAt struct{ server *httptest.Server }

func startAgent(t *testing.T, handler http.Handler) agentAt {
	mux := http.NewServeMux()
	mux.Handle("/", handler)
	mux.HandleFunc("GET /v1/info", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(api.Info{Protocol: api.ProtocolVersion, OldestProtocol: api.OldestProtocol})
	})
	server := httptest.NewUnstartedServer(mux)
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	return agentAt{server}
}

func (a agentAt) Connect(context.Context, string, string, string) (*agentclient.Client, error) {
	return agentclient.New(agentclient.Options{
		Dial: func(ctx context.Context) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", a.server.Listener.Addr().String())
		},
		Certificate: func() (*tls.Certificate, error) { return &tls.Certificate{}, nil },
		Pin:         agent.SPKIHash(a.server.Certificate()),
	}), nil
}

// What deletes nothing is not counted: what is not there, and what fails because nobody can say
// whether it is.
func TestDeletionsCounted(t *testing.T) {
	ctx := t.Context()
	missing := &api.Problem{Status: 404, Code: api.CodeNotFound, Title: "no backup"}
	there := &api.Result{Records: []api.Record{{BackupID: "b"}}}
	for name, c := range map[string]struct {
		known bool
		find  api.Operation
		want  int32
	}{
		"there":          {false, api.Operation{State: api.StateSucceeded, Result: there}, 1},
		"begun before":   {true, api.Operation{State: api.StateSucceeded, Result: there}, 0},
		"not there":      {false, api.Operation{State: api.StateFailed, Failure: missing}, 0},
		"nobody can say": {false, api.Operation{State: api.StateFailed, Failure: &api.Problem{Code: api.CodeInternal, Title: "the storage does not answer"}}, 0},
	} {
		answer := func(w http.ResponseWriter, status int, what any) {
			w.WriteHeader(status)
			_ = json.NewEncoder(w).Encode(what)
		}
		mux := http.NewServeMux()
		mux.HandleFunc("GET /v1/operations/op", func(w http.ResponseWriter, _ *http.Request) {
			if c.known {
				answer(w, 200, api.Operation{ID: "op", State: api.StateRunning})
			} else {
				answer(w, 404, missing)
			}
		})
		mux.HandleFunc("POST /v1/operations", func(w http.ResponseWriter, r *http.Request) {
			var req api.StartRequest
			_ = json.NewDecoder(r.Body).Decode(&req)
			op := c.find
			if req.Kind == api.KindDelete {
				op = api.Operation{State: api.StateSucceeded, Result: there}
			}
			op.ID, op.Kind = req.ID, req.Kind
			answer(w, 200, op)
		})
		repo := openAt(t, mux)
		_, err := repo.Delete(ctx, "op", api.DeleteRequest{BackupID: "b", Prefix: "p"})
		if fails := name == "nobody can say"; fails != (err != nil) || fails && !strings.Contains(err.Error(), "does not answer") {
			t.Errorf("%s: %v", name, err)
		}
		var now kopiav1alpha1.RepositoryServer
		if err := repo.manager.Client.Get(ctx, client.ObjectKeyFromObject(repo.rs), &now); err != nil {
			t.Fatal(err)
		}
		if got := ptr.Deref(now.Status.Deletions, kopiav1alpha1.Deletions{}).Count; got != c.want {
			t.Errorf("%s: counted %d, want %d", name, got, c.want)
		}
	}
}
