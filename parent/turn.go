package parent

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/lease"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/parent/wash"
)

// turn is what at most one instance of a region has for each model: it may restart its
// engine. One is a lease, so that it is free again when its holder dies.
type turn struct {
	length time.Duration
	leases state.Table[lease.Record]
	models []modelTurn  // in the order in which all ask for them, so that no two wait for each other
	until  atomic.Int64 // when it is over, if it is not renewed, in Unix nanoseconds; 0: it is not held
}

type modelTurn struct {
	model     string
	key       state.Key
	candidate *lease.Candidate
}

func newTurn(store state.Store, length time.Duration, self fleet.Instance) (*turn, error) {
	t := &turn{length: length, leases: state.LeaseTable(store)}
	process := self.ID + "/" + rand.Text()
	for _, model := range slices.Sorted(slices.Values(self.Models)) {
		candidate, err := lease.New(lease.Config{Self: process, Length: length})
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256([]byte(model)) // a lease's name has not all that a model's may
		name := fmt.Sprintf("wash/%s/%s", self.Region, hex.EncodeToString(sum[:8]))
		if err := state.CheckLeaseName(name); err != nil {
			return nil, err
		}
		t.models = append(t.models, modelTurn{model: model, key: state.LeaseKey(name), candidate: candidate})
	}
	return t, nil
}

// held says whether it is, as far as is known.
func (t *turn) held() bool { return time.Now().UnixNano() < t.until.Load() }

// seek asks for it, and renews it. Why says, for people, why it is not held.
func (t *turn) seek(ctx context.Context) (why string) {
	until := time.Now().Add(t.length)
	for _, m := range t.models {
		err := t.advance(ctx, m.candidate, m.key)
		token, to := m.candidate.Held(time.Now())
		switch holder, _, _ := strings.Cut(m.candidate.Holder(), "/"); {
		case token != 0:
			if to.Before(until) {
				until = to
			}
			continue
		case err != nil:
			why = fmt.Sprintf("the state store does not say whose turn it is: %v", err)
		case holder != "":
			why = fmt.Sprintf("it is the turn of %s, which serves %s, too", holder, m.model)
		default:
			why = "its turn has not come"
		}
		t.until.Store(0)
		return why
	}
	t.until.Store(until.UnixNano())
	return ""
}

// advance does what there is to do for one lease, and looks whether it was given back.
func (t *turn) advance(ctx context.Context, c *lease.Candidate, key state.Key) error {
	ctx, cancel := context.WithTimeout(ctx, t.length/3)
	defer cancel()
	for looked := false; ; {
		do := c.Next(time.Now())
		token, _ := c.Held(time.Now())
		switch {
		case do.Kind == lease.Write:
			record, err := t.leases.Put(ctx, state.Record[lease.Record]{Key: key, Version: do.Version, Value: do.Record})
			switch {
			case errors.Is(err, state.ErrConflict):
				c.Refused()
			case err != nil:
				c.Unknown(time.Now())
				return err
			default:
				c.Wrote(record.Version)
			}
		case !looked && (do.Kind == lease.Read || token == 0):
			looked = true
			record, err := t.leases.Get(ctx, key)
			if err != nil && !errors.Is(err, state.ErrNotFound) {
				c.Unknown(time.Now())
				return err
			}
			c.Read(record.Value, record.Version, time.Now())
		default:
			return nil
		}
	}
}

// giveBack lets others have it.
func (t *turn) giveBack(ctx context.Context) error {
	t.until.Store(0)
	var errs []error
	for _, m := range t.models {
		do, held := m.candidate.Release(time.Now())
		if !held {
			continue
		}
		call, cancel := context.WithTimeout(ctx, t.length/3)
		_, err := t.leases.Put(call, state.Record[lease.Record]{Key: m.key, Version: do.Version, Value: do.Record})
		errs = append(errs, err)
		cancel()
	}
	return errors.Join(errs...)
}

// seekTurns asks for the turn while a wash needs it, keeps it until the wash has ended,
// and gives it back then. A parent that stops in the middle does not: its engine may be
// down until the lease ends, and longer.
func (w *washer) seekTurns(ctx context.Context) {
	poll := time.NewTicker(w.config.TurnLength / 15)
	defer poll.Stop()
	for ctx.Err() == nil {
		w.mu.Lock()
		is, changed := w.state, w.changed
		w.mu.Unlock()
		switch {
		case is.Waiting:
			w.seekTurn(ctx)
		case is.WantsTurn():
			had := w.turn.held()
			if why := w.turn.seek(ctx); why != "" && had && ctx.Err() == nil {
				w.p.log.Error("the turn to restart the engine is lost: another instance may restart its own", "because", why)
			}
		default:
			if err := w.turn.giveBack(ctx); err != nil {
				w.p.log.Warn("the turn to restart engines cannot be given back: others wait for its end", "error", err)
			}
			select {
			case <-ctx.Done():
			case <-changed:
			}
			continue
		}
		select {
		case <-ctx.Done():
		case <-poll.C:
		}
	}
	if w.now().Waiting {
		_ = w.turn.giveBack(context.WithoutCancel(ctx)) // the lease ends by itself
	}
}

// seekTurn has the wash that waits begin, if it may. The turn is not asked for before
// others can take this instance's requests: they may need it to become ready.
func (w *washer) seekTurn(ctx context.Context) {
	why := w.spared(ctx)
	if why == "" {
		why = w.turn.seek(ctx)
		if why == "" {
			why = w.spared(ctx) // since nobody else's engine is down
		}
	}
	if ctx.Err() != nil {
		return
	}
	if why != "" && w.turn.held() {
		if err := w.turn.giveBack(ctx); err != nil {
			w.p.log.Warn("the turn to restart engines cannot be given back: others wait for its end", "error", err)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.state.Waiting {
		w.step(wash.Observation{Turn: why == "", Waits: why})
	}
}

// spared says why the fleet cannot do without this instance now; empty: it can. One that
// takes no requests is missed by nobody.
func (w *washer) spared(ctx context.Context) (why string) {
	ctx, cancel := context.WithTimeout(ctx, w.config.TurnLength/3)
	defer cancel()
	snapshot, err := w.p.config.Store.Snapshot(ctx)
	if err != nil {
		return fmt.Sprintf("the fleet's store does not say who else is ready: %v", err)
	}
	self := w.p.config.Instance
	draining := slices.ContainsFunc(snapshot.Instances, func(in *fleet.Instance) bool { return in.ID == self.ID && in.Draining })
	if draining || w.quarantined() != "" {
		return ""
	}
	for _, in := range snapshot.Ready(w.p.settings.Load().StaleAfter) {
		missing := func(model string) bool { return !slices.Contains(in.Models, model) }
		if in.ID != self.ID && in.Region == self.Region && !slices.ContainsFunc(self.Models, missing) {
			return ""
		}
	}
	return fmt.Sprintf("no other instance of %s that serves %s is ready", self.Region, strings.Join(self.Models, ", "))
}
