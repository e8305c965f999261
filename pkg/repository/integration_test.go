// SPDX-License-Identifier: Apache-2.0

//go:build integration

package repository_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	certmanagerv1 "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	cmmeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	agentclient "github.com/kanister-kopia/kanister-kopia/agent/client"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/pkg/param"
	"github.com/kanister-kopia/kanister-kopia/pkg/repository"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// world is a real API server, S3 gateway and repository server. It is the node, too:
// it runs the server's container as a process while a pod of it is wanted. And it is
// cert-manager.
type world struct {
	*testing.T
	client.WithWatch
	config    *rest.Config
	s3        *testenv.S3
	plane     *testenv.ControlPlane
	issuer    *testenv.CA // of Certificates that the control plane's Issuer is not asked for
	namespace string
	manager   *repository.Manager
	// The RepositoryServer that the world works for, and those that it worked for before.
	name string
	left []string

	lost  atomic.Int64   // how often a pod was to be reached that is gone
	stall *testenv.Proxy // the way to the server's agent, if it is not the direct one

	mu sync.Mutex // protects the following from who connects meanwhile
	// The pod that runs, its process and its agent's port.
	pod     *corev1.Pod
	process *testenv.Process
	port    int
	listen  int
	health  int
	// mayCrash says that a server which ends is none of the test's failures.
	mayCrash bool
	// The node's name, of which the API server needs to know nothing.
	on string
}

const shared = "shared"

func newWorld(t *testing.T) *world {
	testenv.Program(t, "repository-server") // before anything waits for it
	w := &world{T: t, on: "node-1", s3: testenv.StartS3(t)}
	w.cluster()
	return w
}

// cluster begins to work in a new cluster, which has nothing of the one before.
func (w *world) cluster() {
	w.Helper()
	w.plane, w.issuer = testenv.NewControlPlane(w), testenv.NewCA(w)
	w.config = testenv.StartAPIServer(w)
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, certmanagerv1.AddToScheme, kopiav1alpha1.AddToScheme} {
		w.must(add(scheme))
	}
	var err error
	w.WithWatch, err = client.NewWithWatch(w.config, client.Options{Scheme: scheme})
	w.must(err)
	testenv.InstallCertificates(w, w)
	for name, annotations := range map[string]map[string]string{
		"control": nil, "elsewhere": nil, "shop": {names.RepositoryAnnotation: shared}, "thief": {names.RepositoryAnnotation: shared}, "own": nil,
	} {
		w.must(w.Create(w.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: annotations}}))
	}
	w.use("control")
	w.name, w.left = shared, nil
}

// use begins to work for a control plane, with a manager that remembers nothing.
func (w *world) use(namespace string) {
	w.namespace = namespace
	w.manager = &repository.Manager{
		Client: w, Namespace: namespace, Agents: w, Clock: clock.RealClock{},
		CA: func() ([]byte, error) { return w.plane.CA.PEM, nil },
	}
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// Connect reaches the agent of the process.
func (w *world) Connect(_ context.Context, _, pod, _ string) (*agentclient.Client, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pod == nil || w.pod.Name != pod {
		w.lost.Add(1)
		return nil, apierrors.NewNotFound(corev1.Resource("pods"), pod)
	}
	pin, err := agentclient.PinFromLog(strings.NewReader(w.process.Log()))
	if err != nil {
		return nil, err
	}
	address := fmt.Sprintf("127.0.0.1:%d", w.port)
	if w.stall != nil {
		address = w.stall.Address
	}
	return agentclient.New(agentclient.Options{
		Dial:        func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "tcp", address) },
		Certificate: w.plane.Certificate, Pin: pin,
	}), nil
}

func (w *world) ref(namespace string) repository.Ref {
	return repository.Ref{Namespace: namespace, Profile: &param.Profile{
		Location:   param.Location{Type: param.LocationTypeS3Compliant, Bucket: w.s3.Bucket, Endpoint: w.s3.Endpoint, Region: "us-east-1"},
		Credential: param.Credential{Type: param.CredentialTypeKeyPair, KeyPair: &param.KeyPair{ID: w.s3.AccessKey, Secret: w.s3.SecretKey}},
		CABundle:   w.s3.CA.PEM,
	}}
}

func (w *world) key() client.ObjectKey { return client.ObjectKey{Namespace: w.namespace, Name: w.name} }

// get reads the RepositoryServer.
func (w *world) get() *kopiav1alpha1.RepositoryServer {
	w.Helper()
	var rs kopiav1alpha1.RepositoryServer
	w.must(w.Get(w.Context(), w.key(), &rs))
	return &rs
}

// condition is one of the RepositoryServer's; empty, if it has none of that type.
func (w *world) condition(of string) metav1.Condition {
	w.Helper()
	return ptr.Deref(meta.FindStatusCondition(w.get().Status.Conditions, of), metav1.Condition{})
}

// leave ends the work for a RepositoryServer. The next is the one that comes up first.
func (w *world) leave() {
	w.process.Kill()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.left, w.name, w.pod = append(w.left, w.name), "", nil
}

