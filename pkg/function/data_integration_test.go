// SPDX-License-Identifier: Apache-2.0

//go:build integration

package function_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	agentclient "github.com/kanister-kopia/kanister-kopia/agent/client"
	"github.com/kanister-kopia/kanister-kopia/internal/testenv"
	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/function"
	"github.com/kanister-kopia/kanister-kopia/pkg/mover"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/pkg/param"
	"github.com/kanister-kopia/kanister-kopia/pkg/repository"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// args are those of a function, without what a row is about.
type args = map[string]any

// unused are arguments that functions accept which need no pod.
var unused = args{"podOverride": args{"nodeName": "n"}, "podLabels": args{"a": "b"}, "podAnnotations": args{"a": "b"}}

// One API server for all functions: each test has names of its own.
func TestIntegrationFunctions(t *testing.T) {
	w := newWorld(t)
	t.Run("BackupData", func(t *testing.T) { testBackupData(w.sub(t)) })
	t.Run("BackupDataAll", func(t *testing.T) { testBackupDataAll(w.sub(t)) })
	t.Run("BackupDataStats", func(t *testing.T) { testBackupDataStats(w.sub(t)) })
	t.Run("an agent's problem", func(t *testing.T) { testProblem(w.sub(t)) })
	t.Run("CopyVolumeData", func(t *testing.T) { testCopyVolumeData(w.sub(t)) })
	t.Run("RestoreData", func(t *testing.T) { testRestoreData(w.sub(t)) })
	t.Run("RestoreData elsewhere", func(t *testing.T) { testRestoreElsewhere(w.sub(t)) })
	t.Run("RestoreDataAll", func(t *testing.T) { testRestoreDataAll(w.sub(t)) })
	t.Run("DeleteData", func(t *testing.T) { testDeleteData(w.sub(t)) })
	t.Run("DeleteDataAll", func(t *testing.T) { testDeleteDataAll(w.sub(t)) })
	t.Run("CheckRepository", func(t *testing.T) { testCheckRepository(w.sub(t)) })
	t.Run("LocationDelete", func(t *testing.T) { testLocationDelete(w.sub(t)) })
	t.Run("ScaleWorkload", func(t *testing.T) { testScaleWorkload(w.sub(t)) })
	t.Run("KubeOps", func(t *testing.T) { testKubeOps(w.sub(t)) })
	t.Run("Wait", func(t *testing.T) { testWait(w.sub(t)) })
	t.Run("at once", func(t *testing.T) { testAtOnce(w.sub(t)) })
	t.Run("one claim", func(t *testing.T) { testOneClaim(w.sub(t)) })
	t.Run("movers", func(t *testing.T) { testTurns(w.sub(t)) })
	t.Run("insecureTLS", func(t *testing.T) { testInsecureTLS(w.sub(t)) })
	t.Run("no start", func(t *testing.T) { testNoStart(w.sub(t)) })
	t.Run("tasks", func(t *testing.T) { testTasks(w.sub(t)) })
	t.Run("cancel", func(t *testing.T) { testCancel(w.sub(t)) })
	t.Run("whose claim", func(t *testing.T) { testIdentityFor(w.sub(t)) })
	t.Run("resume each", func(t *testing.T) { testResumeEach(w.sub(t)) })
	t.Run("resume", func(t *testing.T) { testResume(w.sub(t)) })
}

func (w *world) run(name string, test func(*world)) {
	w.Helper()
	w.TB.(*testing.T).Run(name, func(t *testing.T) { test(w.sub(t)) })
}

// refused runs a function that must fail with all these texts.
func (w *world) refused(name, operation string, params param.TemplateParams, a args, wants ...string) {
	w.Helper()
	out, err := w.exec(name, operation, params, a)
	for _, want := range wants {
		if err == nil || !strings.Contains(err.Error(), want) {
			w.Errorf("outputs %v, error %v, want %q in it", out, err, want)
		}
	}
}

func (w *world) servers() map[string]kopiav1alpha1.RepositoryServer {
	w.Helper()
	var list kopiav1alpha1.RepositoryServerList
	w.Must(w.List(w.Context(), &list, client.InNamespace(control)))
	out := map[string]kopiav1alpha1.RepositoryServer{}
	for _, rs := range list.Items {
		out[rs.Name] = rs
	}
	return out
}

func (w *world) record(id string) api.Record {
	w.Helper()
	for _, r := range w.records.list() {
		if r.BackupID == id {
			return r
		}
	}
	w.Fatalf("there is no record of %s", id)
	return api.Record{}
}

func testBackupData(w *world) {
	w.claim("bd")
	w.pod("bd-0", "bd")
	var seen seen
	w.script("bd-0", saves(12, seen.add))
	base := args{"namespace": shop, "pod": "bd-0", "container": "app", "includePath": "/data/tree", "backupArtifactPrefix": "bd/x"}
	out, progress, err := w.execWithProgress("BackupData", "bd-1", param.TemplateParams{}, base)
	w.Must(err)
	w.run("outputs", func(w *world) {
		want := map[string]any{
			"backupID": out["backupID"], "backupTag": out["backupTag"], "fileCount": "12", "size": "10.322 KiB", "phySize": "1.000 MiB", "version": "v0.0.0",
		}
		if !reflect.DeepEqual(out, want) || out["backupID"] == out["backupTag"] || out["backupID"] == "" {
			w.Errorf("outputs %v", out)
		}
		if progress.UploadedBytes != 1<<20 || progress.Bytes != 10570 {
			w.Errorf("progress %+v", progress)
		}
	})
	r := w.record(out["backupID"].(string))
	w.run("includePath", func(w *world) {
		if s := seen.all[0].Snapshot; s.Volume != "data" || s.Path != "/tree" || r.AbsolutePath != "/data/tree" {
			w.Errorf("asked for %+v, recorded %s", s, r.AbsolutePath)
		}
	})
	w.run("backupArtifactPrefix", func(w *world) {
		if r.Prefix != "bucket/bd/x" || r.Claim != "bd" || r.Pod != "bd-0" {
			w.Errorf("record %+v", r)
		}
	})
	w.run("another claim below it", func(w *world) {
		w.pod("bd-wal", "bd", func(p *corev1.Pod) {
			p.Spec.Containers[0].VolumeMounts = append(p.Spec.Containers[0].VolumeMounts, corev1.VolumeMount{Name: "wal", MountPath: "/data/tree/wal"})
			p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "wal", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "bd-wal"},
			}})
		})
		w.refused("BackupData", "bd-8", param.TemplateParams{}, with(base, args{"pod": "bd-wal"}),
			"back up /data/tree of container app in pod shop/bd-wal: /data/tree/wal is another volume (wal)", "in a phase of its own")
		w.refused("BackupDataAll", "bd-9", param.TemplateParams{}, args{
			"namespace": shop, "pods": "bd-wal", "container": "app", "includePath": "/data/tree", "backupArtifactPrefix": "bd/x",
		}, "/data/tree/wal is another volume (wal)")
	})
	w.run("container", func(w *world) {
		w.refused("BackupData", "bd-2", param.TemplateParams{}, with(base, args{"container": "lost"}), `no container "lost"`)
	})
	w.run("pod", func(w *world) {
		w.refused("BackupData", "bd-3", param.TemplateParams{}, with(base, args{"pod": "bd-9"}), "read pod shop/bd-9", "not found")
	})
	w.run("encryptionKey", func(w *world) {
		out, err := w.exec("BackupData", "bd-4", param.TemplateParams{}, with(base, args{"encryptionKey": "k"}))
		w.Must(err)
		if other := w.record(out["backupID"].(string)); other.KeyID == r.KeyID {
			w.Errorf("key %s with and without an encryptionKey", other.KeyID)
		}
		w.refused("BackupData", "bd-5", param.TemplateParams{}, with(base, args{"encryptionKey": ""}), "encryptionKey: it is empty")
	})
	w.run("insecureTLS", func(w *world) {
		_, err := w.exec("BackupData", "bd-6", param.TemplateParams{}, with(base, args{"insecureTLS": "true", "encryptionKey": "insecure"}))
		w.Must(err)
		// The Profile's wish counts as well.
		profile := *w.profile
		profile.SkipSSLVerify = true
		_, err = w.exec("BackupData", "bd-7", param.TemplateParams{Profile: &profile}, with(base, args{"encryptionKey": "skips"}))
		w.Must(err)
		insecure := 0
		for name := range w.servers() {
			var s corev1.Secret
			w.Must(w.Get(w.Context(), client.ObjectKey{Namespace: control, Name: name + "-config"}, &s))
			if strings.Contains(string(s.Data["config.json"]), `"insecureTLS":true`) {
				insecure++
			}
		}
		if insecure != 2 {
			w.Errorf("%d servers take any certificate, want the two that were asked to", insecure)
		}
	})
}

