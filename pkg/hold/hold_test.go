// SPDX-License-Identifier: Apache-2.0

package hold_test

import (
	"testing"
	"time"

	"github.com/kanister-kopia/kanister-kopia/pkg/hold"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 600e6, time.UTC)

// A namespace's agents over time: what is seen, and whether injection is on hold.
func TestNext(t *testing.T) {
	type look struct {
		after   time.Duration
		failure string
		started time.Duration // when the youngest running agent started; 0: none runs
		held    bool
	}
	for name, looks := range map[string][]look{
		"nothing happens": {{}, {after: time.Minute}},
		"all is well":     {{started: time.Second, after: 2 * time.Second}},
		"it lasts as long as an agent fails": {
			{failure: "pull", held: true},
			{after: 4 * time.Minute, failure: "pull", held: true},
			{after: 8 * time.Minute, failure: "pull", held: true},
			{after: 12 * time.Minute, failure: "pull", held: true},
		},
		"the failing pod is gone: its successor starts without an agent, later ones are tried again": {
			{failure: "pull", held: true},
			{after: time.Minute, held: true},
			{after: 4 * time.Minute, held: true},
			{after: 6 * time.Minute},
		},
		"the image can be pulled again": {
			{failure: "pull", held: true},
			{after: 30 * time.Second, started: 20 * time.Second},
		},
		"it started in the second of the last failure": {
			{failure: "pull", held: true},
			{after: 30 * time.Second, started: 100 * time.Millisecond},
		},
		"an agent that ran before proves nothing": {
			{failure: "pull", started: -time.Hour, held: true},
			{after: 30 * time.Second, started: -time.Hour, held: true},
		},
		"one runs, another still fails": {
			{failure: "pull", held: true},
			{after: 30 * time.Second, failure: "pull", started: 20 * time.Second, held: true},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var h *hold.Hold
			for i, l := range looks {
				o := hold.Observation{Failure: l.failure}
				if l.started != 0 {
					o.LastStart = start.Add(l.started).Truncate(time.Second)
				}
				now := start.Add(l.after)
				h = hold.Next(h, o, now)
				data := map[string]string{}
				if h != nil {
					data["shop"] = hold.Encode(*h)
				}
				if active := hold.Active(data, "shop", now); (active != nil) != l.held {
					t.Fatalf("look %d: hold %+v, want held=%v", i, active, l.held)
				}
				if h != nil && (h.Reason != "pull" || !h.Since.Equal(start)) {
					t.Errorf("look %d: %+v", i, h)
				}
			}
		})
	}
}

// Without the controller a hold ends by itself.
func TestActiveEnds(t *testing.T) {
	h := hold.Next(nil, hold.Observation{Failure: "pull"}, start)
	data := map[string]string{"shop": hold.Encode(*h), "broken": "{"}
	for _, tc := range []struct {
		namespace string
		after     time.Duration
		want      bool
	}{
		{"shop", 0, true}, {"shop", hold.Length - time.Second, true}, {"shop", hold.Length, false},
		{"other", 0, false}, {"broken", 0, false},
	} {
		if got := hold.Active(data, tc.namespace, start.Add(tc.after)); (got != nil) != tc.want {
			t.Errorf("%s after %s: %+v", tc.namespace, tc.after, got)
		}
	}
}

// A failure that lasts is not written at every look.
func TestNextIsQuiet(t *testing.T) {
	h := hold.Next(nil, hold.Observation{Failure: "pull"}, start)
	if again := hold.Next(h, hold.Observation{Failure: "pull of another pod"}, start.Add(20*time.Second)); *again != *h {
		t.Errorf("%+v became %+v", h, again)
	}
	if later := hold.Next(h, hold.Observation{Failure: "other"}, start.Add(2*time.Minute)); !later.Until.After(h.Until) || later.Reason != "other" {
		t.Errorf("not renewed: %+v", later)
	}
}
