// SPDX-License-Identifier: Apache-2.0

package function

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kanister-kopia/kanister-kopia/pkg/kube"
	"github.com/kanister-kopia/kanister-kopia/pkg/mover"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/pkg/podspec"
)

// task is a temporary pod that runs one command of the Blueprint's author.
type task struct {
	prefix, namespace, image string
	command                  []string
	serviceAccount           string
	// claims maps claim to mount path.
	claims map[string]string
	// identity of the claims' workload.
	identity mover.Identity
	pod      podArgs
}

// result of a task's command.
type result struct {
	outputs map[string]any
	// exit is the command's exit code.
	exit int32
}

const (
	taskContainer   = names.MoverContainer
	taskDeleteGrace = 30 * time.Second
)

// taskSecurity has the restricted Pod Security fields that change nothing for a
// command that does not ask for more; podOverride may undo them.
func taskSecurity() *corev1.SecurityContext {
	return &corev1.SecurityContext{
		AllowPrivilegeEscalation: new(false),
		Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
	}
}

// container of a temporary pod that runs a command of the Blueprint's author.
func (c *Companion) container(name, image string, command []string) corev1.Container {
	out := corev1.Container{
		Name: name, Image: image, Command: command, ImagePullPolicy: c.PullPolicy, SecurityContext: taskSecurity(),
	}
	if c.ToolsImage != "" {
		out.Env = []corev1.EnvVar{{Name: "KANISTER_TOOLS", Value: c.ToolsImage}}
	}
	return out
}

// render builds the pod.
func (c *Companion) render(call Call, t task) (*corev1.Pod, error) {
	container := c.container(taskContainer, t.image, t.command)
	spec := corev1.PodSpec{
		RestartPolicy:      corev1.RestartPolicyNever,
		ServiceAccountName: t.serviceAccount,
		SecurityContext: &corev1.PodSecurityContext{
			RunAsUser: t.identity.UID, RunAsGroup: t.identity.GID,
			FSGroup: t.identity.FSGroup, FSGroupChangePolicy: t.identity.FSGroupChangePolicy,
			SupplementalGroups: t.identity.SupplementalGroups, SELinuxOptions: t.identity.SELinux,
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
	}
	if t.identity.UID != nil {
		spec.SecurityContext.RunAsNonRoot = new(true)
	}
	for i, claim := range slices.Sorted(maps.Keys(t.claims)) {
		name := fmt.Sprintf("claim-%d", i)
		container.VolumeMounts = append(container.VolumeMounts, corev1.VolumeMount{Name: name, MountPath: t.claims[claim]})
		spec.Volumes = append(spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim},
		}})
	}
	spec.Containers = []corev1.Container{container}
	spec, err := podspec.Override(spec, t.pod.override, call.Params.PodOverride)
	if err != nil {
		return nil, err
	}
	withoutToken(&spec)
	return taskPod(call, t.prefix, t.namespace, t.pod, spec), nil
}

// withoutToken keeps the token of a ServiceAccount that nobody named out of a pod.
// Kanister mounts it; who needs one names the account.
func withoutToken(spec *corev1.PodSpec) {
	if spec.AutomountServiceAccountToken == nil && spec.ServiceAccountName == "" {
		spec.AutomountServiceAccountToken = new(false)
	}
}

// taskPod is a temporary pod of ours. It is swept when its operation has ended
// without it.
func taskPod(call Call, prefix, namespace string, pod podArgs, spec corev1.PodSpec) *corev1.Pod {
	labels, annotations := map[string]string{"createdBy": "kanister"}, map[string]string{}
	maps.Copy(labels, pod.labels)
	maps.Copy(labels, map[string]string{names.ManagedByLabel: names.ManagedByValue, names.ComponentLabel: mover.TaskComponent, names.InjectLabel: "false"})
	maps.Copy(annotations, pod.annotations)
	annotations[names.OperationAnnotation] = call.OperationID
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: mover.Spec{Prefix: prefix, OperationID: call.OperationID}.Name(),
			Labels: labels, Annotations: annotations,
		},
		Spec: spec,
	}
}

