package controller

import (
	"context"
	"errors"
	"log/slog"
	mathrand "math/rand/v2"
	"sync"
	"time"

	"github.com/mrgc/mrgc/internal/lease"
	"github.com/mrgc/mrgc/internal/state"
)

// term is a lease while it is held: what is done by it ends with ctx.
type term struct {
	token   int64
	ctx     context.Context
	elector *elector
	ended   chan struct{} // closed when all that is done by it has ended
}

// valid says whether the lease still is held, to the moment.
func (t *term) valid() bool {
	t.elector.mu.Lock()
	defer t.elector.mu.Unlock()
	token, _ := t.elector.candidate.Held(time.Now())
	return token == t.token
}

// above tells of a token higher than the term's, in what it writes.
func (t *term) above(token int64) {
	t.elector.mu.Lock()
	t.elector.candidate.Above(token)
	t.elector.mu.Unlock()
	t.elector.poke()
}

// elector holds a lease as often as it can.
type elector struct {
	name   string
	length time.Duration
	leases state.Table[lease.Record]
	lead   func(*term)         // is called for each term, and ends with its context
	renew  func(version int64) // hears each version that is written; nil: nobody does
	log    *slog.Logger
	metric *metrics

	mu        sync.Mutex // guards what follows
	candidate *lease.Candidate

	poked chan struct{}

	// What follows is run's goroutine's.
	failing bool               // the store does
	term    *term              // nil: none
	end     context.CancelFunc // of term
	over    *time.Timer        // ends term when its time is over, whatever run waits for
}

// leading says whether the lease is held.
func (e *elector) leading() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	token, _ := e.candidate.Held(time.Now())
	return token != 0
}

func (e *elector) poke() {
	select {
	case e.poked <- struct{}{}:
	default:
	}
}

// run holds the lease until ctx ends, and gives it back then.
func (e *elector) run(ctx context.Context) {
	defer e.giveBack(ctx)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.poked:
		case <-timer.C:
		}
		timer.Reset(e.advance(ctx))
	}
}

// advance does what is next, and says after how long there is more.
func (e *elector) advance(ctx context.Context) time.Duration {
	e.mu.Lock()
	do := e.candidate.Next(time.Now())
	e.mu.Unlock()
	switch do.Kind {
	case lease.Read:
		e.read(ctx)
	case lease.Write:
		e.write(ctx, do)
	}
	e.mu.Lock()
	now := time.Now()
	token, until := e.candidate.Held(now)
	e.mu.Unlock()
	e.follow(ctx, token, until.Sub(now))
	if do.Kind != lease.Wait {
		return 0
	}
	wait := do.At.Sub(now)
	if token != 0 {
		return max(min(wait, until.Sub(now)), 0)
	}
	return max(wait, 0) + mathrand.N(e.length/50) //nolint:gosec // so that not all who wait come at once
}

// call bounds one call to the store: a holder that gets no answer has a second
// one before its time is over.
func (e *elector) call(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, e.length/3)
}

func (e *elector) read(ctx context.Context) {
	call, cancel := e.call(ctx)
	defer cancel()
	record, err := e.leases.Get(call, state.LeaseKey(e.name))
	if errors.Is(err, state.ErrNotFound) {
		err = nil
	}
	e.tell(ctx, err)
	e.mu.Lock()
	defer e.mu.Unlock()
	if err != nil {
		e.candidate.Unknown(time.Now())
		return
	}
	e.candidate.Read(record.Value, record.Version, time.Now())
}

func (e *elector) write(ctx context.Context, do lease.Do) {
	call, cancel := e.call(ctx)
	defer cancel()
	record, err := e.leases.Put(call, state.Record[lease.Record]{Key: state.LeaseKey(e.name), Version: do.Version, Value: do.Record})
	refused := errors.Is(err, state.ErrConflict)
	if !refused {
		e.tell(ctx, err)
	}
	e.mu.Lock()
	switch {
	case refused:
		e.candidate.Refused()
	case err != nil:
		e.candidate.Unknown(time.Now())
	default:
		e.candidate.Wrote(record.Version)
	}
	e.mu.Unlock()
	if err == nil && e.renew != nil {
		e.renew(record.Version)
	}
}

// tell logs when the store begins to fail, and when it is back.
func (e *elector) tell(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	switch {
	case err != nil && !e.failing:
		e.log.WarnContext(ctx, "lease cannot be read or written, trying again", "error", err)
	case err == nil && e.failing:
		e.log.InfoContext(ctx, "lease can be read and written again")
	}
	e.failing = err != nil
}

// follow begins and ends terms, and prolongs them. What one term does has ended
// before the next begins.
func (e *elector) follow(ctx context.Context, token int64, left time.Duration) {
	if e.term != nil && (e.term.token != token || e.term.ctx.Err() != nil) {
		// Its time may be over though the token is the same: a renewal came at the last
		// moment, and its end before.
		e.log.WarnContext(ctx, "no longer leading", "token", e.term.token)
		e.finish()
	}
	e.metric.leading.WithLabelValues(e.name).Set(float64(min(token, 1)))
	if token == 0 {
		return
	}
	if e.term != nil {
		e.over.Reset(left)
		return
	}
	e.log.InfoContext(ctx, "leading", "token", token)
	life, end := context.WithCancel(ctx)
	t := &term{token: token, ctx: life, elector: e, ended: make(chan struct{})}
	e.term, e.end, e.over = t, end, time.AfterFunc(left, end)
	go func() {
		defer close(t.ended)
		e.lead(t)
	}()
}

func (e *elector) finish() {
	if e.term == nil {
		return
	}
	e.over.Stop()
	e.end()
	<-e.term.ended
	e.term = nil
}

// giveBack ends what is done by the lease, and then lets the next have it.
func (e *elector) giveBack(ctx context.Context) {
	e.finish()
	e.mu.Lock()
	do, held := e.candidate.Release(time.Now())
	e.mu.Unlock()
	if !held {
		return
	}
	call, cancel := e.call(context.WithoutCancel(ctx))
	defer cancel()
	_, err := e.leases.Put(call, state.Record[lease.Record]{Key: state.LeaseKey(e.name), Version: do.Version, Value: do.Record})
	if err != nil {
		e.log.Warn("lease cannot be given back: the next leader has to wait for its end", "error", err)
	}
}
