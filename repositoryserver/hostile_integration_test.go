// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repositoryserver_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kopia/kopia/fs"
	"github.com/kopia/kopia/notification"
	"github.com/kopia/kopia/notification/notifydata"
	"github.com/kopia/kopia/notification/notifyprofile"
	"github.com/kopia/kopia/notification/notifytemplate"
	"github.com/kopia/kopia/notification/sender"
	"github.com/kopia/kopia/notification/sender/webhook"
	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/blob/s3"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/manifest"
	"github.com/kopia/kopia/repo/object"
	"github.com/kopia/kopia/snapshot"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/agent/contents"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
)

// kopia opens the repository through the server with Kopia's own library: what an
// application could do that holds its own session.
func (w *world) kopia(c *api.Credentials) *kopiaClient {
	w.Helper()
	rep, err := w.tryKopia(c)
	w.must(err)
	return &kopiaClient{rep, c}
}

// kopiaClient writes contents as an agent does: none go through Kopia.
type kopiaClient struct {
	repo.Repository
	*api.Credentials
}

func (k *kopiaClient) NewWriter(ctx context.Context, o repo.WriteSessionOptions) (context.Context, repo.RepositoryWriter, error) {
	conn, err := tls.Dial("tcp", strings.TrimPrefix(k.URL, "https://"), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{contents.Protocol}})
	if err != nil {
		return nil, nil, err
	}
	stream, err := contents.Open(conn, contents.Login{Username: k.Username, Hostname: k.Hostname, Password: k.Password})
	if err != nil {
		return nil, nil, err
	}
	objects, err := contents.NewWriter(ctx, stream, func(int64) {})
	if err != nil {
		return nil, nil, err
	}
	ctx, session, err := k.Repository.NewWriter(ctx, o)
	if err != nil {
		objects.Close()
		return nil, nil, err
	}
	return ctx, &kopiaWriter{session, objects}, nil
}

type kopiaWriter struct {
	repo.RepositoryWriter
	objects *contents.Writer
}

func (k *kopiaWriter) NewObjectWriter(ctx context.Context, o object.WriterOptions) object.Writer {
	return k.objects.NewObjectWriter(ctx, o)
}

func (k *kopiaWriter) Flush(ctx context.Context) error {
	if err := k.objects.Flush(ctx); err != nil {
		return err
	}
	return k.RepositoryWriter.Flush(ctx)
}

func (k *kopiaWriter) Close(ctx context.Context) error {
	k.objects.Close()
	return k.RepositoryWriter.Close(ctx)
}

