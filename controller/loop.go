package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/schema"
)

// Loop is a control loop over one row of a table: S is what the row remembers, O
// what is observed, A an action.
type Loop[S state.Row, O, A any] struct {
	// Name of the loop, for actions' ids, logs and metrics.
	Name string
	// Lease under which it runs; empty: the region's own. A loop that one controller
	// runs for all regions has a name here.
	Lease string
	// Table and Key say where its row lies. The fields of S are the row's, and one
	// more, "journal", is this package's ([state.Journal]).
	Table schema.Table
	Key   state.Key
	// Initial is what is remembered before anything is stored, and of fields that the
	// row lacks.
	Initial S
	// ByHand are fields that people write, without counting it in the row's version.
	// A decision that was made on another value than is there is made again.
	ByHand []string
	// Every is how often it decides.
	Every time.Duration

	// Observe looks at the world, for a leader with a token, or for a standby, whose
	// token is 0. While it fails, nothing is decided.
	Observe func(ctx context.Context, token int64) (O, error)
	// Step decides, and is pure. Times that it is given never go back, whichever
	// controller gives them. It is not called while actions are pending.
	Step func(S, O, time.Time) (S, []A)
	// Decided hears of an observation once the decision on it holds: stored, or the same
	// as what is stored. An observation of whose decision that is not known, as somebody
	// else wrote the row or no answer came, is made again, and has to have all that this
	// one had. nil: nobody does.
	Decided func(O)
	// Same says whether two states are alike in all that must outlive the leader. What
	// differs else the leader keeps in its memory. nil: whether their JSON is the same.
	Same func(a, b S) bool
	// Adopt, unless nil, has a standby go round, too: it observes and decides, and
	// neither stores nor does anything. When it comes to lead, Adopt is given what is
	// stored and what the standby has come to, and what it gives the leader goes on
	// with.
	Adopt func(stored, own S, token int64) S
	// Explain says what an action is and why, for people.
	Explain func(A) (what, reason string)
	// Execute carries an action out. It may be called again with the same id, after a
	// crash or an error, and must have effect once. A leader that is paused in the
	// middle of it may finish it after its successor has done more: so what sets
	// something has to be observed, and set again when it is not as decided.
	Execute func(ctx context.Context, id string, action A) error
	// Tries is how often an action is tried that fails, with each round, while those
	// after it and the next step wait. Then it is given up, and the next step sees the
	// world as it is. A step that decides an action again until it sees it done wants
	// 1: then the same one, by what Explain says of it, is told of once. Default 5.
	Tries int
}

const (
	defaultTries = 5
	// mostDone is how many of the actions that have ended a row tells of.
	mostDone = 20
	// mostRaces is how often in a row a round begins anew because somebody else wrote.
	mostRaces = 5
	// executeTimeout bounds a try.
	executeTimeout = 30 * time.Second
	// journalField is the row's field that is this package's.
	journalField = "journal"
)

// Runner is a Loop of whatever types.
type Runner interface {
	lease() string
	check() error
	begin() runner
}

// runner is a loop in a process that leads at times.
type runner interface {
	lead(t *term, as Leader)
	stand(ctx context.Context, leading func() bool, as Leader)
}

// Leader is who goes round a loop: the holder of a lease, while it holds it. It is
// for one goroutine.
type Leader struct {
	Store state.Store // that the loop's row is in
	Token int64       // fencing token of the lease
	// Held says whether the lease still is held. nil: as long as the context lives.
	Held func() bool
	// Above hears of a higher token that the loop's row has. nil: nobody does.
	Above func(token int64)
	// Now is the wall clock. nil: time.Now.
	Now func() time.Time
	// Logger hears what is done and why. nil: nobody does.
	Logger *slog.Logger

	metric *metrics      // nil: nothing is counted
	ahead  time.Duration // by which the time that the loop is told is ahead of Now

	begun bool // it has read the row
	own   any  // what it came to as a standby; nil: nothing
	kept  kept
}

// kept is what a leader has in its memory of a row: it goes on with the state as
// long as nobody else writes the row.
type kept struct {
	version int64
	byHand  map[string]json.RawMessage
	state   any
}

func (l Loop[S, O, A]) lease() string { return l.Lease }

func (l Loop[S, O, A]) check() error {
	switch {
	case l.Name == "":
		return errors.New("loop without a name")
	case l.Every <= 0:
		return fmt.Errorf("loop %s: every %s: want more than 0", l.Name, l.Every)
	case l.Observe == nil || l.Step == nil || l.Explain == nil || l.Execute == nil:
		return fmt.Errorf("loop %s: Observe, Step, Explain and Execute are required", l.Name)
	}
	if l.Lease != "" {
		if err := state.CheckLeaseName(l.Lease); err != nil {
			return fmt.Errorf("loop %s: %w", l.Name, err)
		}
	}
	return l.Key.Check(l.Table)
}

func (l Loop[S, O, A]) begin() runner { return &activeLoop[S, O, A]{Loop: l} }

// activeLoop is a loop in a process.
type activeLoop[S state.Row, O, A any] struct {
	Loop[S, O, A]

	mu    sync.Mutex // guards what follows
	own   S          // what a standby has come to
	stood bool       // since the last term
}

// stand goes round as a standby until the context ends, if the loop has that done.
// What it comes to it leaves for lead to take; after a term it begins anew.
func (l *activeLoop[S, O, A]) stand(ctx context.Context, leading func() bool, as Leader) {
	if l.Adopt == nil {
		return
	}
	tick := time.NewTicker(l.Every)
	defer tick.Stop()
	own := l.Initial
	for {
		if leading() {
			own = l.Initial
		} else if observed, err := l.Observe(ctx, 0); err == nil {
			own, _ = l.Step(own, observed, as.Now().UTC().Round(0))
			l.mu.Lock()
			l.own, l.stood = own, true
			l.mu.Unlock()
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// takeOwn gives what a standby has come to, once; nil: nothing.
func (l *activeLoop[S, O, A]) takeOwn() any {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.stood {
		return nil
	}
	l.stood = false
	return l.own
}

// lead goes round until the term ends.
func (l *activeLoop[S, O, A]) lead(t *term, as Leader) {
	as.Token, as.Held, as.Above = t.token, t.valid, t.above
	as.Logger = as.Logger.With("loop", l.Name)
	as.own = l.takeOwn()
	tick := time.NewTicker(l.Every)
	defer tick.Stop()
	failing := false
	for {
		err := l.Round(t.ctx, &as)
		result := "ok"
		switch {
		case t.ctx.Err() != nil:
			return
		case errors.Is(err, state.ErrFenced):
			as.Logger.WarnContext(t.ctx, "somebody with a higher fencing token has written: taking the lease again", "token", t.token)
			result = "fenced"
		case err != nil:
			result = "error"
			if !failing {
				as.Logger.WarnContext(t.ctx, "control loop fails, trying again", "error", err)
			}
		case failing:
			as.Logger.InfoContext(t.ctx, "control loop goes on")
		}
		failing = err != nil
		as.metric.countRound(l.Name, result)
		select {
		case <-t.ctx.Done():
			return
		case <-tick.C:
		}
	}
}