// pick finds the RepositoryServer to work for; false: there is none yet.
func (w *world) pick() bool {
	w.Helper()
	if w.name != "" {
		return true
	}
	var all kopiav1alpha1.RepositoryServerList
	w.must(w.List(w.Context(), &all, client.InNamespace(w.namespace)))
	for _, rs := range all.Items {
		if !slices.Contains(w.left, rs.Name) {
			w.name = rs.Name
			return true
		}
	}
	return false
}

// turn lets the controller and the node work until a condition holds.
func (w *world) turn(r *repository.Reconciler, what string, done func() bool) {
	w.Helper()
	testenv.Eventually(w, 3*time.Minute, what, func() bool {
		if w.pick() {
			_, err := r.Reconcile(w.Context(), ctrl.Request{NamespacedName: w.key()})
			if err != nil && !apierrors.IsConflict(err) {
				w.Fatalf("reconcile: %v", err)
			}
			w.certManager()
			w.node()
		}
		return done()
	})
}

// certManager issues what is asked for, after it was asked for.
func (w *world) certManager() {
	w.Helper()
	var cert certmanagerv1.Certificate
	if err := w.Get(w.Context(), w.key(), &cert); err != nil || len(cert.Status.Conditions) > 0 {
		w.must(client.IgnoreNotFound(err))
		return
	}
	if c := w.condition(kopiav1alpha1.ConditionReady); c.Reason != "WaitingForCertificate" {
		w.Errorf("without its certificate: %+v", c)
	}
	ca := w.plane.CA
	if cert.Spec.IssuerRef.Name != issuerName {
		ca = w.issuer
	}
	w.certify(ca, cert.Spec.SecretName)
	cert.Status.Conditions = []certmanagerv1.CertificateCondition{{Type: certmanagerv1.CertificateConditionReady, Status: cmmeta.ConditionTrue}}
	w.must(w.Update(w.Context(), &cert))
}

// certify makes a Secret with a certificate for the loopback.
func (w *world) certify(ca *testenv.CA, secret string) {
	w.Helper()
	crt, key := ca.Issue(w, testenv.Leaf{IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Usage: x509.ExtKeyUsageServerAuth})
	w.must(w.Create(w.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: secret},
		Data:       map[string][]byte{"ca.crt": ca.PEM, "tls.crt": crt, "tls.key": key},
	}))
}

// issuerName is the control plane's Issuer.
const issuerName = "kanister-kopia"

func (w *world) reconciler() *repository.Reconciler {
	return &repository.Reconciler{
		Client: w, Manager: w.manager, Namespace: w.namespace, Clock: clock.RealClock{}, IdleTimeout: time.Second,
		Issuer: issuerName, Image: repository.Image{Name: "server:test"},
	}
}

// node runs what the Deployment wants.
func (w *world) node() {
	w.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	ctx := w.Context()
	var d appsv1.Deployment
	if err := w.Get(ctx, w.key(), &d); apierrors.IsNotFound(err) {
		return
	} else {
		w.must(err)
	}
	const revision = names.Group + "/revision"
	want := d.Spec.Template.Annotations[revision]
	if *d.Spec.Replicas == 0 {
		want = ""
	}
	if w.pod != nil && w.pod.Annotations[revision] != want {
		w.process.Kill()
		w.must(w.Delete(ctx, w.pod, client.GracePeriodSeconds(0)))
		w.pod = nil
	}
	if want == "" {
		return
	}
	if w.pod == nil {
		w.launch(&d)
	}
	if testenv.Healthy(fmt.Sprintf("127.0.0.1:%d", w.health), "/readyz") {
		w.judge(corev1.ConditionTrue)
	}
	select {
	case <-w.process.Done:
		if !w.mayCrash {
			w.Fatalf("the server ended: %s", testenv.LastLine(w.process.Log()))
		}
		w.crashed()
	default:
	}
}

// crashed says of the pod that its container has ended, and why.
func (w *world) crashed() {
	w.Helper()
	before := w.pod.DeepCopy()
	w.pod.Status.Phase = corev1.PodRunning
	w.pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionFalse}}
	w.pod.Status.ContainerStatuses = []corev1.ContainerStatus{{
		Name: repository.Container, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}},
		LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 1, Message: testenv.LastLine(w.process.Log())}},
	}}
	w.must(w.Status().Patch(w.Context(), w.pod, client.MergeFrom(before)))
}

// replace gives the process that runs another pod, ready at once.
func (w *world) replace(gone *corev1.Pod) {
	w.Helper()
	w.must(w.Delete(w.Context(), gone, client.GracePeriodSeconds(0)))
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pod = &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: gone.Namespace, GenerateName: gone.GenerateName, Labels: gone.Labels, Annotations: gone.Annotations,
		},
		Spec: gone.Spec,
	}
	w.must(w.Create(w.Context(), w.pod))
	w.judge(corev1.ConditionTrue)
}

