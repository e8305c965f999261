// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/kanister-kopia/kanister-kopia/agent/client"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// Root is the root of the checkout.
func Root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	must(t, err)
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("the checkout's root was not found")
		}
		dir = filepath.Dir(dir)
	}
}

// Tool is a program of `make tools`.
func Tool(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join(Root(t), "build", "bin", name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%s is missing: run 'make tools'", path)
	}
	return path
}

var built struct {
	sync.Mutex
	dir string
}

// Main runs a test binary's tests and removes the programs that they built.
func Main(m *testing.M) {
	log.SetLogger(logr.Discard())
	code := m.Run()
	if built.dir != "" {
		_ = os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

// Program builds a program of ours, once a test binary, with the race detector.
func Program(t testing.TB, name string) string {
	t.Helper()
	return program(t, "race", name, "-race")
}

// Plain is Program without the race detector, whose shadow of the memory only grows.
func Plain(t testing.TB, name string) string {
	t.Helper()
	return program(t, "plain", name)
}

func program(t testing.TB, folder, name string, flags ...string) string {
	t.Helper()
	if name == "repository-server" || name == "agent" {
		build(t, filepath.Join(folder, "operation"), "./cmd/operation", flags...) // beside it
	}
	return build(t, filepath.Join(folder, name), "./cmd/"+name, flags...)
}

// Kopia builds Kopia's own program, of the version that we link, without the race detector:
// its races are not ours to find.
func Kopia(t testing.TB) string {
	t.Helper()
	return build(t, "kopia", "github.com/kopia/kopia")
}

func build(t testing.TB, name, pkg string, flags ...string) string {
	t.Helper()
	built.Lock()
	defer built.Unlock()
	path := filepath.Join(programs(t), name)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.Chmod(filepath.Dir(path), 0o755)) // an agent of a test may run as somebody else
	cmd := exec.CommandContext(t.Context(), "go", slices.Concat([]string{"build"}, flags, []string{"-o", path, pkg})...)
	cmd.Dir = Root(t)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, out)
	}
	return path
}

// programs is the folder of what was built. The lock is held.
func programs(t testing.TB) string {
	t.Helper()
	if built.dir == "" {
		dir, err := os.MkdirTemp("", "kanister-kopia-programs-")
		must(t, err)
		must(t, os.Chmod(dir, 0o755)) // as below
		built.dir = dir
	}
	return built.dir
}

// Port is a port of loopback that is the test's own until it ends: no other test of this
// machine gets it, and none of the kernel's choice for connections, which are above these.
func Port(t testing.TB) int {
	t.Helper()
	for range 1000 {
		port := 10000 + rand.IntN(20000)
		// A name that goes with the process.
		held, err := net.Listen("unix", fmt.Sprintf("@kanister-kopia-test-port-%d", port))
		if err != nil {
			continue
		}
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			l.Close()
			t.Cleanup(func() { held.Close() })
			return port
		}
		held.Close()
	}
	t.Fatal("no port is free")
	return 0
}

// Process is a running program.
type Process struct {
	Cmd *exec.Cmd
	log Buffer
	// Done is closed when the process has ended.
	Done chan struct{}
}

// Start starts a program and kills it at the end of the test. Its output is shown
// when the test fails.
func Start(t testing.TB, setup func(*exec.Cmd), program string, args ...string) *Process {
	t.Helper()
	p := &Process{Cmd: exec.Command(program, args...), Done: make(chan struct{})}
	p.Cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.Cmd.Stdout, p.Cmd.Stderr = &p.log, &p.log
	if setup != nil {
		setup(p.Cmd)
	}
	must(t, p.Cmd.Start())
	go func() { _ = p.Cmd.Wait(); close(p.Done) }()
	t.Cleanup(func() {
		_ = p.Cmd.Process.Kill()
		<-p.Done
		if t.Failed() {
			t.Logf("%s said:\n%s", filepath.Base(program), p.Log())
		}
	})
	return p
}

// Log is what the process has printed so far.
func (p *Process) Log() string { return p.log.String() }

// Again starts an ended process anew, with the same arguments and as the same user.
func (p *Process) Again(t testing.TB) *Process {
	t.Helper()
	return Start(t, func(c *exec.Cmd) { c.Env, c.SysProcAttr = p.Cmd.Env, p.Cmd.SysProcAttr }, p.Cmd.Path, p.Cmd.Args[1:]...)
}

// Kill kills the process and waits for its end.
func (p *Process) Kill() {
	_ = p.Cmd.Process.Kill()
	<-p.Done
}

// Eventually polls until the condition holds.
func Eventually(t testing.TB, within time.Duration, what string, condition func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for !condition() {
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within %s", what, within)
		case <-ticker.C:
		}
	}
}

// S3 is a running S3 gateway with one bucket.
type S3 struct {
	Endpoint, Bucket, AccessKey, SecretKey string
	CA                                     *CA
	// Dir holds the bucket's objects as files.
	Dir string
	// Gateway is the running gateway.
	Gateway *Process
}

