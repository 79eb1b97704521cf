package parent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/audit"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/parent/turn"
	"github.com/mrgc/mrgc/parent/wash"
)

// Wash is what full washes need beside a way to start enclaves. When there are some
// is said by [Settings].
type Wash struct {
	// Records has cleanup_validation, where each wash is recorded.
	Records state.Store
	// Note is a file of this machine's that outlives the parent, in which the last wash is
	// noted: a start goes by it, so that a store that is away hides no wash that was cut off.
	Note string
	// Attested checks that an attestation document is one of a known release, made
	// just now for these claims.
	Attested func(claims, document []byte, now time.Time) error
	// CheckModel compares the model's files with what they have to be, and says what
	// it has looked at. In a hurry it may go by what it found before, of files that
	// have not changed since.
	CheckModel func(ctx context.Context, hurry bool) (seen string, err error)
	// Linger is how long an enclave that was replaced still gets what is sealed to it
	// alone, after the fleet has been told of the new one; default 2 s. In strict mode,
	// where nothing runs, it is until a router has seen the new one, if that is sooner.
	Linger time.Duration
	// StepTimeout is how long a step may take, the model's check among them; default
	// 10 minutes.
	StepTimeout time.Duration
	// TurnLength is how long a parent that dies in the middle of a wash keeps others from
	// restarting their engines, unless its instance has stepped aside: see package turn.
	// Default 15 s.
	TurnLength time.Duration
}

const (
	washTick = time.Second
	// admitWait bounds how long a request waits in strict mode until the instance is
	// clean.
	admitWait = 30 * time.Second
	// resumeWait bounds how long a start waits for what the store says, where nothing is
	// noted.
	resumeWait = 3 * time.Second
	// recordAgain is how soon a wash is recorded again that could not be.
	recordAgain = time.Second
)

// washer carries out what package wash decides. A nil one washes nothing.
type washer struct {
	p       *Parent
	config  Wash
	rows    state.Table[state.Wash]
	guard   *http.Client // not the probes': what it is asked here takes time
	metrics *washMetrics
	turn    *turn.Turn
	kick    chan struct{} // holds one: there are actions

	mu      sync.Mutex
	state   wash.State    // guarded by mu
	actions []wash.Action // guarded by mu: to be done, in order
	running int           // guarded by mu: requests
	changed chan struct{} // guarded by mu: closed at every step
	id      string        // guarded by mu: of the last wash that passed
	endedAt time.Time     // guarded by mu

	noting sync.Mutex // held while the note is written
	noted  note       // guarded by noting: what the file has

	started time.Time
	found   note      // what was noted when the parent started
	standby *held     // the runner's: started and not the present one
	resumed bool      // the runner's: what the store says is taken up
	left    *held     // the runner's: one that was replaced, and has yet to end
	begun   time.Time // the runner's: when the standby was started
}

func newWasher(p *Parent, config Wash) (*washer, error) {
	if config.Records == nil || config.Note == "" || config.Attested == nil || config.CheckModel == nil {
		return nil, errors.New("washes need where to record and to note them, and ways to check attestation and the model")
	}
	config.Linger = cmp.Or(config.Linger, 2*time.Second)
	w := &washer{
		p: p, config: config, rows: state.WashTable(config.Records), guard: guardClient(&p.config),
		kick: make(chan struct{}, 1), started: time.Now(), state: wash.State{Washed: time.Now()}, changed: make(chan struct{}),
	}
	var err error
	self := p.config.Instance
	self.Versions = p.versions()
	w.turn, err = turn.New(turn.Config{
		Self: self, Leases: config.Records, Length: config.TurnLength, Snapshot: p.config.Store.Snapshot,
		StaleAfter: func() time.Duration { return p.settings.Load().StaleAfter }, Aside: func() time.Duration { return w.settings().MayBeAside() },
		Wash: w.is, Tell: w.mayBegin, Logger: p.log,
	})
	if err != nil {
		return nil, err
	}
	w.metrics, err = newWashMetrics(p.config.Metrics, p.config.Instance)
	return w, err
}

// settings are what holds now.
func (w *washer) settings() wash.Config {
	c := w.p.settings.Load().Wash
	c.StepTimeout = cmp.Or(c.StepTimeout, w.config.StepTimeout)
	c.Region, c.Instance, c.Untold = w.p.config.Instance.Region, w.p.config.Instance.ID, w.p.untold.Load()
	return c
}

