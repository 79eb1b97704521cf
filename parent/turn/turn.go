// Package turn has at most one instance of a region and model restart its engine at a
// time, and none while the others could not take its requests.
//
// The turn is a lease for each of the instance's models (package lease), asked for in one
// order, so that no two instances wait for each other. While a wash waits, and until its
// instance steps aside, the leases are short: a parent that dies keeps nobody from theirs.
// Before the instance steps aside they are made to last for as long as it may be out of
// traffic ([Turn.Keep]), so that none begins meanwhile although the store that has the
// leases is away, or the parent has died. One that starts again in its place inherits them.
//
// When a wash is due, and how it goes on, decides package wash.
package turn

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/lease"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/parent/wash"
)

// Config says whose turn it is about.
type Config struct {
	Self   fleet.Instance // its ID, Region, Models and their Versions
	Leases state.Store    // has the region's leases
	// Snapshot reads the fleet.
	Snapshot func(context.Context) (*fleet.Snapshot, error)
	// StaleAfter is when an instance that is not heard of counts as gone.
	StaleAfter func() time.Duration
	// Aside is how long the instance may be out of traffic.
	Aside func() time.Duration
	// Length is how long a parent that dies keeps others from their turns, unless its
	// instance has stepped aside; default 15 s.
	Length time.Duration
	// Wash is the wash that is due or under way, and what is closed when that changes.
	Wash func() (is wash.State, changed <-chan struct{})
	// Tell is called with whether the wash that waits may begin.
	Tell func(wash.Observation)
	// Now is a clock that does not go back; default time.Now.
	Now    func() time.Time
	Logger *slog.Logger
}

// Turn is an instance's. Run asks for it; the other methods may be called meanwhile.
type Turn struct {
	config Config
	rows   state.Table[lease.Record]
	leases []modelLease // in the order in which all ask for them
	owed   bool         // some may be held, also by an earlier process, and have to be given back
	said   bool         // that they cannot be
	look   chan struct{}
	until  atomic.Pointer[time.Time] // when it is over, if it is not renewed; nil: it is not held
}

type modelLease struct {
	model     string
	key       state.Key
	candidate *lease.Candidate
}

// New makes a turn that nobody has asked for yet.
func New(config Config) (*Turn, error) {
	config.Length = cmp.Or(config.Length, 15*time.Second)
	if config.Now == nil {
		config.Now = time.Now
	}
	t := &Turn{config: config, rows: state.LeaseTable(config.Leases), look: make(chan struct{}, 1), owed: true}
	self := config.Self
	process := self.ID + "/" + rand.Text()
	for _, model := range slices.Sorted(slices.Values(self.Models)) {
		candidate, err := lease.New(lease.Config{Self: process, Place: self.ID + "/", Length: config.Length})
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256([]byte(model)) // a lease's name has not all that a model's may
		name := fmt.Sprintf("wash/%s/%s", self.Region, hex.EncodeToString(sum[:8]))
		if err := state.CheckLeaseName(name); err != nil {
			return nil, err
		}
		t.leases = append(t.leases, modelLease{model: model, key: state.LeaseKey(name), candidate: candidate})
	}
	return t, nil
}

// Run asks for the turn while a wash needs it, keeps it until the wash has ended, and
// gives it back then, until ctx ends. One that ends in the middle of a wash gives nothing
// back: its engine may be down until the leases end, and longer.
func (t *Turn) Run(ctx context.Context) {
	poll := time.NewTicker(t.config.Length / 15)
	defer poll.Stop()
	for ctx.Err() == nil {
		is, changed := t.config.Wash()
		switch {
		case is.Waiting:
			t.last(t.config.Length)
			t.await(ctx, is.Quarantined != "")
		case is.WantsTurn():
			length := t.config.Length
			if is.KeepsTurn() {
				length += t.config.Aside()
			}
			t.last(length)
			had := t.Held()
			if why := t.seek(ctx); why != "" && had && ctx.Err() == nil {
				t.config.Logger.Error("the turn to restart the engine is lost: another instance may restart its own if yet another serves", "because", why)
			}
		case t.owed && is.Again == "": // else it is wanted again at once
			t.giveBackOrSay(ctx)
		default:
			select {
			case <-ctx.Done():
			case <-changed:
			}
			continue
		}
		select {
		case <-ctx.Done():
		case <-t.look:
		case <-poll.C:
		}
	}
	if is, _ := t.config.Wash(); is.Waiting {
		_ = t.giveBack(context.WithoutCancel(ctx)) // the leases end by themselves
	}
}

