// SPDX-License-Identifier: Apache-2.0

package main

import (
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
	ns := decide.Namespace{Name: "default", Labels: map[string]string{}, Annotations: map[string]string{}}
	file, image, output := "", "kanister-kopia.local/agent:dev", ""
	fs := flag.NewFlagSet("webhook explain", flag.ContinueOnError)
	fs.SetOutput(stdout)
	fs.StringVar(&file, "f", "", "the pod, YAML or JSON; -: standard input")
	fs.StringVar(&ns.Name, "namespace", ns.Name, "name of its namespace")
	fs.Func("namespace-labels", "key=value,… of the namespace (default "+names.InjectionLabel+"="+names.InjectionEnabled+")", into(ns.Labels))
	fs.Func("namespace-annotations", "key=value,… of the namespace", into(ns.Annotations))
	fs.StringVar(&image, "agent-image", image, "image of the agent")
	fs.StringVar(&output, "o", "", "yaml: print the injected pod instead")
	if err := parse(fs, args); err != nil {
		return err
	}
	if len(ns.Labels) == 0 {
		ns.Labels[names.InjectionLabel] = names.InjectionEnabled
	}
	ns.Mode = decide.ModeOf(ns.Labels)

	pod, err := readPod(file, stdin)
	if err != nil {
		return err
	}
	d := decide.Decide(pod, ns)
	switch output {
	case "":
		return explain(stdout, pod, d)
	case "yaml":
		if !d.Inject() {
			return errors.New(d.Message())
		}
		b, err := yaml.Marshal(render.Inject(pod, d.Plan, agentOptions(image)).Apply(pod))
		if err != nil {
			return fmt.Errorf("marshal pod: %w", err)
		}
		_, err = stdout.Write(b)
		return err
	default:
		return fmt.Errorf("unknown output %q; accepted: yaml", output)
	}
}

func explain(w io.Writer, pod *corev1.Pod, d decide.Decision) error {
	verdict := "not injected"
	switch {
	case d.Inject():
		verdict = "injected"
	case d.Deny():
		verdict = "refused"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "pod %s: %s\n", pod.Name, verdict)
	fmt.Fprintf(&b, "why:       %s (%s)\n", d.Message(), d.Reason)
	if p := d.Plan; p != nil {
		for _, name := range p.Volumes {
			fmt.Fprintf(&b, "volume:    %s at %s\n", name, volumes.MirrorPath(name))
		}
		for _, s := range p.Skipped {
			fmt.Fprintf(&b, "skipped:   %s: %s\n", s.Name, s.Reason)
		}
		uid := "chosen by the cluster"
		if p.RunAs.EffectiveUID != nil {
			uid = fmt.Sprint(*p.RunAs.EffectiveUID)
		}
		fmt.Fprintf(&b, "uid:       %s: %s\n", uid, p.RunAs.Why)
		fmt.Fprintf(&b, "QoS class: %s, kept; the agent may use %d MiB\n", p.QoS, p.MemoryLimit>>20)
	}
	for _, warning := range d.Warnings {
		fmt.Fprintf(&b, "warning:   %s\n", warning)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func readPod(file string, stdin io.Reader) (*corev1.Pod, error) {
	var raw []byte
	var err error
	switch file {
	case "":
		return nil, errors.New("-f is required: a file with a pod, or -")
	case "-":
		raw, err = io.ReadAll(stdin)
	default:
		raw, err = os.ReadFile(file)
	}
	if err != nil {
		return nil, fmt.Errorf("read pod: %w", err)
	}
	pod := &corev1.Pod{}
	if err := yaml.Unmarshal(raw, pod); err != nil {
		return nil, fmt.Errorf("read pod: %w", err)
	}
	if pod.Kind != "Pod" {
		return nil, fmt.Errorf("read pod: the file holds kind %q, expected one Pod", pod.Kind)
	}
	return pod, nil
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
