// SPDX-License-Identifier: Apache-2.0

package function

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/kanister-kopia/kanister-kopia/pkg/podspec"
)

// multiContainerRun runs a pod of two containers, and one before them, that share
// a volume. The outputs are what the container "output" prints.
type multiContainerRun struct{ *Companion }

func (*multiContainerRun) Name() string { return "MultiContainerRun" }

func (*multiContainerRun) RequiredArgs() []string {
	return []string{"backgroundImage", "backgroundCommand", "outputImage", "outputCommand"}
}

func (f *multiContainerRun) Arguments() []string {
	return append(append(f.RequiredArgs(), "namespace", "initImage", "initCommand",
		"sharedVolumeMedium", "sharedVolumeSizeLimit", "sharedVolumeDir"), podArgNames...)
}

func (*multiContainerRun) Resumable() bool { return false }

// The containers, as Kanister names them.
const (
	initContainer       = "init"
	backgroundContainer = "background"
	outputContainer     = "output"
)

// multiPod is what the arguments say.
type multiPod struct {
	namespace                string
	init, background, output command
	medium, size, dir        string
	pod                      podArgs
}

type command struct {
	image   string
	command []string
}

func (f *multiContainerRun) Exec(ctx context.Context, call Call) (map[string]any, error) {
	m := multiPod{dir: "/tmp/"}
	if err := decodeAll(call.Args, map[string]any{
		"namespace": &m.namespace,
		"initImage": &m.init.image, "initCommand": &m.init.command,
		"backgroundImage": &m.background.image, "backgroundCommand": &m.background.command,
		"outputImage": &m.output.image, "outputCommand": &m.output.command,
		"sharedVolumeMedium": &m.medium, "sharedVolumeSizeLimit": &m.size, "sharedVolumeDir": &m.dir,
	}); err != nil {
		return nil, err
	}
	m.namespace = cmp.Or(m.namespace, f.Namespace)
	var err error
	if m.pod, err = decodePod(call); err != nil {
		return nil, err
	}
	pod, err := m.render(call, f.Companion)
	if err != nil {
		return nil, err
	}
	// As in Kanister the whole pod has to end: the background is part of the work.
	r, err := f.runPod(ctx, call, pod, outputContainer, func(p *corev1.Pod) (int32, bool) {
		if p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
			return 0, false
		}
		for _, s := range p.Status.ContainerStatuses {
			if t := s.State.Terminated; t != nil && t.ExitCode != 0 {
				return t.ExitCode, true
			}
		}
		return 0, p.Status.Phase == corev1.PodSucceeded
	})
	return r.outputs, err
}

func (m multiPod) render(call Call, companion *Companion) (*corev1.Pod, error) {
	volume := corev1.EmptyDirVolumeSource{Medium: corev1.StorageMedium(m.medium)}
	if m.size != "" {
		size, err := resource.ParseQuantity(m.size)
		if err != nil {
			return nil, fmt.Errorf("Failed to parse sharedStorageSize arg: %w", err) // Kanister's text
		}
		volume.SizeLimit = &size
	}
	const shared = "shared"
	container := func(name string, c command) corev1.Container {
		out := companion.container(name, c.image, c.command)
		out.VolumeMounts = []corev1.VolumeMount{{Name: shared, MountPath: m.dir}}
		return out
	}
	spec := corev1.PodSpec{
		RestartPolicy: corev1.RestartPolicyNever,
		SecurityContext: &corev1.PodSecurityContext{
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		Volumes: []corev1.Volume{{Name: shared, VolumeSource: corev1.VolumeSource{EmptyDir: &volume}}},
		// The first is the one that people's tools look at.
		Containers: []corev1.Container{container(outputContainer, m.output), container(backgroundContainer, m.background)},
	}
	if m.init.image != "" {
		spec.InitContainers = []corev1.Container{container(initContainer, m.init)}
	}
	spec, err := podspec.Override(spec, m.pod.override, forBoth(call.Params.PodOverride))
	if err != nil {
		return nil, err
	}
	withoutToken(&spec)
	return taskPod(call, "kanister-job-", m.namespace, m.pod, spec), nil
}

// forBoth turns an ActionSet's override of the container named "container", which
// every other function has, into one of both containers, unless it names one of
// them itself.
func forBoth(override map[string]any) map[string]any {
	list, ok := override["containers"].([]any)
	if !ok {
		return override
	}
	named := func(name string) int {
		return slices.IndexFunc(list, func(c any) bool {
			m, ok := c.(map[string]any)
			return ok && m["name"] == name
		})
	}
	common := named(taskContainer)
	if common < 0 || named(backgroundContainer) >= 0 || named(outputContainer) >= 0 {
		return override
	}
	out := maps.Clone(override)
	containers := slices.Delete(slices.Clone(list), common, common+1)
	for _, name := range []string{backgroundContainer, outputContainer} {
		c := maps.Clone(list[common].(map[string]any))
		c["name"] = name
		containers = append(containers, c)
	}
	out["containers"] = containers
	return out
}
