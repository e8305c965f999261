// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"unicode/utf8"

	kopiafs "github.com/kopia/kopia/fs"
)

// escaped begins the stored form of a name that Kopia's directories, which are
// JSON, cannot hold as it is. The rest is the name's bytes, percent-encoded.
const escaped = ".kanister-kopia-name:"

// encodeName is how a name is stored: as it is, unless it is not UTF-8 or looks
// like one that was encoded.
func encodeName(name string) string {
	if utf8.ValidString(name) && !strings.HasPrefix(name, escaped) {
		return name
	}
	return escaped + url.PathEscape(name)
}

// decodeName is the inverse of encodeName. What it returns is checked: one plain
// component of a path.
func decodeName(stored string) (string, error) {
	name := stored
	if rest, ok := strings.CutPrefix(stored, escaped); ok {
		var err error
		if name, err = url.PathUnescape(rest); err != nil {
			return "", fmt.Errorf("restore: stored name %q: %w", stored, err)
		}
	}
	return name, checkName(name)
}

// storable shows a tree to Kopia with all names in their stored form.
func storable(e kopiafs.Entry) kopiafs.Entry {
	name := encodeName(e.Name())
	switch e := e.(type) {
	case kopiafs.Directory:
		return &storedDirectory{e, name}
	case kopiafs.File:
		if name != e.Name() {
			return &storedFile{e, name}
		}
	case kopiafs.Symlink:
		if name != e.Name() {
			return &storedSymlink{e, name}
		}
	case kopiafs.ErrorEntry:
		if name != e.Name() {
			return &storedError{e, name}
		}
	}
	return e
}

type storedFile struct {
	kopiafs.File
	name string
}

func (f *storedFile) Name() string { return f.name }

type storedSymlink struct {
	kopiafs.Symlink
	name string
}

func (s *storedSymlink) Name() string { return s.name }

type storedError struct {
	kopiafs.ErrorEntry
	name string
}

func (e *storedError) Name() string { return e.name }

type storedDirectory struct {
	kopiafs.Directory
	name string
}

func (d *storedDirectory) Name() string { return d.name }

func (d *storedDirectory) Child(ctx context.Context, stored string) (kopiafs.Entry, error) {
	name, err := decodeName(stored)
	if err != nil {
		return nil, err
	}
	e, err := d.Directory.Child(ctx, name)
	if err != nil {
		return nil, err
	}
	return storable(e), nil
}

func (d *storedDirectory) Iterate(ctx context.Context) (kopiafs.DirectoryIterator, error) {
	i, err := d.Directory.Iterate(ctx)
	if err != nil {
		return nil, err
	}
	return &storedIterator{i}, nil
}

type storedIterator struct{ kopiafs.DirectoryIterator }

func (i *storedIterator) Next(ctx context.Context) (kopiafs.Entry, error) {
	e, err := i.DirectoryIterator.Next(ctx)
	if e == nil || err != nil {
		return nil, err
	}
	return storable(e), nil
}