func (w *world) tryKopia(c *api.Credentials) (repo.Repository, error) {
	w.Helper()
	conn, err := tls.Dial("tcp", strings.TrimPrefix(c.URL, "https://"), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	w.must(err)
	sum := sha256.Sum256(conn.ConnectionState().PeerCertificates[0].Raw)
	w.must(conn.Close())
	raw, err := json.Marshal(repo.LocalConfig{
		APIServer:     &repo.APIServerInfo{BaseURL: c.URL, TrustedServerCertificateFingerprint: hex.EncodeToString(sum[:])},
		Caching:       &content.CachingOptions{},
		ClientOptions: repo.ClientOptions{Hostname: c.Hostname, Username: c.Username},
	})
	w.must(err)
	file := filepath.Join(w.TempDir(), "repository.config")
	w.must(os.WriteFile(file, raw, 0o600))
	rep, err := repo.Open(w.context(), file, c.Password, &repo.Options{DisableRepositoryLog: true, OnFatalError: func(error) {}})
	if err == nil {
		w.Cleanup(func() { _ = rep.Close(context.Background()) })
	}
	return rep, err
}

// manifests are all that the repository holds, read from the storage itself.
func (w *world) manifests() map[manifest.ID]string {
	w.Helper()
	rep := w.atStorage()
	defer rep.Close(w.context())
	all, err := manifestsOf(w.context(), rep)
	w.must(err)
	return all
}

// atStorage opens the repository at the storage itself, whatever is between it and the server.
func (w *world) atStorage() repo.Repository {
	w.Helper()
	ctx := w.context()
	c := w.config.Storage
	st, err := s3.New(ctx, &s3.Options{
		BucketName: c.Bucket, Prefix: c.Prefix, Endpoint: w.s3.Endpoint, Region: c.Region,
		AccessKeyID: c.AccessKeyID, SecretAccessKey: c.SecretAccessKey, RootCA: []byte(c.CABundle),
	}, false)
	w.must(err)
	defer st.Close(ctx)
	file := filepath.Join(w.TempDir(), "repository.config")
	w.must(repo.Connect(ctx, file, st, w.config.Password, &repo.ConnectOptions{}))
	rep, err := repo.Open(ctx, file, w.config.Password, &repo.Options{DisableRepositoryLog: true, OnFatalError: func(error) {}})
	w.must(err)
	return rep
}

func manifestsOf(ctx context.Context, rep repo.Repository) (map[manifest.ID]string, error) {
	found, err := rep.FindManifests(ctx, nil)
	all := map[manifest.ID]string{}
	for _, m := range found {
		all[m.ID] = m.Labels[manifest.TypeLabelKey]
	}
	return all, err
}

// write runs one write session.
func write(ctx context.Context, rep repo.Repository, fn func(context.Context, repo.RepositoryWriter) error) error {
	ctx, w, err := rep.NewWriter(ctx, repo.WriteSessionOptions{Purpose: "test"})
	if err != nil {
		return err
	}
	defer w.Close(ctx)
	if err := fn(ctx, w); err != nil {
		return err
	}
	return w.Flush(ctx)
}

// store stores an object of its own.
func store(ctx context.Context, w repo.RepositoryWriter, prefix content.IDPrefix, data []byte) (object.ID, error) {
	ow := w.NewObjectWriter(ctx, object.WriterOptions{Prefix: prefix})
	defer ow.Close()
	if _, err := ow.Write(data); err != nil {
		return object.EmptyID, err
	}
	return ow.Result()
}

// saveSnapshot saves a snapshot of nothing much, with tags.
func saveSnapshot(ctx context.Context, w repo.RepositoryWriter, source snapshot.SourceInfo, tags map[string]string) (manifest.ID, error) {
	return saveSnapshotAt(ctx, w, source, time.Now(), tags)
}

func saveSnapshotAt(ctx context.Context, w repo.RepositoryWriter, source snapshot.SourceInfo, when time.Time, tags map[string]string) (manifest.ID, error) {
	id, err := store(ctx, w, "", []byte("mine"))
	if err != nil {
		return "", err
	}
	at := fs.UTCTimestampFromTime(when)
	return snapshot.SaveSnapshot(ctx, w, &snapshot.Manifest{
		Source: source, StartTime: at, EndTime: at, Tags: tags,
		RootEntry: &snapshot.DirEntry{Name: "f", Type: snapshot.EntryTypeFile, ObjectID: id, FileSize: 4},
	})
}

// A client with a session of its own adds and reads its own snapshots, and that is all.
func TestIntegrationUsersAreConfined(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	source := w.volume()
	w.must(os.WriteFile(filepath.Join(source, "f"), []byte("x"), 0o600))
	s := w.serve()
	agent, _ := w.sidecar(source, nil)
	record := w.backup(s, agent, "op-1", "/")
	theirs := manifest.ID(record.Snapshot.ID)

	credentials := w.sessionAt(s, "other", "pvc.other", otherHost)
	rep, ctx := w.kopia(credentials), w.context()
	self := snapshot.SourceInfo{UserName: credentials.Username, Host: credentials.Hostname, Path: "/"}

	// More than Kopia keeps by its own rules, within one hour.
	const many = 15
	var mine manifest.ID
	w.must(write(ctx, rep, func(ctx context.Context, rw repo.RepositoryWriter) (err error) {
		for i := range many {
			if mine, err = saveSnapshotAt(ctx, rw, self, time.Date(2026, 11, 1, 10, i, 0, 0, time.UTC), nil); err != nil {
				return err
			}
		}
		return nil
	}))
	if own, err := snapshot.ListSnapshots(ctx, rep, self); err != nil || len(own) != many {
		t.Errorf("its own snapshots: %d, %v, want %d", len(own), err, many)
	}
	// What a snapshot says of itself is nobody's record.
	planted := map[string]string{"id": record.BackupID, "tag": record.BackupTag, "key": record.KeyID, "tag:backupTag": record.BackupTag}
	w.must(write(ctx, rep, func(ctx context.Context, rw repo.RepositoryWriter) error {
		_, err := saveSnapshot(ctx, rw, snapshot.SourceInfo{UserName: self.UserName, Host: self.Host, Path: "/planted"}, planted)
		return err
	}))
	// What it says whose snapshot it is counts for nothing, either.
	w.must(write(ctx, rep, func(ctx context.Context, rw repo.RepositoryWriter) error {
		_, err := rw.PutManifest(ctx, map[string]string{"type": "snapshot", "username": self.UserName, "hostname": self.Host, "path": "/"}, &snapshot.Manifest{
			Source:    snapshot.SourceInfo{UserName: "pvc.data", Host: host, Path: "/"},
			StartTime: fs.UTCTimestampFromTime(time.Now().AddDate(1, 0, 0)), EndTime: fs.UTCTimestampFromTime(time.Now().AddDate(1, 0, 0)),
			RootEntry: &snapshot.DirEntry{Name: "f", Type: snapshot.EntryTypeFile, FileSize: 4},
		})
		return err
	}))
	before := w.manifests()

	sources, err := snapshot.ListSources(ctx, rep)
	if err != nil || len(sources) != 2 || slices.ContainsFunc(sources, func(s snapshot.SourceInfo) bool { return s.UserName != self.UserName || s.Host != self.Host }) {
		t.Errorf("it sees sources %v, %v", sources, err)
	}
	if _, err := snapshot.LoadSnapshot(ctx, rep, theirs); err == nil {
		t.Error("it reads another user's snapshot")
	}
	// Kopia keeps the stream of a write session for as long as the connection, and a session of
	// ours has few.
	tries := func(fn func(context.Context, repo.RepositoryWriter) error) error {
		rep := w.kopia(credentials)
		defer rep.Close(ctx)
		return write(ctx, rep, fn)
	}
	victim := map[string]string{"username": "pvc.data", "hostname": host, "path": "/"}
	// Each of these is there, and its own snapshots are all that it sees.
	own := map[manifest.ID]bool{}
	for name, labels := range map[string]map[string]string{
		"all": nil, "snapshots": {"type": snapshot.ManifestType},
		"another user's snapshots": {"type": snapshot.ManifestType, "username": victim["username"], "hostname": victim["hostname"]},
		"the canary":               {"type": snapshot.ManifestType, "username": "canary", "hostname": "system"},
		"records":                  {"type": "kanister-backup"}, "rules": {"type": "acl"}, "policies": {"type": "policy"},
		"maintenance": {"type": "maintenance"}, "accounts": {"type": "user"}, "notifications": {"type": "notificationProfile"},
	} {
		if kind := labels["type"]; kind != "" && kind != "user" && kind != "notificationProfile" && !slices.Contains(slices.Collect(maps.Values(before)), kind) {
			t.Errorf("%s: there are none, nothing was tested", name)
		}
		listed, err := rep.FindManifests(ctx, labels)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, m := range listed {
			if m.Labels["type"] != snapshot.ManifestType || m.Labels["username"] != self.UserName || m.Labels["hostname"] != self.Host {
				t.Errorf("%s: it is shown a manifest of %v", name, m.Labels)
			}
			own[m.ID] = true
		}
	}
	if len(own) != many+2 || !own[mine] || own[theirs] {
		t.Errorf("it is shown %d manifests, want its own %d", len(own), many+2)
	}
	for id, kind := range before {
		var any map[string]any
		if _, err := rep.GetManifest(ctx, id, &any); (err == nil) != own[id] {
			t.Errorf("it reads a manifest of type %s (its own: %t): %v", kind, own[id], err)
		}
	}
	for name, labels := range map[string]map[string]string{
		"rule": {"type": "acl"}, "policy": {"type": "policy", "policyType": "global"}, "account": {"type": "user", "username": "pvc.data@" + host},
		"maintenance": {"type": "maintenance"}, "record": {"type": "kanister-backup", "id": "x"}, "unknown": {"type": "other"},
		"notification":             {"type": "notificationProfile", "profile": "x"},
		"snapshot of another user": {"type": "snapshot"},
		"own rule":                 {"type": "acl", "username": self.UserName, "hostname": self.Host},
		"own policy":               {"type": "policy", "policyType": "global", "username": self.UserName, "hostname": self.Host},
		"own account":              {"type": "user", "username": self.UserName + "@" + self.Host, "hostname": self.Host},
		"own maintenance":          {"type": "maintenance", "username": self.UserName, "hostname": self.Host},
		"own notification":         {"type": "notificationProfile", "profile": "x", "username": self.UserName, "hostname": self.Host},
		"own record": {
			"type": "kanister-backup", "username": self.UserName, "hostname": self.Host, "path": "/",
			"id": record.BackupID, "tag": record.BackupTag, "key": record.KeyID,
		},
	} {
		if labels["type"] == "snapshot" {
			maps.Copy(labels, victim)
		}
		if err := tries(func(ctx context.Context, rw repo.RepositoryWriter) error {
			_, err := rw.PutManifest(ctx, labels, map[string]string{})
			return err
		}); err == nil {
			t.Errorf("it writes a %s", name)
		}
	}
	for id, kind := range before {
		if err := tries(func(ctx context.Context, rw repo.RepositoryWriter) error { return rw.DeleteManifest(ctx, id) }); err == nil && kind != "" {
			t.Errorf("it deletes a manifest of type %s (its own: %t)", kind, id == mine)
		}
	}
	if retention, ok := rep.Repository.(repo.RemoteRetentionPolicy); !ok {
		t.Error("the connection knows no retention: nothing was tested")
	} else if gone, err := retention.ApplyRetentionPolicy(ctx, self.Path, true); err == nil && len(gone) > 0 {
		t.Errorf("retention deletes %v", gone)
	}
	if after := w.manifests(); !maps.Equal(before, after) {
		t.Errorf("the repository's manifests changed:\n had %v\nhave %v", slices.Sorted(maps.Values(before)), slices.Sorted(maps.Values(after)))
	}
	for id, req := range map[string]api.FindRequest{
		"by-id":  {BackupID: record.BackupID, Prefix: prefix, KeyID: "default"},
		"by-tag": {BackupTag: record.BackupTag, Prefix: prefix, KeyID: "default"},
	} {
		if found, err := w.find(s, id, req); err != nil || len(found.Records) != 1 || found.Records[0].Snapshot.ID != record.Snapshot.ID {
			t.Errorf("%s: %+v, %v, want the one backup", id, found, err)
		}
	}
	if listed, _ := w.list(s, "list", api.ListRequest{KeyID: "default"}); !slices.Equal(listed, []string{record.BackupID}) {
		t.Errorf("listed %v, want the one backup", listed)
	}
	// The others' next backup goes on from their own last one.
	next := w.backup(s, agent, "op-2", "/")
	if next.Snapshot.CachedFiles != 1 || next.Snapshot.RootObject != record.Snapshot.RootObject {
		t.Errorf("the next backup: %+v", next.Snapshot)
	}
	w.plantedIsInNobodysWay(s, credentials, rep)
	folder, _ := w.restore(s, "op-3", next, "", "/after")
	w.same(testenv.Tree(w, source), testenv.Tree(w, folder))
}

// plantedIsInNobodysWay adds snapshots that nobody can restore to what a user may add to, one
// of them with the root of a backup that he has. They become no backups, and maintenance
// does its work.
func (w *world) plantedIsInNobodysWay(s *server, c *api.Credentials, rep repo.Repository) {
	w.Helper()
	at := fs.UTCTimestampFromTime(time.Now().AddDate(1, 0, 0))
	missing, err := object.ParseID("k" + strings.Repeat("0", 32))
	w.must(err)
	self := snapshot.SourceInfo{UserName: c.Username, Host: c.Hostname, Path: "/"}
	planted := map[string]manifest.ID{}
	var file object.ID
	var backup manifest.ID
	w.must(write(w.context(), rep, func(ctx context.Context, rw repo.RepositoryWriter) error {
		const listing = `{"stream":"kopia:directory","entries":[null]}`
		null, err := store(ctx, rw, "k", []byte(listing))
		if err != nil {
			return err
		}
		if file, err = store(ctx, rw, "", []byte(listing)); err != nil {
			return err
		}
		labels := map[string]string{"type": "snapshot", "username": self.UserName, "hostname": self.Host, "path": "/"}
		for name, payload := range map[string]any{
			"no-snapshot": []string{"what"},
			"no-root":     &snapshot.Manifest{Source: self, StartTime: at, EndTime: at},
			"missing": &snapshot.Manifest{Source: self, StartTime: at, EndTime: at, RootEntry: &snapshot.DirEntry{
				Name: "d", Type: snapshot.EntryTypeDirectory, ObjectID: missing,
			}},
			"null": &snapshot.Manifest{Source: self, StartTime: at, EndTime: at, RootEntry: &snapshot.DirEntry{
				Name: "d", Type: snapshot.EntryTypeDirectory, ObjectID: null,
			}},
			"file": &snapshot.Manifest{Source: self, StartTime: at, EndTime: at, RootEntry: &snapshot.DirEntry{
				Name: "d", Type: snapshot.EntryTypeDirectory, ObjectID: file,
			}},
		} {
			if planted[name], err = rw.PutManifest(ctx, labels, payload); err != nil {
				return err
			}
		}
		backup, err = rw.PutManifest(ctx, labels, &snapshot.Manifest{Source: self, StartTime: at, EndTime: at, RootEntry: &snapshot.DirEntry{
			Name: "f", Type: snapshot.EntryTypeFile, ObjectID: file,
		}})
		return err
	}))
	record := func(name string, id manifest.ID, root string) error {
		_, err := w.run(s, api.StartRequest{ID: "record-" + name, Kind: api.KindRecord, Record: &api.RecordRequest{
			Username: self.UserName, Hostname: self.Host, SourcePath: "/", Record: api.Record{
				BackupID: "shop-" + name, BackupTag: "tag-" + name, Prefix: prefix, KeyID: "default",
				Snapshot: api.SnapshotResult{ID: string(id), RootObject: root},
			},
		}})
		return err
	}
	w.must(record("backup", backup, file.String()))
	for name, root := range map[string]string{"no-snapshot": "", "no-root": "", "missing": missing.String()} {
		if record(name, planted[name], root) == nil {
			w.Errorf("%s becomes a backup", name)
		}
	}
	full, message := w.maintain("--mode", "full", "--verify-percent", "100")
	// What was planted before has no object, either.
	if message != "" || full.UnusableCollected != int64(len(planted))+1 || full.VerifiedSnapshots != 2 {
		w.Errorf("maintenance: %+v %s, want %d and one more snapshots gone, and two backups verified", full, message, len(planted))
	}
	after := w.manifests()
	for name, id := range planted {
		if after[id] != "" {
			w.Errorf("%s is there still", name)
		}
	}
}

// Whatever a program of its own says in Kopia's protocol, a session looks for manifests and
// writes its own. Contents move past Kopia, and nothing is deleted or told to anybody. The
// stream goes on after it.
func TestIntegrationUsersSayLittleToKopia(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.serve()
	const (
		initialize = 10 // the requests' numbers, and those of the answers
		flush      = 12
		save       = 16
		find       = 17
	)
	session := w.protocol(w.sessionOf(s, api.SessionRequest{ID: "hostile", Username: "pvc.data", Hostname: host, SourcePath: "/data"}))
	if kind, _ := session(initialize); kind != initialize {
		t.Fatalf("the session began with %d", kind)
	}
	snapshotOf := func(paths ...string) string {
		label := func(name, value string) string { return protoText(2, protoText(1, name)+protoText(2, value)) }
		said := protoText(1, "{}") + label("type", "snapshot") + label("username", "pvc.data") + label("hostname", host)
		for _, path := range paths {
			said += label("path", path)
		}
		return said
	}
	known := strings.Repeat("0", 32)
	for name, c := range map[string]struct {
		kind int
		body string
	}{
		"look for a content":   {11, protoText(1, known)},
		"write a content":      {13, protoText(1, "k") + protoText(2, "content")},
		"write a manifest's":   {13, protoText(1, "m") + protoText(2, "content")},
		"read a content":       {14, protoText(1, known)},
		"write too much":       {save, protoText(1, strings.Repeat(" ", 1<<20)+"{}")},
		"another source's":     {save, snapshotOf("/other")},
		"two sources'":         {save, snapshotOf("/data", "/other")},
		"delete":               {18, protoText(1, known)},
		"fill a cache":         {19, protoText(1, known)},
		"apply retention":      {20, protoText(1, "/")},
		"notify":               {21, protoText(1, "test-notification")},
		"what Kopia may learn": {22, ""},
	} {
		if kind, code := session(c.kind, c.body); kind != protoError {
			t.Errorf("%s is answered with %d (%d), want an error", name, kind, code)
		}
	}
	for name, c := range map[string]struct {
		kind int
		body string
	}{"flush": {flush, ""}, "look for manifests": {find, ""}, "save a snapshot of its source": {save, snapshotOf("/data")}} {
		if got, code := session(c.kind, c.body); got != c.kind {
			t.Errorf("%s is answered with %d (%d)", name, got, code)
		}
	}
}

// protoError is the number of an answer that is an error.
const protoError = 2

// dialKopia begins a stream of Kopia's own protocol: what is written to requests is body, and
// the answers come with roundTrip.
func (w *world) dialKopia(c *api.Credentials) (requests *io.PipeWriter, body *io.PipeReader, roundTrip func() (*http.Response, error)) {
	w.Helper()
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	w.Cleanup(transport.CloseIdleConnections)
	body, requests = io.Pipe()
	req, err := http.NewRequestWithContext(w.context(), http.MethodPost, c.URL+"/kopia_repository.KopiaRepository/Session", body)
	w.must(err)
	for name, value := range map[string]string{
		"Content-Type": "application/grpc", "Te": "trailers",
		"Kopia-Username": c.Username, "Kopia-Hostname": c.Hostname, "Kopia-Password": c.Password,
	} {
		req.Header.Set(name, value)
	}
	return requests, body, func() (*http.Response, error) { return transport.RoundTrip(req) }
}

// protoMessage is a request of a kind, as gRPC has it.
func protoMessage(kind int, body string) []byte {
	m := protoText(kind, body)
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(m))), m...)
}

