// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apilabels "k8s.io/apimachinery/pkg/labels"
	"k8s.io/utils/clock"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	kopiav1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/kopia/v1alpha1"
)

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func at(d time.Duration) *metav1.Time { t := metav1.NewTime(noon.Add(d)); return &t }

func TestMaintenanceIsDue(t *testing.T) {
	hours := func(n time.Duration) *metav1.Duration { return &metav1.Duration{Duration: n * time.Hour} }
	for name, c := range map[string]struct {
		spec        *kopiav1alpha1.Maintenance
		initialized *metav1.Time
		used        *metav1.Time
		status      kopiav1alpha1.MaintenanceStatus
		mode        string
		pause       time.Duration
	}{
		"never ready":         {nil, nil, nil, kopiav1alpha1.MaintenanceStatus{}, "", 0},
		"new":                 {nil, at(-time.Hour), at(0), kopiav1alpha1.MaintenanceStatus{}, "", 5 * time.Hour},
		"six hours of use":    {nil, at(-6 * time.Hour), at(0), kopiav1alpha1.MaintenanceStatus{}, modeQuick, 0},
		"unused":              {nil, at(-48 * time.Hour), at(-30 * time.Hour), kopiav1alpha1.MaintenanceStatus{LastFull: at(-10 * time.Hour)}, "", 14 * time.Hour},
		"a day":               {nil, at(-48 * time.Hour), at(0), kopiav1alpha1.MaintenanceStatus{LastFull: at(-24 * time.Hour), LastQuick: at(-time.Minute)}, modeFull, 0},
		"a full one counts":   {nil, at(-48 * time.Hour), at(0), kopiav1alpha1.MaintenanceStatus{LastFull: at(-time.Hour), LastQuick: at(-9 * time.Hour)}, "", 5 * time.Hour},
		"suspended":           {&kopiav1alpha1.Maintenance{Suspend: true}, at(-48 * time.Hour), at(0), kopiav1alpha1.MaintenanceStatus{}, "", 0},
		"its own intervals":   {&kopiav1alpha1.Maintenance{FullInterval: hours(2), QuickInterval: hours(1)}, at(-90 * time.Minute), at(0), kopiav1alpha1.MaintenanceStatus{}, modeQuick, 0},
		"failed just now":     {nil, at(-48 * time.Hour), at(0), kopiav1alpha1.MaintenanceStatus{FullFailures: 1, LastFullAttempt: at(-time.Minute), LastQuick: at(-time.Hour)}, "", 9 * time.Minute},
		"failed for days":     {nil, at(-480 * time.Hour), at(0), kopiav1alpha1.MaintenanceStatus{FullFailures: 40, LastFullAttempt: at(-time.Hour), LastQuick: at(0)}, "", 5 * time.Hour},
		"failed, tried again": {nil, at(-48 * time.Hour), at(0), kopiav1alpha1.MaintenanceStatus{FullFailures: 1, LastFullAttempt: at(-time.Hour)}, modeFull, 0},
		// A full one that fails for days, whatever of, does not stop the compaction.
		"full failed, quick due":    {nil, at(-48 * time.Hour), at(0), kopiav1alpha1.MaintenanceStatus{FullFailures: 7, LastFullAttempt: at(-time.Minute), LastQuick: at(-6 * time.Hour)}, modeQuick, 0},
		"both failed":               {nil, at(-48 * time.Hour), at(0), kopiav1alpha1.MaintenanceStatus{FullFailures: 7, LastFullAttempt: at(-time.Minute), QuickFailures: 1, LastQuickAttempt: at(-2 * time.Minute)}, "", 8 * time.Minute},
		"both failed, quick again":  {nil, at(-48 * time.Hour), at(0), kopiav1alpha1.MaintenanceStatus{FullFailures: 7, LastFullAttempt: at(-time.Minute), QuickFailures: 1, LastQuickAttempt: at(-10 * time.Minute)}, modeQuick, 0},
		"quick failed, full is due": {nil, at(-48 * time.Hour), at(0), kopiav1alpha1.MaintenanceStatus{QuickFailures: 7, LastQuickAttempt: at(-time.Minute)}, modeFull, 0},
		"full failed, unused":       {nil, at(-48 * time.Hour), at(-30 * time.Hour), kopiav1alpha1.MaintenanceStatus{FullFailures: 1, LastFullAttempt: at(-time.Minute), LastQuick: at(-20 * time.Hour)}, "", 9 * time.Minute},
	} {
		rs := &kopiav1alpha1.RepositoryServer{Spec: kopiav1alpha1.RepositoryServerSpec{Maintenance: c.spec}}
		rs.Status.Initialized, rs.Status.LastUsed, rs.Status.Maintenance = c.initialized, c.used, &c.status
		if mode, pause := due(rs, noon); mode != c.mode || pause != c.pause {
			t.Errorf("%s: %q after %s, want %q after %s", name, mode, pause, c.mode, c.pause)
		}
	}
}

