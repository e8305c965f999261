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
	"github.com/kopia/kopia/repo/logging"

	"github.com/kanister-kopia/kanister-kopia/agent"
	"github.com/kanister-kopia/kanister-kopia/agent/operation"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// A server that does not enforce our rules lets nobody in, though all else is there.
//
// Not beside other tests: Kopia reads its passwords from this process's environment.
func TestIntegrationProbe(t *testing.T) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	logs := kopiaLogs(slog.New(slog.DiscardHandler), nil)
	ctx := logging.WithLogger(t.Context(), logs)
	canaryAlone := func(ctx context.Context, rep repo.DirectRepository, now time.Time) error {
		return repo.WriteSession(ctx, rep, repo.WriteSessionOptions{}, func(ctx context.Context, w repo.RepositoryWriter) error {
			return seedCanary(ctx, w, now)
		})
	}
	for name, c := range map[string]struct {
		seed func(ctx context.Context, rep repo.DirectRepository, now time.Time) error
		want string
	}{
		"seeded":        {seed, ""},
		"without rules": {canaryAlone, "access control is not in force"},
	} {
		dir := t.TempDir()
		state := filepath.Join(dir, "state")
		config := Config{
			RepositoryID: "probe", Password: "probe", AllowCreate: true, Format: Format{}.withDefaults(),
			Storage: StorageConfig{Type: "filesystem", Path: filepath.Join(dir, "storage")},
		}
		must(StateFolders(state))
		connection, err := prepare(ctx, config, serverUser, state)
		must(err)
		rep, err := openDirect(ctx, connection, config.Password)
		must(err)
		must(c.seed(ctx, rep, time.Now()))
		must(rep.Close(ctx))
		kopia, _, err := startKopia(ctx, connection, config.Password, state, fmt.Sprintf("127.0.0.1:%d", testenv.Port(t)), logs)
		must(err)
		child := &operation.Child{
			Command:  []string{testenv.Program(t, "operation"), "-scratch-dir", state},
			StateDir: state, Env: agent.ChildEnv(),
		}
		if err := probe(ctx, child, kopia); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
