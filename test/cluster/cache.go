// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// cache keeps the result of a step under the hash of all that went into it. A
// result is built beside its place and renamed when complete, so an interrupted
// build leaves nothing that looks complete.
type cache struct {
	dir string
}

// get returns the directory that holds the result for key, and builds it if it
// is not there. build writes into the directory it is given.
func (c cache) get(name, key string, build func(dir string) error) (dir string, built bool, err error) {
	dir = filepath.Join(c.dir, name+"-"+key)
	if _, err := os.Stat(dir); err == nil {
		return dir, false, nil
	}
	// What an interrupted run left. The lock is ours, so nobody builds in it.
	partial := dir + ".partial"
	if err := os.RemoveAll(partial); err != nil {
		return "", false, fmt.Errorf("clear what an interrupted run left: %w", err)
	}
	if err := os.MkdirAll(partial, 0o755); err != nil {
		return "", false, err
	}
	if err := build(partial); err != nil {
		return "", false, fmt.Errorf("build %s: %w", name, err)
	}
	if err := os.Rename(partial, dir); err != nil {
		return "", false, err
	}
	c.forgetOthers(name, dir)
	return dir, true, nil
}

// forgetOthers removes results of the same step for other inputs: they are large.
func (c cache) forgetOthers(name, keep string) {
	old, _ := filepath.Glob(filepath.Join(c.dir, name+"-*"))
	for _, dir := range old {
		// A key is 16 hex digits: "node-x" must not match the step "node".
		suffix := strings.TrimPrefix(filepath.Base(dir), name+"-")
		if dir != keep && len(suffix) == keyLength {
			_ = os.RemoveAll(dir)
		}
	}
}

const keyLength = 16

// hash is the key of a step's inputs: texts and the files of folders, by name and content.
func hash(texts []string, folders ...string) (string, error) {
	h := sha256.New()
	for _, t := range texts {
		fmt.Fprintf(h, "%d:%s;", len(t), t)
	}
	for _, folder := range folders {
		var files []string
		if err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				files = append(files, path)
			}
			return err
		}); err != nil {
			return "", fmt.Errorf("hash %s: %w", folder, err)
		}
		slices.Sort(files)
		for _, path := range files {
			f, err := os.Open(path)
			if err != nil {
				return "", err
			}
			rel, _ := filepath.Rel(folder, path)
			fmt.Fprintf(h, "file %s:", rel)
			_, err = io.Copy(h, f)
			f.Close()
			if err != nil {
				return "", fmt.Errorf("hash %s: %w", path, err)
			}
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:keyLength], nil
}
