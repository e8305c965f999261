// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// peer backs a folder up into its own part of the bucket and restores it.
type peer interface {
	// setup makes the repository and starts what stays.
	setup(s *scope, b *bench) (*meter, error)
	backup(ctx context.Context) error
	// restore writes the last backup into an empty folder of bench.targets,
	// restoreFile one file of it.
	restore(ctx context.Context, target string) error
	restoreFile(ctx context.Context, file, target string) error
}

// bench is what the peers of one data set share.
type bench struct {
	programs programs
	s3       *testenv.S3
	// volumes holds source, which is backed up, and the folders of restores.
	volumes, source string
}

// programs that are compared.
type programs struct{ agent, server, kopia, restic string }

const password = "bench-password"

// env is all that a peer's program has in its environment.
func (b *bench) env(home string, more ...string) []string {
	return append([]string{"HOME=" + home, "PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.TempDir()}, more...)
}

// caFile writes the root that the gateway's certificate comes from.
func (b *bench) caFile(dir string) (string, error) {
	file := filepath.Join(dir, "ca.crt")
	return file, os.WriteFile(file, b.s3.CA.PEM, 0o600)
}

// stock is Kopia's own program on the storage.
type stock struct {
	*meter
	program string
	dir     string
	env     []string
	source  string
	root    string // of the last snapshot
}

func (k *stock) run(ctx context.Context, args ...string) ([]byte, error) {
	common := []string{"--config-file=" + filepath.Join(k.dir, "repository.config"), "--log-dir=" + filepath.Join(k.dir, "logs"), "--no-progress"}
	return k.meter.run(ctx, k.dir, k.env, k.program, append(args, common...)...)
}

func (k *stock) setup(s *scope, b *bench) (*meter, error) {
	return k.create(s, b, "kopia/")
}

// create makes a repository with Kopia's defaults but for the compression, which is
// ours. Maintenance, which none of the peers is to do in the middle, gets an owner
// that is nobody.
func (k *stock) create(s *scope, b *bench, prefix string) (*meter, error) {
	dir := s.TempDir()
	ca, err := b.caFile(dir)
	if err != nil {
		return nil, err
	}
	*k = stock{
		meter: &meter{gateway: b.s3.Gateway.Cmd.Process.Pid}, program: b.programs.kopia, dir: dir, source: b.source,
		env: b.env(dir, "KOPIA_PASSWORD="+password, "KOPIA_CHECK_FOR_UPDATES=false",
			"AWS_ACCESS_KEY_ID="+b.s3.AccessKey, "AWS_SECRET_ACCESS_KEY="+b.s3.SecretKey),
	}
	for _, args := range [][]string{
		{"repository", "create", "s3", "--bucket=" + b.s3.Bucket, "--endpoint=" + b.s3.Endpoint, "--prefix=" + prefix, "--root-ca-pem-path=" + ca},
		{"policy", "set", "--global", "--compression=" + compression},
		{"maintenance", "set", "--owner=nobody@nowhere"},
	} {
		if _, err := k.run(s.ctx, args...); err != nil {
			return nil, err
		}
	}
	return k.meter, nil
}

func (k *stock) backup(ctx context.Context) error {
	out, err := k.run(ctx, "snapshot", "create", k.source, "--json")
	if err != nil {
		return err
	}
	var snapshot struct {
		RootEntry struct {
			Obj string `json:"obj"`
		} `json:"rootEntry"`
	}
	if err := json.Unmarshal(out, &snapshot); err != nil {
		return fmt.Errorf("read kopia's snapshot: %w", err)
	}
	k.root = snapshot.RootEntry.Obj
	return nil
}

func (k *stock) restore(ctx context.Context, target string) error {
	_, err := k.run(ctx, "snapshot", "restore", k.root, target)
	return err
}

func (k *stock) restoreFile(ctx context.Context, file, target string) error {
	_, err := k.run(ctx, "snapshot", "restore", k.root+"/"+file, filepath.Join(target, filepath.Base(file)))
	return err
}

// stockServer is Kopia's own program through Kopia's own server, with TLS on loopback.
type stockServer struct{ stock }

func (k *stockServer) setup(s *scope, b *bench) (*meter, error) {
	var server stock
	if _, err := server.create(s, b, "kopia-server/"); err != nil {
		return nil, err
	}
	const user = "bench@bench"
	if _, err := server.run(s.ctx, "server", "users", "add", user, "--user-password="+password); err != nil {
		return nil, err
	}
	tls := filepath.Join(server.dir, "tls")
	b.s3.CA.IssueTo(s, tls, testenv.Leaf{IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Usage: x509.ExtKeyUsageServerAuth})
	address := fmt.Sprintf("127.0.0.1:%d", testenv.Port(s))
	p := testenv.Start(s, func(c *exec.Cmd) { c.Env, c.Dir = server.env, server.dir }, server.program, "server", "start", "--no-ui",
		"--address=https://"+address, "--tls-cert-file="+filepath.Join(tls, "tls.crt"), "--tls-key-file="+filepath.Join(tls, "tls.key"),
		"--server-control-username=control", "--server-control-password="+password,
		"--config-file="+filepath.Join(server.dir, "repository.config"), "--log-dir="+filepath.Join(server.dir, "logs"))
	awaitPort(s, p, address)

	dir := s.TempDir()
	ca, err := b.caFile(dir)
	if err != nil {
		return nil, err
	}
	k.stock = stock{
		meter:   &meter{gateway: b.s3.Gateway.Cmd.Process.Pid, server: p.Cmd.Process.Pid},
		program: b.programs.kopia, dir: dir, source: b.source,
		// A root of its own, as for ours: no pinning.
		env: b.env(dir, "KOPIA_PASSWORD="+password, "KOPIA_CHECK_FOR_UPDATES=false", "SSL_CERT_FILE="+ca),
	}
	_, err = k.run(s.ctx, "repository", "connect", "server", "--url=https://"+address, "--override-username=bench", "--override-hostname=bench")
	return k.meter, err
}

// restic is restic from Debian on the storage.
type restic struct {
	*meter
	program string
	dir     string
	env     []string
	source  string
}

func (r *restic) run(ctx context.Context, dir string, args ...string) error {
	_, err := r.meter.run(ctx, dir, r.env, r.program, append(args, "--quiet", "--cacert="+filepath.Join(r.dir, "ca.crt"))...)
	return err
}

func (r *restic) setup(s *scope, b *bench) (*meter, error) {
	dir := s.TempDir()
	if _, err := b.caFile(dir); err != nil {
		return nil, err
	}
	*r = restic{
		meter: &meter{gateway: b.s3.Gateway.Cmd.Process.Pid}, program: b.programs.restic, dir: dir, source: b.source,
		env: b.env(dir, "RESTIC_PASSWORD="+password, "RESTIC_CACHE_DIR="+filepath.Join(dir, "cache"),
			"RESTIC_REPOSITORY=s3:https://"+b.s3.Endpoint+"/"+b.s3.Bucket+"/restic",
			"AWS_ACCESS_KEY_ID="+b.s3.AccessKey, "AWS_SECRET_ACCESS_KEY="+b.s3.SecretKey),
	}
	return r.meter, r.run(s.ctx, dir, "init", "--repository-version=2")
}

// backup names the folder by a dot: then its entries are at the snapshot's root.
func (r *restic) backup(ctx context.Context) error {
	return r.run(ctx, r.source, "backup", "--compression=auto", ".")
}

func (r *restic) restore(ctx context.Context, target string) error {
	return r.run(ctx, r.dir, "restore", "latest", "--target="+target)
}

func (r *restic) restoreFile(ctx context.Context, file, target string) error {
	return r.run(ctx, r.dir, "restore", "latest", "--target="+target, "--include=/"+file)
}

// awaitPort waits until a process listens.
func awaitPort(s *scope, p *testenv.Process, address string) {
	testenv.Eventually(s, time.Minute, "a server listens at "+address, func() bool {
		if ended(p) {
			s.Fatalf("it ended: %s", testenv.LastLine(p.Log()))
		}
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

func ended(p *testenv.Process) bool {
	select {
	case <-p.Done:
		return true
	default:
		return false
	}
}
