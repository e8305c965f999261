// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// KopiaServer is Kopia's own server, with a user.
type KopiaServer struct {
	URL, Username, Hostname, Password string
	// Repository is its folder.
	Repository string
	// Process serves it.
	Process *Process
	// Run runs Kopia's own program on the repository and returns what it prints.
	Run func(args ...string) string
}

// StartKopiaServer starts Kopia's own server with its own access control, or with rules
// (target and access), over a new repository in a folder. Its certificate is one of ca's.
// The policies of its owner would leave everything out: they are nothing to us.
func StartKopiaServer(t testing.TB, ca *CA, rules ...[2]string) *KopiaServer {
	t.Helper()
	dir := t.TempDir()
	s := &KopiaServer{Repository: filepath.Join(dir, "repository"), Username: "backup", Hostname: "cluster", Password: "user-password-5d6e"}
	files := []string{"--config-file=" + filepath.Join(dir, "config"), "--log-dir=" + filepath.Join(dir, "log")}
	environment := append(os.Environ(), "KOPIA_PASSWORD=stock", "KOPIA_CHECK_FOR_UPDATES=false", "KOPIA_SERVER_CONTROL_PASSWORD=control")
	s.Run = func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), Kopia(t), append(args, files...)...)
		cmd.Env = environment
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("kopia %v: %v\n%s%s", args, err, out, &stderr)
		}
		return string(out)
	}
	must(t, os.Mkdir(s.Repository, 0o700))
	s.Run("repository", "create", "filesystem", "--path="+s.Repository, "--cache-directory="+filepath.Join(dir, "cache"))
	s.Run("policy", "set", "--global", "--add-ignore=*", "--max-file-size=1")
	s.Run("server", "acl", "enable")
	if len(rules) > 0 {
		s.Run("server", "acl", "delete", "--all", "--delete")
	}
	for _, r := range rules {
		s.Run("server", "acl", "add", "--user=*@*", "--target="+r[0], "--access="+r[1])
	}
	s.Run("server", "users", "add", s.Username+"@"+s.Hostname, "--user-password="+s.Password)
	tls := filepath.Join(dir, "tls")
	ca.IssueTo(t, tls, Leaf{IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Usage: x509.ExtKeyUsageServerAuth})
	address := fmt.Sprintf("127.0.0.1:%d", Port(t))
	s.URL = "https://" + address
	s.Process = Start(t, func(c *exec.Cmd) { c.Env = environment }, Kopia(t), append([]string{
		"server", "start", "--no-ui", "--address=" + s.URL,
		"--tls-cert-file=" + filepath.Join(tls, "tls.crt"), "--tls-key-file=" + filepath.Join(tls, "tls.key"),
	}, files...)...)
	s.await(t)
	return s
}

// Restart kills it and starts it again.
func (s *KopiaServer) Restart(t testing.TB) {
	t.Helper()
	s.Process.Kill()
	s.Process = s.Process.Again(t)
	s.await(t)
}

func (s *KopiaServer) await(t testing.TB) {
	t.Helper()
	Eventually(t, 3*time.Minute, "the stock server listens", func() bool {
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "https://"))
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}
