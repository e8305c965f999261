// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/names"
)

// devices is the namespace of these specs, and the name of their volume.
const devices = "e2e-devices"

// deviceBlueprint backs a device up through the agent and restores it in place.
var deviceBlueprint = &crv1alpha1.Blueprint{
	ObjectMeta: metav1.ObjectMeta{Name: devices},
	Actions: map[string]*crv1alpha1.BlueprintAction{
		"backup": {
			OutputArtifacts: map[string]crv1alpha1.Artifact{"files": {KeyValue: map[string]string{"backupID": "{{ .Phases.save.Output.backupID }}"}}},
			Phases: []crv1alpha1.BlueprintPhase{act("save", "BackupData", crv1alpha1.JSONMap{
				"namespace": "{{ .Namespace.Name }}", "pod": "{{ .Options.pod }}", "container": "app",
				"includePath": "/dev/data", "backupArtifactPrefix": devices,
			})},
		},
		"restore": {Phases: []crv1alpha1.BlueprintPhase{act("bringBack", "RestoreData", crv1alpha1.JSONMap{
			"namespace": "{{ .Namespace.Name }}", "image": "ignored", "volumes": map[string]any{"files": "/dev/data"},
			"backupArtifactPrefix": devices, "backupIdentifier": "{{ .ArtifactsIn.files.KeyValue.backupID }}",
			"podOverride": map[string]any{
				"securityContext": asRoot,
				"containers":      []any{map[string]any{"name": "container", "securityContext": asRoot}},
			},
		})}},
	},
}

// asRoot is who may open a device on this cluster's node.
var asRoot = map[string]any{"runAsUser": 0, "runAsNonRoot": false}

// devicePod has the claim as a device.
func devicePod(name string, annotations map[string]string) *corev1.Pod {
	pod := filesPod(devices, name, labelled)
	pod.Annotations = annotations
	root := int64(0)
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &root}
	app := &pod.Spec.Containers[0]
	app.VolumeMounts, app.VolumeDevices = nil, []corev1.VolumeDevice{{Name: "files", DevicePath: "/dev/data"}}
	return pod
}

var _ = Describe("a block device", Ordered, func() {
	run := func(ctx context.Context, action string, options map[string]string, parent *crv1alpha1.ActionSet) (*crv1alpha1.ActionSet, error) {
		return runOn(ctx, deviceBlueprint.Name, action, devices, devices, options, parent)
	}

	BeforeAll(func(ctx SpecContext) {
		const file = "/var/tmp/" + devices
		node, err := cluster.OnNode(ctx, "truncate -s 64M "+file+" && losetup --find --show "+file)
		if err != nil {
			Skip("the node has no loop devices: " + err.Error())
		}
		node = strings.TrimSpace(node)
		DeferCleanup(func(ctx SpecContext) {
			Expect(cluster.DeleteNamespace(ctx, devices)).To(Succeed())
			Expect(client.IgnoreNotFound(cluster.Delete(ctx, &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: devices}}))).To(Succeed())
			_, err := cluster.OnNode(ctx, "losetup --detach "+node+" && rm "+file)
			Expect(err).NotTo(HaveOccurred())
		}, NodeTimeout(short))

		keys, err := cluster.StartS3(ctx)
		Expect(err).NotTo(HaveOccurred())
		Expect(cluster.PutProfile(ctx, devices, keys, devices)).To(Succeed())
		Expect(cluster.Blueprint(ctx, deviceBlueprint)).To(Succeed())
		Expect(cluster.DeleteNamespace(ctx, devices)).To(Succeed())
		Expect(cluster.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
			Name: devices, Labels: map[string]string{names.InjectionLabel: names.InjectionEnabled},
			Annotations: map[string]string{names.PrivilegedAgentsAnnotation: "true"},
		}})).To(Succeed())
		Expect(cluster.Bind(ctx, devices, "kanister-kopia-namespace")).To(Succeed())

		var nodes corev1.NodeList
		Expect(cluster.List(ctx, &nodes)).To(Succeed())
		block, size := corev1.PersistentVolumeBlock, corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("64Mi")}
		Expect(cluster.Put(ctx, &corev1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: devices},
			Spec: corev1.PersistentVolumeSpec{
				VolumeMode: &block, Capacity: size, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
				PersistentVolumeSource:        corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: node}},
				NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
					MatchExpressions: []corev1.NodeSelectorRequirement{{
						Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{nodes.Items[0].Labels[corev1.LabelHostname]},
					}},
				}}}},
			},
		})).To(Succeed())
		bound := claim(devices)
		bound.Spec.VolumeMode, bound.Spec.VolumeName, bound.Spec.StorageClassName = &block, devices, new("")
		bound.Spec.Resources.Requests = size
		Expect(cluster.Create(ctx, bound)).To(Succeed())
	}, NodeTimeout(long))

	const sum = "md5sum < /dev/data"
	var backup *crv1alpha1.ActionSet
	It("comes back as it was, byte by byte", func(ctx SpecContext) {
		var want string
		insidePod(ctx, devicePod("disk", map[string]string{names.RunAsAnnotation: "0"}), func(shell func(string) string) {
			shell("dd if=/dev/urandom of=/dev/data bs=1M seek=7 count=3 && sync")
			want = shell(sum)
			var err error
			backup, err = run(ctx, "backup", map[string]string{"pod": "disk"}, nil)
			Expect(err).NotTo(HaveOccurred())
			shell("dd if=/dev/urandom of=/dev/data bs=1M seek=5 count=20 && sync")
			Expect(shell(sum)).NotTo(Equal(want))
		})
		_, err := run(ctx, "restore", nil, backup)
		Expect(err).NotTo(HaveOccurred())
		insidePod(ctx, devicePod("disk", nil), func(shell func(string) string) { Expect(shell(sum)).To(Equal(want)) })
	}, SpecTimeout(long))

	It("is not backed up by who may not read it, and he says what to do", func(ctx SpecContext) {
		insidePod(ctx, devicePod("disk", map[string]string{names.RunAsAnnotation: "1000"}), func(func(string) string) {
			_, err := run(ctx, "backup", map[string]string{"pod": "disk"}, nil)
			Expect(err).To(MatchError(And(ContainSubstring("uid 1000"), ContainSubstring("privileged-agents"))))
		})
	}, SpecTimeout(long))
})
