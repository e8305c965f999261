// SPDX-License-Identifier: Apache-2.0

package coverage

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kanister-kopia/kanister-kopia/pkg/hold"
	"github.com/kanister-kopia/kanister-kopia/pkg/kube"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/webhook/decide"
)

const (
	// pause between two sweeps. A hold begins at most this long, and the time of one
	// sweep, after kubelet gave up on an image.
	pause = 15 * time.Second
	// repeatEvents is how often a problem that stays is said again: API servers
	// forget Events after an hour.
	repeatEvents = 30 * time.Minute
	// recently is how old an Event about a refused pod may be to count as now.
	recently = time.Minute
	// labelsEvery is how often the labels of workloads are looked at.
	labelsEvery = 5 * time.Minute
	// page is how many pods are read at once.
	page = 500
)

// Detector looks at all opted-in namespaces, one after the other, again and again.
// It lists instead of watching: a watch of all pods of a cluster would need the
// right to read them all, and memory for them; this needs the rights that backups
// need anyway, in the namespaces that opted in.
//
// A look costs two requests. Only the leader runs it. It keeps nothing that it
// could not see again.
type Detector struct {
	// Client reads namespaces and what is in them, and writes the holds. It should
	// have a rate limit of its own.
	Client client.Client
	// ControlPlane is the namespace of the holds.
	ControlPlane string
	Events       events.EventRecorder
	Clock        clock.WithTicker
	Log          *slog.Logger

	metrics metrics
	// announced is when an Event was last made.
	announced map[announcement]time.Time
	// labels are what was seen of workloads last, by namespace.
	labels map[string]labels
	// unreadable are the namespaces that were complained about in the log.
	unreadable map[string]bool
}

type announcement struct {
	namespace string
	owner     types.UID
	reason    Reason
}

// SetupWithManager starts it with the manager.
func (d *Detector) SetupWithManager(mgr ctrl.Manager) error { return mgr.Add(d) }

// NeedLeaderElection says that one replica is enough.
func (d *Detector) NeedLeaderElection() bool { return true }

// Start sweeps until ctx ends.
func (d *Detector) Start(ctx context.Context) error {
	for {
		if err := d.Sweep(ctx); err != nil && ctx.Err() == nil {
			d.Log.Error("pods could not be looked at", "error", err.Error())
		}
		select {
		case <-ctx.Done():
			return nil
		case <-d.Clock.After(pause):
		}
	}
}

