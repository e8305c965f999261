// SPDX-License-Identifier: Apache-2.0

// Package hold is the breaker of the injector. An agent is started before the
// application, so an agent whose image cannot be pulled, or whose container cannot
// be created, keeps the application from starting. While that happens in a
// namespace, injection there is on hold: pods start without the agent.
//
// A hold is for one namespace. What makes agents fail is mostly the namespace's
// own (a pull secret, a policy, a node pool), and no tenant must be able to end
// the backups of others by making his own agents fail.
//
// The controller sees failures and writes holds into one ConfigMap of the control
// plane; the webhook reads them. A hold ends by itself, so a controller that is
// gone cannot keep one up.
package hold

import (
	"encoding/json"
	"fmt"
	"time"
)

// Length of a hold after the last failure that was seen. Until then pods start
// without the agent, also those that replace the failing ones; after it, one more
// attempt is made.
const Length = 5 * time.Minute

// renewBefore is how long before its end a hold is written again. In between,
// another look at the same failure changes nothing.
const renewBefore = Length - time.Minute

// Hold is a namespace in which nothing is injected.
type Hold struct {
	// Reason is what was seen: pod, and what kubelet said.
	Reason string `json:"reason"`
	// Since is when agents of the namespace began to fail.
	Since time.Time `json:"since"`
	// Until is when the hold ends unless it is renewed.
	Until time.Time `json:"until"`
}

// Observation is what is seen of a namespace's agents at one moment.
type Observation struct {
	// Failure of an agent that does not start now; "" if there is none.
	Failure string
	// LastStart is when the youngest running agent was started; zero if none runs.
	LastStart time.Time
}

// Next is the hold of a namespace after an observation, nil for none. It begins
// with the first failure, is renewed while one is seen, and ends when an agent
// has started since the last one, or by time.
func Next(h *Hold, o Observation, now time.Time) *Hold {
	if h != nil && !h.Until.After(now) {
		h = nil
	}
	switch {
	case o.Failure == "" && h == nil:
		return nil
	case o.Failure == "":
		// The clock of a container's start has whole seconds.
		lastSeen := h.Until.Add(-Length).Truncate(time.Second)
		if !o.LastStart.Before(lastSeen) {
			return nil
		}
		return h
	case h == nil:
		return &Hold{Reason: o.Failure, Since: now, Until: now.Add(Length)}
	case h.Until.Sub(now) > renewBefore:
		return h
	default:
		return &Hold{Reason: o.Failure, Since: h.Since, Until: now.Add(Length)}
	}
}

// Encode writes a hold as a value of the ConfigMap; the key is the namespace.
func Encode(h Hold) string {
	b, err := json.Marshal(h)
	if err != nil {
		panic(fmt.Sprintf("marshalling a text and two times: %v", err))
	}
	return string(b)
}

// Active is the hold of a namespace at a time, from the ConfigMap's data; nil if
// there is none. A value that cannot be read is none: holding back agents needs a
// reason.
func Active(data map[string]string, namespace string, now time.Time) *Hold {
	value, ok := data[namespace]
	if !ok {
		return nil
	}
	var h Hold
	if err := json.Unmarshal([]byte(value), &h); err != nil || !h.Until.After(now) {
		return nil
	}
	return &h
}
