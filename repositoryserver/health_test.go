// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"
)

// Who asks early is told in the moment in which the repository is served, and is not kept
// longer than a probe waits.
func TestReadiness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReadiness()
		ask := func() (status int, took time.Duration) {
			began, w := time.Now(), httptest.NewRecorder()
			r.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/readyz", nil))
			return w.Code, time.Since(began)
		}
		if status, took := ask(); status != 503 || took >= 5*time.Second {
			t.Errorf("not opened yet: %d after %s; the kubelet waits for 5 s", status, took)
		}
		time.AfterFunc(1300*time.Millisecond, r.begin)
		if status, took := ask(); status != 200 || took != 1300*time.Millisecond {
			t.Errorf("opened after 1.3 s: %d after %s", status, took)
		}
		if status, took := ask(); status != 200 || took != 0 {
			t.Errorf("open: %d after %s", status, took)
		}
		r.end()
		if status, took := ask(); status != 503 || took != 0 {
			t.Errorf("closed: %d after %s", status, took)
		}
	})
}
