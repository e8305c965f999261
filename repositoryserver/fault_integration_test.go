// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repositoryserver_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kopia/kopia/repo/manifest"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/client"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// noise is how much of a source is not to be compressed: it takes most of the way
// between agent, server and storage, so bytes on the way tell how far they are.
const noise = 2 << 20

// trial is a world with a source and a target on one agent.
type trial struct {
	*world
	s       *server
	volumes string
	agent   *client.Client
	process *testenv.Process
	backups int
}

func newTrial(w *world) *trial {
	w.Helper()
	t := newTrialElsewhere(w)
	t.s = w.serve()
	return t
}

// newTrialElsewhere is a trial without a server of ours.
func newTrialElsewhere(w *world) *trial {
	w.Helper()
	t := &trial{world: w, volumes: w.TempDir()}
	for _, name := range []string{"data", "target"} {
		w.must(os.Mkdir(filepath.Join(t.volumes, name), 0o755))
	}
	testenv.MakeTree(w, t.source())
	t.agent, t.process = w.sidecar(t.source(), nil)
	return t
}

func (t *trial) source() string { return filepath.Join(t.volumes, "data") }

// network makes a way to the repository server that can be cut.
func (t *trial) network() *testenv.Proxy {
	return testenv.StartProxy(t, strings.TrimPrefix(t.s.url, "https://"))
}

// change gives the source new content and returns its tree.
func (t *trial) change(seed uint64) map[string]testenv.Entry {
	t.Helper()
	random := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	content := make([]byte, noise/4)
	for i := range 4 {
		_, _ = random.Read(content)
		t.must(os.WriteFile(filepath.Join(t.source(), fmt.Sprintf("noise-%d", i)), content, 0o640))
	}
	return testenv.Tree(t, t.source())
}

// next is a backup after a fault.
func (t *trial) next() api.Record {
	t.Helper()
	t.backups++
	t.ready(t.s)
	return t.backup(t.s, t.agent, fmt.Sprintf("next-%d", t.backups), "/")
}

func (t *trial) snapshot(id string) api.StartRequest {
	t.Helper()
	return snapshotRequest(id, t.session(t.s, id, "pvc.data"), "/")
}

// restoreTo restores a backup below a path of the target.
func (t *trial) restoreTo(id string, record api.Record, path string) api.StartRequest {
	t.Helper()
	return api.StartRequest{ID: id, Kind: api.KindRestore, Credentials: t.toRestore(t.s, id), Restore: &api.RestoreRequest{
		RootObject: record.Snapshot.RootObject, Root: record.Snapshot.Root, Volume: "target", Path: path,
	}}
}

// exact restores a backup and compares.
func (t *trial) exact(want map[string]testenv.Entry, id string, record api.Record, path string) {
	t.Helper()
	_, err := t.agent.Run(t.context(), t.restoreTo(id, record, path), func(api.Progress) {})
	t.must(err)
	t.must(t.s.agent.EndSession(t.context(), id)) // the server lets few in at once
	t.same(want, testenv.Tree(t, filepath.Join(t.volumes, "target", path)))
}

// held starts an operation and waits until the network is cut in the midst of it.
func (t *trial) held(agent *client.Client, link *testenv.Proxy, after int64, req api.StartRequest) {
	t.Helper()
	t.heldBy(agent, link, link.CutAfter(after), req)
}

// heldBy is held with a cut of any kind.
func (t *trial) heldBy(agent *client.Client, link *testenv.Proxy, cut <-chan struct{}, req api.StartRequest) {
	t.Helper()
	t.begin(agent, link, req)
	t.awaitCut(agent, cut, req)
}

// begin starts an operation over a network.
func (t *trial) begin(agent *client.Client, link *testenv.Proxy, req api.StartRequest) {
	t.Helper()
	if link.Upstream != t.s3.Endpoint {
		req.Credentials.URL = "https://" + link.Address
	}
	_, err := agent.Start(t.context(), req)
	t.must(err)
}

// awaitCut waits until the network of an operation is cut.
func (t *trial) awaitCut(agent *client.Client, cut <-chan struct{}, req api.StartRequest) {
	t.Helper()
	testenv.Eventually(t, 3*time.Minute, req.ID+" is under way", func() bool {
		select {
		case <-cut:
			return true
		default:
		}
		if op, err := agent.Get(t.context(), req.ID); err == nil && op.State.Done() {
			t.Fatalf("%s was over before anything could happen to it: %s", req.ID, told(op))
		}
		return false
	})
}

