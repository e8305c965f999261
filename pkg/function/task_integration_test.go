// SPDX-License-Identifier: Apache-2.0

//go:build integration

package function_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kanister-kopia/kanister-kopia/agent/api"
	"github.com/kanister-kopia/kanister-kopia/pkg/function"
	"github.com/kanister-kopia/kanister-kopia/pkg/mover"
	"github.com/kanister-kopia/kanister-kopia/pkg/param"
)

// kubeletNode is the node whose kubelet the test plays: the API server asks it for logs.
const kubeletNode = "kubelet"

// onKubelet puts a temporary pod there.
var onKubelet = args{"nodeName": kubeletNode}

// kubelet makes the node; log answers for the containers of its pods.
func (w *world) kubelet(log func(rw http.ResponseWriter, pod, container string, follow bool)) {
	w.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", func(rw http.ResponseWriter, r *http.Request) {
		log(rw, r.PathValue("pod"), r.PathValue("container"), r.URL.Query().Get("follow") == "true")
	})
	server := httptest.NewTLSServer(mux)
	w.Cleanup(server.Close)
	host, port, err := net.SplitHostPort(server.Listener.Addr().String())
	w.Must(err)
	number, err := strconv.ParseInt(port, 10, 32)
	w.Must(err)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: kubeletNode}}
	w.Must(w.Create(w.Context(), node))
	w.Cleanup(func() { w.Must(w.Delete(w.Context(), node)) })
	node.Status = corev1.NodeStatus{
		Addresses:       []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: host}},
		DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: int32(number)}},
	}
	w.Must(w.Status().Update(w.Context(), node))
}

// end ends all containers of a pod of the control plane's namespace.
func (w *world) end(name string, exit int32) *corev1.Pod {
	w.Helper()
	pod := &corev1.Pod{}
	w.Must(w.Get(w.Context(), client.ObjectKey{Namespace: control, Name: name}, pod))
	pod.Status.Phase = corev1.PodSucceeded
	if exit != 0 {
		pod.Status.Phase = corev1.PodFailed
	}
	pod.Status.ContainerStatuses = nil
	for _, c := range pod.Spec.Containers {
		pod.Status.ContainerStatuses = append(pod.Status.ContainerStatuses, corev1.ContainerStatus{
			Name: c.Name, State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: exit}},
		})
	}
	w.Must(w.Status().Update(w.Context(), pod))
	return pod
}

// What a command prints and how it ends is what becomes of its phase.
func testTasks(w *world) {
	const (
		first  = "one\n" + `###Phase-output###: {"key":"a","value":"1"}` + "\n" + `###Phase-output###: {"key":"b",`
		second = `"value":"2"}` + "\nthe disk is on fire\n"
	)
	// The log that is followed, and how it ends; the whole is both parts.
	var followed string
	var broken bool
	var exit int32
	var seen *corev1.Pod
	w.kubelet(func(rw http.ResponseWriter, pod, _ string, follow bool) {
		if !follow {
			_, _ = io.WriteString(rw, first+second)
			return
		}
		_, _ = io.WriteString(rw, followed)
		rw.(http.Flusher).Flush()
		seen = w.end(pod, exit)
		if broken {
			panic(http.ErrAbortHandler)
		}
	})
	w.claim("task")
	task := args{"image": "i", "command": []any{"c"}, "podOverride": onKubelet}
	all := args{"a": "1", "b": "2"}
	prepare := with(task, args{"namespace": control, "volumes": args{"task": "/mnt"}})
	several := args{"backgroundImage": "i", "backgroundCommand": []any{"b"}, "outputImage": "i", "outputCommand": []any{"o"}, "podOverride": onKubelet}
	for _, c := range []struct {
		name, function string
		args           args
		followed       string
		broken         bool
		exit           int32
		outputs        args
		err            string
	}{
		{name: "outputs", function: "KubeTask", args: task, followed: first + second, outputs: all},
		{name: "a log that ends early", function: "KubeTask", args: task, followed: first, outputs: all},
		{name: "a kubelet that breaks off", function: "KubeTask", args: task, followed: first, broken: true, outputs: all},
		{name: "a failed command", function: "KubeTask", args: task, followed: first + second, exit: 3, err: "the command ended with exit code 3: one\nthe disk is on fire"},
		{name: "a failed one that nobody minds", function: "PrepareData", args: prepare, followed: first, exit: 3, outputs: all},
		{name: "failOnError", function: "PrepareData", args: with(prepare, args{"failOnError": "true"}), followed: first + second, exit: 3, err: "the command ended with exit code 3"},
		{name: "several containers", function: "MultiContainerRun", args: several, followed: first, outputs: all},
		{name: "several that fail", function: "MultiContainerRun", args: several, followed: first, exit: 4, err: "the command ended with exit code 4"},
	} {
		w.run(c.name, func(w *world) {
			followed, broken, exit = c.followed, c.broken, c.exit
			out, err := w.exec(c.function, "task-"+strings.ReplaceAll(c.name, " ", "-"), param.TemplateParams{}, c.args)
			switch {
			case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
				w.Errorf("outputs %v, error %v, want %q in it", out, err, c.err)
			case c.err == "" && (err != nil || !reflect.DeepEqual(out, c.outputs)):
				w.Errorf("outputs %v, error %v, want %v", out, err, c.outputs)
			}
			w.noTasks()
			want := map[string]struct{ prefix, mountPath string }{
				"KubeTask": {"kanister-job-", ""}, "PrepareData": {"prepare-data-job-", "/mnt"}, "MultiContainerRun": {"kanister-job-", "/tmp/"},
			}[c.function]
			for _, container := range seen.Spec.Containers {
				at := ""
				for _, m := range container.VolumeMounts {
					at += m.MountPath
				}
				if !strings.HasPrefix(seen.Name, want.prefix) || at != want.mountPath {
					w.Errorf("container %s of pod %s mounts %q, want %q in %s…", container.Name, seen.Name, at, want.mountPath, want.prefix)
				}
			}
		})
	}
}