// protocol speaks Kopia's own protocol, byte by byte: its library is too polite. Each call
// is a request of a kind, and returns the kind of the answer, and an error's code.
func (w *world) protocol(c *api.Credentials) func(kind int, body ...string) (int, int) {
	w.Helper()
	requests, body, roundTrip := w.dialKopia(c)
	answers := make(chan *http.Response, 1)
	go func() {
		resp, err := roundTrip()
		if err != nil {
			w.Error(err)
			_ = body.CloseWithError(err)
		}
		answers <- resp
	}()
	var resp *http.Response
	w.Cleanup(func() {
		requests.Close()
		if resp != nil {
			resp.Body.Close()
		}
	})
	return func(kind int, parts ...string) (int, int) {
		w.Helper()
		_, err := requests.Write(protoMessage(kind, strings.Join(parts, "")))
		w.must(err)
		if resp == nil {
			if resp = <-answers; resp == nil {
				w.FailNow()
			}
		}
		header := make([]byte, 5)
		_, err = io.ReadFull(resp.Body, header)
		w.must(err)
		answer := make([]byte, binary.BigEndian.Uint32(header[1:]))
		_, err = io.ReadFull(resp.Body, answer)
		w.must(err)
		number, inner := protoLast(answer)
		code := 0
		if number == protoError && len(inner) > 1 && inner[0] == 1<<3 {
			code = int(inner[1])
		}
		return number, code
	}
}