// StartS3 starts a real S3 gateway with TLS over a folder.
func StartS3(t testing.TB) *S3 {
	t.Helper()
	s := newS3(t)
	must(t, os.MkdirAll(s.Dir, 0o755))
	s.start(t)
	return s
}

// StartLockingS3 is StartS3 with a bucket that was made with object lock. It keeps
// versions, which the lock needs: an object that is written again is another version.
func StartLockingS3(t testing.TB) *S3 {
	t.Helper()
	s := newS3(t)
	versions := filepath.Join(filepath.Dir(filepath.Dir(s.Dir)), "versions")
	must(t, os.MkdirAll(versions, 0o755))
	must(t, os.MkdirAll(filepath.Dir(s.Dir), 0o755))
	s.start(t, "--versioning-dir", versions)
	must(t, s.Client(t).MakeBucket(t.Context(), s.Bucket, minio.MakeBucketOptions{ObjectLocking: true}))
	return s
}

func newS3(t testing.TB) *S3 {
	t.Helper()
	// Object metadata are extended attributes, which the usual temporary folder may not have.
	buckets := filepath.Join(Root(t), "build", "s3") // may be a file system of its own
	must(t, os.MkdirAll(buckets, 0o755))
	dir, err := os.MkdirTemp(buckets, "")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return &S3{
		Endpoint: fmt.Sprintf("127.0.0.1:%d", Port(t)), Bucket: "backups",
		AccessKey: "test-access", SecretKey: "test-secret-0123456789", CA: NewCA(t), Dir: filepath.Join(dir, "data", "backups"),
	}
}

// start runs the gateway over the folder that the bucket is in.
func (s *S3) start(t testing.TB, posixArgs ...string) {
	t.Helper()
	data := filepath.Dir(s.Dir)
	tls := filepath.Join(filepath.Dir(data), "tls")
	s.CA.IssueTo(t, tls, Leaf{DNS: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Usage: x509.ExtKeyUsageServerAuth, Age: Old})
	args := []string{"--keep-alive", "--port", s.Endpoint, "--cert", filepath.Join(tls, "tls.crt"), "--key", filepath.Join(tls, "tls.key"), "--quiet", "posix"}
	s.Gateway = Start(t, func(c *exec.Cmd) {
		c.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+s.AccessKey, "ROOT_SECRET_KEY="+s.SecretKey)
	}, Tool(t, "versitygw"), append(append(args, posixArgs...), data)...)
	Eventually(t, 3*time.Minute, "S3 gateway answers", func() bool {
		conn, err := net.Dial("tcp", s.Endpoint)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

// Client is one of the bucket's owner.
func (s *S3) Client(t testing.TB) *minio.Client {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.CA.PEM)
	c, err := minio.New(s.Endpoint, &minio.Options{
		Creds: credentials.NewStaticV4(s.AccessKey, s.SecretKey, ""), Secure: true, Region: "us-east-1",
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}},
	})
	must(t, err)
	return c
}

// ControlPlane is a test's CA with the controller's certificate.
type ControlPlane struct {
	CA *CA
	// CADir holds ca.crt as agents see it.
	CADir string
	// Certificate is the controller's.
	Certificate func() (*tls.Certificate, error)
}

// NewControlPlane makes one.
func NewControlPlane(t testing.TB) *ControlPlane {
	t.Helper()
	c := &ControlPlane{CA: NewCA(t), CADir: t.TempDir()}
	must(t, os.WriteFile(filepath.Join(c.CADir, names.CAKey), c.CA.PEM, 0o644))
	c.Certificate = c.CA.Certificate(t, Leaf{DNS: []string{names.ControllerDNSName}, Usage: x509.ExtKeyUsageClientAuth, Age: Old})
	return c
}

// Client reaches an agent whose process listens on a port of loopback.
func (c *ControlPlane) Client(t testing.TB, p *Process, port int) *client.Client {
	t.Helper()
	var pin string
	Eventually(t, 3*time.Minute, "the agent logs its identity", func() bool {
		var err error
		pin, err = client.PinFromLog(strings.NewReader(p.Log()))
		return err == nil
	})
	address := fmt.Sprintf("127.0.0.1:%d", port)
	cl := client.New(client.Options{
		Dial: func(ctx context.Context) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", address)
		},
		Certificate: c.Certificate, Pin: pin,
	})
	t.Cleanup(cl.Close)
	return cl
}

// Healthy says whether an address answers 200 on a path.
func Healthy(address, path string) bool {
	resp, err := http.Get("http://" + address + path)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// LastLine is the last line of a log.
func LastLine(log string) string {
	var last string
	scanner := bufio.NewScanner(strings.NewReader(log))
	for scanner.Scan() {
		last = scanner.Text()
	}
	return last
}
