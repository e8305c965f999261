// SPDX-License-Identifier: Apache-2.0

//go:build integration

package function_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	agentclient "github.com/kanister-kopia/kanister-kopia/agent/client"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/function"
	"github.com/kanister-kopia/kanister-kopia/pkg/mover"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/pkg/param"
	"github.com/kanister-kopia/kanister-kopia/pkg/repository"
)

// real is a world whose agents are: each runs as a process, of a pod beside folders in
// place of its claims, and of a repository server as its configuration says.
type real struct {
	*world
	plane  *testenv.ControlPlane
	claims string // a folder for each claim

	mu     sync.Mutex // protects the following
	agents map[string]func() *agentclient.Client
}

func newReal(t *testing.T) *real {
	t.Helper()
	for _, program := range []string{"agent", "repository-server"} {
		testenv.Program(t, program) // before anything waits for it
	}
	r := &real{world: newWorld(t), plane: testenv.NewControlPlane(t), claims: t.TempDir(), agents: map[string]func() *agentclient.Client{}}
	log := slog.New(slog.DiscardHandler)
	r.data = &function.Data{
		Client: r, Agents: r, Clock: clock.RealClock{}, Log: log,
		Movers: &mover.Movers{Client: r, Agents: r, CA: r, Image: "agent", PullPolicy: corev1.PullNever, Log: log},
		Repositories: &repository.Manager{
			Client: r, Namespace: control, Agents: r, Clock: clock.RealClock{}, CA: func() ([]byte, error) { return r.plane.CA.PEM, nil },
		},
	}
	r.functions = function.NewRegistry(r.data.Functions()...)
	return r
}

// Connect reaches the agent in a container of a pod, which it starts.
func (r *real) Connect(ctx context.Context, namespace, pod, container string) (*agentclient.Client, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	of := namespace + "/" + pod + "/" + container
	if r.agents[of] == nil {
		var p corev1.Pod
		if err := r.Get(ctx, client.ObjectKey{Namespace: namespace, Name: pod}, &p); err != nil {
			return nil, err
		}
		start := r.sidecar
		if container == repository.Container {
			start = r.gateway
		}
		process, port := start(&p, container)
		r.agents[of] = func() *agentclient.Client { return r.plane.Client(r, process, port) }
	}
	return r.agents[of](), nil
}

// sidecar starts the agent of a pod.
func (r *real) sidecar(p *corev1.Pod, container string) (*testenv.Process, int) {
	dir, port := r.TempDir(), testenv.Port(r)
	volumes := filepath.Join(dir, "volumes")
	r.Must(os.MkdirAll(filepath.Join(dir, "state"), 0o700))
	r.Must(os.Mkdir(volumes, 0o700))
	claims := map[string]string{}
	for _, v := range p.Spec.Volumes {
		if c := v.PersistentVolumeClaim; c != nil {
			claims[v.Name] = c.ClaimName
		}
	}
	for _, c := range append(p.Spec.InitContainers, p.Spec.Containers...) {
		for _, m := range c.VolumeMounts {
			if claim := claims[m.Name]; c.Name == container && claim != "" {
				r.Must(os.Symlink(r.folder(claim), filepath.Join(volumes, filepath.Base(m.MountPath))))
			}
		}
	}
	return testenv.Start(r, nil, testenv.Program(r, "agent"), "serve", "-state-dir", filepath.Join(dir, "state"),
		"-ca-dir", r.plane.CADir, "-volumes-dir", volumes, "-port", strconv.Itoa(port), "-health-listen", ""), port
}

// gateway starts the pod of a RepositoryServer, with the configuration that is mounted into it.
func (r *real) gateway(p *corev1.Pod, _ string) (*testenv.Process, int) {
	var config corev1.Secret
	r.Must(r.Get(r.Context(), client.ObjectKey{Namespace: control, Name: p.Labels[names.RepositoryLabel] + "-config"}, &config))
	dir, port, health := r.TempDir(), testenv.Port(r), testenv.Port(r)
	r.Must(os.WriteFile(filepath.Join(dir, "config.json"), config.Data["config.json"], 0o600))
	listens := func(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }
	process := testenv.Start(r, nil, testenv.Program(r, "repository-server"), "serve", "--config", filepath.Join(dir, "config.json"),
		"--ca-dir", r.plane.CADir, "--state-dir", filepath.Join(dir, "state"), "--agent-listen", listens(port), "--health-listen", listens(health))
	testenv.Eventually(r, 3*time.Minute, "the server's pod is ready", func() bool {
		select {
		case <-process.Done:
			r.Fatalf("it ended: %s", testenv.LastLine(process.Log()))
		default:
		}
		return testenv.Healthy(listens(health), "/readyz")
	})
	return process, port
}

// folder is what is in a claim.
func (r *real) folder(claim string) string { return filepath.Join(r.claims, claim) }

// holds makes a claim with files; what they are is compared later.
func (r *real) holds(claim string) map[string]testenv.Entry {
	r.Helper()
	r.claim(claim)
	r.Must(os.Mkdir(r.folder(claim), 0o755))
	testenv.MakeTree(r, r.folder(claim))
	r.Must(os.WriteFile(filepath.Join(r.folder(claim), "whose"), []byte(claim), 0o640))
	return testenv.Tree(r, r.folder(claim))
}