// Sweep looks at every opted-in namespace once, updates metrics and holds, and
// makes Events.
func (d *Detector) Sweep(ctx context.Context) error {
	if d.announced == nil {
		d.announced, d.unreadable, d.labels = map[announcement]time.Time{}, map[string]bool{}, map[string]labels{}
	}
	var namespaces corev1.NamespaceList
	if err := d.Client.List(ctx, &namespaces); err != nil {
		return fmt.Errorf("list namespaces: %w", err)
	}
	var old corev1.ConfigMap
	key := client.ObjectKey{Namespace: d.ControlPlane, Name: names.HoldConfigMap}
	if err := client.IgnoreNotFound(d.Client.Get(ctx, key, &old)); err != nil {
		return fmt.Errorf("read the holds: %w", err)
	}

	looks, current := map[string]seen{}, map[announcement]bool{}
	holds := maps.Clone(old.Data)
	if holds == nil {
		holds = map[string]string{}
	}
	for i := range namespaces.Items {
		ns := &namespaces.Items[i]
		if decide.ModeOf(ns.Labels) == decide.ModeNone || ns.DeletionTimestamp != nil || ns.Name == d.ControlPlane {
			continue
		}
		held := hold.Active(old.Data, ns.Name, d.Clock.Now())
		look, err := d.look(ctx, ns, held)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			// Nothing was seen, so nothing changes.
			last := d.metrics.last(ns.Name)
			last.unreadable, last.held = apierrors.IsForbidden(err), held != nil
			looks[ns.Name] = last
			for a := range d.announced {
				current[a] = current[a] || a.namespace == ns.Name
			}
			d.complain(ns.Name, err)
			continue
		}
		delete(d.unreadable, ns.Name)
		next := hold.Next(held, look.observation, d.Clock.Now())
		d.tell(ns.Name, held, next)
		// At once: where there are many namespaces, the end of the sweep is far away.
		if err := d.putHold(ctx, holds, ns.Name, next); err != nil {
			return err
		}
		looks[ns.Name] = look.seen(next != nil)
		d.announce(ns.Name, look.groups, current)
	}
	d.metrics.set(looks)
	maps.DeleteFunc(d.announced, func(a announcement, _ time.Time) bool { return !current[a] })

	maps.DeleteFunc(d.labels, func(namespace string, _ labels) bool { _, there := looks[namespace]; return !there })
	for namespace := range holds {
		if _, there := looks[namespace]; !there {
			if err := d.putHold(ctx, holds, namespace, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// putHold changes the entry of one namespace; holds are all of them, as written.
func (d *Detector) putHold(ctx context.Context, holds map[string]string, namespace string, h *hold.Hold) error {
	before, was := holds[namespace]
	switch {
	case h == nil && !was, h != nil && hold.Encode(*h) == before:
		return nil
	case h == nil:
		delete(holds, namespace)
	default:
		holds[namespace] = hold.Encode(*h)
	}
	return kube.Apply(ctx, d.Client, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: d.ControlPlane, Name: names.HoldConfigMap, Labels: map[string]string{names.ManagedByLabel: names.ManagedByValue},
		},
		Data: holds,
	})
}

// group is all findings of one kind with the pods of one owner.
type group struct {
	owner  Owner
	reason Reason
	detail string
	pods   []string
}

// look is what is in a namespace.
type look struct {
	optedIn     int
	groups      []*group
	observation hold.Observation
}

func (l *look) add(owner Owner, f Finding, pod string) {
	if f.Blocks {
		l.observation.Failure = "pod " + pod + ": " + f.Detail
	}
	i := slices.IndexFunc(l.groups, func(g *group) bool { return g.owner.UID == owner.UID && g.reason == f.Reason })
	if i < 0 {
		i, l.groups = len(l.groups), append(l.groups, &group{owner: owner, reason: f.Reason, detail: f.Detail})
	}
	if pod != "" {
		l.groups[i].pods = append(l.groups[i].pods, pod)
	}
}

func (l *look) seen(held bool) seen {
	s := seen{optedIn: l.optedIn, without: map[label]int{}, held: held}
	for _, g := range l.groups {
		s.without[label{kind: g.owner.Kind, owner: g.owner.Name, reason: g.reason}] += max(1, len(g.pods))
	}
	return s
}

func (d *Detector) look(ctx context.Context, meta *corev1.Namespace, held *hold.Hold) (*look, error) {
	l := &look{}
	o := &owners{client: d.Client, known: map[Owner]Owner{}}
	ns := decide.Namespace{Name: meta.Name, Labels: meta.Labels, Annotations: meta.Annotations, Mode: decide.ModeOf(meta.Labels)}
	if held != nil {
		ns.Hold = held.Reason
	}
	options := []client.ListOption{client.InNamespace(ns.Name), client.Limit(page)}
	if ns.Mode == decide.ModeEnabled {
		options = append(options, client.MatchingLabels{names.InjectLabel: "true"})
	}
	limits := false
	for next := ""; ; {
		var pods corev1.PodList
		if err := d.Client.List(ctx, &pods, append(options, client.Continue(next))...); err != nil {
			return nil, fmt.Errorf("list pods: %w", err)
		}
		for i := range pods.Items {
			pod := &pods.Items[i]
			f := Assess(pod, ns)
			if f != nil && f.Reason == Missing && !limits {
				// Is it for want of room? The namespace's rules are read only now.
				if err := readLimits(ctx, d.Client, &ns); err != nil {
					return nil, err
				}
				limits, f = true, Assess(pod, ns)
			}
			if f != nil || agentOf(pod) != nil {
				l.optedIn++
			}
			if t := lastStart(pod); t.After(l.observation.LastStart) {
				l.observation.LastStart = t
			}
			if f != nil {
				l.add(o.of(ctx, pod), *f, pod.Name)
			}
		}
		if next = pods.Continue; next == "" {
			break
		}
	}
	if err := d.lookAtRefused(ctx, ns.Name, o, l); err != nil {
		return nil, err
	}
	return l, d.lookAtLabels(ctx, ns.Name, l)
}

// lookAtRefused finds pods that do not even exist, because something refused them
// for the agent in them. Their controllers say so in Events.
func (d *Detector) lookAtRefused(ctx context.Context, namespace string, o *owners, l *look) error {
	var list corev1.EventList
	if err := d.Client.List(ctx, &list, client.InNamespace(namespace),
		client.MatchingFieldsSelector{Selector: fields.OneTermEqualSelector("reason", "FailedCreate")}); err != nil {
		return fmt.Errorf("list events: %w", err)
	}
	for i := range list.Items {
		e := &list.Items[i]
		// What our own policy refuses in a strict namespace lacks an agent; a hold for
		// it would keep the agent out and so keep itself up.
		if strings.Contains(e.Message, names.AgentContainer) && !strings.Contains(e.Message, names.AgentPolicy) && d.Clock.Since(lastSeen(e)) < recently {
			l.add(o.above(ctx, e.InvolvedObject), Finding{Reason: Refused, Detail: e.Message}, "")
			l.observation.Failure = e.Message
		}
	}
	return nil
}

func lastSeen(e *corev1.Event) time.Time {
	t := e.LastTimestamp.Time
	if e.EventTime.After(t) {
		t = e.EventTime.Time
	}
	if e.Series != nil && e.Series.LastObservedTime.After(t) {
		t = e.Series.LastObservedTime.Time
	}
	return t
}

// workloads are the kinds with a pod template, by the path to its labels.
var workloads = []struct {
	gvk      schema.GroupVersionKind
	template []string
}{
	{schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"}, []string{"spec", "template"}},
	{schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "StatefulSet"}, []string{"spec", "template"}},
	{schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "DaemonSet"}, []string{"spec", "template"}},
	{schema.GroupVersionKind{Group: "batch", Version: "v1", Kind: "CronJob"}, []string{"spec", "jobTemplate", "spec", "template"}},
}