// Held says whether it is, as far as is known.
func (t *Turn) Held() bool { return t.left() > 0 }

// left is for how long it is held, if it is not renewed.
func (t *Turn) left() time.Duration {
	until := t.until.Load()
	if until == nil {
		return 0
	}
	return until.Sub(t.config.Now())
}

// keepPoll is how often Keep looks.
const keepPoll = 20 * time.Millisecond

// Keep waits until the turn lasts for as long as the instance may be out of traffic, and
// looks once more whether others can take its requests: nobody else has stepped aside
// since, nor can before this one is back. It gives up when the turn is lost or the instance
// is needed.
func (t *Turn) Keep(ctx context.Context) (detail string, err error) {
	t.lookNow()
	poll := time.NewTicker(keepPoll)
	defer poll.Stop()
	for t.left() < t.config.Aside() {
		if !t.Held() {
			return "", errors.New("the turn was lost before the instance stepped aside")
		}
		select {
		case <-ctx.Done():
			return "", errors.New("the state store does not let the turn last")
		case <-poll.C:
		}
	}
	is, _ := t.config.Wash()
	if why := t.spared(ctx, is.Quarantined != ""); why != "" {
		return "", errors.New(why)
	}
	if t.left() < t.config.Aside() { // the fleet's store was slow
		return "", errors.New("the state store does not let the turn last")
	}
	return fmt.Sprintf("nobody else's turn comes for %s, unless this instance is back before", t.left().Round(time.Second)), nil
}

func (t *Turn) lookNow() {
	select {
	case t.look <- struct{}{}:
	default: // it is about to
	}
}

func (t *Turn) last(length time.Duration) {
	for _, l := range t.leases {
		if err := l.candidate.Last(length); err != nil {
			t.config.Logger.Error("the turn cannot last for as long as the instance may be out of traffic", "error", err)
		}
	}
}

// await has the wash that waits begin, if it may. The turn is not asked for before
// others can take this instance's requests: they may need it to become ready.
func (t *Turn) await(ctx context.Context, quarantined bool) {
	why := t.spared(ctx, quarantined)
	if why == "" {
		why = t.seek(ctx)
		if why == "" {
			why = t.spared(ctx, quarantined) // since nobody else's engine is down
		}
	}
	if ctx.Err() != nil {
		return
	}
	if why != "" && t.any() {
		t.giveBackOrSay(ctx)
	}
	t.config.Tell(wash.Observation{Turn: why == "" && t.Held(), Waits: why})
}

// any says whether a lease is held. One that waits for another model's gives back what it
// has: those who serve that one alone need not wait for it.
func (t *Turn) any() bool {
	return slices.ContainsFunc(t.leases, func(l modelLease) bool {
		token, _ := l.candidate.Held(t.config.Now())
		return token != 0
	})
}

// seek asks for it, and renews it. Why says, for people, why it is not held.
func (t *Turn) seek(ctx context.Context) (why string) {
	t.owed = true
	var until time.Time
	for _, l := range t.leases {
		err := t.advance(ctx, l)
		token, to := l.candidate.Held(t.config.Now())
		switch holder, _, _ := strings.Cut(l.candidate.Holder(), "/"); {
		case token != 0:
			if until.IsZero() || to.Before(until) {
				until = to
			}
			continue
		case err != nil:
			why = fmt.Sprintf("the state store does not say whose turn it is: %v", err)
		case holder != "" && holder != t.config.Self.ID:
			why = fmt.Sprintf("it is the turn of %s, which serves %s, too", holder, l.model)
		default:
			why = "its turn has not come"
		}
		t.until.Store(nil)
		return why
	}
	t.until.Store(&until)
	return ""
}

