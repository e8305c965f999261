// SPDX-License-Identifier: Apache-2.0

package api

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
)

// ProtocolVersion is the newest version of this API that is spoken here, and
// OldestProtocol the oldest: the previous one, as soon as there is one.
//
// A version is raised when a request or an answer gets something that a peer of the
// previous version would not understand. What may be added without one: fields and
// codes of answers, which are read past. What is never done: changing the meaning
// of a field, a state or a code.
const (
	ProtocolVersion = 2
	OldestProtocol  = 1
)

// ProtocolHeader of a request is the version that it is written in. A request
// without it is read as of OldestProtocol.
const ProtocolHeader = "Kopia-Agent-Protocol"

// Protocols is a range of versions, both ends included.
type Protocols struct{ Oldest, Newest int }

// Spoken are the versions that are spoken here.
var Spoken = Protocols{OldestProtocol, ProtocolVersion}

func (p Protocols) String() string {
	if p.Oldest == p.Newest {
		return fmt.Sprintf("protocol %d", p.Newest)
	}
	return fmt.Sprintf("protocols %d to %d", p.Oldest, p.Newest)
}

// Has says whether a version is one of them.
func (p Protocols) Has(version int) bool { return p.Oldest <= version && version <= p.Newest }

// Protocols of an agent, by what it says of itself.
func (i Info) Protocols() Protocols {
	if i.OldestProtocol == 0 {
		return Protocols{i.Protocol, i.Protocol}
	}
	return Protocols{i.OldestProtocol, i.Protocol}
}

// Negotiate returns the newest version that both sides speak, or a problem that
// says which of them is too old.
func Negotiate(controller, agent Protocols) (int, error) {
	version := min(controller.Newest, agent.Newest)
	if controller.Has(version) && agent.Has(version) {
		return version, nil
	}
	p := &Problem{
		Code:  CodeProtocol,
		Title: fmt.Sprintf("the agent speaks %s, this controller %s", agent, controller),
		Hint:  "the agent is too old: restart its workload, so that its pods get a new one",
	}
	if agent.Oldest > controller.Newest {
		p.Hint = "the controller is too old: upgrade it, or restart the workload, so that its pods get an agent of the controller's version"
	}
	return 0, p
}

// Written returns a request as a peer of a version understands it. A field that
// came with a later version is marked so:
//
//	Depth int  `json:"depth,omitempty" since:"2"`
//	Hurry bool `json:"hurry,omitempty" since:"2,hint"`
//
// What is only a hint is left out for an older peer. Anything else that is set
// changes what is asked for, so an older peer must not be asked at all.
func Written[T any](request T, version int) (T, error) {
	out := reflect.New(reflect.TypeOf(request)).Elem()
	out.Set(reflect.ValueOf(request))
	err := write(out, version, "")
	return out.Interface().(T), err
}

func write(v reflect.Value, version int, at string) error {
	switch {
	case v.Kind() == reflect.Pointer && !v.IsNil():
		if v.Type().Elem().Kind() != reflect.Struct {
			return nil
		}
		copied := reflect.New(v.Type().Elem()) // the caller's own stays as it is
		copied.Elem().Set(v.Elem())
		v.Set(copied)
		return write(copied.Elem(), version, at)
	case v.Kind() != reflect.Struct:
		return nil
	}
	for i := range v.NumField() {
		field := v.Type().Field(i)
		if !field.IsExported() {
			continue // of a foreign type, like a time
		}
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		number, how, _ := strings.Cut(field.Tag.Get("since"), ",")
		since, _ := strconv.Atoi(number) // none: it was always there
		switch where := at + name; {
		case since <= version:
			if err := write(v.Field(i), version, where+"."); err != nil {
				return err
			}
		case v.Field(i).IsZero():
		case how == "hint":
			v.Field(i).SetZero()
		default:
			return &Problem{
				Code:  CodeProtocol,
				Title: fmt.Sprintf("the agent speaks protocol %d, %s needs %d", version, where, since),
				Hint:  "the agent is too old: restart its workload, so that its pods get a new one",
			}
		}
	}
	return nil
}