// labels are the workloads whose label is not in their pod template, at a time.
type labels struct {
	seen      time.Time
	misplaced []Owner
}

// lookAtLabels finds workloads whose label is not in their pod template. They are
// no emergency: what was seen a while ago is good enough.
func (d *Detector) lookAtLabels(ctx context.Context, namespace string, l *look) error {
	known, ok := d.labels[namespace]
	if !ok || d.Clock.Since(known.seen) >= labelsEvery {
		var err error
		if known, err = d.misplaced(ctx, namespace); err != nil {
			return err
		}
		d.labels[namespace] = known
	}
	for _, owner := range known.misplaced {
		l.add(owner, Finding{Reason: LabelMisplaced}, "")
	}
	return nil
}

func (d *Detector) misplaced(ctx context.Context, namespace string) (labels, error) {
	now := labels{seen: d.Clock.Now()}
	for _, w := range workloads {
		list, err := labelled(ctx, d.Client, namespace, w.gvk)
		if err != nil {
			return labels{}, err
		}
		for i := range list.Items {
			if u := &list.Items[i]; !templateHasLabel(u, w.template) {
				now.misplaced = append(now.misplaced, reference(u, u.GetAPIVersion(), u.GetKind()))
			}
		}
	}
	return now, nil
}

// tell logs the beginning and the end of a hold.
func (d *Detector) tell(namespace string, before, after *hold.Hold) {
	switch {
	case before == nil && after != nil:
		d.Log.Warn("injection on hold: agents do not start", "namespace", namespace, "reason", after.Reason)
	case before != nil && after == nil:
		d.Log.Info("injection goes on", "namespace", namespace, "after", d.Clock.Since(before.Since).String())
	}
}

func (d *Detector) complain(namespace string, err error) {
	if d.unreadable[namespace] {
		return
	}
	d.unreadable[namespace] = true
	advice := ""
	if apierrors.IsForbidden(err) {
		advice = "; bind ClusterRole kanister-kopia-namespace to the controller there"
	}
	d.Log.Error("an opted-in namespace cannot be looked at", "namespace", namespace, "error", err.Error()+advice)
}

// announce makes one Event per owner and reason.
func (d *Detector) announce(namespace string, groups []*group, current map[announcement]bool) {
	for _, g := range groups {
		a := announcement{namespace: namespace, owner: g.owner.UID, reason: g.reason}
		current[a] = true
		if last, ok := d.announced[a]; ok && d.Clock.Since(last) < repeatEvents {
			continue
		}
		d.announced[a] = d.Clock.Now()
		note := g.note()
		d.Log.Warn("no healthy agent", "namespace", namespace, "owner", g.owner.Kind+"/"+g.owner.Name, "reason", g.reason, "pods", len(g.pods), "detail", g.detail)
		owner := g.owner
		d.Events.Eventf(&owner, nil, corev1.EventTypeWarning, eventReason(g.reason), "Inspect", "%s", note)
	}
}

// noteLength is the most that the API server takes, in bytes.
const noteLength = 1024

func (g *group) note() string {
	var b strings.Builder
	switch {
	case g.reason == LabelMisplaced, g.reason == Refused:
		b.WriteString("this workload ")
	case len(g.pods) == 1:
		fmt.Fprintf(&b, "pod %s ", g.pods[0])
	default:
		fmt.Fprintf(&b, "each of %d pods (%s, …) ", len(g.pods), g.pods[0])
	}
	b.WriteString(g.reason.Text())
	fix := ". Fix: " + Fix(g.reason, g.owner)
	if g.detail != "" {
		b.WriteString(" (" + clip(g.detail, noteLength-b.Len()-len(fix)-3) + ")")
	}
	return clip(b.String()+fix, noteLength)
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:max(0, n-3)], "") + "..."
}

// eventReason is "BackupAgentMissing" for "agent-missing".
func eventReason(r Reason) string {
	var b strings.Builder
	b.WriteString("Backup")
	for word := range strings.SplitSeq(string(r), "-") {
		b.WriteString(strings.ToUpper(word[:1]) + word[1:])
	}
	return b.String()
}