// judge says whether the pod is ready; its container is, by the kubelet's last word.
func (w *world) judge(ready corev1.ConditionStatus) {
	w.Helper()
	before := w.pod.DeepCopy()
	w.pod.Status.Phase = corev1.PodRunning
	w.pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}
	w.pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: repository.Container, Ready: true}}
	w.must(w.Status().Patch(w.Context(), w.pod, client.MergeFrom(before)))
}

func (w *world) launch(d *appsv1.Deployment) {
	w.Helper()
	var secret corev1.Secret
	w.must(w.Get(w.Context(), client.ObjectKey{Namespace: w.namespace, Name: w.name + "-config"}, &secret))
	dir := w.TempDir()
	w.must(os.WriteFile(filepath.Join(dir, "config.json"), secret.Data["config.json"], 0o600))
	w.must(os.Mkdir(filepath.Join(dir, "tls"), 0o700))
	for _, volume := range d.Spec.Template.Spec.Volumes {
		if volume.Name != "tls" {
			continue
		}
		var mounted corev1.Secret
		w.must(w.Get(w.Context(), client.ObjectKey{Namespace: w.namespace, Name: volume.Secret.SecretName}, &mounted))
		for name, data := range mounted.Data {
			w.must(os.WriteFile(filepath.Join(dir, "tls", name), data, 0o600))
		}
	}
	w.port, w.listen, w.health = testenv.Port(w), testenv.Port(w), testenv.Port(w)
	loopback := func(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }
	w.process = testenv.Start(w, nil, testenv.Program(w, "repository-server"), "serve", "--config", filepath.Join(dir, "config.json"),
		"--tls-dir", filepath.Join(dir, "tls"), "--ca-dir", w.plane.CADir,
		"--state-dir", filepath.Join(dir, "state"),
		"--listen", loopback(w.listen), "--agent-listen", loopback(w.port),
		"--kopia-listen", loopback(testenv.Port(w)), "--health-listen", loopback(w.health))
	w.pod = &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: w.namespace, GenerateName: w.name + "-", Labels: d.Spec.Template.Labels, Annotations: d.Spec.Template.Annotations,
		},
		Spec: d.Spec.Template.Spec,
	}
	w.pod.Spec.NodeName = w.on
	w.must(w.Create(w.Context(), w.pod))
}

// looks lets the controller look a few times.
func (w *world) looks(r *repository.Reconciler) {
	w.Helper()
	for range 3 {
		w.turn(r, "the controller has looked", func() bool { return true })
	}
}

// try opens the repository while the controller and the node work.
func (w *world) try(r *repository.Reconciler, how func() (*repository.Repository, error)) (*repository.Repository, error) {
	w.Helper()
	type outcome struct {
		repo *repository.Repository
		err  error
	}
	done := make(chan outcome, 1)
	go func() {
		repo, err := how()
		done <- outcome{repo, err}
	}()
	var got outcome
	w.turn(r, "the repository is open, or is not", func() bool {
		select {
		case got = <-done:
			return true
		default:
			return false
		}
	})
	return got.repo, got.err
}

// open is try of what must succeed.
func (w *world) open(r *repository.Reconciler, how func() (*repository.Repository, error)) *repository.Repository {
	w.Helper()
	repo, err := w.try(r, how)
	w.must(err)
	return repo
}

// agent starts a real agent that has a folder as its volume.
func (w *world) agent(volume string) *agentclient.Client {
	w.Helper()
	dir, port := w.TempDir(), testenv.Port(w)
	return w.plane.Client(w, testenv.Start(w, nil, testenv.Program(w, "agent"),
		"serve", "-state-dir", dir, "-ca-dir", w.plane.CADir, "-volumes-dir", filepath.Dir(volume),
		"-port", strconv.Itoa(port), "-health-listen", ""), port)
}

// run has an agent do an operation as a user of the repository.
func (w *world) run(repo *repository.Repository, agent *agentclient.Client, username string, req api.StartRequest) *api.Result {
	w.Helper()
	ctx := w.Context()
	sourcePath := ""
	if req.Snapshot != nil {
		sourcePath = req.Snapshot.SourcePath
	}
	credentials, err := repo.Session(ctx, req.ID, username, repo.Tenant().NamespaceUID, sourcePath)
	w.must(err)
	if strings.Contains(credentials.URL, ".svc:") { // a Service leads to the process
		credentials.URL = fmt.Sprintf("https://127.0.0.1:%d", w.listen)
	}
	req.Credentials = credentials
	result, err := agent.Run(ctx, req, func(api.Progress) {})
	w.must(err)
	w.must(repo.EndSession(ctx, req.ID))
	return result
}

const prefix = "backups/prefix"

