// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/device"
	"github.com/kanister-kopia/kanister-kopia/internal/pause"
)

// sampled entries of a volume's root tell early whether its data can be read.
const sampled = 50

// kopiaVersion is that of the program operation, which is built from the same module.
const kopiaVersion = "v0.23.1"

// lookEvery is how often the volumes are looked at without being asked: the agent starts
// before the application, which may have written nothing yet.
const lookEvery = 10 * time.Minute

// Seen is what was last seen of the agent and its volumes.
type Seen struct {
	first chan struct{} // closed when there is something
	last  atomic.Pointer[api.Info]
}

// Watch looks now and then until ctx ends, and logs a volume that cannot be read when it
// turns up: this is known before the first backup fails of it.
func Watch(ctx context.Context, look func() api.Info, log *slog.Logger) *Seen {
	s := &Seen{first: make(chan struct{})}
	go func() {
		told := map[string]string{}
		for begun := false; ; begun = true {
			info := look()
			s.last.Store(&info)
			if !begun {
				close(s.first)
			}
			for _, v := range info.Volumes {
				if v.Problem != "" && v.Problem != told[v.Name] {
					log.Warn("volume cannot be read: a backup of it would fail", "volume", v.Name, "problem", v.Problem)
				}
				told[v.Name] = v.Problem
			}
			if pause.For(ctx, lookEvery) != nil {
				return
			}
		}
	}()
	return s
}

// Last is what was seen last; it waits for the first look.
func (s *Seen) Last() api.Info {
	<-s.first
	return *s.last.Load()
}

// Info describes this agent, the volumes below volumesDir and the block devices in devicesDir.
func Info(volumesDir, devicesDir string) api.Info {
	info := api.Info{Protocol: api.ProtocolVersion, OldestProtocol: api.OldestProtocol, Version: "devel", KopiaVersion: kopiaVersion, UID: os.Getuid(), GID: os.Getgid(), Volumes: []api.VolumeInfo{}}
	if build, ok := debug.ReadBuildInfo(); ok {
		info.Version = build.Main.Version
	}
	entries, _ := os.ReadDir(volumesDir) // none is mirrored: an empty list says so
	for _, e := range entries {
		v := api.VolumeInfo{Name: e.Name(), Readable: true}
		if problem := sample(filepath.Join(volumesDir, e.Name())); problem != "" {
			v.Readable, v.Problem = false, problem
		}
		info.Volumes = append(info.Volumes, v)
	}
	devices, _ := os.ReadDir(devicesDir)
	for _, e := range devices {
		v := api.VolumeInfo{Name: e.Name(), Device: true, Readable: true}
		if problem := sampleDevice(filepath.Join(devicesDir, e.Name())); problem != "" {
			v.Readable, v.Problem = false, problem
		}
		info.Volumes = append(info.Volumes, v)
	}
	return info
}

func sampleDevice(where string) string {
	f, _, err := device.Open(where, os.O_RDONLY)
	if err != nil {
		return err.Error()
	}
	f.Close()
	return ""
}

func sample(dir string) string {
	f, err := os.Open(dir)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	entries, err := f.ReadDir(sampled)
	if err != nil && len(entries) == 0 {
		return "" // empty
	}
	for _, e := range entries {
		if !e.Type().IsRegular() && !e.IsDir() || e.Name() == "lost+found" {
			continue
		}
		one, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			return fmt.Sprintf("%v (the agent runs as uid %d)", err, os.Getuid())
		}
		one.Close()
	}
	return ""
}