// same compares what is in a folder of a claim.
func (r *real) same(what string, want map[string]testenv.Entry, claim, path string) {
	r.Helper()
	if diff := cmp.Diff(want, testenv.Tree(r, filepath.Join(r.folder(claim), path))); diff != "" {
		r.Errorf("%s:\n%s", what, diff)
	}
}

// theirs makes somebody else's server a RepositoryServer, and shop's repository.
func (r *real) theirs(name string, rules ...[2]string) (*testenv.KopiaServer, *param.Profile) {
	r.Helper()
	server := testenv.StartKopiaServer(r, r.plane.CA, rules...)
	r.Must(r.Create(r.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: control, Name: name + "-user"},
		StringData: map[string]string{"username": server.Username, "hostname": server.Hostname, "password": server.Password},
	}))
	r.Must(r.Create(r.Context(), &kopiav1alpha1.RepositoryServer{
		ObjectMeta: metav1.ObjectMeta{Namespace: control, Name: name},
		Spec: kopiav1alpha1.RepositoryServerSpec{Namespaces: []string{shop}, External: &kopiav1alpha1.External{
			URL: server.URL, CABundle: string(r.plane.CA.PEM), UserSecret: name + "-user",
		}},
	}))
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: shop}}
	r.Must(r.Patch(r.Context(), ns, client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}}}`, names.RepositoryAnnotation, name))))
	return server, &param.Profile{
		Location: param.Location{Type: param.LocationTypeKopia, Endpoint: server.URL},
		Credential: param.Credential{Type: param.CredentialTypeKopia, KopiaServerSecret: &param.KopiaServerCreds{
			Username: server.Username, Hostname: server.Hostname, Password: server.Password, Cert: string(r.plane.CA.PEM),
		}},
	}
}

// does runs a function that must succeed.
func (r *real) does(name, operation string, params param.TemplateParams, a args) map[string]any {
	r.Helper()
	out, err := r.exec(name, operation, params, with(args{"namespace": shop}, a))
	if err != nil {
		r.Fatalf("%s: %v", name, err)
	}
	return out
}

// All eight functions with somebody else's server: Kopia's own program, with a Profile of it
// and with one of a bucket, from the files to the files. All backups are its one user's,
// and their paths tell whose they are. Deletions beyond the limit wait there, too.
func TestIntegrationFunctionsOfExternalServer(t *testing.T) {
	r := newReal(t)
	server, profile := r.theirs("theirs")
	trees := map[string]map[string]testenv.Entry{}
	set := param.TemplateParams{Profile: profile, StatefulSet: &param.StatefulSetParams{Namespace: shop, Name: "db", Pods: []string{"db-0", "db-1"}}}
	for _, pod := range set.StatefulSet.Pods {
		trees[pod] = r.holds(pod)
		r.pod(pod, pod)
	}
	trees["bare"] = r.holds("bare")
	for _, empty := range []string{"restored", "copied"} {
		r.claim(empty)
		r.Must(os.Mkdir(r.folder(empty), 0o755))
	}

	one := args{"container": "app", "includePath": "/data", "backupArtifactPrefix": "one"}
	saved := r.does("BackupData", "save", set, with(one, args{"pod": "db-0"}))
	all := r.does("BackupDataAll", "save-all", set, with(one, args{"backupArtifactPrefix": "all"}))
	copied := r.does("CopyVolumeData", "copy", set, args{"volume": "bare", "dataArtifactPrefix": "copy"})
	measured := r.does("BackupDataStats", "measure", set, args{"backupArtifactPrefix": "one", "backupID": saved["backupID"]})
	if measured["fileCount"] != saved["fileCount"] || saved["fileCount"] == "0" {
		t.Errorf("measured %v of %v", measured, saved)
	}
	var ns corev1.Namespace
	r.Must(r.Get(r.Context(), client.ObjectKey{Name: shop}, &ns))
	sources := func() map[string]int {
		r.Helper()
		var listed []struct {
			Source struct{ UserName, Host, Path string }
		}
		r.Must(json.Unmarshal([]byte(server.Run("snapshot", "list", "--all", "--json")), &listed))
		found := map[string]int{}
		for _, s := range listed {
			found[s.Source.UserName+"@"+s.Source.Host+":"+s.Source.Path]++
		}
		return found
	}
	const each = 2 // the data, and what is recorded of it
	of := func(claim string) string {
		return server.Username + "@" + server.Hostname + ":/" + string(ns.UID) + "/pvc." + claim
	}
	if diff := cmp.Diff(map[string]int{of("db-0"): 2 * each, of("db-1"): each, of("bare"): each}, sources()); diff != "" {
		t.Errorf("their snapshots:\n%s", diff)
	}

	// Another Profile, of a bucket, leads to the same server: the namespace says where.
	bucket := set
	bucket.Profile = r.profile
	from := args{"image": "not-needed"}
	r.does("RestoreData", "restore", set, with(from, args{
		"volumes": args{"restored": "/data"}, "backupArtifactPrefix": "one", "backupIdentifier": saved["backupID"],
	}))
	r.same("restored", trees["db-0"], "restored", "")
	r.does("RestoreData", "restore-copy", set, with(from, args{
		"volumes": args{"copied": copied["backupRoot"]}, "backupArtifactPrefix": copied["backupArtifactLocation"], "backupTag": copied["backupTag"],
	}))
	r.same("the copy", trees["bare"], "copied", "")
	r.does("RestoreDataAll", "restore-all", set, with(from, args{
		"backupArtifactPrefix": "all", "backupInfo": all["BackupAllInfo"], "restorePath": "/data/back",
	}))
	for _, pod := range set.StatefulSet.Pods {
		r.same("all: "+pod, trees[pod], pod, "back/data")
	}
	r.refused("BackupDataStats", "measure-elsewhere", bucket, args{"namespace": shop, "backupArtifactPrefix": "one", "backupID": saved["backupID"]}, "not found")
	kept := r.does("BackupData", "save-with-a-bucket", bucket, with(one, args{"pod": "db-1"}))
	if r.does("BackupDataStats", "measure-in-bucket", bucket, args{"backupArtifactPrefix": "one", "backupID": kept["backupID"]}); sources()[of("db-1")] != 2*each {
		t.Errorf("their snapshots: %v, want another one of db-1", sources())
	}

	r.does("DeleteData", "delete", set, args{"backupArtifactPrefix": "one", "backupID": saved["backupID"]})
	r.does("DeleteDataAll", "delete-all", set, args{"backupArtifactPrefix": "all", "backupInfo": all["BackupAllInfo"]})
	if diff := cmp.Diff(map[string]int{of("db-1"): each, of("bare"): each}, sources()); diff != "" {
		t.Errorf("their snapshots after the deletions:\n%s", diff)
	}
	r.refused("RestoreData", "restore-lost", set, with(from, args{
		"namespace": shop, "volumes": args{"restored": "/data"}, "backupArtifactPrefix": "one", "backupIdentifier": saved["backupID"],
	}), "not found")

	// Three were deleted by now.
	rs := &kopiav1alpha1.RepositoryServer{ObjectMeta: metav1.ObjectMeta{Namespace: control, Name: "theirs"}}
	r.Must(r.Patch(r.Context(), rs, client.RawPatch(types.MergePatchType, []byte(`{"spec":{"deletionLimit":3}}`))))
	deleted := make(chan error, 1)
	go func() {
		_, err := r.exec("DeleteData", "delete-more", set, args{
			"namespace": shop, "backupArtifactPrefix": copied["backupArtifactLocation"], "backupID": copied["backupID"],
		})
		deleted <- err
	}()
	testenv.Eventually(r, 2*time.Minute, "the fourth deletion waits", func() bool {
		select {
		case err := <-deleted:
			t.Fatalf("it does not wait: %v", err)
		default:
		}
		r.Must(r.Get(r.Context(), client.ObjectKeyFromObject(rs), rs))
		return meta.IsStatusConditionTrue(rs.Status.Conditions, kopiav1alpha1.ConditionDeletionsHeld)
	})
	if sources()[of("bare")] != each {
		t.Error("it waits, and the backup is gone")
	}
	r.Must(r.Patch(r.Context(), rs, client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}}}`,
		names.DeletionsAllowedAnnotation, time.Now().Add(time.Hour).UTC().Format(time.RFC3339)))))
	select {
	case err := <-deleted:
		r.Must(err)
	case <-r.Context().Done():
		t.Fatal("it is allowed, and waits")
	}
	if sources()[of("bare")] != 0 {
		t.Error("it was deleted, and is there")
	}
}

