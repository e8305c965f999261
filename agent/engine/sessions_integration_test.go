// SPDX-License-Identifier: Apache-2.0

//go:build integration

package engine

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/repo/object"
	"golang.org/x/sync/errgroup"

	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// Connections of Kopia's protocol that end under those who read beside each other: each
// gets what the repository holds, over others.
func TestIntegrationReadOverBrokenSessions(t *testing.T) {
	theirs := testenv.StartKopiaServer(t, testenv.NewCA(t))
	link := testenv.StartProxy(t, strings.TrimPrefix(theirs.URL, "https://"))
	rep := newSharedRepository(openAt(t, link.Address, theirs))

	const count = 64
	var ids []object.ID
	var manifests []manifest.ID
	var want [][]byte
	_, w, err := rep.NewWriter(t.Context(), repo.WriteSessionOptions{Purpose: "test"})
	must(t, err)
	for i := range count {
		data := make([]byte, 8<<10)
		_, _ = rand.Read(data)
		o := w.NewObjectWriter(t.Context(), object.WriterOptions{})
		_, err := o.Write(data)
		must(t, err)
		id, err := o.Result()
		must(t, err)
		m, err := w.PutManifest(t.Context(), map[string]string{"type": "snapshot", "username": theirs.Username, "hostname": theirs.Hostname, "path": "/data"}, i)
		must(t, err)
		ids, manifests, want = append(ids, id), append(manifests, m), append(want, data)
	}
	must(t, w.Flush(t.Context()))
	must(t, w.Close(t.Context()))

	var reads atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	group := &errgroup.Group{}
	for range 8 {
		group.Go(func() error {
			for i := 0; ctx.Err() == nil; i = (i + 1) % count {
				o, err := rep.OpenObject(t.Context(), ids[i])
				if err != nil {
					return err
				}
				data, err := io.ReadAll(o)
				_ = o.Close()
				if err != nil {
					return err
				}
				if !slices.Equal(data, want[i]) {
					t.Errorf("object %d has other content", i)
				}
				if contents, err := rep.VerifyObject(t.Context(), ids[i]); err != nil || len(contents) != 1 {
					t.Errorf("object %d has contents %v: %v", i, contents, err)
					return err
				}
				var number int
				if _, err := rep.GetManifest(t.Context(), manifests[i], &number); err != nil || number != i {
					t.Errorf("manifest %d holds %d: %v", i, number, err)
					return err
				}
				reads.Add(1)
			}
			return nil
		})
	}
	for range 12 {
		before := reads.Load()
		testenv.Eventually(t, time.Minute, "the readers go on", func() bool { return reads.Load() > before+20 })
		link.Break()
	}
	cancel()
	must(t, group.Wait())
}

// openAt opens a server's repository at an address that leads there.
func openAt(t *testing.T, address string, s *testenv.KopiaServer) repo.Repository {
	t.Helper()
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
	must(t, err)
	seen := sha256.Sum256(conn.ConnectionState().PeerCertificates[0].Raw)
	must(t, conn.Close())
	config, err := json.Marshal(repo.LocalConfig{
		APIServer:     &repo.APIServerInfo{BaseURL: "https://" + address, TrustedServerCertificateFingerprint: hex.EncodeToString(seen[:])},
		Caching:       &content.CachingOptions{},
		ClientOptions: repo.ClientOptions{Hostname: s.Hostname, Username: s.Username},
	})
	must(t, err)
	file := filepath.Join(t.TempDir(), "repository.config")
	must(t, os.WriteFile(file, config, 0o600))
	rep, err := repo.Open(t.Context(), file, s.Password, &repo.Options{DisableRepositoryLog: true})
	must(t, err)
	t.Cleanup(func() { _ = rep.Close(context.Background()) })
	return rep
}
