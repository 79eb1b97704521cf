package controller

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/mrgc/mrgc/internal/state"
)

// Round goes once round the loop, and anew when somebody else writes its row
// meanwhile. A controller does that every so often; simulations, which have a time
// of their own, call it themselves.
func (l Loop[S, O, A]) Round(ctx context.Context, leader *Leader) error {
	if leader.Now == nil {
		leader.Now = time.Now
	}
	if leader.Logger == nil {
		leader.Logger = slog.New(slog.DiscardHandler)
	}
	r := round[S, O, A]{Loop: l, ctx: ctx, leader: leader}
	for race := 1; ; race++ {
		err := r.decide()
		if !errors.Is(err, state.ErrConflict) || race == mostRaces || ctx.Err() != nil {
			return err
		}
	}
}

// round is one time round a loop.
type round[S state.Row, O, A any] struct {
	Loop[S, O, A]
	ctx    context.Context
	leader *Leader

	version int64 // of the row, as it was read or written last
	fence   int64
	byHand  map[string]json.RawMessage // fields that people write
	state   S
	journal state.Journal
}

var errNotLeading = errors.New("no longer leading")

// held says whether what is decided may be done.
func (r *round[S, O, A]) held() bool {
	return r.ctx.Err() == nil && (r.leader.Held == nil || r.leader.Held())
}

func (r *round[S, O, A]) decide() error {
	if err := r.load(); err != nil {
		return err
	}
	if r.fence < r.leader.Token {
		// Whoever led before is shut out before anything is decided or done.
		if err := r.store(nil); err != nil {
			return err
		}
	}
	if err := r.perform(); err != nil {
		return err
	}
	observed, err := r.Observe(r.ctx, r.leader.Token)
	if err != nil {
		return fmt.Errorf("observe: %w", err)
	}
	now := r.time()
	next, actions := r.Step(r.state, observed, now)
	changed, err := r.differs(next)
	if err != nil {
		return err
	}
	if !changed && len(actions) == 0 {
		r.holds(next, observed)
		return nil
	}
	if err := next.Validate(); err != nil {
		return fmt.Errorf("decision: %w", err)
	}
	for i, action := range actions {
		call, err := json.Marshal(action)
		if err != nil {
			return fmt.Errorf("decision: %w", err)
		}
		what, reason := r.Explain(action)
		r.journal.Pending = append(r.journal.Pending, state.Action{
			// The version is the decision's own while the row exists, the time if it has
			// ever been removed.
			ID:   fmt.Sprintf("%s-%s-%d-%d-%x", r.Name, r.Key.Partition, r.version+1, i, now.Unix()),
			What: what, Reason: reason, DecidedAt: now, Call: call,
		})
	}
	r.journal.DecidedAt = now
	if err := r.store(&next); err != nil {
		return err
	}
	r.holds(next, observed)
	return r.perform()
}

// holds has the leader go on with a state that was decided by what was observed.
func (r *round[S, O, A]) holds(next S, observed O) {
	r.keep(next)
	if r.Decided != nil {
		r.Decided(observed)
	}
}

// keep has the leader go on with a state while the row's version stays.
func (r *round[S, O, A]) keep(next S) {
	r.state = next
	r.leader.kept = kept{r.version, r.byHand, next}
}

// load reads the row.
func (r *round[S, O, A]) load() error {
	item, err := r.leader.Store.Get(r.ctx, r.Table, r.Key)
	if errors.Is(err, state.ErrNotFound) {
		item, err = state.Item{Key: r.Key, Fields: json.RawMessage(`{}`)}, nil
	}
	if err != nil {
		return err
	}
	if item.Fence > r.leader.Token {
		if r.leader.Above != nil {
			r.leader.Above(item.Fence)
		}
		return state.ErrFenced
	}
	r.version, r.fence = item.Version, item.Fence
	if err := r.decode(item.Fields); err != nil {
		return fmt.Errorf("table %s: %s: %w", r.Table.Name, r.Key, err)
	}
	r.remember()
	return nil
}

// remember goes on with what the leader keeps in its memory, if that is of what
// was read; or, at the begin of a term, with what the standby came to.
func (r *round[S, O, A]) remember() {
	if !r.leader.begun {
		r.leader.begun = true
		if own, stood := r.leader.own.(S); stood && r.Adopt != nil {
			r.keep(r.Adopt(r.state, own, r.leader.Token))
		}
		return
	}
	k := &r.leader.kept
	if k.version != r.version || !maps.EqualFunc(k.byHand, r.byHand, state.SameJSON) {
		return
	}
	if remembered, is := k.state.(S); is && r.Same != nil {
		r.state = remembered
	}
}

// decode reads the row's fields, those that it lacks from Initial.
func (r *round[S, O, A]) decode(row json.RawMessage) error {
	initial, err := json.Marshal(r.Initial)
	if err != nil {
		return err
	}
	var fields, all map[string]json.RawMessage
	if err := errors.Join(json.Unmarshal(row, &fields), json.Unmarshal(initial, &all)); err != nil {
		return err
	}
	r.keepByHand(fields)
	maps.Copy(all, fields)
	if row, err = json.Marshal(all); err != nil {
		return err
	}
	var known struct {
		Journal state.Journal `json:"journal"`
	}
	var remembered S
	if err := errors.Join(json.Unmarshal(row, &remembered), json.Unmarshal(row, &known)); err != nil {
		return err
	}
	r.state, r.journal = remembered, known.Journal
	return r.state.Validate()
}