// A full maintenance reads the share of files that the spec says, a quick one none.
func TestMaintenanceVerifies(t *testing.T) {
	none, all := int32(0), int32(100)
	for name, c := range map[string]struct {
		spec *kopiav1alpha1.Maintenance
		mode string
		want string
	}{
		"nothing said": {nil, modeFull, "1"},
		"quick":        {&kopiav1alpha1.Maintenance{VerifyPercent: &all}, modeQuick, "0"},
		"all":          {&kopiav1alpha1.Maintenance{VerifyPercent: &all}, modeFull, "100"},
		"none":         {&kopiav1alpha1.Maintenance{VerifyPercent: &none}, modeFull, "0"},
	} {
		rs := &kopiav1alpha1.RepositoryServer{Spec: kopiav1alpha1.RepositoryServerSpec{Maintenance: c.spec}}
		want := []string{"maintain", "--mode", c.mode, "--verify-percent", c.want}
		if got := buildMaintenancePod(rs, Image{}, c.mode, "run").Spec.Containers[0].Args; !slices.Equal(got, want) {
			t.Errorf("%s: it runs %v, want %v", name, got, want)
		}
	}
}

// A maintenance has its own memory, whatever the server has, and no more rights than that.
func TestMaintenancePod(t *testing.T) {
	memory := func(limit string) corev1.ResourceRequirements {
		return corev1.ResourceRequirements{Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(limit)}}
	}
	for _, c := range []struct {
		spec      *kopiav1alpha1.Maintenance
		limit, of string
	}{
		{nil, "1Gi", "805306368"},
		{&kopiav1alpha1.Maintenance{Resources: memory("4Gi")}, "4Gi", "3221225472"},
	} {
		rs := &kopiav1alpha1.RepositoryServer{Spec: kopiav1alpha1.RepositoryServerSpec{Maintenance: c.spec, Resources: memory("64Mi")}}
		pod := buildMaintenancePod(rs, Image{}, modeFull, "run").Spec
		restricted(t, pod)
		if got := pod.Containers[0].Resources.Limits.Memory().String(); got != c.limit {
			t.Errorf("memory %s, want %s", got, c.limit)
		}
		if e := pod.Containers[0].Env[0]; e.Name != "GOMEMLIMIT" || e.Value != c.of {
			t.Errorf("environment %+v, want GOMEMLIMIT of %s", e, c.of)
		}
		if *pod.ActiveDeadlineSeconds != 12*3600 || pod.RestartPolicy != corev1.RestartPolicyNever || len(pod.SchedulingGates) != 1 {
			t.Errorf("deadline %d, restarts %s, gates %v", *pod.ActiveDeadlineSeconds, pod.RestartPolicy, pod.SchedulingGates)
		}
	}
}