// meeting is a way to agents that opens when all who are expected want to go.
type meeting struct {
	*world
	arrived *sync.WaitGroup
	once    *sync.Once
}

func (m meeting) Connect(ctx context.Context, namespace, pod, container string) (*agentclient.Client, error) {
	m.once.Do(m.arrived.Done)
	all := make(chan struct{})
	go func() { m.arrived.Wait(); close(all) }()
	select {
	case <-all:
		return m.world.Connect(ctx, namespace, pod, container)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// The agent in the pod and that of the repository server are reached at once.
func testAtOnce(w *world) {
	w.claim("once")
	w.pod("once", "once")
	w.script("once", saves(1, func(api.StartRequest) {}))
	var arrived sync.WaitGroup
	arrived.Add(2)
	data := *w.data
	data.Agents = meeting{w, &arrived, &sync.Once{}}
	data.Repositories = &repository.Manager{
		Client: w, Namespace: control, Agents: meeting{w, &arrived, &sync.Once{}}, Clock: clock.RealClock{}, CA: w.data.Repositories.CA,
	}
	w.functions = function.NewRegistry(data.Functions()...)
	_, err := w.exec("BackupData", "once-1", param.TemplateParams{}, args{
		"namespace": shop, "pod": "once", "container": "app", "includePath": "/data", "backupArtifactPrefix": "once",
	})
	w.Must(err)
}

// says is a log's end that takes note of one message.
type says struct {
	text string
	said chan struct{}
}

func (s says) Write(line []byte) (int, error) {
	if strings.Contains(string(line), s.text) {
		close(s.said)
	}
	return len(line), nil
}

// Of one claim one backup is taken at a time, though its pods have an agent each: the
// next one builds on it. Another path of it does not wait.
func testOneClaim(w *world) {
	w.claim("rwx", corev1.ReadWriteMany)
	begun, end := make(chan struct{}), make(chan struct{})
	var ended atomic.Bool
	w.pod("rwx-0", "rwx")
	w.script("rwx-0", func(req api.StartRequest) (*api.Result, *api.Problem) {
		close(begun)
		<-end
		ended.Store(true)
		return saves(1, func(api.StartRequest) {})(req)
	})
	w.pod("rwx-1", "rwx")
	w.script("rwx-1", saves(1, func(req api.StartRequest) {
		if req.Snapshot.Path == "/" && !ended.Load() {
			w.Error("two backups of one claim are taken at once")
		}
	}))
	backUp := func(pod, path string, log *slog.Logger) error {
		_, _, err := w.execLogged(log, "BackupData", "rwx-"+pod+strings.ReplaceAll(path, "/", "-"), param.TemplateParams{}, args{
			"namespace": shop, "pod": pod, "container": "app", "includePath": path, "backupArtifactPrefix": "rwx",
		})
		return err
	}
	silent := slog.New(slog.DiscardHandler)
	waits := says{"waiting for another backup of the same data to end", make(chan struct{})}
	var both sync.WaitGroup
	defer both.Wait()
	defer close(end)
	both.Go(func() {
		if err := backUp("rwx-0", "/data", silent); err != nil {
			w.Errorf("the first: %v", err)
		}
	})
	<-begun
	both.Go(func() {
		if err := backUp("rwx-1", "/data", slog.New(slog.NewTextHandler(waits, nil))); err != nil {
			w.Errorf("the second: %v", err)
		}
	})
	testenv.Eventually(w, time.Minute, "the second waits", func() bool {
		select {
		case <-waits.said:
			return true
		default:
			return false
		}
	})
	if err := backUp("rwx-1", "/data/other", silent); err != nil {
		w.Errorf("another path, meanwhile: %v", err)
	}
	// After a restart a backup that waited has the first turn, while its agent works for
	// the one that it waited for.
	var asked atomic.Int32
	w.pod("rwx-2", "rwx")
	w.script("rwx-2", func(req api.StartRequest) (*api.Result, *api.Problem) {
		if asked.Add(1) == 1 {
			return nil, &api.Problem{Status: http.StatusConflict, Code: api.CodeBusy, Title: "start operation: operation x works on the same data"}
		}
		return saves(1, func(api.StartRequest) {})(req)
	})
	if err := backUp("rwx-2", "/data/waited", silent); err != nil || asked.Load() != 2 {
		w.Errorf("one whose agent was busy: asked %d times: %v", asked.Load(), err)
	}
}

func testBackupDataAll(w *world) {
	var seen seen
	for _, pod := range []string{"all-0", "all-1", "all-2"} {
		w.claim(pod)
		w.pod(pod, pod)
		w.script(pod, saves(4, seen.add))
	}
	base := args{"namespace": shop, "container": "app", "includePath": "/data", "backupArtifactPrefix": "all"}
	set := param.TemplateParams{StatefulSet: &param.StatefulSetParams{Namespace: shop, Name: "all", Pods: []string{"all-0", "all-1", "all-2"}}}
	w.run("outputs", func(w *world) {
		out, progress, err := w.execWithProgress("BackupDataAll", "all-1", set, base)
		w.Must(err)
		if len(out) != 2 || out["version"] != "v0.0.0" {
			w.Errorf("outputs %v", out)
		}
		for _, pod := range set.StatefulSet.Pods {
			id := infoOf(w, out)[pod].BackupID
			if r := w.record(id); r.Pod != pod || r.Prefix != "bucket/all/"+pod || !strings.Contains(out["BackupAllInfo"].(string), `"`+pod+`":{"PodName":"`+pod+`","BackupID":"`+id+`","BackupTag":"`+r.BackupTag+`"}`) {
				w.Errorf("%s: record %+v of %s", pod, r, out["BackupAllInfo"])
			}
		}
		if progress.Files != 12 || progress.UploadedBytes != 3<<20 || progress.EstimatedBytes != 3*10570 {
			w.Errorf("progress %+v, want the sum of three pods", progress)
		}
		again, err := w.exec("BackupDataAll", "all-1", set, base)
		if err != nil || !reflect.DeepEqual(again, out) {
			w.Errorf("picked up again: %v, %v; want the same outputs", again, err)
		}
	})
	w.run("pods", func(w *world) {
		out, err := w.exec("BackupDataAll", "all-2", set, with(base, args{"pods": " all-2\n all-0 "}))
		w.Must(err)
		if got := slices.Sorted(maps.Keys(infoOf(w, out))); !slices.Equal(got, []string{"all-0", "all-2"}) {
			w.Errorf("pods %v", got)
		}
	})
	w.run("a pod that fails does not hide the others", func(w *world) {
		w.script("all-1", fails("the disk is on fire"))
		_, err := w.exec("BackupDataAll", "all-3", set, base)
		if err == nil || !strings.Contains(err.Error(), "back up 1 of 3 pods") || !strings.Contains(err.Error(), "pod all-1: back up /data of container app in pod shop/all-1") || !strings.Contains(err.Error(), "the disk is on fire") {
			w.Fatalf("error %v", err)
		}
		_, info, _ := strings.Cut(err.Error(), "as BackupAllInfo: ")
		backups := infoOf(w, map[string]any{"BackupAllInfo": info})
		for _, pod := range []string{"all-0", "all-2"} {
			w.record(backups[pod].BackupID)
		}
		if len(backups) != 2 {
			w.Errorf("kept %v", backups)
		}
		w.script("all-1", saves(4, seen.add))
	})
	w.run("no running pod", func(w *world) {
		w.refused("BackupDataAll", "all-4", param.TemplateParams{Deployment: &param.DeploymentParams{}}, base, "Failed to get pods")
	})
	w.run("encryptionKey", func(w *world) {
		out, err := w.exec("BackupDataAll", "all-5", set, with(base, args{"encryptionKey": "k", "insecureTLS": true}))
		w.Must(err)
		if r := w.record(infoOf(w, out)["all-0"].BackupID); r.KeyID == "default" {
			w.Errorf("key %s", r.KeyID)
		}
	})
}

func testCopyVolumeData(w *world) {
	w.claim("copy")
	var seen seen
	w.script("copy-vol-data-", func(req api.StartRequest) (*api.Result, *api.Problem) {
		pods := w.movers()
		if len(pods) != 1 || !mountOf(&pods[0], "claim-0").ReadOnly {
			w.Errorf("movers %+v, want one that reads", pods)
		}
		return saves(5, seen.add)(req)
	})
	base := args{"namespace": shop, "volume": "copy", "dataArtifactPrefix": "copies/x"}
	w.run("outputs", func(w *world) {
		out, err := w.exec("CopyVolumeData", "copy-1", param.TemplateParams{}, base)
		w.Must(err)
		r := w.record(out["backupID"].(string))
		if out["backupRoot"] != "/mnt/vol_data/copy" || out["backupArtifactLocation"] != "bucket/copies/x" || out["fileCount"] != "5" ||
			out["phySize"] != "1.000 MiB" || out["version"] != "v0.0.0" || out["backupTag"] != r.BackupTag {
			w.Errorf("outputs %v", out)
		}
		if r.AbsolutePath != "/mnt/vol_data/copy" || r.Claim != "copy" || seen.all[0].Credentials.Username != "pvc.copy" || seen.all[0].Credentials.Password != "password" || seen.all[0].Snapshot.Path != "/" {
			w.Errorf("record %+v of %+v", r, seen.all[0])
		}
		if left := w.movers(); len(left) > 0 {
			w.Errorf("left behind: %s", left[0].Name)
		}
	})
	w.run("mountPath", func(w *world) {
		out, err := w.exec("CopyVolumeData", "copy-2", param.TemplateParams{}, with(base, args{"mountPath": "/mnt/data"}))
		w.Must(err)
		if r := w.record(out["backupID"].(string)); out["backupRoot"] != "/mnt/data" || r.AbsolutePath != "/mnt/data" {
			w.Errorf("outputs %v, record %+v", out, r)
		}
	})
	w.run("volume", func(w *world) {
		w.refused("CopyVolumeData", "copy-3", param.TemplateParams{}, with(base, args{"volume": "lost"}), "Failed to retrieve PVC.", "shop", "lost")
	})
	w.run("encryptionKey", func(w *world) {
		out, err := w.exec("CopyVolumeData", "copy-8", param.TemplateParams{}, with(base, args{"encryptionKey": "copies"}))
		w.Must(err)
		if r := w.record(out["backupID"].(string)); r.KeyID == "default" {
			w.Errorf("key %s", r.KeyID)
		}
		w.refused("CopyVolumeData", "copy-9", param.TemplateParams{}, with(base, args{"encryptionKey": ""}), "encryptionKey: it is empty")
	})
	w.run("podOverride", func(w *world) {
		w.script("copy-vol-data-", func(req api.StartRequest) (*api.Result, *api.Problem) {
			p := w.movers()[0]
			if *p.Spec.SecurityContext.RunAsUser != 7 || p.Labels["team"] != "blueprint" || p.Annotations["note"] != "actionset" || p.Spec.Containers[0].Resources.Limits.Cpu().String() != "2" {
				w.Errorf("pod %+v", p)
			}
			return saves(5, seen.add)(req)
		})
		_, err := w.exec("CopyVolumeData", "copy-4", param.TemplateParams{
			PodOverride: args{"securityContext": args{"runAsUser": 7}}, PodLabels: map[string]string{"team": "actionset"}, PodAnnotations: map[string]string{"note": "actionset"},
		}, with(base, args{
			"podOverride": args{
				"securityContext": args{"runAsUser": 8},
				"containers":      []any{args{"name": "container", "resources": args{"limits": args{"cpu": "2"}}}},
			},
			"podLabels": args{"team": "blueprint"}, "image": "ignored", "insecureTLS": false,
		}))
		w.Must(err)
		w.script("copy-vol-data-", saves(5, seen.add))
	})
	w.run("a claim in use is read where it is attached", func(w *world) {
		w.claim("attached")
		w.pod("user", "attached", func(p *corev1.Pod) { p.Spec.NodeName = "node-7" })
		w.claim("shared", corev1.ReadWriteMany)
		w.pod("user-of-shared", "shared", func(p *corev1.Pod) { p.Spec.NodeName = "node-7" })
		for claim, pinned := range map[string]bool{"attached": true, "shared": false} {
			w.script("copy-vol-data-", func(req api.StartRequest) (*api.Result, *api.Problem) {
				if a := w.movers()[0].Spec.Affinity; (a != nil) != pinned {
					w.Errorf("%s: affinity %+v", claim, a)
				} else if a != nil && a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms[0].MatchFields[0].Values[0] != "node-7" {
					w.Errorf("affinity %+v, want the node of the pod that uses the claim", a)
				}
				return saves(5, seen.add)(req)
			})
			_, err := w.exec("CopyVolumeData", "copy-5-"+claim, param.TemplateParams{}, with(base, args{"volume": claim}))
			w.Must(err)
		}
	})
	w.run("a claim of one pod is refused with the way out", func(w *world) {
		w.claim("alone", corev1.ReadWriteOncePod)
		w.pod("owner", "alone")
		w.refused("CopyVolumeData", "copy-6", param.TemplateParams{}, with(base, args{"volume": "alone"}), "ReadWriteOncePod", "pod owner", "use BackupData")
	})
	w.run("a claim for reading is mounted so", func(w *world) {
		w.claim("many", corev1.ReadOnlyMany)
		for claim, readOnly := range map[string]bool{"many": true, "copy": false} {
			w.script("copy-vol-data-", func(req api.StartRequest) (*api.Result, *api.Problem) {
				for _, v := range w.movers()[0].Spec.Volumes {
					if c := v.PersistentVolumeClaim; c != nil && c.ReadOnly != readOnly {
						w.Errorf("%s: %+v", claim, c)
					}
				}
				return saves(5, seen.add)(req)
			})
			_, err := w.exec("CopyVolumeData", "copy-7-"+claim, param.TemplateParams{}, with(base, args{"volume": claim}))
			w.Must(err)
		}
	})
}

// All that an agent tells of a failure, Kopia's own words among it, is in the function's error.
func testProblem(w *world) {
	w.claim("told")
	w.pod("told-0", "told")
	backup := w.backup("told-1", "told", "/mnt/a", "told")
	w.script("told-0", storageGone)
	w.refused("BackupData", "told-2", param.TemplateParams{}, args{
		"namespace": shop, "pod": "told-0", "container": "app", "includePath": "/data", "backupArtifactPrefix": "told",
	}, saysStorageGone...)
	w.script("restore-data-", storageGone)
	w.refused("RestoreData", "told-3", param.TemplateParams{}, args{
		"namespace": shop, "image": "ignored", "backupArtifactPrefix": "told", "volumes": args{"told": "/"}, "backupIdentifier": backup["backupID"],
	}, saysStorageGone...)
}

func mountOf(pod *corev1.Pod, volume string) corev1.VolumeMount {
	for _, m := range pod.Spec.Containers[0].VolumeMounts {
		if m.Name == volume {
			return m
		}
	}
	return corev1.VolumeMount{}
}

// backup makes one of a claim, as if of a path.
func (w *world) backup(operation, claim, mountPath, prefix string) map[string]any {
	w.Helper()
	w.script("copy-vol-data-", saves(5, func(api.StartRequest) {}))
	out, err := w.exec("CopyVolumeData", operation, param.TemplateParams{}, args{"namespace": shop, "volume": claim, "mountPath": mountPath, "dataArtifactPrefix": prefix})
	w.Must(err)
	return out
}

func testRestoreData(w *world) {
	w.claim("rd")
	w.claim("rd-other")
	a, b := w.backup("rd-1", "rd", "/mnt/vol_data/rd", "rd"), w.backup("rd-2", "rd", "/mnt/a", "bucket/rd")
	var seen seen
	w.script("restore-data-", restores(seen.add))
	base := args{"namespace": shop, "image": "ignored", "backupArtifactPrefix": "rd"}
	last := func() *api.RestoreRequest { return seen.all[len(seen.all)-1].Restore }
	w.run("volumes", func(w *world) { // CopyVolumeData's first documented form
		out, err := w.exec("RestoreData", "rd-3", param.TemplateParams{}, with(base, args{"volumes": args{"rd": "/mnt/vol_data/rd"}, "backupIdentifier": a["backupID"], "insecureTLS": false}))
		w.Must(err)
		if r := last(); r.Path != "/" || r.SubPath != "" || r.Volume != "claim-0" {
			w.Errorf("asked for %+v, want the whole claim", r)
		}
		if c := seen.all[len(seen.all)-1].Credentials; c.Username != "restore" || c.Password != readOnlyPassword {
			w.Errorf("restores as %s with the session %q, want one that reads only", c.Username, c.Password)
		}
		if want := (map[string]any{"restoredTo": "/ in claim rd", "fileCount": "3", "size": "2.000 KiB"}); !reflect.DeepEqual(out, want) {
			w.Errorf("outputs %v", out)
		}
	})
	w.run("backupPath", func(w *world) { // and its second
		_, err := w.exec("RestoreData", "rd-4", param.TemplateParams{}, with(base, args{
			"volumes": args{"rd-other": "/mnt/b"}, "restorePath": "/mnt/b", "backupPath": b["backupRoot"], "backupTag": b["backupTag"],
		}))
		w.Must(err)
		if r := last(); r.Path != "/" || r.SubPath != "" {
			w.Errorf("asked for %+v", r)
		}
	})
	w.run("restorePath", func(w *world) {
		_, err := w.exec("RestoreData", "rd-5", param.TemplateParams{}, with(base, args{
			"volumes": args{"rd-other": "/here"}, "restorePath": "/here", "backupIdentifier": b["backupID"],
		}))
		w.Must(err)
		if r := last(); r.Path != "/mnt/a" {
			w.Errorf("asked for %+v, want the absolute path below restorePath", r)
		}
	})
	w.run("pod", func(w *world) {
		w.pod("rd-pod", "rd", func(p *corev1.Pod) { p.Spec.Containers[0].VolumeMounts[0].MountPath = "/mnt/a" })
		_, err := w.exec("RestoreData", "rd-6", param.TemplateParams{}, with(base, args{"pod": "rd-pod", "backupIdentifier": b["backupID"]}))
		w.Must(err)
		if r := last(); r.Path != "/" {
			w.Errorf("asked for %+v, want the claim of the pod", r)
		}
		w.refused("RestoreData", "rd-7", param.TemplateParams{}, with(base, args{"pod": "lost", "backupIdentifier": b["backupID"]}), "Invalid Template Params")
		w.pod("rd-bare", "rd", func(p *corev1.Pod) {
			p.Spec.Volumes[0].VolumeSource = corev1.VolumeSource{NFS: &corev1.NFSVolumeSource{Server: "s", Path: "/"}}
		})
		w.pod("rd-empty", "rd", func(p *corev1.Pod) {
			p.Spec.Volumes, p.Spec.Containers[0].VolumeMounts, p.Spec.InitContainers = nil, nil, nil
		})
		w.refused("RestoreData", "rd-14", param.TemplateParams{}, with(base, args{"pod": "rd-empty", "backupIdentifier": b["backupID"]}), "Failed to find volumes for the Pod: rd-empty")
		w.refused("RestoreData", "rd-8", param.TemplateParams{}, with(base, args{"pod": "rd-bare", "restorePath": "/data", "backupIdentifier": b["backupID"]}), "Failed to find volumes for the Pod: rd-bare")
	})
	w.run("backupArtifactPrefix", func(w *world) {
		w.refused("RestoreData", "rd-9", param.TemplateParams{}, with(base, args{"backupArtifactPrefix": "elsewhere", "volumes": args{"rd": "/"}, "backupIdentifier": b["backupID"]}), "under prefix bucket/elsewhere", "not found")
	})
	w.run("encryptionKey", func(w *world) {
		w.refused("RestoreData", "rd-10", param.TemplateParams{}, with(base, args{"encryptionKey": "k", "volumes": args{"rd": "/"}, "backupIdentifier": b["backupID"]}), "not found with this encryptionKey")
	})
	w.run("the identity of a mover", func(w *world) {
		check := func(name string, uid, gid, group int64) {
			w.script("restore-data-", func(req api.StartRequest) (*api.Result, *api.Problem) {
				p := w.movers()[0].Spec
				if s := p.SecurityContext; *s.RunAsUser != uid || *s.RunAsGroup != gid || *s.FSGroup != group || !*s.RunAsNonRoot || p.Containers[0].SecurityContext.RunAsUser != nil || *p.AutomountServiceAccountToken {
					w.Errorf("%s: %d:%d, fsGroup %d; want %d:%d, %d", name, *s.RunAsUser, *s.RunAsGroup, *s.FSGroup, uid, gid, group)
				}
				return restores(seen.add)(req)
			})
		}
		check("the owner of what was backed up", 70, 71, 71)
		_, err := w.exec("RestoreData", "rd-11", param.TemplateParams{}, with(base, args{"volumes": args{"rd-other": "/mnt/a"}, "backupIdentifier": b["backupID"]}))
		w.Must(err)
		w.Must(w.Create(w.Context(), &appsv1.Deployment{
			ObjectMeta: metav1.ObjectMeta{Namespace: shop, Name: "rd"},
			Spec: appsv1.DeploymentSpec{
				Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "rd"}},
				Template: corev1.PodTemplateSpec{
					ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "rd"}},
					Spec: corev1.PodSpec{
						SecurityContext: &corev1.PodSecurityContext{RunAsUser: new(int64(5)), RunAsGroup: new(int64(6)), FSGroup: new(int64(8))},
						Containers:      []corev1.Container{{Name: "c", Image: "i", VolumeMounts: []corev1.VolumeMount{{Name: "v", MountPath: "/v"}}}},
						Volumes: []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{
							PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "rd-other"},
						}}},
					},
				},
			},
		}))
		check("the workload that mounts the claim", 5, 6, 8)
		_, err = w.exec("RestoreData", "rd-12", param.TemplateParams{}, with(base, args{"volumes": args{"rd-other": "/mnt/a"}, "backupIdentifier": b["backupID"]}))
		w.Must(err)
		check("podOverride", 9, 6, 8)
		_, err = w.exec("RestoreData", "rd-13", param.TemplateParams{}, with(base, args{
			"volumes": args{"rd-other": "/mnt/a"}, "backupIdentifier": b["backupID"],
			"podOverride": args{"securityContext": args{"runAsUser": 9}},
		}))
		w.Must(err)

		// Root is the namespace's to allow.
		allow := func(value string) {
			patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:%s}}}`, names.PrivilegedAgentsAnnotation, value)
			w.Must(w.Patch(w.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: shop}}, client.RawPatch(types.MergePatchType, []byte(patch))))
		}
		allow(`"true"`)
		defer allow("null")
		w.script("restore-data-", func(req api.StartRequest) (*api.Result, *api.Problem) {
			p := w.movers()[0].Spec
			if got := p.Containers[0].SecurityContext.Capabilities.Add; *p.SecurityContext.RunAsUser != 0 || *p.SecurityContext.RunAsNonRoot ||
				!slices.Equal(got, []corev1.Capability{"CHOWN", "FOWNER", "DAC_OVERRIDE"}) {
				w.Errorf("where root is allowed: user %d, capabilities %q", *p.SecurityContext.RunAsUser, got)
			}
			return restores(seen.add)(req)
		})
		_, err = w.exec("RestoreData", "rd-14", param.TemplateParams{}, with(base, args{
			"volumes": args{"rd-other": "/mnt/a"}, "backupIdentifier": b["backupID"],
			"podOverride": args{"securityContext": args{"runAsUser": 0}},
		}))
		w.Must(err)
	})
}

// A backup is restored into another namespace than the one that it is of, by its id or its
// tag, whoever has the key: the mover is there, and reads what the record vouches for.
func testRestoreElsewhere(w *world) {
	const elsewhere = "elsewhere"
	w.Must(w.Create(w.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: elsewhere}}))
	w.claim("re")
	there := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: elsewhere, Name: "there"},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		},
	}
	w.Must(w.Create(w.Context(), there))
	w.script("copy-vol-data-", func(req api.StartRequest) (*api.Result, *api.Problem) {
		result, problem := saves(5, func(api.StartRequest) {})(req)
		result.Snapshot.RootObject = "root-of-" + req.ID
		return result, problem
	})
	var asked []string // for what, and where
	w.script("restore-data-", func(req api.StartRequest) (*api.Result, *api.Problem) {
		var pods corev1.PodList
		w.Must(w.List(w.Context(), &pods, client.InNamespace(elsewhere), client.MatchingLabels{names.ComponentLabel: mover.Component}))
		for _, pod := range pods.Items {
			for _, v := range pod.Spec.Volumes {
				if v.PersistentVolumeClaim != nil {
					asked = append(asked, req.Restore.RootObject+" into "+v.PersistentVolumeClaim.ClaimName)
				}
			}
		}
		return restores(func(api.StartRequest) {})(req)
	})
	for kind, key := range map[string]args{"plain": {}, "encryptionKey": {"encryptionKey": "k"}} {
		b, err := w.exec("CopyVolumeData", "re-"+kind, param.TemplateParams{}, with(key, args{"namespace": shop, "volume": "re", "mountPath": "/mnt", "dataArtifactPrefix": "re"}))
		w.Must(err)
		for by, from := range map[string]args{"id": {"backupIdentifier": b["backupID"]}, "tag": {"backupTag": b["backupTag"]}} {
			w.run(kind+" by "+by, func(w *world) {
				asked = nil
				_, err := w.exec("RestoreData", "re-"+kind+"-"+by, param.TemplateParams{}, with(with(key, from), args{
					"namespace": elsewhere, "image": "ignored", "backupArtifactPrefix": "re", "volumes": args{"there": "/mnt"},
				}))
				w.Must(err)
				if want := []string{w.record(b["backupID"].(string)).Snapshot.RootObject + " into there"}; !slices.Equal(asked, want) {
					w.Errorf("its mover was asked for %q, want %q", asked, want)
				}
			})
		}
	}
}

// A mover is who uses the claim, whatever kind of workload that is, also while no
// pod of it runs.
func testIdentityFor(w *world) {
	pod := func(claim string, uid int64) corev1.PodTemplateSpec {
		return corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": claim}},
			Spec: corev1.PodSpec{
				RestartPolicy:   corev1.RestartPolicyNever,
				SecurityContext: &corev1.PodSecurityContext{RunAsUser: &uid, FSGroup: &uid},
				Containers:      []corev1.Container{{Name: "c", Image: "i", VolumeMounts: []corev1.VolumeMount{{Name: "v", MountPath: "/v"}}}},
				Volumes: []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{
					PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim},
				}}},
			},
		}
	}
	meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: shop, Name: name} }
	always := func(claim string, uid int64) corev1.PodTemplateSpec {
		t := pod(claim, uid)
		t.Spec.RestartPolicy = corev1.RestartPolicyAlways
		return t
	}
	of := func(claim string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchLabels: map[string]string{"app": claim}}
	}
	for claim, object := range map[string]client.Object{
		"id-21": &appsv1.DaemonSet{ObjectMeta: meta("id-21"), Spec: appsv1.DaemonSetSpec{Selector: of("id-21"), Template: always("id-21", 21)}},
		"id-22": &batchv1.CronJob{ObjectMeta: meta("id-22"), Spec: batchv1.CronJobSpec{
			Schedule: "0 3 * * *", JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: pod("id-22", 22)}},
		}},
		"id-23": &batchv1.Job{ObjectMeta: meta("id-23"), Spec: batchv1.JobSpec{Template: pod("id-23", 23)}},
		"id-24": &appsv1.StatefulSet{ObjectMeta: meta("id-24"), Spec: appsv1.StatefulSetSpec{Selector: of("id-24"), Template: always("id-24", 24)}},
		"id-25": &corev1.Pod{ObjectMeta: meta("id-25"), Spec: pod("id-25", 25).Spec},
	} {
		w.Must(w.Create(w.Context(), object))
		got, err := w.data.Movers.IdentityFor(w.Context(), shop, claim)
		w.Must(err)
		if want := strings.TrimPrefix(claim, "id-"); got.UID == nil || fmt.Sprint(*got.UID, *got.FSGroup) != want+" "+want {
			w.Errorf("%T: identity %+v, want user and fsGroup %s", object, got, want)
		}
	}
	if got, err := w.data.Movers.IdentityFor(w.Context(), shop, "id-of-nobody"); err != nil || got.UID != nil {
		w.Errorf("a claim of nobody: identity %+v, %v", got, err)
	}
}

func testRestoreDataAll(w *world) {
	var saved seen
	for _, pod := range []string{"ra-0", "ra-1"} {
		w.claim(pod)
		w.pod(pod, pod)
		w.script(pod, saves(4, saved.add))
	}
	set := param.TemplateParams{StatefulSet: &param.StatefulSetParams{Namespace: shop, Name: "ra", Pods: []string{"ra-0", "ra-1"}}}
	out, err := w.exec("BackupDataAll", "ra-1", set, args{"namespace": shop, "container": "app", "includePath": "/data", "backupArtifactPrefix": "ra"})
	w.Must(err)
	info := out["BackupAllInfo"]
	base := args{"namespace": shop, "image": "ignored", "backupArtifactPrefix": "bucket/ra", "backupInfo": info}
	script := func() *seen {
		s := &seen{}
		w.script("restore-data-all-", restores(s.add))
		return s
	}
	w.run("outputs", func(w *world) {
		s := script()
		out, err := w.exec("RestoreDataAll", "ra-2", set, base)
		w.Must(err)
		if want := (map[string]any{"restoredTo": "ra-0: / in claim ra-0; ra-1: / in claim ra-1", "fileCount": "6", "size": "4.000 KiB"}); !reflect.DeepEqual(out, want) {
			w.Errorf("outputs %v", out)
		}
		if len(s.all) != 2 || len(w.movers()) != 0 {
			w.Errorf("%d restores, movers left: %d", len(s.all), len(w.movers()))
		}
	})
	w.run("pods", func(w *world) {
		s := script()
		_, err := w.exec("RestoreDataAll", "ra-3", set, with(base, args{"pods": "ra-1"}))
		w.Must(err)
		if len(s.all) != 1 || s.all[0].ID == "" {
			w.Errorf("restores %+v", s.all)
		}
	})
	w.run("restorePath", func(w *world) {
		s := script()
		_, err := w.exec("RestoreDataAll", "ra-4", set, with(base, args{"pods": "ra-1", "restorePath": "/data/back"}))
		w.Must(err)
		if s.all[0].Restore.Path != "/back/data" {
			w.Errorf("asked for %+v", s.all[0].Restore)
		}
	})
	w.run("podOverride", func(w *world) {
		w.script("restore-data-all-", func(req api.StartRequest) (*api.Result, *api.Problem) {
			for _, p := range w.movers() {
				if p.Labels["a"] != "b" || p.Annotations["c"] != "d" || p.Spec.Hostname != "actionset" {
					w.Errorf("labels %v, annotations %v, host name %s", p.Labels, p.Annotations, p.Spec.Hostname)
				}
			}
			return restores(func(api.StartRequest) {})(req)
		})
		over := set
		over.PodOverride = args{"hostname": "actionset"}
		_, err := w.exec("RestoreDataAll", "ra-11", over, with(base, args{
			"podLabels": args{"a": "b"}, "podAnnotations": args{"c": "d"}, "podOverride": args{"hostname": "blueprint"},
		}))
		w.Must(err)
	})
	w.run("encryptionKey", func(w *world) {
		w.refused("RestoreDataAll", "ra-10", set, with(base, args{"encryptionKey": "another"}), "nothing was written", "pod ra-0", "not found with this encryptionKey")
	})
	w.run("backupInfo", func(w *world) {
		s := script()
		w.refused("RestoreDataAll", "ra-5", set, with(base, args{"backupInfo": strings.ReplaceAll(info.(string), "ra-1", "rx-1")}), "nothing was written", "pod rx-1", "not found")
		if len(s.all) > 0 {
			w.Error("something was written")
		}
	})
	w.run("one pod fails", func(w *world) {
		w.script("restore-data-all-", func(req api.StartRequest) (*api.Result, *api.Problem) {
			if strings.Contains(claimIn(w, req), "ra-0") {
				return fails("no space left on device")(req)
			}
			return restores(func(api.StartRequest) {})(req)
		})
		w.refused("RestoreDataAll", "ra-6", set, base, "restore data of 1 of 2 pods", "pod ra-0", "no space left", "restored: ra-1: / in claim ra-1")
	})
	w.run("a workload that is scaled down", func(w *world) {
		s := script()
		_, err := w.exec("RestoreDataAll", "ra-7", param.TemplateParams{StatefulSet: &param.StatefulSetParams{Namespace: shop, Name: "ra"}}, base)
		w.Must(err)
		if len(s.all) != 2 {
			w.Errorf("%d restores, want one for each pod of backupInfo", len(s.all))
		}
	})
	w.run("a Deployment's pod with a new name", func(w *world) {
		s := script()
		w.pod("ra-new", "ra-0")
		deployment := param.TemplateParams{Deployment: &param.DeploymentParams{Namespace: shop, Name: "ra", Pods: []string{"ra-new"}}}
		out, err := w.exec("RestoreDataAll", "ra-8", deployment, base)
		w.Must(err)
		if out["restoredTo"] != "ra-new: / in claim ra-0" || len(s.all) != 1 {
			w.Errorf("outputs %v, %d restores", out, len(s.all))
		}
		w.pod("ra-newer", "ra-0")
		deployment.Deployment.Pods = []string{"ra-new", "ra-newer"}
		w.refused("RestoreDataAll", "ra-9", deployment, base, "nothing was written", "ra-new (claim ra-0), ra-newer (claim ra-0)", "ra-0 (claim ra-0), ra-1 (claim ra-1)")
	})
}

// claimIn is the claim that the mover of an operation mounts.
func claimIn(w *world, req api.StartRequest) string {
	for _, p := range w.movers() {
		if p.Annotations[names.OperationAnnotation] == req.ID {
			for _, v := range p.Spec.Volumes {
				if v.PersistentVolumeClaim != nil {
					return v.PersistentVolumeClaim.ClaimName
				}
			}
		}
	}
	return ""
}

const noSuchTag = "Failed to forget data, could not get snapshotID from tag"

func testDeleteData(w *world) {
	w.claim("dd")
	var out []map[string]any
	for _, op := range []string{"dd-1", "dd-2", "dd-3", "dd-4"} {
		out = append(out, w.backup(op, "dd", "/mnt/dd", "dd/"+op))
	}
	id := func(i int) string { return out[i]["backupID"].(string) }
	known := func(i int) bool {
		return slices.ContainsFunc(w.records.list(), func(r api.Record) bool { return r.BackupID == id(i) })
	}
	base := args{"namespace": shop, "backupArtifactPrefix": "dd/dd-1"}
	w.run("backupArtifactPrefix", func(w *world) {
		w.refused("DeleteData", "dd-5", param.TemplateParams{}, with(base, args{"backupArtifactPrefix": "other", "backupID": id(0)}), "under prefix bucket/other", "not found")
		w.refused("DeleteData", "dd-12", param.TemplateParams{}, with(base, args{"backupArtifactPrefix": "other", "backupTag": out[0]["backupTag"]}), noSuchTag, "not found")
		if !known(0) {
			w.Error("a backup was deleted under another prefix")
		}
	})
	w.run("backupID", func(w *world) {
		got, err := w.exec("DeleteData", "dd-6", param.TemplateParams{}, with(base, with(unused, args{"backupID": id(0), "reclaimSpace": "true", "image": "ignored", "insecureTLS": "true"})))
		w.Must(err)
		if known(0) || !reflect.DeepEqual(got, map[string]any{"spaceFreed": "0 B"}) {
			w.Errorf("outputs %v, still there: %v", got, known(0))
		}
		// As with restic, an id that is not there is no error; a repository that is not there is.
		_, err = w.exec("DeleteData", "dd-13", param.TemplateParams{}, with(base, args{"backupID": id(0)}))
		w.Must(err)
		w.refused("DeleteData", "dd-14", param.TemplateParams{}, with(base, args{"backupID": repository.Token(strings.Repeat("x", strings.LastIndexByte(id(0), '-')), "any")}), "not found", "controller import-keys")
		elsewhere := *w.profile
		elsewhere.Location.Bucket = "elsewhere"
		w.refused("DeleteData", "dd-15", param.TemplateParams{Profile: &elsewhere}, with(base, args{"backupID": id(1)}), "not found in bucket elsewhere")
	})
	w.run("backupTag", func(w *world) {
		tag := out[1]["backupTag"]
		_, err := w.exec("DeleteData", "dd-7", param.TemplateParams{}, with(base, args{"backupArtifactPrefix": "dd/dd-2", "backupTag": tag}))
		w.Must(err)
		w.refused("DeleteData", "dd-8", param.TemplateParams{}, with(base, args{"backupArtifactPrefix": "dd/dd-2", "backupTag": tag}), noSuchTag, "Snapshot not found")
	})
	w.run("lists", func(w *world) {
		_, err := w.exec("DeleteData", "dd-9", param.TemplateParams{}, with(base, args{"backupArtifactPrefix": " dd/dd-3\tdd/dd-4", "backupID": id(2) + "\n" + id(3)}))
		w.Must(err)
		if known(2) || known(3) {
			w.Error("a backup of the list is still there")
		}
	})
	w.run("lists of tags", func(w *world) {
		one, two := w.backup("dd-16", "dd", "/mnt/dd", "dd/tags"), w.backup("dd-17", "dd", "/mnt/dd", "bucket/dd//tags/")
		tags := args{"backupArtifactPrefix": "dd/tags/", "backupTag": fmt.Sprintf("%s\n%s", one["backupTag"], two["backupTag"])}
		_, err := w.exec("DeleteData", "dd-18", param.TemplateParams{}, with(base, with(tags, args{"backupTag": one["backupTag"]})))
		w.Must(err)
		// The first is gone, which does not keep a second try from the other.
		_, err = w.exec("DeleteData", "dd-19", param.TemplateParams{}, with(base, tags))
		w.Must(err)
		if slices.ContainsFunc(w.records.list(), func(r api.Record) bool { return r.BackupID == two["backupID"] }) {
			w.Error("the second is still there")
		}
		w.refused("DeleteData", "dd-20", param.TemplateParams{}, with(base, tags), noSuchTag, "Snapshot not found")
	})
	w.run("encryptionKey", func(w *world) {
		kept := w.backup("dd-10", "dd", "/mnt/dd", "dd")
		w.refused("DeleteData", "dd-11", param.TemplateParams{}, with(base, args{"backupArtifactPrefix": "dd", "backupID": kept["backupID"], "encryptionKey": "k"}), "not found with this encryptionKey")
		w.record(kept["backupID"].(string))
	})
}

func testDeleteDataAll(w *world) {
	w.script("da-0", saves(1, func(api.StartRequest) {}))
	w.script("da-1", saves(1, func(api.StartRequest) {}))
	for _, pod := range []string{"da-0", "da-1"} {
		w.claim(pod)
		w.pod(pod, pod)
	}
	out, err := w.exec("BackupDataAll", "da-1", param.TemplateParams{}, args{"namespace": shop, "pods": "da-0 da-1", "container": "app", "includePath": "/data", "backupArtifactPrefix": "da"})
	w.Must(err)
	base := args{"namespace": shop, "backupArtifactPrefix": "bucket/da", "backupInfo": out["BackupAllInfo"], "reclaimSpace": true}
	w.refused("DeleteDataAll", "da-4", param.TemplateParams{}, with(base, args{"encryptionKey": "another"}), "delete 2 of 2 backups", "pod da-0", "not found with this encryptionKey")
	w.refused("DeleteDataAll", "da-5", param.TemplateParams{}, with(base, args{"backupArtifactPrefix": "bucket/other"}), "under prefix bucket/other/da-1", "not found")
	kept := 0
	for _, r := range w.records.list() {
		if strings.HasPrefix(r.Prefix, "bucket/da/") {
			kept++
		}
	}
	if kept != 2 {
		w.Errorf("%d backups are left after a deletion with another key, want both", kept)
	}
	base = with(base, with(unused, args{"image": "ignored", "insecureTLS": true}))
	for _, operation := range []string{"da-2", "da-3"} { // again is no error
		got, err := w.exec("DeleteDataAll", operation, param.TemplateParams{}, base)
		w.Must(err)
		if got["spaceFreed"] != "0 B" || len(got) != 1 {
			w.Errorf("outputs %v", got)
		}
	}
	for _, r := range w.records.list() {
		if strings.HasPrefix(r.Prefix, "bucket/da/") {
			w.Errorf("%s is still there", r.BackupID)
		}
	}
}

func testCheckRepository(w *world) {
	object := param.TemplateParams{PVC: &param.PVCParams{Namespace: "checked", Name: "c"}}
	w.Must(w.Create(w.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "checked"}}))
	check := func(w *world, operation, prefix string, change args, wrong, missing string) {
		w.Helper()
		got, err := w.exec("CheckRepository", operation, object, with(args{"backupArtifactPrefix": prefix}, change))
		w.Must(err)
		if want := (map[string]any{"passwordIncorrect": wrong, "repoUnavailable": missing, "version": "v0.0.0"}); !reflect.DeepEqual(got, want) {
			w.Errorf("outputs %v, want %v", got, want)
		}
	}
	w.run("no repository", func(w *world) {
		before := len(w.servers())
		check(w, "cr-1", "x", nil, "false", "true")
		if len(w.servers()) != before {
			w.Error("a check has made a repository")
		}
	})
	object.PVC.Namespace = shop
	w.claim("cr")
	w.backup("cr-2", "cr", "/mnt/cr", "checked/x")
	w.run("backupArtifactPrefix", func(w *world) {
		check(w, "cr-3", "checked/x", nil, "false", "false")
		check(w, "cr-4", "checked", with(unused, args{"image": "ignored", "insecureTLS": true}), "false", "false")
		check(w, "cr-5", "checked/xx", nil, "false", "true")
	})
	w.run("encryptionKey", func(w *world) {
		check(w, "cr-6", "checked/x", args{"encryptionKey": "never used"}, "true", "false")
	})
}

func testLocationDelete(w *world) {
	w.claim("ld")
	one, two := w.backup("ld-1", "ld", "/mnt", "loc/a"), w.backup("ld-2", "ld", "/mnt", "loc/ab")
	got, err := w.exec("LocationDelete", "ld-3", param.TemplateParams{}, args{"artifact": "bucket/loc/a"})
	w.Must(err)
	if got["deletedBackups"] != "1" || slices.ContainsFunc(w.records.list(), func(r api.Record) bool { return r.BackupID == one["backupID"] }) {
		w.Errorf("outputs %v", got)
	}
	w.record(two["backupID"].(string)) // a prefix ends at a slash
	before := len(w.records.list())
	nothing := func(operation, artifact string) {
		w.Helper()
		got, err := w.exec("LocationDelete", operation, param.TemplateParams{}, args{"artifact": artifact})
		if err != nil || got["deletedBackups"] != "0" || len(w.records.list()) != before {
			w.Errorf("%s: outputs %v, error %v, %d records of %d are left", artifact, got, err, len(w.records.list()), before)
		}
	}
	nothing("ld-4", "loc/a/") // again is no error
	for name, rs := range w.servers() {
		nothing("ld-5-"+name, rs.Spec.Storage.S3.Prefix)
	}
	// The Profile's own prefix says which repositories are meant.
	elsewhere := *w.profile
	elsewhere.Location.Prefix = "elsewhere"
	w.refused("LocationDelete", "ld-6", param.TemplateParams{Profile: &elsewhere}, args{"artifact": "loc/ab"}, "no repository", "kando location delete")
	got, err = w.exec("LocationDelete", "ld-7", param.TemplateParams{}, args{"artifact": "/loc//ab/"})
	if err != nil || got["deletedBackups"] != "1" {
		w.Errorf("outputs %v, %v", got, err)
	}
	together := &kopiav1alpha1.RepositoryServer{
		ObjectMeta: metav1.ObjectMeta{Namespace: control, Name: "ld-together"},
		Spec: kopiav1alpha1.RepositoryServerSpec{
			Storage:    kopiav1alpha1.Storage{S3: &kopiav1alpha1.S3Storage{Bucket: "bucket", Endpoint: "s3.example", Prefix: "ld-together/"}},
			Namespaces: []string{shop},
		},
	}
	w.Must(w.Create(w.Context(), together))
	w.refused("LocationDelete", "ld-8", param.TemplateParams{Profile: &elsewhere}, args{"artifact": "loc/a"}, "shared repositories of this bucket (ld-together)", "use DeleteData")
	w.Must(w.Delete(w.Context(), together))
}

func testBackupDataStats(w *world) {
	w.claim("bs")
	id := w.backup("bs-1", "bs", "/mnt", "bs")["backupID"]
	base := args{"namespace": shop, "backupArtifactPrefix": "bucket/bs", "backupID": id}
	w.run("outputs", func(w *world) {
		got, err := w.exec("BackupDataStats", "bs-2", param.TemplateParams{}, with(base, with(unused, args{"image": "ignored"})))
		w.Must(err)
		if want := (map[string]any{"mode": "restore-size", "fileCount": "5", "size": "10.322 KiB", "version": "v0.0.0"}); !reflect.DeepEqual(got, want) {
			w.Errorf("outputs %v", got)
		}
	})
	w.run("statsMode", func(w *world) {
		got, err := w.exec("BackupDataStats", "bs-3", param.TemplateParams{}, with(base, args{"statsMode": "raw-data"}))
		w.Must(err)
		if got["mode"] != "raw-data" {
			w.Errorf("outputs %v", got)
		}
		w.refused("BackupDataStats", "bs-4", param.TemplateParams{}, with(base, args{"statsMode": "all"}), `statsMode "all"`, "files-by-contents")
	})
	w.run("backupArtifactPrefix", func(w *world) {
		w.refused("BackupDataStats", "bs-5", param.TemplateParams{}, with(base, args{"backupArtifactPrefix": "other"}), "under prefix bucket/other", "not found")
	})
	w.run("encryptionKey", func(w *world) {
		w.refused("BackupDataStats", "bs-6", param.TemplateParams{}, with(base, args{"encryptionKey": "k"}), "not found with this encryptionKey")
	})
}

// Whoever is alone with a repository has its storage reached as the argument says.
func testInsecureTLS(w *world) {
	w.claim("tls")
	w.pod("tls-0", "tls")
	w.script("tls-0", saves(1, func(api.StartRequest) {}))
	w.script("copy-vol-data-", saves(1, func(api.StartRequest) {}))
	w.script("restore-data-", restores(func(api.StartRequest) {}))
	w.script("restore-data-all-", restores(func(api.StartRequest) {}))
	one := args{"namespace": shop, "image": "i", "backupArtifactPrefix": "tls"}
	source := args{"namespace": shop, "container": "app", "includePath": "/data", "backupArtifactPrefix": "tls"}
	params := param.TemplateParams{PVC: &param.PVCParams{Namespace: shop, Name: "tls"}}
	run := func(function, operation string, a args, insecure bool) map[string]any {
		w.Helper()
		out, err := w.exec(function, operation, params, with(a, args{"encryptionKey": "tls", "insecureTLS": fmt.Sprint(insecure)}))
		w.Must(err)
		return out
	}
	id := run("BackupData", "tls-1", with(source, args{"pod": "tls-0"}), false)["backupID"].(string)
	info := run("BackupDataAll", "tls-2", with(source, args{"pods": "tls-0"}), false)["BackupAllInfo"]
	insecure := func() bool {
		var s corev1.Secret
		w.Must(w.Get(w.Context(), client.ObjectKey{Namespace: control, Name: id[:strings.LastIndexByte(id, '-')] + "-config"}, &s))
		return strings.Contains(string(s.Data["config.json"]), `"insecureTLS":true`)
	}
	want := false
	for i, c := range []struct {
		function string
		args     args
	}{
		{"BackupDataAll", with(source, args{"pods": "tls-0"})},
		{"CopyVolumeData", args{"namespace": shop, "volume": "tls", "dataArtifactPrefix": "tls"}},
		{"RestoreData", with(one, args{"volumes": args{"tls": "/data"}, "backupIdentifier": id})},
		{"RestoreDataAll", with(one, args{"pods": "tls-0", "backupInfo": info})},
		{"CheckRepository", args{"backupArtifactPrefix": "tls"}},
		{"DeleteData", with(one, args{"backupID": id})},
		{"DeleteDataAll", with(one, args{"backupInfo": info})},
	} {
		want = !want
		run(c.function, fmt.Sprintf("tls-%d", i+3), c.args, want)
		if insecure() != want {
			w.Errorf("%s with insecureTLS %v: the server takes any certificate: %v", c.function, want, !want)
		}
	}
}

// Two movers of one claim take turns; a controller that goes away keeps its turn.
func testTurns(w *world) {
	w.claim("turns")
	b := w.backup("turns-1", "turns", "/mnt/turns", "turns")
	begun, release := make(chan string, 4), make(chan struct{})
	w.script("restore-data-", func(req api.StartRequest) (*api.Result, *api.Problem) {
		begun <- req.ID
		<-release
		return restores(func(api.StartRequest) {})(req)
	})
	base := args{"namespace": shop, "image": "i", "backupArtifactPrefix": "turns", "volumes": args{"turns": "/mnt/turns"}, "backupIdentifier": b["backupID"]}
	ended := make(chan error, 2)
	go func() { _, err := w.exec("RestoreData", "turns-2", param.TemplateParams{}, base); ended <- err }()
	if first := <-begun; first != "turns-2" {
		w.Fatalf("%s has begun", first)
	}
	go func() { _, err := w.exec("RestoreData", "turns-3", param.TemplateParams{}, base); ended <- err }()
	// A third on a claim of its own shows that the second has had its chance.
	w.claim("turns-free")
	_, err := w.exec("CopyVolumeData", "turns-4", param.TemplateParams{}, args{"namespace": shop, "volume": "turns-free", "dataArtifactPrefix": "x"})
	w.Must(err)
	if pods := w.movers(); len(pods) != 1 || pods[0].Annotations[names.OperationAnnotation] != "turns-2" {
		w.Errorf("%d movers while one holds the claim", len(pods))
	}
	close(release)
	for range 2 {
		w.Must(<-ended)
	}
	if second := <-begun; second != "turns-3" {
		w.Errorf("then %s", second)
	}
	if left := w.movers(); len(left) > 0 {
		w.Errorf("%d movers are left", len(left))
	}
}

// leave begins a phase, waits until n of its operations run, and goes away like a
// controller that ends.
func leave(w *world, f function.Func, call function.Call, n int, begun <-chan string) {
	w.Helper()
	ctx, detach := context.WithCancelCause(w.Context())
	ended := make(chan error, 1)
	go func() { _, err := f.Exec(ctx, call); ended <- err }()
	for range n {
		select {
		case <-begun:
		case err := <-ended:
			w.Fatalf("it ended before it began: %v", err)
		}
	}
	detach(agentclient.ErrDetached)
	if err := <-ended; !errors.Is(err, agentclient.ErrDetached) {
		w.Errorf("error %v, want that the controller goes away", err)
	}
}

// Each data function is left by its controller in the middle of an operation and taken
// over by another: what it does is done once, and nothing is left behind.
func testResumeEach(w *world) {
	for _, pod := range []string{"re-0", "re-1"} {
		w.claim(pod)
		w.pod(pod, pod)
	}
	var held atomic.Bool
	begun, release := make(chan string, 8), make(chan struct{})
	hold := func(req api.StartRequest) {
		// What is looked up before, and recorded after, is not held.
		if held.Load() && req.Kind != api.KindFind && req.Kind != api.KindList && req.Kind != api.KindRecord {
			begun <- req.ID
			<-release
		}
	}
	w.records.before.Store(&hold)
	defer w.records.before.Store(nil)
	for pod, s := range map[string]script{
		"re-0": saves(1, hold), "re-1": saves(1, hold), "copy-vol-data-": saves(1, hold),
		"restore-data-": restores(hold), "restore-data-all-": restores(hold),
	} {
		w.script(pod, s)
	}
	from := args{"namespace": shop, "container": "app", "includePath": "/data", "backupArtifactPrefix": "re"}
	to := args{"namespace": shop, "image": "i", "backupArtifactPrefix": "re"}
	out, err := w.exec("BackupData", "re-a", param.TemplateParams{}, with(from, args{"pod": "re-0"}))
	w.Must(err)
	id := out["backupID"]
	out, err = w.exec("BackupDataAll", "re-b", param.TemplateParams{}, with(from, args{"pods": "re-0 re-1"}))
	w.Must(err)
	info := out["BackupAllInfo"]
	for _, pod := range []string{"re-0", "re-1"} {
		_, err = w.exec("BackupData", "re-c-"+pod, param.TemplateParams{}, with(from, args{"pod": pod, "backupArtifactPrefix": "re/place"}))
		w.Must(err)
	}
	count := func() (n int) {
		for _, r := range w.records.list() {
			if r.Prefix == "bucket/re" || strings.HasPrefix(r.Prefix, "bucket/re/") {
				n++
			}
		}
		return n
	}
	for _, c := range []struct {
		function string
		args     args
		// atOnce operations of all run before the controller goes; backups are more or
		// less when it is over.
		atOnce, all, backups int
	}{
		{"BackupData", with(from, args{"pod": "re-0"}), 1, 1, 1},
		{"BackupDataAll", with(from, args{"pods": "re-0 re-1"}), 2, 2, 2},
		{"CopyVolumeData", args{"namespace": shop, "volume": "re-0", "dataArtifactPrefix": "re"}, 1, 1, 1},
		{"BackupDataStats", with(to, args{"backupID": id}), 1, 1, 0},
		{"RestoreData", with(to, args{"backupIdentifier": id, "volumes": args{"re-0": "/data"}}), 1, 1, 0},
		{"RestoreDataAll", with(to, args{"backupInfo": info, "pods": "re-0 re-1"}), 2, 2, 0},
		{"LocationDelete", args{"artifact": "re/place"}, 1, 2, -2},
		{"DeleteData", with(to, args{"backupID": id}), 1, 1, -1},
		{"DeleteDataAll", with(to, args{"backupInfo": info}), 1, 2, -2},
	} {
		w.run(c.function, func(w *world) {
			before := count()
			release = make(chan struct{})
			held.Store(true)
			f, err := w.functions.Get(c.function)
			w.Must(err)
			call := function.Call{
				Params: param.TemplateParams{Profile: w.profile}, Args: c.args, OperationID: "re-" + strings.ToLower(c.function), ActionSet: "as",
				Log: slog.New(slog.DiscardHandler), Progress: func(api.Progress) {},
			}
			leave(w, f, call, c.atOnce, begun)
			close(release)
			if _, err := f.Exec(w.Context(), call); err != nil {
				w.Errorf("taken over: %v", err)
			}
			held.Store(false)
			if n := c.atOnce + len(begun); n != c.all {
				w.Errorf("%d operations, want %d", n, c.all)
			}
			for range len(begun) {
				<-begun
			}
			if n := count() - before; n != c.backups {
				w.Errorf("%d backups more, want %d", n, c.backups)
			}
			testenv.Eventually(w, time.Minute, "no mover is left", func() bool { return len(w.movers()) == 0 })
		})
	}
}

// A phase that is picked up again goes on with its operation, and makes one backup.
func testResume(w *world) {
	w.claim("resume")
	begun, release := make(chan string, 4), make(chan struct{})
	var first seen
	w.script("copy-vol-data-", func(req api.StartRequest) (*api.Result, *api.Problem) {
		first.add(req)
		begun <- req.ID
		<-release
		return saves(1, func(api.StartRequest) {})(req)
	})
	f, err := w.functions.Get("CopyVolumeData")
	w.Must(err)
	call := function.Call{
		Params: param.TemplateParams{Profile: w.profile}, OperationID: "resume-1", ActionSet: "as", Log: slog.New(slog.DiscardHandler), Progress: func(api.Progress) {},
		Args: args{"namespace": shop, "volume": "resume", "dataArtifactPrefix": "resume"},
	}
	leave(w, f, call, 1, begun)
	if len(w.movers()) != 1 {
		w.Fatalf("%d movers, want the one that works on", len(w.movers()))
	}
	close(release)
	out, err := f.Exec(w.Context(), call)
	w.Must(err)
	if len(first.all) != 1 {
		w.Errorf("%d snapshots were taken", len(first.all))
	}
	// Its end was not written down, and its pod is gone: the backup is what was recorded.
	w.script("copy-vol-data-", func(req api.StartRequest) (*api.Result, *api.Problem) {
		r, p := saves(9, func(api.StartRequest) {})(req)
		r.Snapshot.ID += "-again"
		return r, p
	})
	again, err := f.Exec(w.Context(), call)
	w.Must(err)
	if !reflect.DeepEqual(again, out) {
		w.Errorf("outputs %v, then %v", out, again)
	}
	testenv.Eventually(w, time.Minute, "no mover is left", func() bool { return len(w.movers()) == 0 })
}

func infoOf(w *world, out map[string]any) map[string]struct{ PodName, BackupID, BackupTag string } {
	w.Helper()
	var info map[string]struct{ PodName, BackupID, BackupTag string }
	w.Must(jsonUnmarshal(out["BackupAllInfo"], &info))
	return info
}