// A server that lets its user add, and no more, keeps what DeleteData is to delete: its
// error says so, and who may.
func TestIntegrationFunctionsOfExternalServerKeeps(t *testing.T) {
	r := newReal(t)
	_, profile := r.theirs("keeps", [2]string{"type=content", "APPEND"}, [2]string{"type=snapshot,username=OWN_USER,hostname=OWN_HOST", "APPEND"},
		[2]string{"type=policy,policyType=global", "READ"})
	r.holds("db-0")
	r.pod("db-0", "db-0")
	params := param.TemplateParams{Profile: profile}
	held := r.does("BackupData", "save", params, args{"pod": "db-0", "container": "app", "includePath": "/data", "backupArtifactPrefix": "one"})
	if id := held["backupID"].(string); !strings.HasPrefix(id, "keeps-") {
		t.Errorf("backup %s, want it to name its repository", id)
	}
	r.refused("DeleteData", "delete", params, args{"namespace": shop, "backupArtifactPrefix": "one", "backupID": held["backupID"]},
		"delete the backup", "whoever runs it deletes there")
	if got := r.does("BackupDataStats", "measure", params, args{"backupArtifactPrefix": "one", "backupID": held["backupID"]}); got["fileCount"] != held["fileCount"] {
		t.Errorf("what was not deleted: %v of %v", got, held)
	}
}
