// SPDX-License-Identifier: Apache-2.0

// Package coverage looks for pods that opted in to backups and have no healthy
// agent, and says so where their owners look: in a metric and in an Event on the
// workload, with the reason and the fix. It never deletes or restarts anything.
//
// What it finds in a pod is decided by pure functions from the pod alone, with the
// injector's own decision (webhook/decide); Detector is the shell that looks at
// one opted-in namespace after the other.
package coverage

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/pkg/volumes"
	"github.com/kanister-kopia/kanister-kopia/webhook/decide"
)

// Reason is why a pod has no healthy agent: one of these, or the decide.Reason
// for which the injector left it alone.
type Reason string

// The reasons.
const (
	// Missing: the injector would give the pod an agent, and it has none.
	Missing Reason = "agent-missing"
	// Broken: another webhook took something from the agent.
	Broken Reason = "agent-broken"
	// NotStarting: kubelet cannot start the agent, and the application waits for it.
	NotStarting Reason = "agent-not-starting"
	// Crashing: the agent started and ends again and again. The application runs.
	Crashing Reason = "agent-crashing"
	// Refused: a pod was refused by the API server because of its agent.
	Refused Reason = "agent-refused"
	// LabelMisplaced: the label is on a workload and not in its pod template.
	LabelMisplaced Reason = "label-misplaced"
)

// texts are what an Event says first; Detail follows.
var texts = map[Reason]string{
	Missing:        "has no backup agent: it was made before its namespace opted in, or while the webhook could not be reached or injection was on hold",
	Broken:         "has a broken backup agent; another admission webhook has probably changed it",
	NotStarting:    "waits for its backup agent, which cannot be started",
	Crashing:       "has a backup agent that ends again and again",
	Refused:        "is refused because of its backup agent",
	LabelMisplaced: "has label " + names.InjectLabel + " on itself, where it does nothing",
}

// Text is the reason for people, to follow the name of a pod or workload.
func (r Reason) Text() string {
	if t, ok := texts[r]; ok {
		return t
	}
	return "has no backup agent: " + decide.Reason(r).Text()
}

// Finding is one pod or workload without a healthy agent.
type Finding struct {
	Reason Reason
	// Detail is particular to this pod; may be empty.
	Detail string
	// Blocks: the application does not start because of it.
	Blocks bool
}

// blocking are the states in which kubelet cannot start a container.
var blocking = []string{
	"CreateContainerConfigError", "CreateContainerError", "ErrImageNeverPull", "ErrImagePull",
	"ImageInspectError", "ImagePullBackOff", "InvalidImageName", "RegistryUnavailable", "RunContainerError",
	"SignatureValidationFailed",
}

// neverRan are the ends of a container whose program was never executed.
var neverRan = []string{"ContainerCannotRun", "StartError"}

// Assess says what is wrong with a pod's agent, nil if nothing is: the agent is
// there and whole, or still starting, or the pod is not to have one. A pod that
// has ended or is being deleted is no concern any more.
func Assess(pod *corev1.Pod, ns decide.Namespace) *Finding {
	if pod.DeletionTimestamp != nil || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return nil
	}
	// An agent that is there got in before any hold and within all limits.
	free := ns
	free.Hold, free.Limits, free.Quotas = "", nil, nil
	agent := agentOf(pod)
	d := decide.Decide(pod, free)
	if agent != nil && d.Inject() {
		return assessAgent(pod, agent, d.Plan)
	}
	if d.Inject() {
		ns.Quotas = decide.Uncounted(ns.Quotas, pod)
		d = decide.Decide(pod, ns)
	}
	switch d.Reason {
	case decide.Injected, decide.UpToDate:
		return &Finding{Reason: Missing}
	case decide.NamespaceExcluded, decide.NamespaceNotOptedIn, decide.OwnPod, decide.OptedOut, decide.NotLabelled, decide.MirrorPod:
		return nil
	case decide.HostNetwork, decide.Windows, decide.NoVolume:
		// Nobody asked for an agent in this pod: the namespace says "all".
		if pod.Labels[names.InjectLabel] != "true" {
			return nil
		}
	}
	return &Finding{Reason: Reason(d.Reason), Detail: d.Detail}
}

func agentOf(pod *corev1.Pod) *corev1.Container {
	i := slices.IndexFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == names.AgentContainer })
	if i < 0 {
		return nil
	}
	return &pod.Spec.InitContainers[i]
}

