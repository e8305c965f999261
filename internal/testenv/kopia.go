// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// KopiaServer is Kopia's own server, with a user.
type KopiaServer struct{ URL, Username, Hostname, Password string }

// StartKopiaServer starts Kopia's own server with its own access control, over a new
// repository in a folder. Its certificate is one of ca's.
func StartKopiaServer(t testing.TB, ca *CA) *KopiaServer {
	t.Helper()
	dir := t.TempDir()
	s := &KopiaServer{Username: "backup", Hostname: "cluster", Password: "user-password-5d6e"}
	files := []string{"--config-file=" + filepath.Join(dir, "config"), "--log-dir=" + filepath.Join(dir, "log")}
	environment := append(os.Environ(), "KOPIA_PASSWORD=stock", "KOPIA_CHECK_FOR_UPDATES=false", "KOPIA_SERVER_CONTROL_PASSWORD=control")
	run := func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), Kopia(t), append(args, files...)...)
		cmd.Env = environment
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("kopia %v: %v\n%s", args, err, out)
		}
	}
	must(t, os.Mkdir(filepath.Join(dir, "repository"), 0o700))
	run("repository", "create", "filesystem", "--path="+filepath.Join(dir, "repository"), "--cache-directory="+filepath.Join(dir, "cache"))
	run("server", "acl", "enable")
	run("server", "users", "add", s.Username+"@"+s.Hostname, "--user-password="+s.Password)
	tls := filepath.Join(dir, "tls")
	ca.IssueTo(t, tls, Leaf{IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Usage: x509.ExtKeyUsageServerAuth})
	address := fmt.Sprintf("127.0.0.1:%d", Port(t))
	s.URL = "https://" + address
	Start(t, func(c *exec.Cmd) { c.Env = environment }, Kopia(t), append([]string{
		"server", "start", "--no-ui", "--address=" + s.URL,
		"--tls-cert-file=" + filepath.Join(tls, "tls.crt"), "--tls-key-file=" + filepath.Join(tls, "tls.key"),
	}, files...)...)
	Eventually(t, 3*time.Minute, "the stock server listens", func() bool {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return s
}
