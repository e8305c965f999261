// SPDX-License-Identifier: Apache-2.0

package function

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
	"k8s.io/streaming/pkg/httpstream"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// kubeExec runs a command in a container of the application.
type kubeExec struct{ *Companion }

func (*kubeExec) Name() string { return "KubeExec" }

func (*kubeExec) RequiredArgs() []string { return []string{"namespace", "pod", "command"} }

func (f *kubeExec) Arguments() []string { return append(f.RequiredArgs(), "container") }

// A command that was cut off may have ended, or go on, or both.
func (*kubeExec) Resumable() bool { return false }

func (f *kubeExec) Exec(ctx context.Context, call Call) (map[string]any, error) {
	var namespace, pod, container string
	var command []string
	if err := decodeAll(call.Args, map[string]any{
		"namespace": &namespace, "pod": &pod, "container": &container, "command": &command,
	}); err != nil {
		return nil, err
	}
	if container == "" {
		var p corev1.Pod
		if err := f.Client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: pod}, &p); err != nil {
			return nil, fmt.Errorf("read pod %s/%s: %w", namespace, pod, err)
		}
		// The API server's own default would refuse a pod with several containers.
		container = p.Spec.Containers[0].Name
		if name := p.Annotations["kubectl.kubernetes.io/default-container"]; name != "" {
			container = name
		}
	}
	log := f.Log.With("actionset", call.ActionSet, "pod", pod, "container", container)
	outputs, err := f.exec(ctx, namespace, pod, container, command, func(line string) { log.Info("command", "stdout", line) })
	if err != nil {
		return nil, fmt.Errorf("run command in container %s of pod %s/%s: %w", container, namespace, pod, err)
	}
	return outputs, nil
}

// errorTail is how much of standard error an error shows.
const errorTail = 2048

// exec runs a command in a container and reads its outputs.
func (c *Companion) exec(ctx context.Context, namespace, pod, container string, command []string, line func(string)) (map[string]any, error) {
	target := c.Kube.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: container, Command: command, Stdout: true, Stderr: true}, scheme.ParameterCodec).URL()
	websocket, err := remotecommand.NewWebSocketExecutor(c.Config, http.MethodGet, target.String())
	if err != nil {
		return nil, err
	}
	spdy, err := remotecommand.NewSPDYExecutor(c.Config, http.MethodPost, target)
	if err != nil {
		return nil, err
	}
	executor, err := remotecommand.NewFallbackExecutor(websocket, spdy, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	if err != nil {
		return nil, err
	}
	reader, writer := io.Pipe()
	stderr := &tail{limit: errorTail}
	done := make(chan error, 1)
	go func() {
		err := executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: writer, Stderr: stderr})
		_ = writer.Close()
		done <- err
	}()
	outputs, readErr := readOutputs(reader, line)
	if readErr != nil {
		_ = reader.CloseWithError(readErr)
	}
	err = <-done
	var exit exec.CodeExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("command ended with exit code %d", exit.Code)
	}
	if err = errors.Join(readErr, err); err != nil {
		if text := strings.TrimSpace(stderr.String()); text != "" {
			err = fmt.Errorf("%w: %s", err, text)
		}
		return nil, err
	}
	return outputs, nil
}

// tail keeps the end of what is written to it.
type tail struct {
	limit int
	text  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.text = append(t.text, p...)
	if over := len(t.text) - t.limit; over > 0 {
		t.text = append(t.text[:0], t.text[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return string(t.text) }
