// SPDX-License-Identifier: Apache-2.0

package function

// Commands is what a Func also has that runs a command of the Blueprint's author.
// What such an argument renders is seen by whoever reads the pod, its processes or
// the API server's audit log.
type Commands interface {
	// CommandArgs are the names of the arguments that become a command line.
	CommandArgs() []string
}

func (*kubeExec) CommandArgs() []string    { return []string{"command"} }
func (*kubeTask) CommandArgs() []string    { return []string{"command"} }
func (*prepareData) CommandArgs() []string { return []string{"command"} }