// backup takes a snapshot of a folder and makes it a backup, as BackupData does.
func (w *world) backup(repo *repository.Repository, volume string) api.Record {
	w.Helper()
	const username = "pvc.data"
	source := repo.SourcePath(username, "/")
	snapshot := w.run(repo, w.agent(volume), username, api.StartRequest{ID: "backup-" + repo.ID(), Kind: api.KindSnapshot, Snapshot: &api.SnapshotRequest{
		Volume: filepath.Base(volume), Path: "/", SourcePath: source,
	}}).Snapshot
	record, err := repo.Record(w.Context(), "record-"+repo.ID(), api.RecordRequest{
		Username: username, Hostname: repo.Tenant().NamespaceUID, SourcePath: source,
		Record: api.Record{
			BackupID: repository.Token(repo.ID(), "id"), BackupTag: repository.Token(repo.ID(), "tag"), Prefix: prefix, KeyID: repo.KeyID(),
			AbsolutePath: "/data", Namespace: repo.Tenant().Namespace, NamespaceUID: repo.Tenant().NamespaceUID,
			Claim: "data", Volume: filepath.Base(volume), Snapshot: *snapshot, Created: snapshot.End,
		},
	})
	w.must(err)
	return record
}

// restored finds a backup, restores it into a new folder, and reads that.
func (w *world) restored(repo *repository.Repository, backupID string) map[string]testenv.Entry {
	w.Helper()
	found, err := repo.Find(w.Context(), "find-"+repo.ID(), api.FindRequest{BackupID: backupID, Prefix: prefix})
	w.must(err)
	volume := w.volume()
	w.run(repo, w.agent(volume), "restore", api.StartRequest{ID: "restore-" + repo.ID(), Kind: api.KindRestore, Restore: &api.RestoreRequest{
		RootObject: found.Snapshot.RootObject, Root: found.Snapshot.Root, Volume: filepath.Base(volume), Path: "/there",
	}})
	return testenv.Tree(w, filepath.Join(volume, "there"))
}

func (w *world) volume() string {
	w.Helper()
	dir := filepath.Join(w.TempDir(), "data")
	w.must(os.Mkdir(dir, 0o755))
	return dir
}

func (w *world) make(namespaces ...string) {
	w.Helper()
	w.certify(w.plane.CA, "cert")
	limit := int32(1)
	w.must(w.Create(w.Context(), &kopiav1alpha1.RepositoryServer{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: shared},
		Spec: kopiav1alpha1.RepositoryServerSpec{
			Storage:    kopiav1alpha1.Storage{S3: &kopiav1alpha1.S3Storage{Bucket: w.s3.Bucket, Endpoint: "https://" + w.s3.Endpoint, Prefix: "team/", Region: "us-east-1"}},
			Namespaces: namespaces, TLS: &kopiav1alpha1.TLS{Secret: "cert"}, DeletionLimit: &limit,
		},
	}))
}