func assessAgent(pod *corev1.Pod, agent *corev1.Container, plan *decide.Plan) *Finding {
	if what := broken(agent, plan); what != "" {
		return &Finding{Reason: Broken, Detail: what}
	}
	s := statusOf(pod)
	switch {
	case s == nil:
		return nil
	case s.State.Waiting != nil && slices.Contains(blocking, s.State.Waiting.Reason):
		return &Finding{Reason: NotStarting, Detail: said(s.State.Waiting.Reason, s.State.Waiting.Message), Blocks: true}
	}
	last := s.LastTerminationState.Terminated
	if s.State.Terminated != nil {
		last = s.State.Terminated
	}
	switch {
	case last == nil || s.State.Running != nil:
		return nil
	case slices.Contains(neverRan, last.Reason):
		return &Finding{Reason: NotStarting, Detail: said(last.Reason, last.Message), Blocks: true}
	default:
		return &Finding{Reason: Crashing, Detail: fmt.Sprintf("%s, exit code %d, %d restarts", last.Reason, last.ExitCode, s.RestartCount)}
	}
}

// broken says what the agent lost that it cannot work without.
func broken(agent *corev1.Container, plan *decide.Plan) string {
	if agent.RestartPolicy == nil || *agent.RestartPolicy != corev1.ContainerRestartPolicyAlways {
		return "it has lost restartPolicy: Always, so the pod waits for it to end"
	}
	mounts := map[string]string{}
	for i := range agent.VolumeMounts {
		mounts[agent.VolumeMounts[i].MountPath] = agent.VolumeMounts[i].Name
	}
	for i := range agent.VolumeDevices {
		mounts[agent.VolumeDevices[i].DevicePath] = agent.VolumeDevices[i].Name
	}
	want := map[string]string{names.StateDir: names.StateVolume, names.CADir: names.CAVolume}
	for _, name := range plan.Volumes {
		want[volumes.MirrorPath(name)] = name
	}
	for _, name := range plan.Devices {
		want[volumes.DevicePath(name)] = name
	}
	var lost []string
	for path, name := range want {
		if mounts[path] != name {
			lost = append(lost, name)
		}
	}
	slices.Sort(lost)
	if len(lost) > 0 {
		return "it does not mount " + strings.Join(lost, ", ")
	}
	return ""
}

func statusOf(pod *corev1.Pod) *corev1.ContainerStatus {
	i := slices.IndexFunc(pod.Status.InitContainerStatuses, func(s corev1.ContainerStatus) bool { return s.Name == names.AgentContainer })
	if i < 0 {
		return nil
	}
	return &pod.Status.InitContainerStatuses[i]
}

// lastStart is when the pod's agent was started, zero if it does not run.
func lastStart(pod *corev1.Pod) time.Time {
	if s := statusOf(pod); s != nil && s.State.Running != nil {
		return s.State.Running.StartedAt.Time
	}
	return time.Time{}
}

func said(reason, message string) string {
	if message == "" {
		return reason
	}
	return reason + ": " + message
}

// Fix says what the owner of a workload does about a finding.
func Fix(r Reason, o Owner) string {
	switch r {
	case Missing, Reason(decide.OnHold):
		return anew(o)
	case Broken:
		return "exclude container " + names.AgentContainer + " there, then: " + anew(o)
	case NotStarting:
		return "make the image available to this namespace; injection here is on hold meanwhile, so a pod that is deleted now is made anew without an agent and starts"
	case Crashing:
		return "see kubectl logs -n " + o.Namespace + " POD -c " + names.AgentContainer
	case Refused:
		return "let the policy that refuses it accept container " + names.AgentContainer + "; injection here is on hold meanwhile"
	case LabelMisplaced:
		return "put it into the labels of its pod template"
	case Reason(decide.LimitRange), Reason(decide.QuotaExceeded):
		return "make room for it, then: " + anew(o)
	default:
		return "change the pod template, or opt out with label " + names.InjectLabel + "=false"
	}
}

func anew(o Owner) string {
	switch o.Kind {
	case "Deployment", "StatefulSet", "DaemonSet":
		return fmt.Sprintf("kubectl rollout restart -n %s %s/%s", o.Namespace, strings.ToLower(o.Kind), o.Name)
	case "Job", "CronJob":
		return "its next pod gets one"
	case "Pod":
		return "create the pod anew"
	default:
		return "delete the pod, so that its owner makes it anew"
	}
}