// ended waits for the end of an operation, or of what its agent knows of it.
func (t *trial) ended(agent *client.Client, id string) (op api.Operation) {
	t.Helper()
	testenv.Eventually(t, 5*time.Minute, id+" ends", func() bool {
		var err error
		op, err = agent.Get(t.context(), id)
		return err == nil && (op.State.Done() || op.State == api.StateNeedsCredentials)
	})
	if op.Started != nil && op.Finished != nil {
		t.Logf("%s %s after %s", id, told(op), op.Finished.Sub(*op.Started))
	}
	return op
}

func told(op api.Operation) string {
	if op.Failure != nil {
		return fmt.Sprintf("%s: %s: %v", op.State, op.Failure.Code, op.Failure)
	}
	return string(op.State)
}

// failedWith says whether an operation failed with one of some codes, and says so to people.
func failedWith(op api.Operation, codes ...api.Code) bool {
	return op.State == api.StateFailed && op.Result == nil && op.Failure != nil && op.Failure.Title != "" && slices.Contains(codes, op.Failure.Code)
}

// complete says whether an operation succeeded, with all files.
func complete(op api.Operation, want map[string]testenv.Entry) bool {
	if op.State != api.StateSucceeded || op.Result == nil || op.Failure != nil {
		return false
	}
	if op.Kind == api.KindSnapshot {
		return op.Result.Snapshot.Files == files(want)
	}
	return op.Result.Restore.Files == files(want)
}

func files(tree map[string]testenv.Entry) (n int64) {
	for _, e := range tree {
		if e.Mode.IsRegular() {
			n++
		}
	}
	return n
}