// noTasks checks that no pod of a command is left.
func (w *world) noTasks() {
	w.Helper()
	var pods corev1.PodList
	w.Must(w.List(w.Context(), &pods, client.MatchingLabels{"createdBy": "kanister"}))
	for _, p := range pods.Items {
		if p.Spec.NodeName == kubeletNode && (p.DeletionTimestamp == nil || *p.DeletionGracePeriodSeconds != 0) {
			w.Errorf("left behind: %s", p.Name)
		}
	}
}

// An ActionSet that is deleted ends what its phase has begun.
func testCancel(w *world) {
	w.claim("cancel")
	id := w.backup("cancel-1", "cancel", "/mnt", "cancel")["backupID"]
	begun, release := make(chan string, 4), make(chan struct{})
	defer close(release)
	hold := func(req api.StartRequest) {
		begun <- req.ID
		<-release
	}
	w.script("copy-vol-data-", saves(1, hold))
	w.script("restore-data-", restores(hold))
	var logged atomic.Bool
	w.kubelet(func(rw http.ResponseWriter, _, _ string, follow bool) {
		if follow && logged.CompareAndSwap(false, true) {
			rw.(http.Flusher).Flush()
			begun <- "the log"
			<-release
		}
	})
	gone := errors.New("the ActionSet was deleted")
	for _, c := range []struct {
		function string
		args     args
		moves    bool
	}{
		{"CopyVolumeData", args{"namespace": shop, "volume": "cancel", "dataArtifactPrefix": "cancel"}, true},
		{"RestoreData", args{"namespace": shop, "image": "i", "backupArtifactPrefix": "cancel", "volumes": args{"cancel": "/mnt"}, "backupIdentifier": id}, true},
		{"KubeTask", args{"image": "i", "command": []any{"c"}, "podOverride": onKubelet}, false},
	} {
		w.run(c.function, func(w *world) {
			operation := "cancel-" + strings.ToLower(c.function)
			f, err := w.functions.Get(c.function)
			w.Must(err)
			ctx, cancel := context.WithCancelCause(w.Context())
			ended := make(chan error, 1)
			go func() {
				_, err := f.Exec(ctx, function.Call{
					Params: param.TemplateParams{Profile: w.profile}, Args: c.args, OperationID: operation, ActionSet: "as",
					Log: slog.New(slog.DiscardHandler), Progress: func(api.Progress) {},
				})
				ended <- err
			}()
			select {
			case <-begun:
			case err := <-ended:
				w.Fatalf("it ended before it began: %v", err)
			}
			cancel(gone)
			if err := <-ended; !errors.Is(err, gone) {
				w.Errorf("error %v, want why it ended", err)
			}
			for _, path := range []string{"/v1/operations/", "/v1/sessions/"} {
				if c.moves && !w.deleted(path+operation) {
					w.Errorf("%s%s was not ended", path, operation)
				}
			}
			if left := w.movers(); len(left) > 0 {
				w.Errorf("left behind: %s", left[0].Name)
			}
			w.noTasks()
		})
	}
}

// A pod that cannot run fails its phase at once, or when its time is over, with the
// reason; and it is gone.
func testNoStart(w *world) {
	w.claim("stuck")
	data, companion := *w.data, function.Companion{Client: w, Namespace: shop}
	for _, c := range []struct {
		hindrance, want string
		limit           time.Duration
	}{
		{"yes", "not running after 300ms", 300 * time.Millisecond},
		{stuckVolume, "not running after 5s: FailedMount: no such disk", 5 * time.Second},
		{stuckImage, "ImageUnavailable: ImagePullBackOff: no such image", time.Hour},
		{stuckNode, "not running after 5s: 0/3 nodes are available", 5 * time.Second},
	} {
		w.run(c.hindrance, func(w *world) {
			movers := &mover.Movers{Client: w, Agents: w, CA: w, Image: "agent", PullPolicy: corev1.PullNever, StartTimeout: c.limit, Log: w.data.Log}
			data.Movers, companion.Movers = movers, movers
			w.functions = function.NewRegistry(append(data.Functions(), companion.Functions()...)...)
			annotations := args{stuck: c.hindrance}
			w.refused("CopyVolumeData", "stuck-1-"+c.hindrance, param.TemplateParams{}, args{
				"namespace": shop, "volume": "stuck", "dataArtifactPrefix": "stuck", "podAnnotations": annotations,
			}, c.want)
			w.refused("KubeTask", "stuck-2-"+c.hindrance, param.TemplateParams{}, args{
				"image": "i", "command": []any{"c"}, "podAnnotations": annotations,
			}, c.want)
			var pods corev1.PodList
			w.Must(w.List(w.Context(), &pods, client.InNamespace(shop), client.MatchingLabels{"createdBy": "kanister"}))
			for _, p := range pods.Items {
				if p.DeletionTimestamp == nil && p.Annotations[stuck] != "" {
					w.Errorf("left behind: %s", p.Name)
				}
			}
		})
	}
}
