// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repositoryserver_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io/fs"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// stranger listens with a certificate and counts what anybody says to it.
func stranger(t testing.TB, shown tls.Certificate) (address string, heard *atomic.Int64) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{shown}, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	heard = &atomic.Int64{}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(time.Minute))
				buffer := make([]byte, 4096)
				for {
					n, err := conn.Read(buffer)
					heard.Add(int64(n))
					if err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String(), heard
}

// An agent speaks to the server whose certificate is of its CA and of the name that it
// asked for. Whatever else is shown, nothing is said, no password least of all.
func TestIntegrationServerIsTheOneThatWasNamed(t *testing.T) {
	t.Parallel()
	tr := newTrial(newWorld(t))
	conn, err := tls.Dial("tcp", strings.TrimPrefix(tr.s.url, "https://"), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	tr.must(err)
	genuine := conn.ConnectionState().PeerCertificates[0].Raw
	tr.must(conn.Close())
	pair := func(ca *testenv.CA, l testenv.Leaf) tls.Certificate {
		l.Usage = x509.ExtKeyUsageServerAuth
		cert, key := ca.Issue(t, l)
		pair, err := tls.X509KeyPair(cert, key)
		tr.must(err)
		return pair
	}
	here := testenv.Leaf{IPs: []net.IP{net.IPv4(127, 0, 0, 1)}}
	foreign := pair(testenv.NewCA(t), here)
	beside := foreign
	beside.Certificate = append(slices.Clone(foreign.Certificate), genuine)
	for name, shown := range map[string]tls.Certificate{
		"another CA's":                       foreign,
		"another CA's, and the server's":     beside,
		"of another name":                    pair(tr.plane.CA, testenv.Leaf{DNS: []string{"other.kanister-kopia.svc"}}),
		"of another address":                 pair(tr.plane.CA, testenv.Leaf{IPs: []net.IP{net.IPv4(10, 0, 0, 1)}}),
		"of the right name, but of the past": pair(tr.plane.CA, testenv.Leaf{IPs: here.IPs, Expiry: time.Now().Add(-time.Minute)}),
	} {
		address, heard := stranger(t, shown)
		req := tr.snapshot("to-" + strings.NewReplacer(" ", "-", ",", "", "'", "").Replace(strings.ToLower(name)))
		req.Credentials.URL = "https://" + address
		_, err := tr.agent.Run(tr.context(), req, func(api.Progress) {})
		if code(err) != api.CodeServerUntrusted {
			t.Errorf("a certificate %s: %v (%s), want %s", name, err, code(err), api.CodeServerUntrusted)
		}
		if n := heard.Load(); n > 0 {
			t.Errorf("a certificate %s: %d bytes were said", name, n)
		}
	}
	tr.next()
}

// An agent keeps nothing of a backup: what it reads goes to the volume and nowhere else,
// also while an operation runs, and when it has ended its folder is as before.
func TestIntegrationAgentKeepsNoCache(t *testing.T) {
	t.Parallel()
	tr := newTrial(newWorld(t))
	want := tr.change(1)
	state := tr.process.Cmd.Args[slices.Index(tr.process.Cmd.Args, "-state-dir")+1]
	kept := func() (bytes int64, names []string) {
		tr.must(filepath.WalkDir(state, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return nil // it went meanwhile
			}
			bytes += info.Size()
			names = append(names, strings.TrimPrefix(path, state))
			return nil
		}))
		return bytes, names
	}
	record := tr.next()
	link := tr.network()
	tr.held(tr.agent, link, noise/2, tr.restoreTo("restore", record, "/there"))
	if bytes, names := kept(); bytes > 64<<10 {
		t.Errorf("in the middle of a restore the agent keeps %d bytes: %v", bytes, names)
	}
	link.Heal()
	if op := tr.ended(tr.agent, "restore"); !complete(op, want) {
		t.Fatalf("restore: %s", told(op))
	}
	// A backup has a connection of Kopia's, with a configuration that could ask for one.
	tr.change(2)
	link = tr.network()
	tr.held(tr.agent, link, noise/2, tr.snapshot("backup"))
	bytes, names := kept()
	if bytes > 64<<10 {
		t.Errorf("in the middle of a backup the agent keeps %d bytes: %v", bytes, names)
	}
	i := slices.IndexFunc(names, func(name string) bool { return path.Base(name) == "repository.config" })
	if i < 0 {
		t.Fatalf("there is no configuration of Kopia's among %v", names)
	}
	raw, err := os.ReadFile(filepath.Join(state, names[i]))
	tr.must(err)
	var config struct {
		APIServer map[string]string
		Caching   map[string]any
	}
	tr.must(json.Unmarshal(raw, &config))
	if config.Caching == nil || len(config.Caching) > 0 {
		t.Errorf("Kopia is asked for a cache: %v", config.Caching)
	}
	// With a fingerprint Kopia would look at nothing else of a certificate.
	if of := config.APIServer; of["url"] != "https://"+link.Address || of["serverCertFingerprint"] != "" {
		t.Errorf("Kopia is told %v of the server, want its address alone", of)
	}
	link.Heal()
	if op := tr.ended(tr.agent, "backup"); op.State != api.StateSucceeded {
		t.Fatalf("backup: %s", told(op))
	}
	_, names = kept()
	for _, name := range names {
		if name != "/agent.key" && !strings.HasPrefix(name, "/operations/") {
			t.Errorf("after its operations the agent keeps %s", name)
		}
	}
	tr.same(want, testenv.Tree(t, filepath.Join(tr.volumes, "target", "there")))
}