// A server is started by the first phase that needs it, kept up by what the server
// itself says is going on, whoever asks, and stopped when that is nothing.
func TestIntegrationLifeCycle(t *testing.T) {
	w := newWorld(t)
	w.make("shop")
	ctx := t.Context()
	r := w.reconciler()
	if _, err := w.manager.Open(ctx, w.ref("thief")); err == nil || !strings.Contains(err.Error(), "spec.namespaces") {
		t.Errorf("a namespace that is not listed: %v", err)
	}
	repo := w.open(r, func() (*repository.Repository, error) { return w.manager.Open(ctx, w.ref("shop")) })
	credentials, err := repo.Session(ctx, "op-1", "pvc.data", "ns-uid", "/")
	w.must(err)
	if credentials.CA != string(w.plane.CA.PEM) || credentials.URL != "https://shared.control.svc:51515" {
		t.Errorf("credentials for %s", credentials.URL)
	}
	repo.Close()

	// The controller is killed while the operation goes on; the next one finds it.
	w.use("control")
	r = w.reconciler()
	end := time.Now().Add(8 * time.Second)
	w.turn(r, "two looks are over", func() bool {
		if w.get().Status.Phase == kopiav1alpha1.PhaseStopped {
			t.Fatal("the server was stopped under an operation")
		}
		return time.Now().After(end)
	})
	if s := w.get().Status; s.Users != 1 || s.LastUsed == nil || s.URL == "" || s.CA == "" {
		t.Errorf("status %+v", s)
	}
	// Its Profile gives the storage's access in another way now, which waits.
	changed := w.ref("shop")
	changed.InsecureTLS = true
	repo = w.open(r, func() (*repository.Repository, error) { return w.manager.Open(ctx, changed) })
	if again, err := repo.Session(ctx, "op-1", "pvc.data", "ns-uid", "/"); err != nil || again.Password != credentials.Password {
		t.Errorf("the operation that is picked up: %v, or another password", err)
	}

	// Another controller has decided to stop it; who asks gets the next one, and of many at
	// once nobody another one than the others.
	agent, err := w.Connect(ctx, "", w.pod.Name, "")
	w.must(err)
	w.must(agent.EndSession(ctx, "op-1"))
	testenv.Eventually(w, 3*time.Minute, "the server drains", func() bool {
		a, err := agent.Drain(ctx, 0)
		return err == nil && a.Draining
	})
	old := w.pod.Name
	ids := []string{"op-2", "op-2-b", "op-2-c"}
	w.open(r, func() (*repository.Repository, error) {
		var all errgroup.Group
		for _, id := range ids {
			all.Go(func() error {
				_, err := repo.Session(ctx, id, "pvc.data", "ns-uid", "/")
				return err
			})
		}
		return repo, all.Wait()
	})
	if w.pod.Name == old {
		t.Error("the sessions are of the server that drains")
	}
	agent, err = w.Connect(ctx, "", w.pod.Name, "")
	w.must(err)
	if a, err := agent.Activity(ctx); err != nil || a.Sessions != len(ids) {
		t.Errorf("the server that runs knows %d sessions of %d, %v", a.Sessions, len(ids), err)
	}
	for _, id := range ids {
		w.must(repo.EndSession(ctx, id))
	}

	// Its pod has just gone, and no status says so yet; who asks gets the next one.
	fresh := &repository.Manager{Client: w, Namespace: w.namespace, Agents: w, Clock: clock.RealClock{}, CA: w.manager.CA}
	other, err := fresh.Open(ctx, changed)
	w.must(err)
	w.mu.Lock()
	gone := w.pod
	w.pod = nil // from the node, and not yet from the list
	w.mu.Unlock()
	asked := make(chan error, 1)
	go func() {
		_, err := other.Session(ctx, "op-3", "pvc.data", "ns-uid", "/")
		asked <- err
	}()
	testenv.Eventually(w, time.Minute, "the pod that is gone is asked", func() bool { return w.lost.Load() > 0 })
	w.replace(gone)
	w.must(<-asked)
	// A way that has stalled ends no session; another one does.
	w.stall = testenv.StartProxy(t, fmt.Sprintf("127.0.0.1:%d", w.port))
	fresh = &repository.Manager{Client: w, Namespace: w.namespace, Agents: w, Clock: clock.RealClock{}, CA: w.manager.CA}
	stalled, err := fresh.Open(ctx, changed)
	w.must(err)
	_, err = stalled.Session(ctx, "op-3", "pvc.data", "ns-uid", "/")
	w.must(err)
	w.stall.Cut()
	w.stall = nil
	w.must(stalled.EndSession(ctx, "op-3"))
	stalled.Close()
	other.Close()

	// Deletions beyond the limit wait for somebody to say that they are meant.
	volume := w.volume()
	testenv.MakeTree(w, volume)
	first := w.backup(repo, volume)
	again := func(i int) api.DeleteRequest {
		record := first
		record.BackupID, record.BackupTag = repository.Token(repo.ID(), fmt.Sprint("id", i)), repository.Token(repo.ID(), fmt.Sprint("tag", i))
		_, err := repo.Record(ctx, fmt.Sprint("record-", i), api.RecordRequest{
			Username: "pvc.data", Hostname: repo.Tenant().NamespaceUID, SourcePath: repo.SourcePath("pvc.data", "/"), Record: record,
		})
		w.must(err)
		return api.DeleteRequest{BackupID: record.BackupID, Prefix: prefix}
	}
	second, third := again(2), again(3)
	soon, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for _, c := range []struct {
		id  string
		req api.DeleteRequest
		err error
	}{
		{"delete-never", api.DeleteRequest{BackupID: "x", Prefix: prefix}, nil},                                  // it is not there
		{"delete-other", api.DeleteRequest{BackupTag: first.BackupTag, Prefix: "other"}, repository.ErrNotFound}, // nor there
		{"delete-1", api.DeleteRequest{BackupTag: first.BackupTag, Prefix: prefix}, nil},                         // the one that counts
		{"delete-1", api.DeleteRequest{BackupTag: first.BackupTag, Prefix: prefix}, nil},                         // it goes on after a restart
		{"delete-1-forgotten", api.DeleteRequest{BackupTag: first.BackupTag, Prefix: prefix}, nil},               // and is forgotten by the server
	} {
		if _, err := repo.Delete(soon, c.id, c.req); !errors.Is(err, c.err) {
			t.Errorf("%s: %v, want %v", c.id, err, c.err)
		}
	}
	held := func(id string, req api.DeleteRequest, leave func(*kopiav1alpha1.RepositoryServer)) {
		t.Helper()
		deleted := make(chan error, 1)
		go func() {
			records, err := repo.Delete(ctx, id, req)
			if err == nil && len(records) != 1 {
				err = fmt.Errorf("deleted %+v", records)
			}
			deleted <- err
		}()
		testenv.Eventually(w, 3*time.Minute, id+" is held", func() bool {
			return w.condition(kopiav1alpha1.ConditionDeletionsHeld).Status == metav1.ConditionTrue
		})
		select {
		case err := <-deleted:
			t.Errorf("%s was not held: %v", id, err)
		default:
		}
		rs := w.get()
		leave(rs)
		w.must(w.Update(ctx, rs))
		select {
		case err := <-deleted:
			w.must(err)
		case <-time.After(time.Minute):
			t.Errorf("%s is held still", id)
		}
	}
	held("delete-2", second, func(rs *kopiav1alpha1.RepositoryServer) { rs.Spec.DeletionLimit = ptr.To(int32(2)) })
	held("delete-3", third, func(rs *kopiav1alpha1.RepositoryServer) {
		metav1.SetMetaDataAnnotation(&rs.ObjectMeta, names.DeletionsAllowedAnnotation, time.Now().Add(time.Minute).UTC().Format(time.RFC3339))
	})
	repo.Close()

	// Nobody works there any more: what has changed counts.
	before := w.get().Status.Revision
	w.open(r, func() (*repository.Repository, error) { return fresh.Open(ctx, w.ref("shop")) }).Close()
	if w.get().Status.Revision == before {
		t.Error("a server without work goes on with the access of before")
	}

	w.turn(r, "the idle server stops", func() bool {
		return w.get().Status.Phase == kopiav1alpha1.PhaseStopped && w.pod == nil
	})
	repo = w.open(r, func() (*repository.Repository, error) { return w.manager.Open(ctx, w.ref("shop")) })
	repo.Close()
}

