// SPDX-License-Identifier: Apache-2.0

package function

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

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
		container = defaultContainer(&p)
	}
	log := call.podLog(pod, container)
	outputs, err := f.exec(ctx, namespace, pod, container, command, func(line string) { log.Info(line) })
	if err != nil {
		return nil, fmt.Errorf("run command in container %s of pod %s/%s: %w", container, namespace, pod, err)
	}
	return outputs, nil
}

// defaultContainer is kubectl's. The API server's own would refuse a pod with several;
// an agent is none of them.
func defaultContainer(pod *corev1.Pod) string {
	return cmp.Or(pod.Annotations["kubectl.kubernetes.io/default-container"], pod.Spec.Containers[0].Name)
}

// errorTail is how much of standard error an error shows.
const errorTail = 2048

// exec runs a command in a container and reads its outputs. Every line of what else it
// prints, also of standard error, is handed to line, of both at once.
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
	stderr := &standardError{line: line, tail: tail{limit: errorTail}}
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
	said := stderr.end()
	var exit exec.CodeExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("command ended with exit code %d", exit.Code)
	}
	if err = errors.Join(readErr, err); err != nil {
		if said != "" {
			err = fmt.Errorf("%w: %s", err, said)
		}
		return nil, err
	}
	return outputs, nil
}

// standardError hands what is written to it on line by line, and keeps its end for an
// error. A stream that was cut off may still write.
type standardError struct {
	line func(string)

	mu   sync.Mutex // protects the following
	tail tail
	rest []byte
}

func (s *standardError) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, _ = s.tail.Write(p) // into memory
	s.rest = append(s.rest, p...)
	for {
		text, rest, ok := bytes.Cut(s.rest, []byte("\n"))
		if !ok && len(text) < longLine {
			return len(p), nil
		}
		s.hand(text)
		s.rest = rest
	}
}

// longLine is not waited for to end: progress bars never do.
const longLine = 64 << 10

// end hands on the last line, which need not have an end, and returns what was kept.
func (s *standardError) end() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hand(s.rest)
	s.rest = nil
	return strings.TrimSpace(s.tail.String())
}

func (s *standardError) hand(text []byte) {
	if text := strings.TrimRight(string(text), "\r"); text != "" {
		s.line(text)
	}
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
