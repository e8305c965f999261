// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
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

// Volumes are what an agent sees of its pod's volumes. The zero value sees none.
type Volumes struct {
	// Dir holds the mirrored volumes by name, Devices those that are block devices.
	Dir, Devices string

	mu    sync.Mutex
	looks map[string]*look // under way, by path: a volume that hangs has one, however often it is asked for
}

// look opens what a backup would open.
type look struct {
	began   time.Time
	done    chan struct{}
	problem string // when it is done
}

// answerWithin is how long a volume may take. A dead one keeps its open waiting for good, and
// must not keep those who ask for the others.
const answerWithin = 5 * time.Second

// Info describes this agent and its volumes.
func (v *Volumes) Info() api.Info {
	info := api.Info{Protocol: api.ProtocolVersion, OldestProtocol: api.OldestProtocol, Version: "devel", KopiaVersion: kopiaVersion, UID: os.Getuid(), GID: os.Getgid(), Volumes: []api.VolumeInfo{}}
	if build, ok := debug.ReadBuildInfo(); ok {
		info.Version = build.Main.Version
	}
	var looks []*look
	all := func(dir string, device bool, sample func(string) string) {
		entries, _ := os.ReadDir(dir) // none is mirrored: an empty list says so
		for _, e := range entries {
			info.Volumes = append(info.Volumes, api.VolumeInfo{Name: e.Name(), Device: device})
			looks = append(looks, v.look(filepath.Join(dir, e.Name()), sample))
		}
	}
	all(v.Dir, false, sample)
	all(v.Devices, true, sampleDevice)
	for i, l := range looks {
		info.Volumes[i].Problem = l.wait()
		info.Volumes[i].Readable = info.Volumes[i].Problem == ""
	}
	return info
}

// look begins to look at a volume, or joins the look that is under way.
func (v *Volumes) look(where string, sample func(string) string) *look {
	v.mu.Lock()
	defer v.mu.Unlock()
	if l := v.looks[where]; l != nil {
		return l
	}
	if v.looks == nil {
		v.looks = map[string]*look{}
	}
	l := &look{began: time.Now(), done: make(chan struct{})}
	v.looks[where] = l
	go func() {
		l.problem = sample(where)
		v.mu.Lock()
		defer v.mu.Unlock()
		delete(v.looks, where)
		close(l.done)
	}()
	return l
}

// wait returns what is wrong with the volume, "" if nothing is.
func (l *look) wait() string {
	late := time.NewTimer(time.Until(l.began.Add(answerWithin)))
	defer late.Stop()
	select {
	case <-l.done:
		return l.problem
	case <-late.C:
		return fmt.Sprintf("it does not answer within %s: look at the storage that the volume is on", answerWithin)
	}
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
	f, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	entries, err := f.ReadDir(sampled)
	if len(entries) == 0 && err != nil && !errors.Is(err, io.EOF) {
		return err.Error()
	}
	for _, e := range entries {
		if !e.Type().IsRegular() && !e.IsDir() || e.Name() == "lost+found" {
			continue
		}
		if err := sampleEntry(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Sprintf("%v (the agent runs as uid %d)", err, os.Getuid())
		}
	}
	return ""
}

// sampleEntry opens a file or directory. It may be something else by now: a pipe is not
// waited for, a link not followed, and none of them is an entry that cannot be read.
func sampleEntry(where string) error {
	f, err := os.OpenFile(where, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ELOOP) || errors.Is(err, syscall.ENXIO) {
		return nil
	}
	if err == nil {
		f.Close()
	}
	return err
}
