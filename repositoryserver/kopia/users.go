// SPDX-License-Identifier: Apache-2.0

package kopia

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"sync"

	"golang.org/x/crypto/bcrypt"
)

// users keeps the private password of each user that Kopia knows. A user stays
// known until the process ends: whether he may come in is decided in front.
//
// They live in Kopia's password file. Users in the repository would become known
// up to ten seconds later, and each of their logins would cost 64 MiB and a fifth
// of a second under one lock.
type users struct {
	file    string
	refresh func(context.Context) error
	login   func(ctx context.Context, username, hostname, password string) error

	adding sync.Mutex // held while a user is made known
	lines  []byte     // of the file; protected by adding

	mu    sync.RWMutex // protects the following
	known map[string]string
}

func newUsers(file string, refresh func(context.Context) error, login func(context.Context, string, string, string) error) (*users, error) {
	u := &users{file: file, refresh: refresh, login: login, known: map[string]string{}}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		return nil, fmt.Errorf("make password file: %w", err)
	}
	return u, nil
}

func (u *users) lookup(username, hostname string) (string, bool) {
	u.mu.RLock()
	defer u.mu.RUnlock()
	password, ok := u.known[username+"@"+hostname]
	return password, ok
}

func (u *users) ensure(ctx context.Context, username, hostname string) (string, error) {
	if password, ok := u.lookup(username, hostname); ok {
		return password, nil
	}
	u.adding.Lock()
	defer u.adding.Unlock()
	if password, ok := u.lookup(username, hostname); ok {
		return password, nil
	}
	password := newPassword()
	// The password has 256 random bits; the cost of the hash adds nothing to that.
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		return "", fmt.Errorf("hash password: %w", err)
	}
	line := fmt.Sprintf("%s@%s:%s\n", username, hostname, hash)
	lines := append(bytes.Clone(u.lines), line...)
	if err := os.WriteFile(u.file+".new", lines, 0o600); err != nil {
		return "", fmt.Errorf("write password file: %w", err)
	}
	if err := os.Rename(u.file+".new", u.file); err != nil {
		return "", fmt.Errorf("write password file: %w", err)
	}
	if err := u.refresh(ctx); err != nil {
		return "", fmt.Errorf("make user known: %w", err)
	}
	// A refresh says that it was done, not that it worked.
	if err := u.login(ctx, username, hostname, password); err != nil {
		return "", fmt.Errorf("make user known: %w", err)
	}
	u.lines = lines
	u.mu.Lock()
	defer u.mu.Unlock()
	u.known[username+"@"+hostname] = password
	return password, nil
}