// A node is gone, and with it the word that its pod has ended: the object stays, as if
// about to end, and the next server is another node's. The control plane's part of that
// (a Deployment's next pod, the eviction) is done here as Kubernetes does it.
func TestIntegrationNodeLost(t *testing.T) {
	w := newWorld(t)
	w.make("shop")
	ctx := t.Context()
	r := w.reconciler()
	repo := w.open(r, func() (*repository.Repository, error) { return w.manager.Open(ctx, w.ref("shop")) })
	defer repo.Close()
	_, err := repo.Session(ctx, "op-1", "pvc.data", "ns-uid", "/")
	w.must(err)

	w.must(w.process.Cmd.Process.Signal(syscall.SIGSTOP))
	w.judge(corev1.ConditionFalse)
	_, err = r.Reconcile(ctx, ctrl.Request{NamespacedName: client.ObjectKeyFromObject(w.get())})
	w.must(err)
	if s := w.get().Status; s.Phase != kopiav1alpha1.PhaseStarting || !strings.Contains(fmt.Sprint(s.Conditions), "node-1 does not answer") {
		t.Errorf("with its node gone: %+v", s)
	}
	// What is asked of it now fails with the reason, in the caller's time.
	fresh := &repository.Manager{Client: w, Namespace: w.namespace, Agents: w, Clock: clock.RealClock{}, CA: w.manager.CA}
	short, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if _, err := fresh.Open(short, w.ref("shop")); err == nil || !strings.Contains(err.Error(), "node-1 does not answer") {
		t.Errorf("opened while its node is gone: %v", err)
	}

	// It is given up, and the object stays.
	lost := w.pod
	w.must(w.Delete(ctx, lost))
	w.mu.Lock()
	frozen := w.process
	w.pod, w.on = nil, "node-2"
	w.mu.Unlock()
	defer frozen.Kill()
	w.turn(r, "another node has a server", func() bool { return w.get().Status.Phase == kopiav1alpha1.PhaseReady })
	w.must(w.Get(ctx, client.ObjectKeyFromObject(lost), lost))
	if lost.DeletionTimestamp == nil {
		t.Fatal("the pod of the node that is gone was not given up: nothing was tested")
	}
	if w.pod.Spec.NodeName != "node-2" {
		t.Errorf("the server is on %s", w.pod.Spec.NodeName)
	}
	// It is the one that is asked, by who was connected with the other, too.
	again, err := repo.Session(ctx, "op-1", "pvc.data", "ns-uid", "/")
	if err != nil {
		t.Fatalf("the operation, asked for again: %v", err)
	}
	agent, err := w.Connect(ctx, "", w.pod.Name, "")
	w.must(err)
	defer agent.Close()
	if a, err := agent.Activity(ctx); err != nil || a.Sessions != 1 || again.Password == "" {
		t.Errorf("the new server has %+v, %v", a, err)
	}
	w.must(repo.EndSession(ctx, "op-1"))
}

// A server's container has ended, and its node starts it again: what is asked meanwhile waits
// for that, and what was there before is there.
func TestIntegrationCrash(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.mayCrash = true
	w.make("shop")
	ctx := t.Context()
	r := w.reconciler()
	repo := w.open(r, func() (*repository.Repository, error) { return w.manager.Open(ctx, w.ref("shop")) })
	defer repo.Close()
	volume := w.volume()
	testenv.MakeTree(w, volume)
	record := w.backup(repo, volume)

	w.process.Kill()
	w.turn(r, "the crash is told", func() bool { return w.get().Status.Phase == kopiav1alpha1.PhaseFailed })
	asked := make(chan error, 1)
	go func() {
		_, err := repo.Session(ctx, "op-1", "pvc.data", "ns-uid", "/")
		asked <- err
	}()
	w.looks(r)
	w.mu.Lock()
	w.process = w.process.Again(w)
	w.mu.Unlock()
	var err error
	w.turn(r, "the session has begun, or has not", func() bool {
		select {
		case err = <-asked:
			return true
		default:
			return false
		}
	})
	w.must(err)
	w.must(repo.EndSession(ctx, "op-1"))
	found, err := repo.Find(ctx, "find", api.FindRequest{BackupID: record.BackupID, Prefix: prefix})
	if err != nil || found.Snapshot.ID != record.Snapshot.ID {
		t.Errorf("after the crash the backup is %+v, %v", found, err)
	}
}