// quarantined says why the instance takes no request; empty: it does.
func (w *washer) quarantined() string {
	if w == nil {
		return ""
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state.Quarantined
}

// now is what is remembered of washes.
func (w *washer) now() wash.State {
	if w == nil {
		return wash.State{}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state
}

// is is now, and what is closed when it changes.
func (w *washer) is() (wash.State, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state, w.changed
}

// mayBegin tells whether the wash that waits may begin.
func (w *washer) mayBegin(o wash.Observation) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.state.Waiting {
		w.step(o)
	}
}

// last is the last wash that passed; zero: none.
func (w *washer) last() (id string, endedAt time.Time) {
	if w == nil {
		return "", time.Time{}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.id, w.endedAt
}

// order has the instance washed, and gives the wash's id; empty: it is being washed
// already.
func (w *washer) order() (id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.state.Wash != "" {
		return ""
	}
	w.step(wash.Observation{Ordered: true})
	return w.state.Wash
}

// serveWash takes an order: an operator's, which routers bring, or a controller's, who is
// about to have the instance terminated. It answers with the wash's id.
func (p *Parent) serveWash(w http.ResponseWriter, r *http.Request) {
	if peer, _ := identity.Peer(r.TLS); peer.Role != identity.RoleRouter && peer.Role != identity.RoleController {
		api.Errorf(http.StatusForbidden, "not_allowed", "only routers and controllers order washes").Write(w)
		return
	}
	if p.washer == nil {
		api.Errorf(http.StatusNotFound, "no_washes", "this instance's parent does not start its enclave, so it cannot wash it (mrgc-parent -enclave-command)").Write(w)
		return
	}
	id := p.washer.order()
	if id == "" {
		api.Errorf(http.StatusConflict, "wash_under_way", "the instance is being washed already").Write(w)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusAccepted)
	_ = json.NewEncoder(w).Encode(map[string]string{"wash": id}) // who has gone sees the wash's record
}

// admit lets a request run: at once, and in strict mode when it is alone and the
// instance is clean. Leave is called when it is over, with whether an enclave may
// have seen plaintext of it.
func (w *washer) admit(ctx context.Context) (leave func(tenant string, opened bool), refused *api.Error) {
	if w == nil {
		return func(string, bool) {}, nil
	}
	late := time.NewTimer(admitWait)
	defer late.Stop()
	for {
		w.mu.Lock()
		quarantined, closed := w.state.Quarantined != "", w.state.Closed()
		admitted, changed := w.settings().Admits(w.state, w.running), w.changed
		if admitted {
			w.running++
		}
		w.mu.Unlock()
		switch {
		case admitted:
			return w.leave, nil
		case quarantined:
			return nil, unavailable(codeQuarantined, "a wash of the instance has failed; it takes no requests")
		case closed: // Envoy asks another recipient, and the client seals anew when there is none
			return nil, unavailable(codeStale, "the instance is being washed, and its keys are gone; fetch "+api.PathKeys+" again")
		}
		select {
		case <-changed:
		case <-late.C:
			return nil, unavailable("instance_washing", "the instance is being washed; try again")
		case <-ctx.Done():
			return nil, unavailable("client_gone", "the request was given up")
		}
	}
}

const (
	codeStale       = "stale_recipients" // as enclaves say of keys that they do not hold
	codeQuarantined = "instance_quarantined"
)

func unavailable(code, text string) *api.Error {
	e := api.Errorf(http.StatusServiceUnavailable, code, "%s", text)
	e.RetryAfter = time.Second
	return e
}

func (w *washer) leave(tenant string, opened bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.running--
	var o wash.Observation
	if opened {
		o.Ended = []string{tenant}
	}
	w.step(o)
}

// step decides, and leaves to the runner what is to be done. The caller holds mu.
func (w *washer) step(o wash.Observation) {
	var actions []wash.Action
	w.state, actions = w.settings().Step(w.state, o, time.Now())
	w.todo(actions)
}

// todo takes note of what was decided. The caller holds mu.
func (w *washer) todo(actions []wash.Action) {
	close(w.changed)
	w.changed = make(chan struct{})
	w.metrics.waits(w.state.Waiting)
	w.actions = append(w.actions, actions...)
	if len(w.actions) > 0 {
		select {
		case w.kick <- struct{}{}:
		default: // it has been told
		}
	}
}

func (w *washer) next() (wash.Action, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.actions) == 0 {
		return wash.Action{}, false
	}
	a := w.actions[0]
	w.actions = w.actions[1:]
	return a, true
}

// run does what is decided, one thing after the other, until ctx ends.
func (w *washer) run(ctx context.Context) {
	defer w.guard.CloseIdleConnections()
	var recording sync.WaitGroup
	defer recording.Wait()
	switch {
	case w.found.Wash != "": // the store's word can wait
		recording.Go(func() { w.resume(ctx) })
	case !w.resumed:
		w.resume(ctx)
	}
	recording.Go(func() { w.tick(ctx) })
	recording.Go(func() { w.turn.Run(ctx) })
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.kick:
		}
		for a, ok := w.next(); ok && ctx.Err() == nil; a, ok = w.next() {
			switch a.Kind {
			case wash.Wait:
				w.waits(ctx, a)
			case wash.Record:
				w.ended(a)
				recording.Go(func() { w.record(ctx, a) })
				recording.Go(func() { w.audit(ctx, a) })
			case wash.Quarantine:
				w.p.log.Error("INSTANCE QUARANTINED", "wash", a.Wash, "reason", a.Row.Reason)
				w.metrics.quarantined.Set(1)
				w.p.probeNow()
			case wash.Release:
				w.p.log.Info("the instance is out of quarantine", "wash", a.Wash)
				w.metrics.quarantined.Set(0)
				w.p.probeNow()
			case wash.DropStandby:
				w.dropStandby(ctx)
			default:
				w.act(ctx, a)
			}
		}
	}
}

