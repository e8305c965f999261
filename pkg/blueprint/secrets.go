// SPDX-License-Identifier: Apache-2.0

package blueprint

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/template/parse"

	crv1alpha1 "github.com/kanister-kopia/kanister-kopia/pkg/apis/cr/v1alpha1"
	"github.com/kanister-kopia/kanister-kopia/pkg/function"
)

// SecretInCommand is a phase that would render a secret into a command.
type SecretInCommand struct {
	Phase, Function string
	// Fields are what the templates name, such as .Profile or .Secrets.db.Data.
	Fields []string
}

func (s SecretInCommand) String() string {
	return fmt.Sprintf("phase %s renders %s into a command of %s: whoever may read the pod, its processes or the API server's audit log sees the secret; let the command read it from a mounted Secret",
		s.Phase, strings.Join(s.Fields, ", "), s.Function)
}

// SecretsInCommands are the phases of an action whose commands would show a secret
// that they render: the Profile's credentials, or a Secret. It judges the templates,
// not their values: an output or an option that is a secret is not found out.
func SecretsInCommands(action *crv1alpha1.BlueprintAction, functions *function.Registry) []SecretInCommand {
	var out []SecretInCommand
	for _, p := range Phases(action) {
		f, err := functions.Get(p.Func)
		if err != nil {
			continue
		}
		runs, ok := f.(function.Commands)
		if !ok {
			continue
		}
		fields := map[string]bool{}
		for _, name := range runs.CommandArgs() {
			eachText(p.Args[name], func(text string) {
				for _, field := range secretFields(text) {
					fields[field] = true
				}
			})
		}
		if len(fields) > 0 {
			out = append(out, SecretInCommand{Phase: p.Name, Function: p.Func, Fields: slices.Sorted(maps.Keys(fields))})
		}
	}
	return out
}

func eachText(v any, do func(string)) {
	switch v := v.(type) {
	case string:
		do(v)
	case []any:
		for _, e := range v {
			eachText(e, do)
		}
	case map[string]any:
		for k, e := range v {
			do(k)
			eachText(e, do)
		}
	case crv1alpha1.JSONMap:
		eachText(map[string]any(v), do)
	}
}

// secretFields are the parts of a template that name a secret. A text that is no
// template has none; one that does not parse fails when it is rendered.
func secretFields(text string) []string {
	if !strings.Contains(text, "{{") {
		return nil
	}
	t := parse.New("config")
	t.Mode = parse.SkipFuncCheck
	trees := map[string]*parse.Tree{}
	if _, err := t.Parse(text, "", "", trees); err != nil {
		return nil
	}
	var w walker
	for _, tree := range trees {
		// Another template may be called with any dot.
		w.walk(tree.Root, tree == t)
	}
	return w.found
}

// walker collects every secret that a template may print.
type walker struct{ found []string }

// walk looks at one node. root says that the dot is the template's parameters.
func (w *walker) walk(node parse.Node, root bool) {
	switch n := node.(type) {
	case *parse.ListNode:
		if n != nil {
			for _, e := range n.Nodes {
				w.walk(e, root)
			}
		}
	case *parse.ActionNode:
		w.walk(n.Pipe, root)
	case *parse.TemplateNode:
		w.walk(n.Pipe, false)
	case *parse.IfNode:
		// What a condition looks at is not printed, but what it declares may be.
		if len(n.Pipe.Decl) > 0 {
			w.walk(n.Pipe, root)
		}
		w.walk(n.List, root)
		w.walk(n.ElseList, root)
	case *parse.RangeNode:
		w.branch(&n.BranchNode, root)
	case *parse.WithNode:
		w.branch(&n.BranchNode, root)
	case *parse.PipeNode:
		if n != nil {
			for _, c := range n.Cmds {
				for _, a := range c.Args {
					w.walk(a, root)
				}
			}
		}
	case *parse.ChainNode:
		// (index .Phases "p").Secrets; of a phase's other fields none is a secret.
		if n.Field[0] == "Secrets" {
			w.found = append(w.found, n.String())
		} else if inner, ok := n.Node.(*parse.PipeNode); !ok || !wholePhase(inner) {
			w.walk(n.Node, root)
		}
	case *parse.DotNode:
		if root {
			w.found = append(w.found, n.String())
		}
	case *parse.FieldNode:
		if isSecret(n.Ident) {
			w.found = append(w.found, n.String())
		}
	case *parse.VariableNode:
		// $ is the root; of any other variable it is not known what it holds.
		if n.String() == "$" || isSecret(n.Ident[1:]) {
			w.found = append(w.found, n.String())
		}
	}
}

// branch is with and range: the dot moves inside.
func (w *walker) branch(n *parse.BranchNode, root bool) {
	w.walk(n.Pipe, root)
	w.walk(n.List, false)
	w.walk(n.ElseList, root)
}

// isSecret: the dot may have been moved by with or range, so .Credential and
// .Secrets count wherever they are.
func isSecret(path []string) bool {
	if len(path) == 0 {
		return false
	}
	switch path[0] {
	case "Secrets", "Credential":
		return true
	case "Profile":
		return len(path) == 1 || path[1] == "Credential"
	case "DeferPhase":
		return len(path) == 1 || path[1] == "Secrets"
	case "Phases":
		return len(path) <= 2 || path[2] == "Secrets"
	}
	return false
}

// wholePhase: `index .Phases "p"`, of which something else than the Secrets is taken.
func wholePhase(pipe *parse.PipeNode) bool {
	if len(pipe.Cmds) != 1 || len(pipe.Cmds[0].Args) != 3 {
		return false
	}
	args := pipe.Cmds[0].Args
	f, ok := args[1].(*parse.FieldNode)
	return args[0].String() == "index" && ok && slices.Equal(f.Ident, []string{"Phases"})
}