// protoText is a field of Protocol Buffers: a text, or a message.
func protoText(number int, value string) string {
	b := binary.AppendUvarint(nil, uint64(number)<<3|2)
	return string(binary.AppendUvarint(b, uint64(len(value)))) + value
}

// protoLast is the last field of a message that is a text or a message.
func protoLast(b []byte) (number int, value []byte) {
	for len(b) > 0 {
		tag, n := binary.Uvarint(b)
		length, m := binary.Uvarint(b[n:])
		b = b[n+m:]
		if tag&7 == 2 {
			number, value, b = int(tag>>3), b[:length], b[length:]
		}
	}
	return number, value
}

// Whom a repository's owner once told his news to hears nothing that an application says.
func TestIntegrationUsersNotifyNobody(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var heard atomic.Int64
	people := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { heard.Add(1) }))
	defer people.Close()
	w.serve().Kill()
	stored := w.atStorage()
	w.must(write(w.context(), stored, func(ctx context.Context, rw repo.RepositoryWriter) error {
		return notifyprofile.SaveProfile(ctx, rw, notifyprofile.Config{
			ProfileName: "people", MinSeverity: notification.SeverityVerbose,
			MethodConfig: sender.MethodConfig{Type: webhook.ProviderType, Config: &webhook.Options{
				Endpoint: people.URL, Method: http.MethodPost, Format: sender.FormatPlainText,
			}},
		})
	}))
	w.must(stored.Close(w.context()))
	s := w.serve()
	rep, ok := w.kopia(w.session(s, "hostile", "pvc.data")).Repository.(repo.RemoteNotifications)
	if !ok {
		t.Fatal("the connection knows no notices: nothing was tested")
	}
	// It returns when whoever should hear has heard.
	err := rep.SendNotification(w.context(), notifytemplate.TestNotification, []byte("{}"), notifydata.EmptyEventData{}.EventArgsType(), int32(notification.SeverityError))
	if n := heard.Load(); n > 0 {
		t.Errorf("%d notices were sent (%v)", n, err)
	}
}

