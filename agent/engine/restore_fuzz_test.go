// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
)

// stored is a repository that answers what a test puts there.
type stored struct {
	repo.Repository
	objects map[string][]byte
	opens   atomic.Int64
}

// storedID names the nth object.
func storedID(n int) string { return fmt.Sprintf("k%032x", n) }

// mostOpens ends a restore of a tree that has no end.
const mostOpens = 300

func (s *stored) OpenObject(_ context.Context, id object.ID) (object.Reader, error) {
	if s.opens.Add(1) > mostOpens {
		return nil, errors.New("the server is gone")
	}
	raw, ok := s.objects[id.String()]
	if !ok {
		return nil, object.ErrObjectNotFound
	}
	return &storedReader{bytes.NewReader(raw)}, nil
}

// askable is a repository that can be asked for contents ahead.
type askable struct{ *stored }

func (s askable) Ask(_ context.Context, id content.ID) func(context.Context) ([]byte, error) {
	return func(ctx context.Context) ([]byte, error) {
		r, err := s.OpenObject(ctx, object.DirectObjectID(id))
		if err != nil {
			return nil, err
		}
		return io.ReadAll(r)
	}
}

func (s askable) Pieces(ctx context.Context, id object.ID) pieces {
	return func(yield func([]byte, error) bool) {
		r, err := s.OpenObject(ctx, id)
		if err != nil {
			yield(nil, err)
			return
		}
		piecesOf(r)(yield)
	}
}

func (s *stored) PrefetchObjects(context.Context, []object.ID, string) ([]content.ID, error) {
	return nil, nil
}

type storedReader struct{ *bytes.Reader }

func (*storedReader) Close() error    { return nil }
func (r *storedReader) Length() int64 { return r.Size() }

// arena is a volume with a target in it, and what lies outside of the target.
type arena struct {
	base string
	told string // of what was not kept
}

// newArena puts into the target what an application could have there.
func newArena(t *testing.T) *arena {
	t.Helper()
	a := &arena{base: t.TempDir()}
	for _, dir := range []string{"volumes/data/target/dir", "volumes/data/target/lost+found", "volumes/data/beside/sub", "outside/sub"} {
		must(t, os.MkdirAll(filepath.Join(a.base, dir), 0o755))
	}
	for _, file := range []string{"volumes/data/target/dir/f", "volumes/data/target/f", "volumes/data/beside/f", "volumes/data/beside/sub/f", "outside/f", "outside/sub/f"} {
		must(t, os.WriteFile(filepath.Join(a.base, file), []byte("there before"), 0o640))
	}
	for link, to := range map[string]string{"near": "../beside", "far": "../../../outside", "nearer": "../beside/f", "absolute": filepath.Join(a.base, "outside")} {
		must(t, os.Symlink(to, filepath.Join(a.base, "volumes", "data", "target", link)))
	}
	return a
}

// outside is all that a restore must not touch.
func (a *arena) outside(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	must(t, filepath.WalkDir(a.base, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(a.base, path)
		must(t, err)
		if rel == "volumes/data/target" {
			return fs.SkipDir
		}
		info, err := d.Info()
		must(t, err)
		said := fmt.Sprint(info.Mode())
		if rel != "volumes/data" { // its time changes with the target's making
			uid, gid := ownerOf(info)
			said += fmt.Sprint(" ", info.ModTime().UnixNano(), changeTime(info).UnixNano(), " ", uid, gid)
		}
		if info.Mode().IsRegular() {
			raw, err := os.ReadFile(path)
			must(t, err)
			said += " " + string(raw)
		}
		found[rel] = said
		return nil
	}))
	return found
}

// outsideVolume is what a restore must not touch wherever in the volume it is to write.
func (a *arena) outsideVolume(t *testing.T) map[string]string {
	t.Helper()
	found := a.outside(t)
	maps.DeleteFunc(found, func(path, _ string) bool { return strings.HasPrefix(path, "volumes/data") })
	return found
}

// restore restores the object 1 into the target, from each kind of server, and says so
// if one does not end, touches anything else or ends otherwise than the other.
func (a *arena) restore(t *testing.T, s *stored, r api.RestoreRequest) error {
	t.Helper()
	plain := a.restoreFrom(t, s, s, r)
	s.opens.Store(0)
	asked := a.restoreFrom(t, s, askable{s}, r)
	if (plain == nil) != (asked == nil) {
		t.Errorf("through Kopia it ends with %v, through a stream of contents with %v", plain, asked)
	}
	return asked
}