// The Lease is given back on the kubelet's word only: an object that somebody removed,
// or that was failed because its node is out of reach, proves nothing.
func TestMaintenanceHasEnded(t *testing.T) {
	pod := func(node string, s ...corev1.ContainerStatus) *corev1.Pod {
		return &corev1.Pod{Spec: corev1.PodSpec{NodeName: node}, Status: corev1.PodStatus{Phase: corev1.PodFailed, ContainerStatuses: s}}
	}
	disrupted := func(p *corev1.Pod, reason string) *corev1.Pod {
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: reason}}
		return p
	}
	creating := corev1.ContainerStatus{Name: Container, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}}}
	for name, c := range map[string]struct {
		pod  *corev1.Pod
		want bool
	}{
		"terminated":        {pod("n", corev1.ContainerStatus{Name: Container, State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}}), true},
		"never had a node":  {pod(""), true},
		"never started":     {pod("n", corev1.ContainerStatus{Name: Container, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff"}}}), true},
		"node out of reach": {pod("n", corev1.ContainerStatus{Name: Container, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}), false},
		"nothing is known":  {pod("n"), false},
		"a mesh's proxy has": {pod("n", corev1.ContainerStatus{Name: "proxy", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}},
			corev1.ContainerStatus{Name: Container, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}), false},
		"evicted before":   {disrupted(pod("n", creating), corev1.PodReasonTerminationByKubelet), true},
		"node removed":     {disrupted(pod("n", creating), "DeletionByPodGC"), false},
		"removed after it": {disrupted(pod("n", corev1.ContainerStatus{Name: Container, State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}}), "DeletionByPodGC"), true},
	} {
		if got := ended(c.pod); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

func TestMaintenanceOutcome(t *testing.T) {
	r := &Reconciler{}
	pod := func(mode string, phase corev1.PodPhase, reason, message string) *corev1.Pod {
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{CreationTimestamp: *at(0), Annotations: map[string]string{modeAnnotation: mode}},
			Status: corev1.PodStatus{Phase: phase, ContainerStatuses: []corev1.ContainerStatus{{
				Name: Container, State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: reason, Message: message}},
			}}},
		}
		return p
	}
	rs := &kopiav1alpha1.RepositoryServer{}
	message := func() string {
		return meta.FindStatusCondition(rs.Status.Conditions, kopiav1alpha1.ConditionMaintained).Message
	}

	r.outcome(rs, pod(modeFull, corev1.PodFailed, "Error", `{"level":"ERROR","msg":"full maintenance: clock skew detected"}`))
	if s := rs.Status.Maintenance; s.FullFailures != 1 || !s.LastFullAttempt.Equal(at(0)) || s.LastSuccess != nil || !strings.Contains(message(), "clock skew detected") {
		t.Errorf("a failure: %+v, %q", s, message())
	}
	r.outcome(rs, pod(modeFull, corev1.PodFailed, "OOMKilled", ""))
	if s := rs.Status.Maintenance; s.FullFailures != 2 || !strings.Contains(message(), "spec.maintenance.resources.limits.memory") {
		t.Errorf("out of memory: %+v, %q", s, message())
	}
	// Quick ones hide nothing of it.
	r.outcome(rs, pod(modeQuick, corev1.PodFailed, "Error", "a quick failure"))
	if s := rs.Status.Maintenance; s.QuickFailures != 1 || s.FullFailures != 2 || strings.Contains(message(), "a quick failure") {
		t.Errorf("a quick failure, too: %+v, %q", s, message())
	}
	r.outcome(rs, pod(modeQuick, corev1.PodSucceeded, "Completed", `{}`))
	if s := rs.Status.Maintenance; s.QuickFailures != 0 || s.FullFailures != 2 || !s.LastQuick.Equal(at(0)) || !strings.Contains(message(), "spec.maintenance.resources.limits.memory") {
		t.Errorf("a quick success: %+v, %q", s, message())
	}
	meta.RemoveStatusCondition(&rs.Status.Conditions, kopiav1alpha1.ConditionMaintained)
	r.outcome(rs, pod(modeQuick, corev1.PodSucceeded, "Completed", `{}`))
	if !meta.IsStatusConditionFalse(rs.Status.Conditions, kopiav1alpha1.ConditionMaintained) || !strings.Contains(message(), "has failed 2 times") {
		t.Errorf("a quick success says %q", message())
	}
	r.outcome(rs, pod(modeFull, corev1.PodSucceeded, "Completed", `{"seconds":7,"indexBlobs":3,"contents":40,"storedBytes":500,"freedBytes":60,"incompleteCollected":2,"unrecordedCollected":5,"unusableCollected":8,"verifiedSnapshots":4,"verifiedFiles":9}`))
	if s := rs.Status.Maintenance; s.FullFailures != 0 || !s.LastFull.Equal(at(0)) || s.IndexBlobs != 3 || s.FreedBytes != 60 || s.VerifiedFiles != 9 ||
		s.UnrecordedCollected != 5 || s.UnusableCollected != 8 || !meta.IsStatusConditionTrue(rs.Status.Conditions, kopiav1alpha1.ConditionMaintained) {
		t.Errorf("a success: %+v", s)
	}
	r.outcome(rs, pod(modeQuick, corev1.PodSucceeded, "Completed", `{"indexBlobs":1,"contents":41}`))
	if s := rs.Status.Maintenance; s.IndexBlobs != 1 || s.FreedBytes != 60 {
		t.Errorf("what a quick one does not look at is lost: %+v", s)
	}
	// So many sources that its server starts slowly are told, with what to do.
	crowded := func() *metav1.Condition {
		return meta.FindStatusCondition(rs.Status.Conditions, kopiav1alpha1.ConditionCrowded)
	}
	r.outcome(rs, pod(modeQuick, corev1.PodSucceeded, "Completed", `{"sources":500}`))
	if c := crowded(); c.Status != metav1.ConditionFalse {
		t.Errorf("500 sources: %+v", c)
	}
	r.outcome(rs, pod(modeQuick, corev1.PodSucceeded, "Completed", `{"sources":501}`))
	if c := crowded(); c.Status != metav1.ConditionTrue || !strings.Contains(c.Message, "501 sources") || !strings.Contains(c.Message, "delete the backups") {
		t.Errorf("501 sources: %+v", c)
	}
	// One that was over time is told what to give it, unless its container never started.
	over := pod(modeQuick, corev1.PodFailed, "Error", "")
	over.Status.Reason = "DeadlineExceeded"
	state := &over.Status.ContainerStatuses[0].State
	for words, is := range map[string]corev1.ContainerState{
		"raise spec.maintenance.resources": {Terminated: &corev1.ContainerStateTerminated{StartedAt: *at(-time.Hour), ExitCode: 137}},
		"did not start within 12h0m0s":     {Waiting: &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}},
		"look at what it mounts":           {Terminated: &corev1.ContainerStateTerminated{Reason: "ContainerStatusUnknown", ExitCode: 137}},
	} {
		*state = is
		if r.outcome(rs, over); !strings.Contains(message(), words) {
			t.Errorf("over time, %+v: %q, want %q", is, message(), words)
		}
	}
	rs.Status.Maintenance.QuickFailures = 0
	r.outcome(rs, pod(modeQuick, corev1.PodSucceeded, "Completed", "what?"))
	if s := rs.Status.Maintenance; s.QuickFailures != 1 {
		t.Errorf("a pod that says nothing has succeeded: %+v", s)
	}
}

