// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// An interrupted or failed step leaves nothing that a later run takes for complete.
func TestCacheResumes(t *testing.T) {
	c := cache{dir: t.TempDir()}
	key, err := hash([]string{"inputs"})
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("interrupted")
	if _, _, err := c.get("step", key, func(dir string) error {
		if err := os.WriteFile(filepath.Join(dir, "half"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		return broken
	}); !errors.Is(err, broken) {
		t.Fatalf("error %v", err)
	}
	dir, built, err := c.get("step", key, func(dir string) error {
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("the new build begins with %v of the old one", left)
		}
		return os.WriteFile(filepath.Join(dir, "whole"), nil, 0o600)
	})
	if err != nil || !built {
		t.Fatalf("built %v, %v", built, err)
	}
	again, built, err := c.get("step", key, func(string) error { t.Error("built twice"); return nil })
	if err != nil || built || again != dir {
		t.Errorf("second time: %s built %v, %v", again, built, err)
	}
	other, err := hash([]string{"other inputs"})
	if err != nil {
		t.Fatal(err)
	}
	if _, built, err := c.get("step", other, func(string) error { return nil }); err != nil || !built {
		t.Errorf("other inputs: built %v, %v", built, err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Error("the outdated result is kept")
	}
}

// A step forgets its own outdated results, and not those of a step whose name is longer.
func TestCacheForgetsOnlyItsOwn(t *testing.T) {
	c := cache{dir: t.TempDir()}
	get := func(b goBuild, inputs string) string {
		t.Helper()
		key, err := hash([]string{inputs})
		if err != nil {
			t.Fatal(err)
		}
		dir, built, err := c.get("bin-"+b.name, key, func(string) error { return nil })
		if err != nil || !built {
			t.Fatalf("built %v, %v", built, err)
		}
		return dir
	}
	there := func(dir string) bool { _, err := os.Stat(dir); return err == nil }
	newest, oldest := get(kubernetes, "one"), get(oldestKubernetes, "one")
	if !there(newest) {
		t.Error("the oldest Kubernetes takes the newest one's place")
	}
	if get(kubernetes, "two"); there(newest) || !there(oldest) {
		t.Errorf("after a new build of the newest: its old one kept %v, the oldest kept %v", there(newest), there(oldest))
	}
}

func TestHash(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	key := func(text string) string {
		t.Helper()
		k, err := hash([]string{text}, dir)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	write := func(content string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("one")
	first := key("a")
	if key("a") != first || len(first) != keyLength {
		t.Errorf("the same inputs: %s and %s", first, key("a"))
	}
	if key("b") == first {
		t.Error("another text has the same key")
	}
	write("two")
	if key("a") == first {
		t.Error("another content has the same key")
	}
}

// The Dockerfile's stages are what `make images` builds.
func TestStage(t *testing.T) {
	raw, err := os.ReadFile("../../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"agent", "controller", "webhook", "repository-server"} {
		got := stage(string(raw), p+"-prebuilt")
		if strings.Count(got, "FROM") != 1 || !regexp.MustCompile(`COPY .*\b`+p+`\b.* /`).MatchString(got) || !strings.Contains(got, "ENTRYPOINT [\"/"+p+"\"]") {
			t.Errorf("stage of %s:\n%s", p, got)
		}
	}
}

// The versions that programs are given are the versions that are built.
func TestKubernetesVersion(t *testing.T) {
	for folder, version := range map[string]string{kubernetes.folder: kubernetesVersion, oldestKubernetes.folder: oldestKubernetesVersion} {
		raw, err := os.ReadFile(filepath.Join(folder, "go.mod"))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(raw), "k8s.io/kubernetes "+version+"\n") {
			t.Errorf("%s/go.mod does not require k8s.io/kubernetes %s", folder, version)
		}
	}
	const want = "-X k8s.io/component-base/version.gitVersion=v1.30.14 -X k8s.io/component-base/version.gitMajor=1" +
		" -X k8s.io/component-base/version.gitMinor=30 -X k8s.io/component-base/version.gitTreeState=clean"
	if got := kubernetesLDFlags("v1.30.14"); got != want {
		t.Errorf("flags %s", got)
	}
}