func (a *arena) restoreFrom(t *testing.T, s *stored, from objects, r api.RestoreRequest) error {
	t.Helper()
	r.RootObject = storedID(1)
	outside := a.outside
	if r.Volume == "" {
		r.Volume, r.Path = "data", "/target"
	} else {
		outside = a.outsideVolume // the request says where in it
	}
	before := outside(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		result, err := restoreVolume(ctx, &connection{rep: s, objects: from}, api.StartRequest{Kind: api.KindRestore, Restore: &r},
			Env{VolumesDir: filepath.Join(a.base, "volumes"), Now: time.Now}, newProgress(time.Now, func(api.Progress) {}), newThrottle(ctx, 0))
		if err == nil {
			a.told = strings.Join(result.Restore.NotKept, "; ")
		}
		ended <- err
	}()
	var err error
	select {
	case err = <-ended:
	case <-time.After(30 * time.Second):
		t.Fatal("it does not end")
	}
	if ctx.Err() != nil {
		t.Errorf("it takes too long: %v", err)
	}
	if after := outside(t); !maps.Equal(before, after) {
		t.Errorf("outside of the target:\n had %v\nhave %v", before, after)
	}
	return err
}

func manifestOf(entries ...*snapshot.DirEntry) []byte {
	raw, err := json.Marshal(snapshot.DirManifest{StreamType: directoryStream, Entries: entries})
	if err != nil {
		panic(err)
	}
	return raw
}

func entryOf(name string, kind snapshot.EntryType, n int, size int64) *snapshot.DirEntry {
	id, err := object.ParseID(storedID(n))
	if err != nil {
		panic(err)
	}
	return &snapshot.DirEntry{Name: name, Type: kind, ObjectID: id, FileSize: size, Permissions: 0o644}
}

// A directory that no snapshot of ours holds is refused with a word about it.
func TestRestoreRefuses(t *testing.T) {
	f := func(name string) *snapshot.DirEntry { return entryOf(name, snapshot.EntryTypeFile, 9, 4) }
	d := func(name string, n int) *snapshot.DirEntry {
		return entryOf(name, snapshot.EntryTypeDirectory, n, 0)
	}
	for name, c := range map[string]struct {
		root, below string
		want        string
	}{
		"good":               {string(manifestOf(f("f"), d("d", 2))), string(manifestOf(f("f"))), ""},
		"nothing":            {"", "", "read directory"},
		"null":               {"null", "", "it is \"\""},
		"no entry":           {`{"stream":"kopia:directory","entries":[null]}`, "", "entry"},
		"no entry below":     {string(manifestOf(d("d", 2))), `{"stream":"kopia:directory","entries":[null]}`, "entry"},
		"a name twice":       {string(manifestOf(f("f"), f("f"))), "", "twice"},
		"of two kinds":       {string(manifestOf(d("f", 2), f("f"))), string(manifestOf(f("f"))), "twice"},
		"in another form":    {string(manifestOf(f("f"), f(escaped+"%66"))), "", "twice"},
		"itself":             {string(manifestOf(d("d", 1))), "", "itself"},
		"itself, further on": {string(manifestOf(d("d", 2))), string(manifestOf(d("d", 1))), "itself"},
		"an unknown kind":    {string(manifestOf(entryOf("f", "z", 9, 4))), "", "unknown kind"},
		"too large":          {string(manifestOf(entryOf("f", snapshot.EntryTypeFile, 9, 1<<62))), "", "4 bytes of"},
		"less than nothing":  {string(manifestOf(entryOf("f", snapshot.EntryTypeFile, 9, -1))), "", "4 bytes of"},
		"not there":          {string(manifestOf(d("d", 7))), "", "not found"},
		"not a directory":    {string(manifestOf(d("d", 9))), "", "read directory"},
	} {
		t.Run(name, func(t *testing.T) {
			err := newArena(t).restore(t, &stored{objects: map[string][]byte{
				storedID(1): []byte(c.root), storedID(2): []byte(c.below), storedID(9): []byte("four"),
			}}, api.RestoreRequest{})
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("error %v, want %q in it", err, c.want)
			}
		})
	}
}

