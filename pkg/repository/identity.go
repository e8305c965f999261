// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"strings"

	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
)

// DefaultKeyID names the password that the controller generates and keeps.
const DefaultKeyID = "default"

// keyIterations make a try at an encryptionKey that people chose expensive for
// whoever sees its key id: it is part of object names and of the storage path.
const keyIterations = 600_000

// key is what an encryptionKey amounts to.
type key struct {
	// id is safe to show.
	id string
	// password of the repository; empty for DefaultKeyID: it is generated.
	password string
}

// deriveKey turns a function's encryptionKey (nil: not given) into a key for one
// tenant. The same text gives the same key in every cluster that knows the
// tenant's uids, and unrelated ones for two tenants.
//
// An empty encryptionKey is an error, as it is with restic: Kanister's default
// applies only when the argument is absent.
func deriveKey(encryptionKey *string, t kopiav1alpha1.Tenant) (key, error) {
	if encryptionKey == nil {
		return key{id: DefaultKeyID}, nil
	}
	if *encryptionKey == "" {
		return key{}, errors.New("use encryptionKey: it is empty: leave the argument out to have a password generated and kept by the controller")
	}
	salt := []byte("kanister-kopia\x00" + t.ClusterID + "\x00" + t.NamespaceUID)
	master, err := pbkdf2.Key(sha256.New, *encryptionKey, salt, keyIterations, sha256.Size)
	if err != nil {
		return key{}, fmt.Errorf("derive the repository password from encryptionKey: %w", err)
	}
	derive := func(purpose string) []byte {
		h := hmac.New(sha256.New, master)
		h.Write([]byte(purpose))
		return h.Sum(nil)
	}
	return key{id: text(derive("key id"), 12), password: hex.EncodeToString(derive("repository password"))}, nil
}

// storagePrefix is the folder of a repository below the Profile's prefix. It ends
// in a slash. No repository's folder is within another's: to the outer one's
// maintenance, the inner one's blobs would be unreferenced ones of its own.
func storagePrefix(profilePrefix string, t kopiav1alpha1.Tenant, keyID string) string {
	return path.Join(strings.Trim(profilePrefix, "/"), t.ClusterID, t.Namespace+"-"+t.NamespaceUID, keyID) + "/"
}

// maxFriendly is how much of a namespace's name an id shows.
const maxFriendly = 20

// repositoryID names a repository, its RepositoryServer and all objects of it: a
// DNS-1035 label of at most 41 characters, which leaves room for the random part
// of a token. Equal storage, tenant and key give the same id, and nothing else does.
func repositoryID(s kopiav1alpha1.Storage, t kopiav1alpha1.Tenant, keyID string) string {
	l := locationOf(s)
	parts := append(l.place, l.prefix, t.ClusterID, t.NamespaceUID, keyID)
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s,", len(p), p)
	}
	friendly := strings.TrimLeft(t.Namespace, "0123456789-")
	if len(friendly) > maxFriendly {
		friendly = friendly[:maxFriendly]
	}
	friendly = strings.Trim(friendly, "-")
	if friendly == "" {
		friendly = "repo"
	}
	return friendly + "-" + text(h.Sum(nil), 20)
}

// TokenLength is the length of the random part of a token.
const TokenLength = 16

// Token makes a backupID or backupTag of a repository. The same seed gives the
// same token, so that a phase picked up after a restart keeps its outputs; the
// seed must be unique to the backup and the use of the token.
func Token(repositoryID, seed string) string {
	sum := sha256.Sum256([]byte(repositoryID + "\x00" + seed))
	return repositoryID + "-" + text(sum[:], TokenLength)
}

// ErrNotFound is what every look-up of a backup that is not there ends in:
// unknown, under another prefix, or with another key.
var ErrNotFound = errors.New("not found")

// repositoryOf is the id of the repository that a token names.
func repositoryOf(token string) (string, error) {
	i := strings.LastIndexByte(token, '-')
	if i <= 0 || len(token)-i-1 != TokenLength || !isToken(token) {
		return "", fmt.Errorf("backup %q: %w: it is not an id or a tag that BackupData or CopyVolumeData returned", token, ErrNotFound)
	}
	return token[:i], nil
}

// isToken checks the alphabet before a token is used as an object's name.
func isToken(s string) bool {
	return s != "" && len(s) <= 63 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == "" && s[0] != '-'
}

// text is n characters [a-z2-7] of b.
func text(b []byte, n int) string {
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b))[:n]
}