// Whatever is killed at the beginning, in the middle or at the end of a backup and
// of a restore: the operation ends in a true state, the next backup works, and its
// restore is exact, also over what a killed one left.
func TestIntegrationKilled(t *testing.T) {
	t.Parallel()
	counted := killsAreCounted(t)
	for victim, good := range map[string]func(api.Operation, map[string]testenv.Entry) bool{
		"the operation's process": func(op api.Operation, _ map[string]testenv.Entry) bool {
			// By whom is known where the kernel counts what it kills.
			if counted {
				return failedWith(op, api.CodeKilled)
			}
			return failedWith(op, api.CodeOutOfMemory) && strings.Contains(op.Failure.Title, "most likely")
		},
		"the agent": func(op api.Operation, _ map[string]testenv.Entry) bool {
			return op.State == api.StateNeedsCredentials && op.Failure == nil && op.Finished == nil
		},
		// Its passwords go with it. A restore may have had all that it needs.
		"the repository server": func(op api.Operation, want map[string]testenv.Entry) bool {
			return failedWith(op, api.CodeServerUnreachable, api.CodeAccessDenied) || op.Kind == api.KindRestore && complete(op, want)
		},
		// The server tries again, for a while.
		"the storage": func(op api.Operation, want map[string]testenv.Entry) bool {
			return complete(op, want) || failedWith(op, api.CodeStorage)
		},
	} {
		t.Run(victim, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			var links [2]*testenv.Proxy // of a backup and of a restore
			if victim == "the storage" {
				links[0] = testenv.StartProxy(t, w.s3.Endpoint)
				links[1] = links[0]
				w.config.Storage.Endpoint = links[0].Address
			}
			tr := newTrial(w)
			if victim != "the storage" {
				links = [2]*testenv.Proxy{tr.network(), tr.network()}
			}
			strike := func(operations int) {
				switch victim {
				case "the operation's process":
					pids := children(w, tr.process.Cmd.Process.Pid)
					if len(pids) != operations {
						t.Fatalf("%d processes of %d operations", len(pids), operations)
					}
					for _, pid := range pids {
						w.must(syscall.Kill(pid, syscall.SIGKILL))
					}
				case "the agent":
					tr.process.Kill()
					tr.process = tr.process.Again(w)
				case "the repository server":
					tr.s.Kill()
					tr.s.Process = tr.s.Again(w)
				case "the storage":
					w.s3.Gateway.Kill()
					w.s3.Gateway = w.s3.Gateway.Again(w)
				}
			}
			// checked holds what is told of an operation against what there is.
			checked := func(f *fault) {
				t.Helper()
				f.op = tr.ended(tr.agent, f.req.ID)
				if f.op.State == api.StateSucceeded && f.req.Kind == api.KindRestore {
					tr.same(f.want, testenv.Tree(t, filepath.Join(tr.volumes, "target", f.req.Restore.Path)))
				}
			}
			hit := func(held ...*fault) {
				t.Helper()
				// They begin together: who is cut off before he is let in gives up soon.
				var cuts []<-chan struct{}
				for _, f := range held {
					if f.commit {
						cuts = append(cuts, tr.cutAtCommit(f.link))
					} else {
						cuts = append(cuts, f.link.CutAfter(f.after))
					}
					tr.begin(tr.agent, f.link, f.req)
				}
				for i, f := range held {
					tr.awaitCut(tr.agent, cuts[i], f.req)
				}
				strike(len(held))
				for _, f := range held {
					f.link.Heal()
				}
				for _, f := range held {
					// The answer to a commit may come after all.
					if checked(f); !good(f.op, f.want) && !(f.commit && complete(f.op, f.want)) {
						t.Errorf("%s ended as %s", f.req.ID, told(f.op))
					}
				}
			}
			want := tr.change(0)
			record := tr.next()
			// again asks for what a killed agent has left.
			again := func(held ...*fault) {
				t.Helper()
				if victim != "the agent" {
					return
				}
				for _, f := range held {
					_, err := tr.agent.Run(w.context(), f.req, func(api.Progress) {})
					w.must(err)
					if checked(f); !complete(f.op, f.want) {
						t.Errorf("%s, asked for again, ended as %s", f.req.ID, told(f.op))
					}
				}
			}
			// exact makes the next backup, and restores it.
			exact := func(phase string, backup *fault) {
				t.Helper()
				record = tr.next()
				if backup.op.State == api.StateSucceeded && backup.op.Result.Snapshot.RootObject != record.Snapshot.RootObject {
					t.Errorf("%s saved %+v, the next one of the same data %+v", backup.req.ID, backup.op.Result.Snapshot, record.Snapshot)
				}
				tr.exact(backup.want, "next-restore-"+phase, record, "/"+phase)
			}
			for i, phase := range []string{"start", "middle", "end"} {
				before := want
				want = tr.change(uint64(i + 1))
				part := int64(i) // in halves
				after := max(1, part*noise/2)
				backup := &fault{req: tr.snapshot("backup-" + phase), want: want, link: links[0], after: after}
				restore := &fault{req: tr.restoreTo("restore-"+phase, record, "/"+phase), want: before, link: links[1], after: after}
				if victim == "the storage" {
					hit(backup)
					// The server fetches from there what it has not fetched yet.
					record = tr.next()
					restore.req.Restore.RootObject, restore.want = record.Snapshot.RootObject, want
					hit(restore)
				} else {
					hit(backup, restore)
				}
				again(backup, restore)
				exact(phase, backup)
			}

			// In the moment when it is saved, and nobody knows.
			want = tr.change(4)
			backup := &fault{req: tr.snapshot("backup-commit"), want: want, link: links[0], commit: true}
			hit(backup)
			again(backup)
			if r := backup.op.Result; r != nil && tr.manifests()[manifest.ID(r.Snapshot.ID)] != "snapshot" {
				t.Errorf("%s says that it saved %s, which is not there", backup.req.ID, r.Snapshot.ID)
			}
			exact("commit", backup)
			if record.Snapshot.NewBytes > noise/2 {
				t.Errorf("%d bytes were sent again of what was saved", record.Snapshot.NewBytes)
			}
		})
	}
}

// killsAreCounted says whether the kernel tells our control group, and so an agent in it,
// how many processes it has killed for want of memory.
func killsAreCounted(t *testing.T) bool {
	t.Helper()
	groups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for _, group := range strings.Fields(string(groups)) {
		parts := strings.SplitN(group, ":", 3)
		if len(parts) != 3 {
			continue
		}
		files := []string{"memory.events"}
		if parts[1] == "memory" {
			files = []string{"memory/memory.oom_control"}
		} else if parts[0] != "0" {
			continue
		}
		files = append(files, filepath.Join(filepath.Dir(files[0]), parts[2], filepath.Base(files[0])))
		for _, file := range files {
			if raw, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", file)); err == nil && strings.Contains(string(raw), "oom_kill ") {
				return true
			}
		}
	}
	return false
}

