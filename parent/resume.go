package parent

import (
	"context"
	"errors"
	"time"

	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/parent/wash"
)

// resume takes up what the store says of this instance, whoever has started its parent
// again.
func (w *washer) resume(ctx context.Context) {
	for ctx.Err() == nil {
		rows, err := w.rows.List(ctx, state.Query{Partition: w.p.config.Instance.ID, Newest: true, Limit: 1})
		if err == nil {
			w.resumed = true
			w.takeUp(ctx, rows)
			return
		}
		if errors.Is(err, state.ErrNotWhole) {
			// It says that a wash passed, and does not show it: the instance is not known to
			// be washed, and somebody has to look.
			w.resumed = true
			w.takeUpAs("", state.Wash{Reason: "the record of the last wash: " + err.Error()})
			return
		}
		w.p.log.Warn("the washes of before cannot be read; trying again", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(recordAgain):
		}
	}
}

// begin takes up what is noted of this instance, before anything is served. Where nothing
// is, no wash of this machine's was ever begun that a store could hide: begin is resume
// then, but for so long at most. A store that is gone stops no instance.
func (w *washer) begin(ctx context.Context) {
	noted, err := noteAt(w.config.Note)
	switch {
	case err != nil: // whatever it was, nobody knows that the instance is whole
		w.takeUpAs("", state.Wash{Reason: err.Error() + ": order a wash"})
	case noted.Wash != "":
		w.found, w.noted = noted, noted
		w.takeUpAs(noted.Wash, noted.Row)
	default:
		ctx, cancel := context.WithTimeout(ctx, resumeWait)
		defer cancel()
		w.resume(ctx)
	}
}

// takeUp takes up the newest of rows, as far as it is newer than what was noted. What
// was noted and not stored is stored.
func (w *washer) takeUp(ctx context.Context, rows []state.Record[state.Wash]) {
	noted := w.found
	unwritten := noted.Wash != "" && noted.Row.Open == ""
	if len(rows) == 0 {
		if unwritten {
			w.record(ctx, wash.Action{Wash: noted.Wash, Row: noted.Row})
		}
		return
	}
	newest := rows[0]
	id := newest.Key.Partition + "/" + newest.Key.Sort
	switch {
	case unwritten && (noted.Wash == id && newest.Value.Open != "" || newest.Value.StartedAt.Before(noted.Row.StartedAt)):
		w.record(ctx, wash.Action{Wash: noted.Wash, Row: noted.Row})
	case !newest.Value.StartedAt.Before(w.started): // this parent's own
	case noted.Wash == "" || newest.Value.StartedAt.After(noted.Row.StartedAt):
		w.takeUpAs(id, newest.Value)
	}
}

func (w *washer) takeUpAs(id string, row state.Wash) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if row.Passed {
		w.id, w.endedAt = id, row.EndedAt()
	}
	var actions []wash.Action
	w.state, actions = w.settings().Resume(w.state, id, row)
	w.todo(actions)
}