// No second maintenance starts before the first one's end is known for certain.
func TestIntegrationOneMaintenance(t *testing.T) {
	w := newWorld(t)
	w.make("shop")
	ctx := t.Context()
	r := w.reconciler()
	rs := w.get()
	long := metav1.NewTime(time.Now().Add(-48 * time.Hour))
	rs.Status.Initialized = &long
	w.must(w.Status().Update(ctx, rs))
	now := time.Now()
	at := clocktesting.NewFakePassiveClock(now)
	r.Clock = at
	key := client.ObjectKey{Namespace: "control", Name: shared + "-maintenance"}
	pod := func() *corev1.Pod {
		var p corev1.Pod
		if err := w.Get(ctx, key, &p); apierrors.IsNotFound(err) {
			return nil
		} else {
			w.must(err)
		}
		return &p
	}
	lease := func() *coordinationv1.Lease {
		var l coordinationv1.Lease
		w.must(w.Get(ctx, key, &l))
		return &l
	}
	holder := func() string { return ptr.Deref(lease().Spec.HolderIdentity, "") }
	term := func() time.Duration { return time.Duration(*lease().Spec.LeaseDurationSeconds) * time.Second }
	// The storage's keys are not there, as after an import: nothing is begun that would wait
	// for them in another repository's place, and what to do is said.
	w.looks(r)
	if c := w.condition(kopiav1alpha1.ConditionMaintained); pod() != nil || c.Status != metav1.ConditionFalse ||
		!strings.Contains(c.Message, "Secret shared-config") || !strings.Contains(c.Message, "run one, such as a backup") {
		t.Errorf("without keys: pod %v, condition %+v", pod(), c)
	}
	if err := w.Get(ctx, key, &coordinationv1.Lease{}); !apierrors.IsNotFound(err) {
		t.Errorf("without keys: the Lease is taken: %v", err)
	}
	w.must(w.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "control", Name: "shared-config"}}))

	// The controller dies between the Lease and the pod: its successor waits for some
	// minutes, not for as long as a maintenance may take.
	died := errors.New("died")
	r.Client = interceptor.NewClient(w, interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			if _, ok := o.(*corev1.Pod); ok {
				return died
			}
			return c.Create(ctx, o, opts...)
		},
	})
	if _, err := r.Reconcile(ctx, ctrl.Request{NamespacedName: client.ObjectKeyFromObject(rs)}); !errors.Is(err, died) {
		t.Fatalf("nobody died: %v", err)
	}
	lost := holder()
	r.Client = w
	w.looks(r)
	if pod() != nil || holder() != lost || lost == "" {
		t.Fatal("the Lease that was just taken is another's at once")
	}
	at.SetTime(now.Add(6 * time.Minute))

	// It may start when its Lease is as long as it may take, and not before.
	w.turn(r, "a maintenance is made", func() bool { return pod() != nil })
	if c := w.condition(kopiav1alpha1.ConditionMaintained); c.Type != "" {
		t.Errorf("the keys are there: %+v", c)
	}
	if holder() == lost {
		t.Error("the Lease is the dead controller's")
	}
	if args := pod().Spec.Containers[0].Args; args[0] != "maintain" || args[2] != "full" {
		t.Errorf("it runs %v", args)
	}
	if len(pod().Spec.SchedulingGates) != 1 || term() > time.Hour {
		t.Errorf("it may start before its Lease is prolonged: gates %v, Lease for %s", pod().Spec.SchedulingGates, term())
	}
	late := pod()
	taken := lease()
	other := "another"
	taken.Spec.HolderIdentity = &other
	w.must(w.Update(ctx, taken))
	w.turn(r, "one that lost its Lease never starts", func() bool { return pod() == nil })
	if len(late.Spec.SchedulingGates) != 1 || holder() != other {
		t.Errorf("it held gates %v, and the Lease is of %q", late.Spec.SchedulingGates, holder())
	}
	at.SetTime(now.Add(20 * time.Minute))
	w.turn(r, "a maintenance starts", func() bool { return pod() != nil && len(pod().Spec.SchedulingGates) == 0 })
	if term() < 12*time.Hour {
		t.Errorf("it runs with a Lease for %s", term())
	}
	first := holder()

	// Somebody removes the object by force: the container may live on.
	w.must(w.Delete(ctx, pod(), client.GracePeriodSeconds(0)))
	for _, later := range []time.Duration{0, time.Hour, 12 * time.Hour} {
		at.SetTime(now.Add(20*time.Minute + later))
		w.looks(r)
		if pod() != nil || holder() != first {
			t.Fatalf("a second maintenance was started after %s while the first may still run", later)
		}
	}

	// The Lease has run out.
	at.SetTime(now.Add(14 * time.Hour))
	w.turn(r, "the next maintenance starts", func() bool { return pod() != nil })
	if holder() == first {
		t.Error("the second run has the first one's Lease")
	}
	p := pod()
	p.Status.Phase = corev1.PodSucceeded
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{
		Name: repository.Container, State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Message: `{"indexBlobs":3,"contents":40}`}},
	}}
	w.must(w.Status().Update(ctx, p))
	w.turn(r, "the outcome is kept", func() bool { return w.get().Status.Maintenance.LastFull != nil && holder() == "" })
	if s := w.get().Status.Maintenance; s.IndexBlobs != 3 || s.Contents != 40 {
		t.Errorf("status %+v", s)
	}

	// A pod that waited long for its node is told to end, after its Lease has run out. The
	// object goes when the node says so, or when no container can be left.
	rs = w.get()
	rs.Status.Maintenance = nil
	w.must(w.Status().Update(ctx, rs))
	at.SetTime(now.Add(-20 * time.Hour))
	w.turn(r, "a maintenance starts", func() bool { return pod() != nil && len(pod().Spec.SchedulingGates) == 0 })
	gone := pod()
	w.must(w.SubResource("binding").Create(ctx, gone, &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: "node-9"}}))
	w.must(w.Delete(ctx, gone))
	for _, later := range []time.Duration{0, time.Hour, 12 * time.Hour} {
		at.SetTime(now.Add(later))
		w.looks(r)
		if p := pod(); p == nil || p.UID != gone.UID || p.DeletionTimestamp == nil {
			t.Fatalf("after %s the pod that is about to end was not waited for: %+v", later, p)
		}
	}
	at.SetTime(now.Add(13 * time.Hour))
	w.turn(r, "another maintenance is made", func() bool { return pod() != nil && pod().UID != gone.UID && len(pod().Spec.SchedulingGates) == 0 })

	// It is failed because its node is out of reach: its container may run on.
	last := holder()
	p = pod()
	w.must(w.SubResource("binding").Create(ctx, p, &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: "node-9"}}))
	p = pod()
	p.Status.Phase = corev1.PodFailed
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: repository.Container, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
	w.must(w.Status().Update(ctx, p))
	w.turn(r, "the failure is told", func() bool { return w.condition(kopiav1alpha1.ConditionMaintained).Reason == "Failed" })
	w.looks(r)
	if holder() != last || last == "" {
		t.Errorf("the Lease of a container that may run on is %q's, and was %q's", holder(), last)
	}

	// A second object at the same place is refused, and its maintenance too.
	within := w.get()
	within.ObjectMeta = metav1.ObjectMeta{Namespace: "control", Name: "other"}
	within.Spec.Storage.S3.Prefix = "team/within/"
	w.must(w.Create(ctx, within))
	_, err := r.Reconcile(ctx, ctrl.Request{NamespacedName: client.ObjectKeyFromObject(within)})
	w.must(err)
	w.must(w.Get(ctx, client.ObjectKeyFromObject(within), within))
	if within.Status.Phase != kopiav1alpha1.PhaseFailed || !strings.Contains(within.Status.Conditions[len(within.Status.Conditions)-1].Message+within.Status.Conditions[0].Message, shared) {
		t.Errorf("a second repository within the first: %+v", within.Status)
	}
}