// A volume that one node at a time may mount lets in a server beside its maintenance, and a
// maintenance beside its server, if both want the same node.
func TestMaintenanceBesideServer(t *testing.T) {
	rs := &kopiav1alpha1.RepositoryServer{ObjectMeta: metav1.ObjectMeta{Name: "id"}}
	near := func(a *corev1.Affinity, pod map[string]string) bool {
		t.Helper()
		term := a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution[0].PodAffinityTerm
		selector, err := metav1.LabelSelectorAsSelector(term.LabelSelector)
		if err != nil {
			t.Fatal(err)
		}
		return selector.Matches(apilabels.Set(pod)) && term.TopologyKey == corev1.LabelHostname
	}
	if a := buildDeployment(rs, Image{}, "r", 1).Spec.Template.Spec.Affinity; a != nil {
		t.Errorf("a bucket is everywhere: %+v", a)
	}
	rs.Spec.Storage.Filesystem = &kopiav1alpha1.FilesystemStorage{Claim: "c"}
	other := rs.DeepCopy()
	other.Name = "other"
	server, maintenance := buildDeployment(rs, Image{}, "r", 1).Spec.Template, buildMaintenancePod(rs, Image{}, modeFull, "run")
	if !near(server.Spec.Affinity, maintenance.Labels) || !near(maintenance.Spec.Affinity, server.Labels) {
		t.Errorf("one is not drawn to the other: %+v, %+v", server.Spec.Affinity, maintenance.Spec.Affinity)
	}
	if near(server.Spec.Affinity, maintenanceLabels(other)) || near(maintenance.Spec.Affinity, labels(other)) {
		t.Error("they are drawn to another repository's")
	}
}