// tick lets time pass for the decision.
func (w *washer) tick(ctx context.Context) {
	ticker := time.NewTicker(washTick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		w.mu.Lock()
		w.step(wash.Observation{})
		w.mu.Unlock()
	}
}

// act does one action of a wash, and tells how it ended.
func (w *washer) act(ctx context.Context, a wash.Action) {
	limited, cancel := context.WithDeadline(ctx, w.settings().Deadline(w.now()))
	defer cancel()
	began := time.Now()
	detail, err := w.do(limited, a)
	if ctx.Err() != nil {
		return // the parent stops, which says nothing of the instance
	}
	r := wash.Result{Wash: a.Wash, Kind: a.Kind, Passed: err == nil, Detail: detail}
	if err != nil {
		r.Detail = err.Error()
	}
	w.p.log.Info("wash", "id", a.Wash, "action", a.Kind, "passed", r.Passed, "took", time.Since(began), "detail", r.Detail)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.step(wash.Observation{Result: r})
}

// ended takes note of a wash that is over.
func (w *washer) ended(a wash.Action) {
	w.metrics.ended(a.Row)
	if a.Row.Passed {
		w.mu.Lock()
		w.id, w.endedAt = a.Wash, time.Now()
		w.mu.Unlock()
		w.p.probeNow() // which tells the enclave, for receipts
	}
}

// audit has a wash in the audit log, however long that fails, until ctx ends.
func (w *washer) audit(ctx context.Context, a wash.Action) {
	if w.p.config.Audit == nil {
		return
	}
	about := map[string]string{"instance": w.p.config.Instance.ID, "wash": a.Wash, "trigger": a.Row.Trigger, "passed": fmt.Sprint(a.Row.Passed)}
	if a.Row.Reason != "" {
		about["reason"] = a.Row.Reason
	}
	w.untilDone(ctx, func() bool {
		err := w.p.config.Audit.Append(time.Now(), audit.Event{Name: audit.Washed, About: about})
		if err != nil {
			w.p.log.Error("AUDIT LOG FAILS; trying again", "wash", a.Wash, "error", err)
		}
		return err == nil
	})
}

// record writes a wash's row, however long the store is away, until ctx ends. One that
// is not whole is refused for ever, and in the log alone: the note that has it, too, keeps
// the instance in quarantine after the next start.
func (w *washer) record(ctx context.Context, a wash.Action) {
	w.untilDone(ctx, func() bool {
		err := errors.Join(w.note(a), w.write(ctx, a.Row))
		switch {
		case err == nil:
			return true
		case errors.Is(err, state.ErrNotWhole):
			w.p.log.Error("A WASH'S RECORD IS REFUSED", "wash", a.Wash, "error", err)
			return true
		}
		w.p.log.Warn("a wash could not be recorded; trying again", "wash", a.Wash, "error", err)
		return false
	})
}

// untilDone tries something again and again, until it is done or ctx ends.
func (w *washer) untilDone(ctx context.Context, try func() (done bool)) {
	for !try() {
		select {
		case <-ctx.Done():
			return
		case <-time.After(recordAgain):
		}
	}
}

// write writes a wash's row, over the one of before it ended.
func (w *washer) write(ctx context.Context, row state.Wash) error {
	record := state.Record[state.Wash]{Key: state.WashKey(w.p.config.Instance.ID, row.StartedAt), Value: row}
	_, err := w.rows.Put(ctx, record)
	if !errors.Is(err, state.ErrConflict) {
		return err
	}
	before, err := w.rows.Get(ctx, record.Key)
	if err != nil || before.Value.Open == "" { // it was written, and the answer lost
		return err
	}
	record.Version = before.Version
	_, err = w.rows.Put(ctx, record)
	return err
}

// waits shows that a wash may not begin yet. A store that is away shows nothing: the log
// and the metric do. One that is noted as under way, and waits again, is noted as that: a
// start would take the instance for half washed.
func (w *washer) waits(ctx context.Context, a wash.Action) {
	w.p.log.Info("a wash waits", "wash", a.Wash, "because", a.Row.Reason)
	if w.isNoted(a.Wash) {
		if err := w.note(a); err != nil {
			w.p.log.Error("a wash that waits again could not be noted: a start would take the instance into quarantine", "wash", a.Wash, "error", err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, recordAgain)
	defer cancel()
	if err := w.write(ctx, a.Row); err != nil {
		w.p.log.Warn("a wash that waits could not be recorded", "wash", a.Wash, "error", err)
	}
}