// fault is an operation that something happens to.
type fault struct {
	req    api.StartRequest
	want   map[string]testenv.Entry
	link   *testenv.Proxy
	after  int64         // bytes that pass first
	commit bool          // in place of after: all that it takes to be saved
	op     api.Operation // how it ended
}

// The storage goes away in the middle of a backup or of a restore, and stays away: the
// operation fails and says why, and saves nothing. Once it is back, the next ones are exact.
func TestIntegrationStorageOutage(t *testing.T) {
	t.Parallel()
	for _, kind := range []api.Kind{api.KindSnapshot, api.KindRestore} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel() // Kopia tries for long
			w := newWorld(t)
			link := testenv.StartProxy(t, w.s3.Endpoint)
			w.config.Storage.Endpoint = link.Address
			tr := newTrial(w)
			want := tr.change(1)
			record := tr.next()
			saved := tr.saved()
			var req api.StartRequest
			if kind == api.KindSnapshot {
				want, req = tr.change(2), tr.snapshot("struck")
			} else {
				req = tr.restoreTo("struck", record, "/there")
			}
			tr.held(tr.agent, link, noise/2, req)
			w.s3.Gateway.Kill()
			link.Heal()
			if op := tr.ended(tr.agent, req.ID); !failedWith(op, api.CodeStorage) || !strings.Contains(op.Failure.Title, link.Address) || op.Failure.Hint == "" {
				t.Errorf("without storage it ended as %s, want %s, the address that does not answer, and what to do", told(op), api.CodeStorage)
			} else {
				tr.noSecrets("the failure", []byte(op.Failure.Error()))
			}
			w.s3.Gateway = w.s3.Gateway.Again(w)
			testenv.Eventually(w, 3*time.Minute, "the storage is back", func() bool {
				conn, err := net.Dial("tcp", w.s3.Endpoint)
				if err == nil {
					conn.Close()
				}
				return err == nil
			})
			if now := tr.saved(); now != saved {
				t.Errorf("%d snapshots are saved, there were %d", now, saved)
			}
			tr.exact(want, "after", tr.next(), "/there")
		})
	}
}

// A cut of half a minute is waited out. One that is longer than an operation may
// stand still is told as such, and so is one that was there before it began.
func TestIntegrationNetworkCut(t *testing.T) {
	t.Parallel()
	tr := newTrial(newWorld(t))
	before := tr.change(1)
	record := tr.next()
	want := tr.change(2)
	impatient, _ := tr.sidecar(tr.source(), nil, "-stall-timeout", "25s")
	late, _ := tr.sidecar(tr.source(), nil)

	// An operation each, on a network of its own.
	var links []*testenv.Proxy // the last two heal
	hold := func(agent *client.Client, after int64, req api.StartRequest) {
		t.Helper()
		link := tr.network()
		links = append(links, link)
		tr.held(agent, link, after, req)
	}
	hold(impatient, noise/2, tr.snapshot("stalled-backup"))
	hold(impatient, noise/2, tr.restoreTo("stalled-restore", record, "/stalled"))
	hold(late, 1, tr.snapshot("late-backup"))
	// The backup last: the server waits a minute for the rest of a content.
	hold(tr.agent, noise/2, tr.restoreTo("patient-restore", record, "/patient"))
	hold(tr.agent, noise/2, tr.snapshot("patient-backup"))
	healed := make(chan struct{})
	time.AfterFunc(30*time.Second, func() {
		defer close(healed)
		for _, link := range links[3:] {
			link.Heal()
		}
	})
	for id, c := range map[string]struct {
		agent *client.Client
		want  api.Code
		text  string
	}{
		"stalled-backup":  {impatient, api.CodeStalled, "no data moved for 25s"},
		"stalled-restore": {impatient, api.CodeStalled, "no data moved for 25s"},
		"late-backup":     {late, api.CodeServerUnreachable, links[2].Address},
	} {
		if op := tr.ended(c.agent, id); !failedWith(op, c.want) || !strings.Contains(op.Failure.Error(), c.text) {
			t.Errorf("%s ended as %s, want %s with %q", id, told(op), c.want, c.text)
		}
	}
	for _, id := range []string{"patient-backup", "patient-restore"} {
		if op := tr.ended(tr.agent, id); op.State != api.StateSucceeded {
			t.Errorf("%s ended as %s", id, told(op))
		}
		select {
		case <-healed:
		default:
			t.Errorf("%s ended while the network was cut", id)
		}
	}
	tr.same(before, testenv.Tree(t, filepath.Join(tr.volumes, "target", "patient")))
	tr.exact(before, "again", record, "/stalled")
	tr.exact(want, "restore", tr.next(), "/next")
}