// A restore's session restores, and does nothing through Kopia: no snapshot, no content, no look
// at what is there, and a backup with it fails.
func TestIntegrationRestoresOnlyRead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	source := w.volume()
	w.must(os.WriteFile(filepath.Join(source, "f"), []byte("x"), 0o600))
	s := w.serve()
	agent, _ := w.sidecar(source, nil)
	record := w.backup(s, agent, "op-1", "/")
	before := w.manifests()

	credentials := w.toRestore(s, "hostile")
	if rep, err := w.tryKopia(credentials); err == nil {
		self := snapshot.SourceInfo{UserName: credentials.Username, Host: credentials.Hostname, Path: "/"}
		err = write(w.context(), rep, func(ctx context.Context, rw repo.RepositoryWriter) error {
			_, err := saveSnapshot(ctx, rw, self, nil)
			return err
		})
		t.Errorf("Kopia lets it in; a snapshot: %v", err)
	} else if !strings.Contains(err.Error(), "access denied") {
		t.Errorf("Kopia's protocol: %v, want it denied", err)
	}
	if _, err := agent.Run(w.context(), snapshotRequest("hostile", credentials, "/"), func(api.Progress) {}); code(err) != api.CodeAccessDenied {
		t.Errorf("a backup with it: %v, want it denied", err)
	}
	if after := w.manifests(); !maps.Equal(before, after) {
		t.Errorf("the repository's manifests changed:\n had %v\nhave %v", slices.Sorted(maps.Values(before)), slices.Sorted(maps.Values(after)))
	}
	folder, _ := w.restore(s, "op-2", record, "", "/")
	if got, err := os.ReadFile(filepath.Join(folder, "f")); string(got) != "x" || err != nil {
		t.Errorf("restored %q, %v", got, err)
	}
}

