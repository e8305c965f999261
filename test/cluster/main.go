// SPDX-License-Identifier: Apache-2.0

// Cluster gives a kind cluster anywhere: it uses a Docker engine and kind's node
// image where they can be had, and builds the node image from Go modules and
// Debian packages where nothing can be pulled.
//
//	cluster tools    kubectl, kind, kube-apiserver (newest, oldest), etcd, versitygw into build/
//	cluster up       the cluster, with everything in it Ready
//	cluster images   the product's images, built and loaded
//	cluster down     remove the cluster, and the engine if we started it
//	cluster clean    down, and forget the caches
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// env is where things are.
type env struct {
	root  string // of the checkout
	here  string // root/test/cluster
	build string // root/build
	cache cache
	log   *logger
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: cluster tools|up|images|down|clean")
		os.Exit(2)
	}
	if err := run(ctx, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, command string) error {
	e, err := newEnv(command)
	if err != nil {
		return err
	}
	// Two runs at once would pull the cluster from under each other.
	unlock, err := lock(filepath.Join(e.build, "cluster.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	switch command {
	case "tools":
		return e.link(ctx, slices.Concat(clusterTools, testTools))
	case "up":
		return e.up(ctx)
	case "images":
		return e.productImages(ctx)
	case "down":
		return e.down(ctx)
	case "clean":
		if err := e.down(ctx); err != nil {
			return err
		}
		return os.RemoveAll(e.cache.dir)
	default:
		return fmt.Errorf("unknown command %q: use tools, up, images, down or clean", command)
	}
}

func newEnv(command string) (*env, error) {
	root, err := findRoot()
	if err != nil {
		return nil, err
	}
	e := &env{root: root, here: filepath.Join(root, "test", "cluster"), build: filepath.Join(root, "build")}
	dir := os.Getenv("KANISTER_KOPIA_CACHE")
	if dir == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("find a place for the cache (set KANISTER_KOPIA_CACHE): %w", err)
		}
		dir = filepath.Join(base, "kanister-kopia")
	}
	e.cache = cache{dir: dir}
	for _, d := range []string{dir, filepath.Join(e.build, "logs")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	file, err := os.Create(filepath.Join(e.build, "logs", "cluster-"+command+".log"))
	if err != nil {
		return nil, err
	}
	e.log = &logger{out: os.Stdout, file: file, begin: time.Now(), now: time.Now}
	return e, nil
}

func findRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "test", "cluster", "main.go")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("find the checkout: run this inside it")
		}
		dir = filepath.Dir(dir)
	}
}

// lock holds an exclusive lock on a file until unlock, waiting for its turn. The
// kernel gives it back when the process dies, however it dies.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		fmt.Println("another run holds", path+"; waiting for it")
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
	}
	return func() { _ = f.Close() }, nil
}