// What ends a session or changes the server's certificate in the midst of a backup
// and of a restore: who is let in stays, who is not is told so, and nothing of his is saved.
func TestIntegrationAccessInFlight(t *testing.T) {
	t.Parallel()
	tr := newTrial(newWorld(t))
	tlsDir := tr.s.Cmd.Args[slices.Index(tr.s.Cmd.Args, "--tls-dir")+1]
	links := []*testenv.Proxy{tr.network(), tr.network()}
	tr.change(0)
	record := tr.next()
	// during does something in the midst of a backup and of a restore.
	during := func(name string, something func(ids ...string)) (backup, restore api.Operation) {
		t.Helper()
		reqs := []api.StartRequest{tr.snapshot(name + "-backup"), tr.restoreTo(name+"-restore", record, "/"+name)}
		tr.held(tr.agent, links[1], noise/2, reqs[1])
		tr.held(tr.agent, links[0], noise/2, reqs[0]) // last: the server waits a minute for the rest of a content
		something(reqs[0].ID, reqs[1].ID)
		for _, link := range links {
			link.Heal()
		}
		return tr.ended(tr.agent, reqs[0].ID), tr.ended(tr.agent, reqs[1].ID)
	}
	// refused says how operations end that should not get in.
	refused := func(name string, want api.Code, text string, change func(*api.Credentials)) {
		t.Helper()
		for _, req := range []api.StartRequest{tr.snapshot(name), tr.restoreTo(name+"-restore", record, "/"+name)} {
			change(req.Credentials)
			_, err := tr.agent.Run(tr.context(), req, func(api.Progress) {})
			if code(err) != want || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %v (%s), want %s with %q", req.ID, err, code(err), want, text)
			}
			tr.noSecrets("the error", []byte(fmt.Sprint(err)))
		}
	}
	// shown puts a certificate in force.
	shown := func(ca *testenv.CA, expiry time.Time) {
		t.Helper()
		leaf := testenv.Leaf{IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Usage: x509.ExtKeyUsageServerAuth, Expiry: expiry}
		ca.IssueTo(tr, tlsDir, leaf)
		pair, err := tls.LoadX509KeyPair(filepath.Join(tlsDir, "tls.crt"), filepath.Join(tlsDir, "tls.key"))
		tr.must(err)
		testenv.Eventually(tr, 3*time.Minute, "the certificate is shown", func() bool {
			conn, err := tls.Dial("tcp", strings.TrimPrefix(tr.s.url, "https://"), &tls.Config{InsecureSkipVerify: true})
			if err != nil {
				return false
			}
			defer conn.Close()
			return conn.ConnectionState().PeerCertificates[0].Equal(pair.Leaf)
		})
	}

	want := tr.change(1)
	saved := tr.saved()
	backup, restore := during("session-ended", func(ids ...string) {
		for _, id := range ids {
			tr.must(tr.s.agent.EndSession(tr.context(), id))
		}
	})
	// Kopia's writes end with their stream, whose end has no reason; its reads ask again.
	if !failedWith(backup, api.CodeServerUnreachable, api.CodeAccessDenied) {
		t.Errorf("a backup whose session has ended: %s", told(backup))
	}
	if !failedWith(restore, api.CodeAccessDenied) || !strings.Contains(restore.Failure.Title, "no operation is going on with this user and password") {
		t.Errorf("a restore whose session has ended: %s", told(restore))
	}
	if now := tr.saved(); now != saved {
		t.Errorf("%d snapshots are saved, there were %d", now, saved)
	}
	refused("wrong-password", api.CodeAccessDenied, "password", func(c *api.Credentials) { c.Password = "wrong" })
	record = tr.next()
	tr.exact(want, "after-session", record, "/session-ended")

	before := want
	want = tr.change(2)
	next := testenv.NewCA(t)
	backup, restore = during("certificate-changed", func(...string) { shown(next, time.Time{}) })
	for _, op := range []api.Operation{backup, restore} {
		if !complete(op, want) {
			t.Errorf("under way while the certificate changed: %s", told(op))
		}
	}
	tr.same(before, testenv.Tree(t, filepath.Join(tr.volumes, "target", "certificate-changed")))
	refused("another-ca", api.CodeServerUntrusted, "certificate", func(*api.Credentials) {})
	tr.s.ca = string(next.PEM)
	shown(next, time.Now().Add(-time.Minute))
	refused("expired", api.CodeServerUntrusted, "expired", func(*api.Credentials) {})
	shown(next, time.Time{})
	record = tr.next()
	tr.exact(want, "after-certificate", record, "/certificate-changed")

	// Whose connection breaks besides looks at the new certificate.
	broken := func(name string, by *testenv.CA) api.Operation {
		t.Helper()
		link := tr.network()
		tr.held(tr.agent, link, noise/2, tr.restoreTo(name, record, "/"+name))
		shown(by, time.Time{})
		link.Break()
		link.Heal()
		return tr.ended(tr.agent, name)
	}
	if op := broken("renewed", next); !complete(op, want) {
		t.Errorf("its connection broke while the certificate was renewed: %s", told(op))
	}
	tr.same(want, testenv.Tree(t, filepath.Join(tr.volumes, "target", "renewed")))
	if op := broken("replaced", testenv.NewCA(t)); !failedWith(op, api.CodeServerUntrusted) {
		t.Errorf("its connection broke while another CA's certificate was put there: %s", told(op))
	}
}