// time is now, or later when the row was decided on by a clock that is ahead of
// this one: then it goes on from there at this clock's rate.
func (r *round[S, O, A]) time() time.Time {
	now := r.leader.Now()
	if more := r.journal.DecidedAt.Sub(now.Add(r.leader.ahead)); more > 0 {
		r.leader.ahead += more
	}
	return now.Add(r.leader.ahead).UTC().Round(0)
}

// keepByHand remembers the fields that people write, as they are.
func (r *round[S, O, A]) keepByHand(fields map[string]json.RawMessage) {
	r.byHand = map[string]json.RawMessage{}
	for _, name := range r.ByHand {
		r.byHand[name] = json.RawMessage("null")
		if value, there := fields[name]; there {
			r.byHand[name] = value
		}
	}
}

// differs says whether a decision changes what is remembered.
func (r *round[S, O, A]) differs(next S) (bool, error) {
	if r.Same != nil {
		return !r.Same(r.state, next), nil
	}
	before, err := json.Marshal(r.state)
	if err != nil {
		return false, err
	}
	after, err := json.Marshal(next)
	return !state.SameJSON(before, after), err
}

// store writes the journal, and what was decided unless that is nil: then fields
// that people write are not touched.
func (r *round[S, O, A]) store(decided *S) error {
	if !r.held() {
		return errNotLeading
	}
	fields := map[string]json.RawMessage{}
	write := state.Write{Key: r.Key, Version: r.version, Fence: r.leader.Token}
	if decided != nil || r.version == 0 {
		if decided == nil {
			decided = &r.state
		}
		encoded, err := json.Marshal(*decided)
		if err := errors.Join(err, json.Unmarshal(encoded, &fields)); err != nil {
			return fmt.Errorf("decision: %w", err)
		}
		write.Unchanged = r.byHand
	}
	var err error
	if fields[journalField], err = json.Marshal(r.journal); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if write.Fields, err = json.Marshal(fields); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	version, err := r.leader.Store.Write(r.ctx, r.Table, write)
	if err != nil {
		return err
	}
	if r.leader.kept.version == r.version {
		r.leader.kept.version = version // its own write
	}
	r.version, r.fence = version, r.leader.Token
	if write.Unchanged != nil {
		r.keepByHand(fields)
	}
	return nil
}

// perform carries out what is pending, in order, and notes what came of it. It is
// an error while something is pending still.
func (r *round[S, O, A]) perform() error {
	if len(r.journal.Pending) == 0 {
		return nil
	}
	ended := map[string]state.Action{} // and the last one may have been tried only
	var failed error
	for _, action := range r.journal.Pending {
		if !r.held() {
			failed = errNotLeading
			break
		}
		action, failed = r.try(action)
		if r.ctx.Err() != nil {
			break // whether it was done is for the next leader to find out
		}
		ended[action.ID] = action
		if action.EndedAt.IsZero() {
			break
		}
		failed = nil
	}
	return errors.Join(r.note(ended), failed)
}

// try carries an action out once.
func (r *round[S, O, A]) try(action state.Action) (state.Action, error) {
	var call A
	err := json.Unmarshal(action.Call, &call)
	if err == nil {
		ctx, cancel := context.WithTimeout(r.ctx, executeTimeout)
		err = r.Execute(ctx, action.ID, call)
		cancel()
	}
	action.Tries++
	action.Error = ""
	log := r.leader.Logger.With("action", action.What, "reason", action.Reason, "id", action.ID)
	if err != nil {
		action.Error = err.Error()
		err = fmt.Errorf("%s: %w", action.What, err)
	}
	switch {
	case err == nil:
		log.InfoContext(r.ctx, "done")
		action.EndedAt = r.time()
		r.leader.metric.countTry(r.Name, "done")
	case action.Tries >= cmp.Or(r.Tries, defaultTries):
		log.ErrorContext(r.ctx, "given up", "error", err)
		action.EndedAt = r.time()
		r.leader.metric.countTry(r.Name, "given_up")
	default:
		r.leader.metric.countTry(r.Name, "failed")
	}
	return action, err
}

// note writes what came of actions, on what is there now if somebody else wrote
// meanwhile.
func (r *round[S, O, A]) note(ended map[string]state.Action) error {
	for race := 1; len(ended) > 0; race++ {
		pending := r.journal.Pending
		r.journal.Pending = nil
		for _, action := range pending {
			if tried, was := ended[action.ID]; was {
				action = tried
			}
			if action.EndedAt.IsZero() {
				r.journal.Pending = append(r.journal.Pending, action)
			} else {
				r.journal.Done = r.appendDone(r.journal.Done, action)
			}
		}
		r.journal.Done = slices.Clone(r.journal.Done[max(len(r.journal.Done)-mostDone, 0):])
		err := r.store(nil)
		if !errors.Is(err, state.ErrConflict) || race == mostRaces {
			return err
		}
		if err := r.load(); err != nil {
			return err
		}
	}
	return nil
}

// appendDone adds an action that has ended. One that is decided again and again
// until it is seen done is told of once.
func (l Loop[S, O, A]) appendDone(done []state.Action, action state.Action) []state.Action {
	if n := len(done); n > 0 && l.Tries == 1 {
		last := done[n-1]
		if last.What == action.What && last.Reason == action.Reason && last.Error == action.Error {
			action.Tries += last.Tries
			action.DecidedAt = last.DecidedAt
			done = done[:n-1]
		}
	}
	return append(done, action)
}