// Of an owner that no file has, nothing is lent to whoever restores, and that is told.
func TestRestoreOfNobodys(t *testing.T) {
	a := newArena(t)
	e := entryOf("f", snapshot.EntryTypeFile, 9, 4)
	e.Permissions, e.UserID, e.GroupID = snapshot.Permissions(fs.ModeSetuid|0o755), math.MaxUint32, math.MaxUint32
	s := &stored{objects: map[string][]byte{storedID(1): manifestOf(e), storedID(9): []byte("four")}}
	must(t, a.restore(t, s, api.RestoreRequest{}))
	info, err := os.Lstat(filepath.Join(a.base, "volumes", "data", "target", "f"))
	must(t, err)
	if info.Mode() != 0o755 {
		t.Errorf("it has mode %v, want no more than 0755", info.Mode())
	}
	if !strings.Contains(a.told, "owner of 1 entries") {
		t.Errorf("told %q, want that the owner was not kept", a.told)
	}
}

// endless is what a server could send that knows no end.
type endless struct {
	prefix string
	read   int64
}

func (e *endless) Read(p []byte) (int, error) {
	n := copy(p, e.prefix)
	e.prefix = e.prefix[n:]
	for i := range p[n:] {
		p[n+i] = 'x'
	}
	e.read += int64(len(p))
	return len(p), nil
}

func TestReadJSONEnds(t *testing.T) {
	const limit = 1 << 20
	for _, prefix := range []string{`"`, `{"stream":"`, `{"entries":[{"name":"`} {
		e := &endless{prefix: prefix}
		if err := readJSON(e, limit, &snapshot.DirManifest{}); err == nil || !strings.Contains(err.Error(), "larger than") {
			t.Errorf("%s: %v, want a word about its size", prefix, err)
		}
		if e.read > 2*limit {
			t.Errorf("%s: %d bytes were read", prefix, e.read)
		}
	}
}

// FuzzRestoreManifest: whatever a directory's object holds, a restore ends, and
// stays in its target.
func FuzzRestoreManifest(f *testing.F) {
	good := manifestOf(entryOf("f", snapshot.EntryTypeFile, 9, 4), entryOf("d", snapshot.EntryTypeDirectory, 2, 0), entryOf("l", snapshot.EntryTypeSymlink, 8, 0))
	kept := manifestOf(entryOf("f", snapshot.EntryTypeFile, 9, 4), entryOf(extrasName, snapshot.EntryTypeFile, 3, 0))
	f.Add(good, kept, []byte(`{"version":1,"self":[{"name":"user.x","value":"eA=="}],"entries":[{"name":"f","inode":"1"},{"name":"p","special":{"kind":"fifo","mode":"644"}}]}`), "../beside", "")
	f.Add([]byte(`{"stream":"kopia:directory","entries":[{"name":"f","type":"f","mode":"37777777777","size":-1,"mtime":"0000-01-01T00:00:00Z","uid":4294967295,"gid":4294967295,"obj":"`+storedID(9)+`"}]}`), kept, []byte(`{"version":1}`), "/", "d")
	f.Add([]byte(`{"stream":"kopia:directory","entries":[{"name":"f","type":"d","mtime":"9999-12-31T23:59:59Z","obj":"`+storedID(2)+`"},null]}`), good, []byte(`{"version":2}`), strings.Repeat("x", 5000), "f")
	f.Fuzz(func(t *testing.T, root, below, kept []byte, link, subPath string) {
		_ = newArena(t).restore(t, &stored{objects: map[string][]byte{
			storedID(1): root, storedID(2): below, storedID(3): kept, storedID(8): []byte(link), storedID(9): []byte("four"),
		}}, api.RestoreRequest{SubPath: subPath, DeleteExtra: len(link)%2 == 0})
	})
}

// FuzzRestorePath: whatever a request names, a restore ends, and stays in the volume.
func FuzzRestorePath(f *testing.F) {
	for _, path := range []string{"/", "/target", "/new/er", "", ".", "target", "/target/", "/../outside", "/target/far", "/target/far/sub", "/target/absolute/x", "/target/near/../../x", "/target/f", "/target/f/x", "/a\x00b", "/" + strings.Repeat("n", 300)} {
		f.Add("data", path, "", true)
	}
	for _, volume := range []string{"..", ".", "/", "data/../../outside", "other", "data/target/far", "a\x00b"} {
		f.Add(volume, "/", "d", true)
	}
	f.Add("data", "/target", "../f", false)
	s := &stored{objects: map[string][]byte{
		storedID(1): manifestOf(entryOf("f", snapshot.EntryTypeFile, 9, 4), entryOf("d", snapshot.EntryTypeDirectory, 2, 0), entryOf("sub", snapshot.EntryTypeSymlink, 8, 0)),
		storedID(2): manifestOf(entryOf("f", snapshot.EntryTypeFile, 9, 4)), storedID(8): []byte("../../outside"), storedID(9): []byte("four"),
	}}
	f.Fuzz(func(t *testing.T, volume, path, subPath string, deleteExtra bool) {
		if volume == "" {
			t.Skip("the others' own way to say /target")
		}
		s.opens.Store(0)
		_ = newArena(t).restore(t, s, api.RestoreRequest{Volume: volume, Path: path, SubPath: subPath, DeleteExtra: deleteExtra})
	})
}