// A server that runs takes another image when nothing uses it, and no sooner.
func TestIntegrationNewImage(t *testing.T) {
	w := newWorld(t)
	w.make("shop")
	ctx := t.Context()
	r := w.reconciler()
	r.IdleTimeout = 0 // it never stops
	image := func() string {
		var d appsv1.Deployment
		w.must(w.Get(ctx, client.ObjectKeyFromObject(w.get()), &d))
		return d.Spec.Template.Spec.Containers[0].Image
	}
	repo := w.open(r, func() (*repository.Repository, error) { return w.manager.Open(ctx, w.ref("shop")) })
	credentials, err := repo.Session(ctx, "op-1", "pvc.data", "ns-uid", "/")
	w.must(err)
	repo.Close()
	old := w.pod.Name

	// The controller begins anew, with another image, while an operation goes on.
	w.use("control")
	r = w.reconciler()
	r.IdleTimeout, r.Image.Name = 0, "server:next"
	end := time.Now().Add(12 * time.Second)
	w.turn(r, "two looks are over", func() bool {
		if w.pod.Name != old || image() != "server:test" {
			t.Fatal("the server was replaced under an operation")
		}
		return time.Now().After(end)
	})
	repo = w.open(r, func() (*repository.Repository, error) { return w.manager.Open(ctx, w.ref("shop")) })
	if again, err := repo.Session(ctx, "op-1", "pvc.data", "ns-uid", "/"); err != nil || again.Password != credentials.Password {
		t.Errorf("the operation that goes on: %v, or another password", err)
	}
	w.must(repo.EndSession(ctx, "op-1"))
	repo.Close()
	w.turn(r, "the idle server is replaced", func() bool {
		return w.pod != nil && w.pod.Name != old && image() == "server:next" && w.get().Status.Phase == kopiav1alpha1.PhaseReady
	})
	repo = w.open(r, func() (*repository.Repository, error) { return w.manager.Open(ctx, w.ref("shop")) })
	repo.Close()
}
