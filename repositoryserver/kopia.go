// SPDX-License-Identifier: Apache-2.0

package repositoryserver

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/kopia/kopia/cli"
	"github.com/kopia/kopia/repo/logging"
	"golang.org/x/crypto/bcrypt"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

// kopiaServer is Kopia's own server in this process, on loopback. Its users are
// ours to invent: one private password a user, made when the user is first seen,
// known to this process alone.
type kopiaServer struct {
	address  string // host:port on loopback
	certPEM  []byte
	client   *http.Client // trusts certPEM alone
	htpasswd string       // file that Kopia reads on refresh
	control  string       // password of the control API

	// adding lets one user be made known at a time: Kopia reads the storage for that, and
	// those who are known already do not wait for it.
	adding sync.Mutex
	lines  []string // of htpasswd; adding protects them

	mu    sync.Mutex // protects the following
	users map[string]string
}

const controlUser = "control"

// maxConcurrency is how many calls of all users are under way, each with a content in memory.
const maxConcurrency = 16

// startKopia starts the server and waits until it lets the administrator in. Kopia's
// command line code runs until the process ends; died tells if it ends before.
func startKopia(ctx context.Context, configFile, password, dir, address string, logs logging.LoggerFactory) (k *kopiaServer, died <-chan error, err error) {
	k = &kopiaServer{address: address, htpasswd: filepath.Join(dir, "htpasswd"), control: rand.Text() + rand.Text(), users: map[string]string{}}
	certFile, keyFile, err := k.makeCertificate(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("make internal certificate: %w", err)
	}
	for _, u := range [][2]string{{adminUser, adminHost}, {probeUser, probeHost}} {
		p, err := k.addUser(u[0], u[1])
		if err != nil {
			return nil, nil, err
		}
		k.know(u[0], u[1], p)
	}
	if err := k.writeUsers(); err != nil {
		return nil, nil, err
	}
	// Read by Kopia from its environment: never on a command line. Setting them here
	// does not show them in this process's /proc entry either.
	for name, value := range map[string]string{
		"KOPIA_PASSWORD": password, "KOPIA_SERVER_CONTROL_PASSWORD": k.control,
		"KOPIA_CHECK_FOR_UPDATES": "false", "KOPIA_PERSIST_CREDENTIALS_ON_CONNECT": "false",
	} {
		if err := os.Setenv(name, value); err != nil {
			return nil, nil, err
		}
	}
	app := cli.NewApp()
	app.SetLoggerFactory(logs, io.Discard)
	kp := kingpin.New("kopia", "").Terminate(func(int) {})
	kp.ErrorWriter(io.Discard)
	kp.UsageWriter(io.Discard)
	app.Attach(kp)
	ended := make(chan error, 1)
	go func() {
		_, err := kp.Parse([]string{
			"--config-file=" + configFile, "server", "start", "--no-ui", "--address=https://" + address,
			"--tls-cert-file=" + certFile, "--tls-key-file=" + keyFile, "--htpasswd-file=" + k.htpasswd,
			"--server-control-username=" + controlUser, "--refresh-interval=1h", "--no-persistent-logs",
			"--max-concurrency=" + strconv.Itoa(maxConcurrency),
		})
		if err == nil {
			err = errors.New("it ended")
		}
		ended <- fmt.Errorf("run kopia server: %w", err)
	}()
	if err := k.wait(ctx, ended); err != nil {
		return nil, nil, err
	}
	return k, ended, nil
}

// wait polls until the control API answers.
func (k *kopiaServer) wait(ctx context.Context, ended chan error) error {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := k.controlCall(ctx, http.MethodGet, "status")
		if err == nil {
			return nil
		}
		select {
		case err := <-ended:
			return err
		case <-ctx.Done():
			return fmt.Errorf("wait for kopia server: %w (%w)", ctx.Err(), err)
		case <-ticker.C:
		}
	}
}

func (k *kopiaServer) controlCall(ctx context.Context, method, call string) error {
	req, err := http.NewRequestWithContext(ctx, method, "https://"+k.address+"/api/v1/control/"+call, strings.NewReader("{}"))
	if err != nil {
		return err
	}
	req.SetBasicAuth(controlUser, k.control)
	req.Header.Set("Content-Type", "application/json")
	resp, err := k.client.Do(req)
	if err != nil {
		return fmt.Errorf("call kopia server: %w", err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("call kopia server: %s answered %s", call, resp.Status)
	}
	return nil
}

// password returns the private password of a user, who can log in with it when
// this returns.
func (k *kopiaServer) password(ctx context.Context, user, host string) (string, error) {
	if p := k.known(user, host); p != "" {
		return p, nil
	}
	k.adding.Lock()
	defer k.adding.Unlock()
	if p := k.known(user, host); p != "" {
		return p, nil // somebody else's request, a moment ago
	}
	before := k.lines
	p, err := k.addUser(user, host)
	if err == nil {
		err = k.writeUsers()
	}
	if err == nil {
		err = k.controlCall(ctx, http.MethodPost, "refresh")
	}
	if err != nil {
		k.lines = before
		return "", fmt.Errorf("let user in: %w", err)
	}
	k.know(user, host, p)
	return p, nil
}

// known is the password of a user who can log in, "" if there is none.
func (k *kopiaServer) known(user, host string) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.users[user+"@"+host]
}

func (k *kopiaServer) know(user, host, password string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.users[user+"@"+host] = password
}

// addUser makes a user's password. The lock adding is held, or nobody else is there yet.
func (k *kopiaServer) addUser(user, host string) (string, error) {
	p := rand.Text() + rand.Text()
	// The password has 256 random bits and never leaves this process, and the hash
	// file is in memory: a slow hash would protect nothing and cost each stream.
	hash, err := bcrypt.GenerateFromPassword([]byte(p), bcrypt.MinCost)
	if err != nil {
		return "", fmt.Errorf("hash password: %w", err)
	}
	k.lines = append(k.lines, user+"@"+host+":"+string(hash))
	return p, nil
}

func (k *kopiaServer) writeUsers() error {
	if err := os.WriteFile(k.htpasswd+".new", []byte(strings.Join(k.lines, "\n")+"\n"), 0o600); err != nil {
		return fmt.Errorf("write users: %w", err)
	}
	return os.Rename(k.htpasswd+".new", k.htpasswd)
}

// credentials reach this server, past our front, as one of the server's own users.
func (k *kopiaServer) credentials(user, host string) *api.Credentials {
	return &api.Credentials{
		URL: "https://" + k.address, CA: string(k.certPEM),
		Username: user, Hostname: host, Password: k.known(user, host),
	}
}

// makeCertificate makes the certificate of the loopback hop.
func (k *kopiaServer) makeCertificate(dir string) (certFile, keyFile string, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kopia"},
		// It is made, shown and believed here. Whatever the clock says now or will say, it is good.
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return "", "", err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", "", err
	}
	k.certPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(k.certPEM)
	k.client = &http.Client{Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13},
		ForceAttemptHTTP2: true,
	}}
	certFile, keyFile = filepath.Join(dir, "kopia.crt"), filepath.Join(dir, "kopia.key")
	if err := os.WriteFile(certFile, k.certPEM, 0o600); err != nil {
		return "", "", err
	}
	return certFile, keyFile, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600)
}