// What a session opened ends with it, also in the middle of its work.
func TestIntegrationSessionEnds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.serve()
	ctx := w.context()
	credentials := w.session(s, "one", "pvc.data")
	rep := w.kopia(credentials)
	other := w.kopia(w.session(s, "two", "pvc.data"))
	self := snapshot.SourceInfo{UserName: credentials.Username, Host: credentials.Hostname, Path: "/"}

	wctx, writer, err := rep.NewWriter(ctx, repo.WriteSessionOptions{Purpose: "test"})
	w.must(err)
	_, err = saveSnapshot(wctx, writer, self, nil)
	w.must(err)
	// Only a writer's calls are not tried again, for minutes.
	rctx, reader, err := rep.NewWriter(ctx, repo.WriteSessionOptions{Purpose: "test"})
	w.must(err)
	_, err = snapshot.ListSnapshots(rctx, reader, self)
	w.must(err)
	w.must(s.agent.EndSession(ctx, "one"))
	for what, call := range map[string]func() error{
		"write": func() error {
			_, err := saveSnapshot(wctx, writer, self, nil)
			return errors.Join(err, writer.Flush(wctx))
		},
		"read": func() error {
			_, err := snapshot.ListSnapshots(rctx, reader, self)
			return err
		},
	} {
		outcome := make(chan error, 1)
		go func() { outcome <- call() }()
		select {
		case err := <-outcome:
			if err == nil {
				t.Errorf("the ended session goes on: %s", what)
			}
		case <-ctx.Done():
			t.Fatalf("the ended session waits: %s", what)
		}
	}
	if found, err := snapshot.ListSnapshots(ctx, other, self); err != nil {
		t.Errorf("the same user's other session: %v", err)
	} else if len(found) > 0 {
		t.Errorf("a snapshot that was never flushed is there: %v", found)
	}
	// The same id again is a new session, with a password of its own.
	if again := w.session(s, "one", "pvc.data"); again.Password == credentials.Password {
		t.Error("an ended session's password came back")
	}
}