// A maintenance has the storage keys of the last action that used its repository, also where
// nothing else has come of it.
func TestMaintenanceHasLastKeys(t *testing.T) {
	for _, stopped := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			ctx := t.Context()
			rs := &kopiav1alpha1.RepositoryServer{
				ObjectMeta: metav1.ObjectMeta{Namespace: "control", Name: "id"},
				Spec:       kopiav1alpha1.RepositoryServerSpec{Storage: storage(t, profile(), tenant, DefaultKeyID), Tenant: &tenant, KeyID: DefaultKeyID},
				Status:     kopiav1alpha1.RepositoryServerStatus{Initialized: &metav1.Time{Time: time.Now()}},
			}
			password := corev1.Secret{
				ObjectMeta: metav1.ObjectMeta{Namespace: "control", Name: "id-password"},
				Data:       map[string][]byte{"password": []byte("of the repository")},
			}
			m := &Manager{Client: clusterOf(t, rs, &password), Namespace: "control", Clock: clock.RealClock{}}
			for _, key := range []string{"of before", "rotated"} {
				p := profile()
				p.Credential.KeyPair.Secret = key
				// Nobody starts a server here.
				if _, err := m.OpenID(ctx, "id", Ref{Namespace: tenant.Namespace, Profile: p}); !errors.Is(err, errStartTimeout) {
					t.Fatal(err)
				}
				var mounted corev1.Secret
				pod := buildMaintenancePod(rs, Image{}, modeFull, "run")
				if err := m.Client.Get(ctx, client.ObjectKey{Namespace: "control", Name: pod.Spec.Volumes[0].Secret.SecretName}, &mounted); err != nil {
					t.Fatal(err)
				}
				if has, _, err := parseConfigSecret(&mounted); err != nil || has.Storage.SecretAccessKey != key {
					t.Errorf("stopped %t: it has the key %q, want %q; %v", stopped, has.Storage.SecretAccessKey, key, err)
				}
				if !stopped {
					continue
				}
				if err := errors.Join(m.Client.Get(ctx, client.ObjectKeyFromObject(rs), rs), m.stop(ctx, rs)); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// maintenanceWorld is a repository whose maintenance has a pod and the Lease.
func maintenanceWorld(t *testing.T, change func(*kopiav1alpha1.RepositoryServer, *corev1.Pod)) (*Reconciler, *kopiav1alpha1.RepositoryServer, *corev1.Pod, func() string) {
	t.Helper()
	rs := &kopiav1alpha1.RepositoryServer{ObjectMeta: metav1.ObjectMeta{Namespace: "control", Name: "id"}}
	run, taken, seconds := "run", metav1.NewMicroTime(noon), int32(leaseDuration/time.Second)
	lease := &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Namespace: "control", Name: maintenanceName(rs)},
		Spec:       coordinationv1.LeaseSpec{HolderIdentity: &run, RenewTime: &taken, LeaseDurationSeconds: &seconds},
	}
	pod := buildMaintenancePod(rs, Image{}, modeFull, run)
	pod.CreationTimestamp = *at(0)
	change(rs, pod)
	c := clusterOf(t, rs, pod, lease)
	r := &Reconciler{Client: c, Manager: &Manager{Client: c, Namespace: "control"}, Clock: clocktesting.NewFakePassiveClock(noon)}
	holder := func() string {
		t.Helper()
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(lease), lease); err != nil {
			t.Fatal(err)
		}
		return ptr.Deref(lease.Spec.HolderIdentity, "")
	}
	return r, rs, pod, holder
}

// A maintenance that ends because its pod is deleted (a drain, an eviction, somebody) counts
// once and gives its Lease back on the kubelet's word, and on no less.
func TestMaintenanceDeleted(t *testing.T) {
	ctx := t.Context()
	for name, c := range map[string]struct {
		phase    corev1.PodPhase
		state    corev1.ContainerState
		failures int32
		holder   string
	}{
		"ended":                 {corev1.PodFailed, corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 143}}, 1, ""},
		"ended, not said yet":   {corev1.PodRunning, corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 143}}, 0, "run"},
		"goes on":               {corev1.PodRunning, corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}, 0, "run"},
		"out of reach":          {corev1.PodFailed, corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}, 0, "run"},
		"may have been started": {corev1.PodFailed, corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}}, 0, "run"},
	} {
		r, rs, pod, holder := maintenanceWorld(t, func(_ *kopiav1alpha1.RepositoryServer, pod *corev1.Pod) {
			pod.Spec.SchedulingGates, pod.Spec.NodeName = nil, "node-1"
			pod.Finalizers = []string{"kubelet/keeps-it"} // as a kubelet does until all of it has gone
			pod.Status.Phase = c.phase
			pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: Container, State: c.state}}
		})
		if err := r.Client.Delete(ctx, pod); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if _, err := r.maintain(ctx, rs.DeepCopy(), rs); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if got := maintenanceStatus(rs).FullFailures; got != c.failures || holder() != c.holder {
			t.Errorf("%s: %d failures, want %d; the Lease is of %q, want %q", name, got, c.failures, holder(), c.holder)
		}
	}
}

