package wash

import (
	"cmp"
	"slices"
	"time"

	"github.com/mrgc/mrgc/internal/state"
)

// Aside says whether the instance is out of traffic for its wash. It serves no request
// from [State.Closed] on, and is back when the wash has passed; one that fails leaves it
// in quarantine.
func (s State) Aside() bool { return s.Restart && s.between(StepAside, StepBack) }

// Closed says whether requests are sent elsewhere: the engine is about to be restarted,
// is, or has not been checked since.
func (s State) Closed() bool { return s.Restart && s.between(AwaitIdle, StepBack) }

// WantsTurn says whether the wash that is due or under way needs the turn.
func (s State) WantsTurn() bool { return s.Waiting || s.Restart }

// KeepsTurn says whether the turn has to last until the instance is back, whatever becomes
// of the store that has it.
func (s State) KeepsTurn() bool { return s.Restart && s.between(KeepTurn, "") }

// between says whether the action that is under way is one of those from one on, and
// before another; the empty one is none.
func (s State) between(first, last Kind) bool {
	at := func(kind Kind) int {
		return slices.IndexFunc(s.parts(), func(p part) bool { return p.kind == kind })
	}
	return at(first) <= s.Part && (last == "" || s.Part < at(last))
}

// parts are those of the wash that is under way.
func (s State) parts() []part {
	if s.Restart {
		return restartingParts
	}
	return parts
}

// restarts says whether a wash that begins now restarts the engine.
func (c Config) restarts() bool { return c.RestartEngine && !c.Strict }

// await has a wash that is due wait until it may begin. Nothing else changes meanwhile.
func (c Config) await(s State, o Observation, now time.Time) (State, []Action) {
	if o.Turn || !c.restarts() {
		return c.begin(s, now)
	}
	s.Row.Open = state.WashWaiting
	why := cmp.Or(o.Waits, s.Row.Reason, "its turn has not come")
	if why == s.Row.Reason {
		return s, nil
	}
	s.Row.Reason = why
	return s, []Action{{Kind: Wait, Wash: s.Wash, Row: s.Row}}
}

// again has a wash wait once more that lost its turn, or whose instance is needed now. It
// serves still, and nothing was done to it that harms.
func again(s State, why string) (State, []Action) {
	s.Waiting, s.Restart, s.Part, s.Since = true, false, 0, time.Time{}
	s.Row.Steps, s.Row.Open, s.Row.Reason = nil, state.WashWaiting, why
	return s, []Action{{Kind: Wait, Wash: s.Wash, Row: s.Row}}
}

// Resume takes up an instance's newest row after a start of its parent. One whose wash
// has failed is in quarantine. One whose wash was waiting goes on to. One whose wash was
// cut off may be half washed, and its engine gone: it is in quarantine, too, and is
// washed again without being told to.
func (c Config) Resume(s State, id string, row state.Wash) (State, []Action) {
	switch {
	case row.Open == "" && row.Passed:
		return s, nil
	case row.Open == "":
		s.Quarantined = row.Reason
		return s, []Action{{Kind: Quarantine, Wash: id, Row: row}}
	case row.Open == state.WashWaiting && s.Wash == "":
		s.Wash, s.Row, s.Waiting = id, row, true
		return s, nil
	}
	waited := row.Open == state.WashWaiting
	row.Open, row.Reason = "", "the instance's parent stopped while the wash was under way"
	if waited { // and another has begun since
		row.Reason = "given up: the instance's parent stopped while the wash waited"
		return s, []Action{{Kind: Record, Wash: id, Row: row}}
	}
	s.Quarantined = row.Reason
	if s.Wash == "" {
		s.Again = row.Trigger
	}
	return s, []Action{{Kind: Record, Wash: id, Row: row}, {Kind: Quarantine, Wash: id, Row: row}}
}