// Nothing but the repository is served to the pod network.
func TestIntegrationServerServesTheRepositoryOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.serve()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(s.ca))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	for _, path := range []string{"/", "/metrics", "/api/v1/control/status", "/api/v1/repo/status", "/kopia_repository.KopiaRepository/Session"} {
		req, err := http.NewRequestWithContext(w.context(), http.MethodGet, s.url+path, nil)
		w.must(err)
		resp, err := transport.RoundTrip(req)
		w.must(err)
		resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s is answered with %s", path, resp.Status)
		}
	}
}

// A new certificate is shown without a restart, and without a word to those who are connected.
func TestIntegrationServerCertificateRotates(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	source := w.volume()
	w.must(os.WriteFile(filepath.Join(source, "f"), []byte("x"), 0o600))
	s := w.serve()
	credentials := w.session(s, "op-1", "pvc.data")
	before := w.kopia(credentials)
	next := testenv.NewCA(t)
	next.IssueTo(w, s.Cmd.Args[slices.Index(s.Cmd.Args, "--tls-dir")+1], testenv.Leaf{IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Usage: x509.ExtKeyUsageServerAuth})
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(next.PEM)
	testenv.Eventually(w, 3*time.Minute, "the new certificate is shown", func() bool {
		conn, err := tls.Dial("tcp", strings.TrimPrefix(s.url, "https://"), &tls.Config{RootCAs: roots})
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	if _, err := before.FindManifests(w.context(), map[string]string{"type": "snapshot"}); err != nil {
		t.Errorf("who was connected: %v", err)
	}
	agent, _ := w.sidecar(source, nil)
	if _, err := agent.Run(w.context(), snapshotRequest("old-ca", credentials, "/"), func(api.Progress) {}); code(err) != api.CodeServerUntrusted {
		t.Errorf("who trusts the old CA: %v, want %s", err, api.CodeServerUntrusted)
	}
	credentials.CA = string(next.PEM)
	if _, err := agent.Run(w.context(), snapshotRequest("new-ca", credentials, "/"), func(api.Progress) {}); err != nil {
		t.Errorf("who trusts the new CA: %v", err)
	}
}