// A maintenance that is suspended before any node has it never starts; one that runs does
// not lose its Lease.
func TestMaintenanceSuspendedMeanwhile(t *testing.T) {
	ctx := t.Context()
	for name, c := range map[string]struct {
		suspend bool
		change  func(*corev1.Pod)
		stays   bool
	}{
		"behind its gate": {true, func(*corev1.Pod) {}, false},
		"without a node":  {true, func(p *corev1.Pod) { p.Spec.SchedulingGates = nil }, false},
		"running": {true, func(p *corev1.Pod) {
			p.Spec.SchedulingGates, p.Spec.NodeName, p.Status.Phase = nil, "node-1", corev1.PodRunning
		}, true},
		"not suspended": {false, func(*corev1.Pod) {}, true},
	} {
		r, rs, pod, holder := maintenanceWorld(t, func(rs *kopiav1alpha1.RepositoryServer, p *corev1.Pod) {
			rs.Spec.Maintenance = &kopiav1alpha1.Maintenance{Suspend: c.suspend}
			c.change(p)
		})
		if _, err := r.maintain(ctx, rs.DeepCopy(), rs); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		err := r.Client.Get(ctx, client.ObjectKeyFromObject(pod), pod)
		if stays := err == nil; stays != c.stays || (holder() == "run") != c.stays {
			t.Errorf("%s: its pod: %v, the Lease is of %q", name, err, holder())
		}
	}
}

// Locks that nobody extends are told, as long as they are not.
func TestMaintenanceSuspended(t *testing.T) {
	lock := &kopiav1alpha1.Format{ObjectLock: &kopiav1alpha1.ObjectLock{Period: metav1.Duration{Duration: 72 * time.Hour}}}
	for name, c := range map[string]struct {
		suspend bool
		format  *kopiav1alpha1.Format
		want    bool
	}{
		"with a lock":            {true, lock, true},
		"without":                {true, &kopiav1alpha1.Format{}, false},
		"a lock, not suspended":  {false, lock, false},
		"neither, and no format": {false, nil, false},
	} {
		r, rs := &Reconciler{}, &kopiav1alpha1.RepositoryServer{Spec: kopiav1alpha1.RepositoryServerSpec{
			Format: c.format, Maintenance: &kopiav1alpha1.Maintenance{Suspend: c.suspend},
		}}
		r.suspended(rs)
		got := meta.FindStatusCondition(rs.Status.Conditions, kopiav1alpha1.ConditionMaintained)
		if (got != nil) != c.want || got != nil && (got.Status != metav1.ConditionFalse || !strings.Contains(got.Message, "72h0m0s") || !strings.Contains(got.Message, "remove the field")) {
			t.Errorf("%s: %+v, want a condition: %t", name, got, c.want)
		}
		// A failure of before, which no run will mend here, is no reason to alert.
		r.condition(rs, kopiav1alpha1.ConditionMaintained, false, reasonFailed, "it broke")
		r.suspended(rs)
		failed := meta.FindStatusCondition(rs.Status.Conditions, kopiav1alpha1.ConditionMaintained)
		if !c.suspend && failed.Reason != reasonFailed || c.suspend && failed.Reason != reasonSuspended ||
			c.suspend && !c.want && failed.Status != metav1.ConditionUnknown {
			t.Errorf("%s, after a failure: %+v", name, failed)
		}
		if !c.suspend {
			meta.RemoveStatusCondition(&rs.Status.Conditions, kopiav1alpha1.ConditionMaintained)
		}
		rs.Spec.Maintenance = nil
		r.suspended(rs)
		if got := meta.FindStatusCondition(rs.Status.Conditions, kopiav1alpha1.ConditionMaintained); got != nil {
			t.Errorf("%s, and then not any more: %+v", name, got)
		}
	}
}
