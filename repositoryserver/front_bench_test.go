// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kopia/kopia/repo/logging"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/engine"
)

// BenchmarkBackup is a first backup of 256 MiB of noise and 2,000 small files into
// a folder, through the front and at Kopia's own server, in turns in one run: what the
// front costs, or gains, is the ratio of the two. Client, front and server share the process.
func BenchmarkBackup(b *testing.B) {
	dir := b.TempDir()
	config := Config{
		RepositoryID: "bench", Password: "bench", AllowCreate: true, Format: Format{}.withDefaults(),
		Storage: StorageConfig{Type: "filesystem", Path: filepath.Join(dir, "storage")},
	}
	must := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	quiet := slog.New(slog.DiscardHandler)
	logs := kopiaLogs(quiet, nil)
	ctx := logging.WithLogger(b.Context(), logs)
	must(StateFolders(filepath.Join(dir, "state"), filepath.Join(dir, "scratch"), filepath.Join(dir, "volumes", "data")))
	connection, err := prepare(ctx, config, serverUser, filepath.Join(dir, "state"), time.Now)
	must(err)
	rep, err := openDirect(ctx, connection, config.Password, time.Now)
	must(err)
	defer rep.Close(ctx)
	must(seed(ctx, rep, time.Now()))
	free, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	must(free.Close())
	kopia, _, err := startKopia(ctx, connection, config.Password, filepath.Join(dir, "state"), free.Addr().String(), logs)
	must(err)

	// Both ways show Kopia's own certificate, so that one root serves both.
	root := filepath.Join(dir, "ca.crt")
	must(os.WriteFile(root, kopia.certPEM, 0o600))
	b.Setenv("SSL_CERT_FILE", root)
	certificate, err := tls.LoadX509KeyPair(filepath.Join(dir, "state", "kopia.crt"), filepath.Join(dir, "state", "kopia.key"))
	must(err)
	open := newSessions(mostSessions, time.Now)
	f := newFront(open, kopia, rep, func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &certificate, nil }, func() {}, quiet)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	go func() { _ = f.serve(listener) }()
	b.Cleanup(func() { _ = f.server.Close() })

	const user, host = "pvc.data", "bench"
	session, err := open.start(api.SessionRequest{ID: "bench", Username: user, Hostname: host})
	must(err)
	_, err = kopia.password(ctx, user, host)
	must(err)
	credentials := map[string]*api.Credentials{
		"front":  {URL: "https://" + listener.Addr().String(), CA: string(kopia.certPEM), Username: user, Hostname: host, Password: session.Password},
		"direct": kopia.credentials(user, host),
	}
	const large, small = 256 << 20, 2000
	backups := uint64(0)
	for _, way := range []string{"direct", "front", "direct", "front"} {
		b.Run(way, func(b *testing.B) {
			b.SetBytes(large + small*4096)
			for b.Loop() {
				b.StopTimer()
				backups++
				must(fillWithNoise(filepath.Join(dir, "volumes", "data"), backups, large, small))
				b.StartTimer()
				_, problem := engine.Run(ctx, api.StartRequest{
					ID: fmt.Sprintf("bench-%d", backups), Kind: api.KindSnapshot, Credentials: credentials[way],
					// Another source each time: nothing is known of it.
					Snapshot: &api.SnapshotRequest{Volume: "data", Path: "/", SourcePath: fmt.Sprintf("/%d", backups)},
				}, engine.Env{VolumesDir: filepath.Join(dir, "volumes"), ScratchDir: filepath.Join(dir, "scratch"), Now: time.Now}, func(api.Progress) {})
				if problem != nil {
					b.Fatal(problem)
				}
			}
		})
	}
}

// fillWithNoise writes files that no earlier call wrote.
func fillWithNoise(dir string, run uint64, large int64, small int) error {
	var key [32]byte
	key[0], key[1] = byte(run), byte(run>>8)
	noise := rand.NewChaCha8(key)
	write := func(name string, size int64) error {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if _, err := io.CopyN(f, noise, size); err != nil {
			return err
		}
		return f.Close()
	}
	if err := write("large", large); err != nil {
		return err
	}
	for i := range small {
		if err := write(fmt.Sprintf("small-%04d", i), 4096); err != nil {
			return err
		}
	}
	return nil
}