// saved is how many snapshots the repository holds, by the word of its storage.
func (t *trial) saved() int {
	t.Helper()
	return snapshots(t.manifests())
}

// counter is saved for whoever asks again and again: the repository is opened once, until
// the test ends.
func (t *trial) counter() func() (int, error) {
	t.Helper()
	ctx, rep := t.context(), t.atStorage()
	t.Cleanup(func() { _ = rep.Close(context.Background()) })
	return func() (int, error) {
		if err := rep.Refresh(ctx); err != nil {
			return 0, err
		}
		found, err := manifestsOf(ctx, rep)
		return snapshots(found), err
	}
}

func snapshots(manifests map[manifest.ID]string) (n int) {
	for _, kind := range manifests {
		if kind == "snapshot" {
			n++
		}
	}
	return n
}

// cutAtCommit cuts a network when a snapshot that changed the source is saved, before
// anybody hears of it.
func (t *trial) cutAtCommit(link *testenv.Proxy) <-chan struct{} {
	t.Helper()
	saves := t.counter() // it is asked for each answer
	before, err := saves()
	t.must(err)
	var one sync.Mutex // an answer waits until another one has been looked at
	return link.CutWhen(noise, func() bool {
		one.Lock()
		defer one.Unlock()
		now, err := saves()
		return err == nil && now > before // an error: the test is over
	})
}