// FuzzRestoreTree: the same, with trees that are made of what is hostile.
func FuzzRestoreTree(f *testing.F) {
	names := []string{
		"f", "dir", "near", "far", "absolute", "nearer", "g", "", ".", "..", "../beside/f", "../../outside/f", "/outside", "f\x00", "dir/f",
		escaped + "f", escaped + "%66", escaped + "%2e%2e", escaped + "dir%2Ff", extrasName, "lost+found", tempPrefix + "x", strings.Repeat("n", 256),
	}
	kinds := []snapshot.EntryType{snapshot.EntryTypeDirectory, snapshot.EntryTypeFile, snapshot.EntryTypeSymlink, "", "z"}
	links := []string{"../beside", "../beside/sub", "../../../outside", "../../../outside/f", "f", "dir", ".", "..", "/", "", "a\x00b"}
	specials := []string{"fifo", "socket", "block", "char", "file", ""}
	const dirs, firstLink, lastExtras = 4, 10, 30 // the numbers of objects: 1 to 4 are directories
	f.Add([]byte{})
	f.Add([]byte("\x02\x00\x01\x09\x04\x00\x01\x00\x02\x00\x00\x01\x02\x03\x04\x05\x06\x07"))
	f.Add(bytes.Repeat([]byte{3, 2, 0, 2, 1, 4, 7}, 20))
	f.Add(bytes.Repeat([]byte{5, 2, 2, 0, 3, 19, 1, 31}, 20))
	f.Fuzz(func(t *testing.T, plan []byte) {
		next := func(n int) int {
			if len(plan) == 0 {
				return 0
			}
			b := int(plan[0])
			plan = plan[1:]
			return b % n
		}
		s := &stored{objects: map[string][]byte{storedID(9): []byte("four")}}
		for i, link := range links {
			s.objects[storedID(firstLink+i)] = []byte(link)
		}
		deleteExtra, subPath := next(2) == 0, ""
		if next(8) == 1 {
			subPath = names[next(len(names))]
		}
		for n := 1; n <= dirs; n++ {
			x := &extras{}
			for range next(4) {
				e := extra{Name: names[next(len(names))], Inode: fmt.Sprint(next(3))}
				switch next(4) {
				case 1:
					e.Special = &special{Kind: specials[next(len(specials))], Mode: snapshot.Permissions(next(256) << 4), UID: uint32(next(3) - 1), Major: 1, Minor: 3}
				case 2:
					e.Xattrs = []xattr{{Name: []string{"user.x", "security.capability", "system.posix_acl_access", "../x", ""}[next(5)], Value: []byte("value")}}
				}
				x.Entries = append(x.Entries, e)
			}
			raw, err := x.encode()
			must(t, err)
			s.objects[storedID(lastExtras+n)] = raw
			var entries []*snapshot.DirEntry
			for range next(6) {
				e := entryOf(names[next(len(names))], kinds[next(len(kinds))], 9, 4)
				number := 9
				switch {
				case e.Name == extrasName:
					number = lastExtras + n
				case e.Type == snapshot.EntryTypeDirectory:
					number = 1 + next(dirs)
				case e.Type == snapshot.EntryTypeSymlink:
					number = firstLink + next(len(links))
				}
				e.ObjectID = entryOf("", "", number, 0).ObjectID
				e.Permissions = snapshot.Permissions(next(256) << 4)
				e.UserID, e.GroupID = uint32(next(3)-1), uint32(next(3)-1)
				entries = append(entries, e)
			}
			s.objects[storedID(n)] = manifestOf(entries...)
		}
		_ = newArena(t).restore(t, s, api.RestoreRequest{SubPath: subPath, DeleteExtra: deleteExtra})
	})
}
