// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repositoryserver

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kopia/kopia/repo"

	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// A server that does not enforce our rules lets nobody in, though all else is there: it ends
// before it needs what it listens with. One that does gets as far as its certificate, which is
// not there.
//
// Not beside other tests: Kopia reads its passwords from this process's environment.
func TestIntegrationProbe(t *testing.T) {
	canaryAlone := func(ctx context.Context, rep repo.DirectRepository, now time.Time) error {
		return repo.WriteSession(ctx, rep, repo.WriteSessionOptions{}, func(ctx context.Context, w repo.RepositoryWriter) error {
			return seedCanary(ctx, w, now)
		})
	}
	for name, c := range map[string]struct {
		seed func(ctx context.Context, rep repo.DirectRepository, now time.Time) error
		want string
	}{
		"seeded":        {seed, "load certificate"},
		"without rules": {canaryAlone, "access control is not in force"},
	} {
		dir := t.TempDir()
		loopback := func() string { return fmt.Sprintf("127.0.0.1:%d", testenv.Port(t)) }
		o := Options{
			Config: Config{
				RepositoryID: "probe", Password: "probe", AllowCreate: true, Format: Format{}.withDefaults(),
				Storage: StorageConfig{Type: "filesystem", Path: filepath.Join(dir, "storage")},
			},
			TLSDir: filepath.Join(dir, "tls"), CADir: filepath.Join(dir, "ca"), StateDir: filepath.Join(dir, "state"),
			Listen: loopback(), AgentListen: loopback(), KopiaListen: loopback(), HealthListen: loopback(),
			Child: []string{testenv.Program(t, "operation"), "-scratch-dir", filepath.Join(dir, "state")},
			Log:   slog.New(slog.DiscardHandler), Now: time.Now,
		}
		if err := StateFolders(o.StateDir); err != nil {
			t.Fatal(err)
		}
		if err := serveRepository(t.Context(), o, c.seed); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