// advance does what there is to do for one lease, and looks whether it was given back.
func (t *Turn) advance(ctx context.Context, l modelLease) error {
	ctx, cancel := context.WithTimeout(ctx, t.config.Length/3)
	defer cancel()
	c, now := l.candidate, t.config.Now
	for looked := false; ; {
		do := c.Next(now())
		token, _ := c.Held(now())
		switch {
		case do.Kind == lease.Write:
			record, err := t.rows.Put(ctx, state.Record[lease.Record]{Key: l.key, Version: do.Version, Value: do.Record})
			switch {
			case errors.Is(err, state.ErrConflict):
				c.Refused()
			case err != nil:
				c.Unknown(now())
				return err
			default:
				c.Wrote(record.Version)
			}
		case !looked && (do.Kind == lease.Read || token == 0):
			looked = true
			record, err := t.rows.Get(ctx, l.key)
			if err != nil && !errors.Is(err, state.ErrNotFound) {
				c.Unknown(now())
				return err
			}
			c.Read(record.Value, record.Version, now())
		default:
			return nil
		}
	}
}

// giveBack lets others have it. It reads what is to be given back: the answer of the
// last renewal may have been lost, and nobody waits for leases that last so long.
func (t *Turn) giveBack(ctx context.Context) error {
	t.until.Store(nil)
	var errs []error
	for _, l := range t.leases {
		l.candidate.Refused()
		errs = append(errs, t.free(ctx, l.key))
	}
	err := errors.Join(errs...)
	t.owed = err != nil
	return err
}

// giveBackOrSay says once that it could not be given back, until it was.
func (t *Turn) giveBackOrSay(ctx context.Context) {
	err := t.giveBack(ctx)
	if err != nil && ctx.Err() == nil && !t.said {
		t.config.Logger.Warn("the turn to restart engines cannot be given back yet: others may wait", "error", err)
	}
	t.said = err != nil
}

func (t *Turn) free(ctx context.Context, key state.Key) error {
	ctx, cancel := context.WithTimeout(ctx, t.config.Length/3)
	defer cancel()
	for {
		record, err := t.rows.Get(ctx, key)
		if errors.Is(err, state.ErrNotFound) {
			return nil
		}
		if err != nil || !strings.HasPrefix(record.Value.Holder, t.config.Self.ID+"/") {
			return err
		}
		record.Value.Holder = ""
		if _, err = t.rows.Put(ctx, record); !errors.Is(err, state.ErrConflict) {
			return err
		}
	}
}

// spared says why the fleet cannot do without this instance now; empty: it can. One that
// takes no requests is missed by nobody. One of another version of a model does not stand
// in: it may be one that gets no requests at all, as a canary that was rolled back.
func (t *Turn) spared(ctx context.Context, quarantined bool) (why string) {
	ctx, cancel := context.WithTimeout(ctx, t.config.Length/3)
	defer cancel()
	snapshot, err := t.config.Snapshot(ctx)
	if err != nil {
		return fmt.Sprintf("the fleet's store does not say who else is ready: %v", err)
	}
	self := t.config.Self
	draining := slices.ContainsFunc(snapshot.Instances, func(in *fleet.Instance) bool { return in.ID == self.ID && in.Draining })
	if draining || quarantined {
		return ""
	}
	stale := t.config.StaleAfter()
	for _, in := range snapshot.Ready(stale) {
		missing := func(model string) bool {
			return !slices.Contains(in.Models, model) || in.Versions[model] != self.Versions[model]
		}
		// When all are stale, requests are routed as if none were: a wash can wait.
		if in.ID != self.ID && in.Region == self.Region && !snapshot.Stale(in, stale) && !slices.ContainsFunc(self.Models, missing) {
			return ""
		}
	}
	return fmt.Sprintf("no other instance of %s that serves %s, of the same version, is ready", self.Region, strings.Join(self.Models, ", "))
}
