// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/pkg/volumes"
	"github.com/kanister-kopia/kanister-kopia/webhook/decide"
	"github.com/kanister-kopia/kanister-kopia/webhook/render"
)

// runExplain prints what the webhook would decide, from files alone.
func runExplain(args []string, stdin io.Reader, stdout io.Writer) error {
	file, name, image, output := "", "", "kanister-kopia.local/agent:dev", ""
	labels, annotations := map[string]string{}, map[string]string{}
	fs := flag.NewFlagSet("webhook explain", flag.ContinueOnError)
	fs.SetOutput(stdout)
	fs.StringVar(&file, "f", "", "pods or workloads, YAML or JSON; a Namespace, LimitRanges and ResourceQuotas\nbeside them are taken into account; -: standard input")
	fs.StringVar(&name, "namespace", "", "name of the namespace")
	fs.Func("namespace-labels", "key=value,… of the namespace\n(default: the file's Namespace, or "+names.InjectionLabel+"="+names.InjectionEnabled+")", into(labels))
	fs.Func("namespace-annotations", "key=value,… of the namespace", into(annotations))
	fs.StringVar(&image, "agent-image", image, "image of the agent")
	fs.StringVar(&output, "o", "", "yaml: print the injected pods instead")
	if err := parse(fs, args); err != nil {
		return err
	}
	if output != "" && output != "yaml" {
		return fmt.Errorf("unknown output %q; accepted: yaml", output)
	}
	in, err := open(file, stdin)
	if err != nil {
		return err
	}
	ns := in.namespace
	switch {
	case len(labels) > 0:
		ns.Labels = labels
	case ns.Name == "":
		ns.Labels = map[string]string{names.InjectionLabel: names.InjectionEnabled}
	}
	if len(annotations) > 0 {
		ns.Annotations = annotations
	}
	ns.Mode = decide.ModeOf(ns.Labels)

	for i, s := range in.pods {
		ns.Name = cmp.Or(name, in.namespace.Name, s.pod.Namespace, "default")
		d := decide.Decide(s.pod, ns)
		if s.misplaced {
			d.Warnings = append(d.Warnings, "label "+names.InjectLabel+" on the workload itself does nothing; put it into the labels of its pod template")
		}
		if i > 0 {
			fmt.Fprintln(stdout, map[string]string{"": "", "yaml": "---"}[output])
		}
		if output == "" {
			err = explain(stdout, s.name, d)
		} else {
			err = printInjected(stdout, s.pod, d, agentOptions(image))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func printInjected(w io.Writer, pod *corev1.Pod, d decide.Decision, o render.Options) error {
	if !d.Inject() {
		return errors.New(d.Message())
	}
	pod = render.Inject(pod, d.Plan, o).Apply(pod)
	pod.APIVersion, pod.Kind = "v1", "Pod"
	b, err := yaml.Marshal(pod)
	if err != nil {
		return fmt.Errorf("marshal pod: %w", err)
	}
	_, err = w.Write(b)
	return err
}

func explain(w io.Writer, name string, d decide.Decision) error {
	verdict := "not injected"
	switch {
	case d.Inject():
		verdict = "injected"
	case d.Deny():
		verdict = "refused"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n", name, verdict)
	fmt.Fprintf(&b, "why:       %s (%s)\n", d.Message(), d.Reason)
	if p := d.Plan; p != nil {
		for _, name := range p.Volumes {
			fmt.Fprintf(&b, "volume:    %s at %s\n", name, volumes.MirrorPath(name))
		}
		for _, name := range p.Devices {
			fmt.Fprintf(&b, "device:    %s at %s, if the agent's user may read it\n", name, volumes.DevicePath(name))
		}
		for _, s := range p.Skipped {
			fmt.Fprintf(&b, "skipped:   %s: %s\n", s.Name, s.Reason)
		}
		uid := "chosen by the cluster"
		if p.RunAs.EffectiveUID != nil {
			uid = fmt.Sprint(*p.RunAs.EffectiveUID)
		}
		fmt.Fprintf(&b, "uid:       %s: %s\n", uid, p.RunAs.Why)
		if p.NoHealth {
			fmt.Fprintln(&b, "health:    no port: neither /healthz nor /metrics")
		}
		fmt.Fprintf(&b, "QoS class: %s, kept; the agent may use %d MiB\n", p.QoS, p.MemoryLimit>>20)
	}
	for _, warning := range d.Warnings {
		fmt.Fprintf(&b, "warning:   %s\n", warning)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func open(file string, stdin io.Reader) (*input, error) {
	switch file {
	case "":
		return nil, errors.New("-f is required: a file with a pod or a workload, or -")
	case "-":
		return readInput(stdin)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("read pod: %w", err)
	}
	defer f.Close()
	return readInput(f)
}

// into parses key=value,… into a map.
func into(m map[string]string) func(string) error {
	return func(s string) error {
		for pair := range strings.SplitSeq(s, ",") {
			key, value, ok := strings.Cut(pair, "=")
			if !ok || key == "" {
				return fmt.Errorf("%q is not key=value", pair)
			}
			m[key] = value
		}
		return nil
	}
}