// run makes the pod, follows its log, waits for its end and deletes it.
func (c *Companion) run(ctx context.Context, call Call, t task) (result, error) {
	pod, err := c.render(call, t)
	if err != nil {
		return result{}, err
	}
	return c.runPod(ctx, call, pod, taskContainer, func(p *corev1.Pod) (int32, bool) {
		for _, s := range p.Status.ContainerStatuses {
			if s.Name == taskContainer && s.State.Terminated != nil {
				return s.State.Terminated.ExitCode, true
			}
		}
		return 0, false
	})
}

// runPod runs a pod to its end. What one container prints has the outputs; ended
// says when all that is waited for has ended, and with which exit code.
func (c *Companion) runPod(ctx context.Context, call Call, pod *corev1.Pod, container string, ended func(*corev1.Pod) (int32, bool)) (result, error) {
	name := fmt.Sprintf("%s/%s", pod.Namespace, pod.Name)
	if err := c.Client.Create(ctx, pod); err != nil {
		return result{}, fmt.Errorf("make pod %s: %w", name, err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), taskDeleteGrace)
		defer cancel()
		if err := c.Client.Delete(ctx, pod, client.GracePeriodSeconds(0)); client.IgnoreNotFound(err) != nil {
			call.Log.Warn("temporary pod not deleted", "pod", name, "error", err)
		}
	}()
	// What ended at once has started.
	if err := c.Movers.AwaitStart(ctx, pod, container, func(p *corev1.Pod) bool { return p.Status.Phase != corev1.PodPending }); err != nil {
		return result{}, fmt.Errorf("start pod %s: %w", name, err)
	}
	stream := func(follow bool) (io.ReadCloser, error) {
		log, err := c.Kube.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{Container: container, Follow: follow}).Stream(ctx)
		if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return log, err
	}
	first, err := stream(true)
	if err != nil {
		return result{}, fmt.Errorf("read the log of pod %s: %w", name, err)
	}
	var exit int32
	var endErr error
	whole := &wholeLog{stream: first, rest: func() (io.ReadCloser, error) {
		// The end of a log proves nothing: the pod's status does.
		if exit, endErr = c.awaitEnd(ctx, pod, ended); endErr != nil {
			return nil, endErr
		}
		return stream(false)
	}}
	defer whole.Close()
	log, last := call.podLog(pod.Name, container), &tail{limit: errorTail}
	outputs, err := readOutputs(whole, func(line string) {
		log.Info(line)
		fmt.Fprintln(last, line)
	})
	switch {
	case endErr != nil:
		return result{}, fmt.Errorf("pod %s: %w: %s", name, endErr, last)
	case err != nil:
		return result{}, fmt.Errorf("read the log of pod %s: %w", name, err)
	case exit != 0:
		return result{outputs, exit}, fmt.Errorf("pod %s: %w %d: %s", name, errExit, exit, last)
	}
	return result{outputs, 0}, nil
}

// errExit is a command that ended with an exit code other than 0.
var errExit = errors.New("the command ended with exit code")

// wholeLog reads a log that is followed, which may end or break off before what is
// logged does, and then what it lacks.
type wholeLog struct {
	stream io.ReadCloser
	// rest waits for the end of what is logged and begins the log anew; nil: it has.
	rest func() (io.ReadCloser, error)
	read int64
}

func (l *wholeLog) Read(p []byte) (int, error) {
	n, err := l.stream.Read(p)
	l.read += int64(n)
	if err == nil || l.rest == nil {
		return n, err
	}
	again, err := l.rest()
	l.rest = nil
	if err != nil {
		return n, err
	}
	l.Close()
	l.stream = again
	// Shorter, if it was rotated away meanwhile: then there is no more.
	if _, err := io.CopyN(io.Discard, again, l.read); err != nil && !errors.Is(err, io.EOF) {
		return n, err
	}
	return n, nil
}

func (l *wholeLog) Close() { _ = l.stream.Close() }

func (c *Companion) awaitEnd(ctx context.Context, pod *corev1.Pod, ended func(*corev1.Pod) (int32, bool)) (exit int32, err error) {
	err = kube.Await(ctx, c.Client, client.ObjectKeyFromObject(pod), &corev1.Pod{}, &corev1.PodList{}, func(p *corev1.Pod) (done bool, err error) {
		if exit, done = ended(p); done {
			return true, nil
		}
		if p.Status.Phase == corev1.PodFailed {
			return false, fmt.Errorf("it failed: %s %s", p.Status.Reason, p.Status.Message)
		}
		return false, nil
	})
	return exit, err
}