// A full disk fails a restore with a word about it and leaves nothing half done but the
// mark by which it goes on; with more room the restore is exact. A full state folder is told too.
func TestIntegrationDiskFull(t *testing.T) {
	t.Parallel()
	tr := newTrial(newWorld(t))
	want := tr.change(0)
	record := tr.next()
	target := filepath.Join(tr.volumes, "target")
	for name, small := range map[string]string{"bytes": "size=1m", "inodes": "size=64m,nr_inodes=30"} {
		tr.mount(target, small)
		_, err := tr.agent.Run(tr.context(), tr.restoreTo("restore-without-"+name, record, "/"), func(api.Progress) {})
		if code(err) != api.CodeNoSpace || !strings.Contains(err.Error(), "no space left") {
			t.Errorf("%s: %v (%s), want %s", name, err, code(err), api.CodeNoSpace)
		}
		marks := 0 // of the restore that may go on: the next one of the same data removes it
		for file, got := range testenv.Tree(t, target) {
			if strings.HasPrefix(file, ".kopia-restore-of-") {
				marks++
				continue
			}
			if e, ok := want[file]; !ok || got.Mode.IsRegular() && (got.Size != e.Size || got.SHA256 != e.SHA256) {
				t.Errorf("%s: it leaves %q: %+v", name, file, got)
			}
		}
		if marks != 1 {
			t.Errorf("%s: it leaves %d marks of itself, want one", name, marks)
		}
		tr.must(syscall.Mount("", target, "tmpfs", syscall.MS_REMOUNT, "size=64m,nr_inodes=1000"))
		tr.exact(want, "restore-with-"+name, record, "/")
		tr.must(syscall.Unmount(target, 0))
	}

	// The agent keeps its state where there is no room for more.
	state := tr.process.Cmd.Args[slices.Index(tr.process.Cmd.Args, "-state-dir")+1]
	tr.process.Kill()
	tr.mount(state, "size=64k")
	tr.process = tr.process.Again(t)
	port := tr.process.Cmd.Args[slices.Index(tr.process.Cmd.Args, "-port")+1]
	number, err := strconv.Atoi(port)
	tr.must(err)
	tr.agent = tr.plane.Client(t, tr.process, number) // its key is another one
	full := filepath.Join(state, "full")
	for i, room := range []int{0, 4 << 10, 8 << 10} {
		tr.fill(full, room)
		id := fmt.Sprintf("state-%d", i)
		_, err := tr.agent.Run(tr.context(), tr.snapshot(id), func(api.Progress) {})
		if code(err) != api.CodeNoSpace || !strings.Contains(err.Error(), "the agent's own folder is full") {
			t.Errorf("state folder with room for %d: %v (%s), want %s", room, err, code(err), api.CodeNoSpace)
		}
		tr.must(os.Remove(full))
	}
	tr.process.Kill()
	tr.process = tr.process.Again(t)
	record = tr.next()
	tr.exact(want, "restore-at-last", record, "/at-last")

	// It fills up while operations run: how they ended is true, also after restarts.
	before := want
	want = tr.change(1)
	held := []*fault{
		{req: tr.snapshot("held-backup"), want: want, link: tr.network(), after: noise / 2},
		{req: tr.restoreTo("held-restore", record, "/held"), want: before, link: tr.network(), after: record.Snapshot.Bytes / 2},
	}
	for _, f := range held {
		tr.held(tr.agent, f.link, f.after, f.req)
	}
	tr.fill(full, 0)
	for _, f := range held {
		f.link.Heal()
	}
	for _, f := range held {
		if f.op = tr.ended(tr.agent, f.req.ID); !complete(f.op, f.want) {
			t.Errorf("%s ended as %s", f.req.ID, told(f.op))
		}
	}
	for range 2 {
		tr.process.Kill()
		tr.process = tr.process.Again(t)
		for _, f := range held {
			if again := tr.ended(tr.agent, f.req.ID); !complete(again, f.want) || !again.Finished.Equal(*f.op.Finished) {
				t.Errorf("%s, after a restart of the agent: %s", f.req.ID, told(again))
			}
		}
	}
	if left, err := filepath.Glob(filepath.Join(state, "operations", "*.new")); err != nil || len(left) != 0 {
		t.Errorf("the full disk leaves %v, %v", left, err)
	}
	tr.same(before, testenv.Tree(t, filepath.Join(target, "held")))
	tr.must(os.Remove(full))
	tr.exact(want, "restore-after-held", tr.next(), "/after-held")
}

// mount mounts a small memory disk until it is unmounted, at the latest at the test's end.
func (t *trial) mount(at, options string) {
	t.Helper()
	if err := syscall.Mount("tmpfs", at, "tmpfs", 0, options+",mode=0777"); err != nil {
		testenv.Skip(t, "no disk of its own can be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(at, syscall.MNT_DETACH) })
}

// fill fills a disk with a file, but for some bytes.
func (t *trial) fill(file string, room int) {
	t.Helper()
	f, err := os.Create(file)
	t.must(err)
	defer f.Close()
	block := make([]byte, 4<<10)
	size := int64(0)
	for err == nil {
		var n int
		n, err = f.Write(block)
		size += int64(n)
	}
	t.must(f.Truncate(max(0, size-int64(room))))
}
