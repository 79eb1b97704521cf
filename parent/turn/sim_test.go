package turn_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/memory"
	"github.com/mrgc/mrgc/internal/state/schema"
	"github.com/mrgc/mrgc/parent/turn"
	"github.com/mrgc/mrgc/parent/wash"
)

// Times of the simulated region.
const (
	turnLength = 15 * time.Second
	mayBeAside = 4 * time.Minute
	staleAfter = 15 * time.Second
	heartbeat  = 5 * time.Second
	story      = 90 * time.Minute
	calm       = 60 * time.Minute
)

// region is instances that are washed, in virtual time: the turns are the real ones, what
// is washed is played. Its stores are slow, and lose what they are asked and what they
// answer; each instance is cut off from them at times, its parent dies at any time, and its
// clock shows anything and goes at a rate of its own.
type region struct {
	began   time.Time
	data    *memory.Data
	members []*member

	mu     sync.Mutex // guards all below, and the members' fields
	random *rand.Rand
	calm   bool
	wrong  []string
	tried  map[string]int // how often something happened that this is about
}

// member is an instance of the region.
type member struct {
	region *region
	self   fleet.Instance
	offset time.Duration
	rate   float64
	config wash.Config

	row    *state.Wash // the newest, as it is stored
	known  fleet.Instance
	cutOff time.Time // it reaches no store before

	stop    context.CancelFunc // of its parent; nil: it has none
	washer  wash.State
	actions []wash.Action
	changed chan struct{}
	turn    *turn.Turn
	died    time.Time // when its parent did
	aside   time.Time // when it stepped aside; zero: it has not, or is back
	broken  time.Time // when it last went out of service unasked
}

func (r *region) chance(of int) bool { return r.random.IntN(of) == 0 }

func (r *region) count(what string) { r.tried[what]++ }

// some is a random time up to a limit.
func (r *region) some(limit time.Duration) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Duration(r.random.Int64N(int64(limit)))
}

var errLost = errors.New("the store did not answer")

// asks has a member ask a store: the request may be lost, or its answer, and both take time,
// longer than it waits for it, at times.
func (m *member) asks(ctx context.Context, ask func() error) error {
	r := m.region
	r.mu.Lock()
	there, back := time.Duration(r.random.Int64N(int64(200*time.Millisecond))), time.Duration(r.random.Int64N(int64(200*time.Millisecond)))
	lost, dropped := !r.calm && r.chance(20), !r.calm && r.chance(20)
	if !r.calm && r.chance(20) {
		there += time.Duration(r.random.Int64N(int64(20 * time.Second)))
	}
	away := time.Now().Before(m.cutOff) && !r.calm
	r.mu.Unlock()
	answered := make(chan error, 1)
	go func() { // it arrives even when its sender has died
		time.Sleep(there)
		if lost || away {
			return
		}
		err := ask()
		time.Sleep(back)
		if !dropped {
			answered <- err
		}
	}()
	limit := time.NewTimer(8 * time.Second) // stores' own
	defer limit.Stop()
	select {
	case err := <-answered:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-limit.C:
		return errLost
	}
}

// store is a member's way to the leases.
type store struct {
	*memory.Store
	of *member
}

func (s store) Get(ctx context.Context, table schema.Table, key state.Key) (item state.Item, err error) {
	var got state.Item
	err = s.of.asks(ctx, func() (err error) { got, err = s.Store.Get(context.Background(), table, key); return err })
	if err != nil {
		return state.Item{}, err
	}
	return got, nil
}

func (s store) Write(ctx context.Context, table schema.Table, w state.Write) (int64, error) {
	var version int64
	err := s.of.asks(ctx, func() (err error) { version, err = s.Store.Write(context.Background(), table, w); return err })
	if err != nil {
		return 0, err
	}
	return version, nil
}

// snapshot is the fleet as it is stored.
func (m *member) snapshot(ctx context.Context) (*fleet.Snapshot, error) {
	var all []*fleet.Instance
	err := m.asks(ctx, func() error {
		m.region.mu.Lock()
		defer m.region.mu.Unlock()
		var read []*fleet.Instance
		for _, other := range m.region.members {
			in := other.known
			read = append(read, &in)
		}
		all = read
		return nil
	})
	if err != nil {
		return nil, err
	}
	return fleet.NewSnapshot(time.Now(), all), nil
}

// tell stores how the instance is, for the fleet.
func (m *member) tell(ctx context.Context) error {
	m.region.mu.Lock()
	now := m.self
	ok := m.washer.Quarantined == "" && !m.washer.Aside()
	now.Health = fleet.Health{Enclave: ok, Engine: true}
	m.region.mu.Unlock()
	return m.asks(ctx, func() error {
		m.region.mu.Lock()
		defer m.region.mu.Unlock()
		now.HeartbeatAt = time.Now()
		m.known = now
		return nil
	})
}

// clock is the member's own.
func (m *member) clock() time.Time {
	return m.region.began.Add(m.offset + time.Duration(float64(time.Since(m.region.began))*m.rate))
}

// start begins a life of the member's parent.
func (m *member) start(run context.Context) {
	ctx, stop := context.WithCancel(run)
	r := m.region
	r.mu.Lock()
	defer r.mu.Unlock()
	m.stop, m.washer, m.actions, m.changed = stop, wash.State{Washed: time.Now()}, nil, make(chan struct{})
	if m.row != nil {
		m.washer, m.actions = m.config.Resume(m.washer, m.self.ID+"/then", *m.row)
	}
	m.look()
	var err error
	m.turn, err = turn.New(turn.Config{
		Self: m.self, Leases: store{r.data.Open(), m}, Snapshot: m.snapshot, Length: turnLength, Now: m.clock,
		StaleAfter: func() time.Duration { return staleAfter }, Aside: func() time.Duration { return mayBeAside },
		Wash: func() (wash.State, <-chan struct{}) {
			r.mu.Lock()
			defer r.mu.Unlock()
			return m.washer, m.changed
		},
		Tell: func(o wash.Observation) {
			r.mu.Lock()
			defer r.mu.Unlock()
			if ctx.Err() == nil && m.washer.Waiting {
				m.step(o)
			}
		},
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		panic(err)
	}
	go m.turn.Run(ctx)
	go m.runs(ctx)
	go m.every(ctx, time.Second, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		m.step(wash.Observation{Ordered: !r.calm && r.chance(60)})
	})
	go m.every(ctx, heartbeat, func() { _ = m.tell(ctx) })
}

func (m *member) every(ctx context.Context, period time.Duration, do func()) {
	for ctx.Err() == nil {
		do()
		select {
		case <-ctx.Done():
		case <-time.After(period):
		}
	}
}

// step has the wash go on. The caller holds mu.
func (m *member) step(o wash.Observation) {
	var actions []wash.Action
	m.washer, actions = m.config.Step(m.washer, o, time.Now())
	m.actions = append(m.actions, actions...)
	close(m.changed)
	m.changed = make(chan struct{})
	m.look()
}

// look checks what has to hold whenever an instance steps aside. The caller holds mu.
func (m *member) look() {
	now := time.Now()
	r := m.region
	was := m.aside
	if m.washer.Aside() && m.stop != nil {
		if was.IsZero() {
			m.aside = m.washer.Left
		}
	} else if m.stop != nil {
		m.aside = time.Time{}
	}
	if m.washer.Quarantined != "" && m.broken.IsZero() {
		m.broken = now
	} else if m.washer.Quarantined == "" {
		m.broken = time.Time{}
	}
	if !was.IsZero() || m.aside.IsZero() {
		return
	}
	r.count("aside")
	serves := m.washer.Quarantined != "" // then nobody is needed
	for _, other := range r.members {
		if other == m {
			continue
		}
		shared := slices.ContainsFunc(m.self.Models, func(model string) bool { return slices.Contains(other.self.Models, model) })
		if !other.aside.IsZero() && now.Sub(other.aside) < mayBeAside && shared {
			r.wrong = append(r.wrong, fmt.Sprintf("%s and %s are aside after %s", other.self.ID, m.self.ID, now.Sub(r.began)))
		}
		missing := func(model string) bool { return !slices.Contains(other.self.Models, model) }
		if other.aside.IsZero() && !slices.ContainsFunc(m.self.Models, missing) {
			// Of what has just gone nobody knows yet, nor while the news are on their way.
			gone := other.stop == nil && now.Sub(other.died) > staleAfter+2*turnLength
			sick := !other.broken.IsZero() && now.Sub(other.broken) > staleAfter+2*turnLength
			serves = serves || !gone && !sick
		}
	}
	if !serves {
		r.wrong = append(r.wrong, fmt.Sprintf("%s steps aside after %s, and nobody else serves", m.self.ID, now.Sub(r.began)))
	}
}

// dies ends the member's parent.
func (m *member) dies() {
	m.region.mu.Lock()
	defer m.region.mu.Unlock()
	m.stop()
	m.stop, m.died = nil, time.Now()
	if part := m.washer; part.Aside() {
		m.region.count("died aside")
	}
}

// runs does what the wash decides.
func (m *member) runs(ctx context.Context) {
	r := m.region
	for ctx.Err() == nil {
		r.mu.Lock()
		var a wash.Action
		if len(m.actions) > 0 {
			a, m.actions = m.actions[0], m.actions[1:]
		}
		changed := m.changed
		r.mu.Unlock()
		switch a.Kind {
		case "":
			select {
			case <-ctx.Done():
			case <-changed:
			}
		case wash.Wait, wash.Record:
			m.store(a.Row)
		case wash.Quarantine, wash.Release, wash.DropStandby:
			_ = m.tell(ctx)
		default:
			m.acts(ctx, a)
		}
	}
}

// store keeps a row at once: what of it is lost is not what this is about.
func (m *member) store(row state.Wash) {
	m.region.mu.Lock()
	defer m.region.mu.Unlock()
	m.row = &row
}

func (m *member) acts(ctx context.Context, a wash.Action) {
	r := m.region
	r.mu.Lock()
	deadline := m.config.Deadline(m.washer)
	fails := !r.calm && r.chance(60)
	r.mu.Unlock()
	limited, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	err := m.act(limited, a)
	if fails && a.Kind != wash.KeepTurn {
		err = errors.New("it is broken")
	}
	if ctx.Err() != nil {
		return
	}
	result := wash.Result{Wash: a.Wash, Kind: a.Kind, Passed: err == nil, Detail: "seen"}
	if err != nil {
		result.Detail = err.Error()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if a.Kind == wash.KeepTurn && err != nil {
		r.count("not kept")
	}
	m.step(wash.Observation{Result: result})
}

func (m *member) act(ctx context.Context, a wash.Action) error {
	pause := func(limit time.Duration) error {
		select {
		case <-time.After(m.region.some(limit)):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	told := func() error {
		for m.tell(ctx) != nil {
			if err := pause(time.Second); err != nil {
				return err
			}
		}
		return nil
	}
	switch a.Kind {
	case wash.Announce:
		m.store(a.Row)
		return nil
	case wash.CheckModel:
		return pause(2 * time.Minute)
	case wash.KeepTurn:
		_, err := m.turn.Keep(ctx)
		return err
	case wash.StepAside, wash.StepBack:
		return told()
	case wash.RestartEngine:
		for !m.turn.Held() {
			if err := pause(time.Second); err != nil {
				return err
			}
		}
		return pause(3 * time.Minute)
	default:
		return pause(5 * time.Second)
	}
}

// live has it all happen to one region, and says what was wrong.
func live(seed uint64, tried map[string]int) (wrong []string) {
	run, end := context.WithCancel(context.Background())
	r := &region{began: time.Now(), data: memory.New(nil), random: rand.New(rand.NewPCG(seed, 2)), tried: tried}
	models := [][]string{{"m"}, {"m"}, {"m", "n"}, {"n", "m"}}
	for i := range 2 + r.random.IntN(3) {
		id := fmt.Sprintf("use1-%d", i)
		m := &member{
			region: r, self: fleet.Instance{ID: id, Region: "use1", Models: models[(i+int(seed%4))%4]},
			offset: time.Duration(r.random.Int64N(int64(20000*time.Hour))) - 10000*time.Hour, rate: 0.95 + r.random.Float64()/10,
			config: wash.Config{Region: "use1", Instance: id, RestartEngine: true, StepTimeout: 5 * time.Minute, AsideTimeout: mayBeAside},
		}
		m.known = m.self
		r.members = append(r.members, m)
	}
	for _, m := range r.members {
		m.start(run)
		go m.suffer(run)
	}
	time.Sleep(story)
	r.mu.Lock()
	r.calm = true
	r.mu.Unlock()
	time.Sleep(calm)
	r.mu.Lock()
	for _, m := range r.members {
		if m.washer.Wash != "" && m.stop != nil && len(r.members) > 2 && len(m.self.Models) == 1 {
			waits := m.row != nil && m.row.Open == state.WashWaiting && strings.HasPrefix(m.row.Reason, "no other instance")
			if !waits { // those of before may all be in quarantine
				r.wrong = append(r.wrong, fmt.Sprintf("%s is not washed though all is calm: %+v", m.self.ID, m.washer))
			}
		}
	}
	wrong = r.wrong
	r.mu.Unlock()
	end()
	time.Sleep(10 * time.Minute) // whatever is under way arrives
	return wrong
}

// suffer has the member's parent die and begin again, and its way to the stores go and come,
// until all is calm. An operator orders washes of what is in quarantine.
func (m *member) suffer(ctx context.Context) {
	r := m.region
	for ctx.Err() == nil {
		r.mu.Lock()
		calm, what := r.calm, r.random.IntN(3)
		r.mu.Unlock()
		if calm {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(r.some(12 * time.Minute)):
		}
		switch what {
		case 0:
			m.dies()
			time.Sleep(r.some(2 * time.Minute))
			m.start(ctx)
		default:
			away := r.some(6 * time.Minute)
			r.mu.Lock()
			m.cutOff = time.Now().Add(away)
			r.mu.Unlock()
		}
	}
}

func TestWhoIsNotHeardOfTakesNobodysRequests(t *testing.T) {
	g := NewWithT(t)
	told := make(chan wash.Observation, 100)
	ago := time.Minute
	in := func(id string) *fleet.Instance {
		return &fleet.Instance{ID: id, Region: "use1", Models: []string{"m"}, Health: fleet.Health{Enclave: true, Engine: true}, HeartbeatAt: time.Now().Add(-ago)}
	}
	one, err := turn.New(turn.Config{
		Self: *in("use1-0"), Leases: memory.New(nil).Open(), Length: 150 * time.Millisecond, Logger: slog.New(slog.DiscardHandler),
		Snapshot: func(context.Context) (*fleet.Snapshot, error) {
			return fleet.NewSnapshot(time.Now(), []*fleet.Instance{in("use1-0"), in("use1-1")}), nil
		},
		StaleAfter: func() time.Duration { return staleAfter }, Aside: func() time.Duration { return mayBeAside },
		Wash: func() (wash.State, <-chan struct{}) { return wash.State{Wash: "it", Waiting: true}, nil },
		Tell: func(o wash.Observation) { told <- o },
	})
	g.Expect(err).NotTo(HaveOccurred())
	for _, heard := range []bool{false, true} { // all are not heard of, and all are
		if heard {
			ago = 0
		}
		for len(told) > 0 {
			<-told // of the time before
		}
		ctx, stop := context.WithCancel(context.Background())
		ran := make(chan struct{})
		go func() { one.Run(ctx); close(ran) }()
		var o wash.Observation
		g.Eventually(told).Should(Receive(&o))
		stop()
		<-ran
		g.Expect(o.Turn).To(Equal(heard))
	}
}

// It is a plain test because synctest does not know Ginkgo's goroutines.
func TestNeverTwoAsideWhateverHappens(t *testing.T) {
	g := NewWithT(t)
	tried := map[string]int{}
	for seed := range uint64(40) {
		synctest.Test(t, func(*testing.T) {
			if wrong := live(seed, tried); len(wrong) > 0 {
				t.Errorf("seed %d: %d wrong: %q", seed, len(wrong), wrong[:min(3, len(wrong))])
			}
		})
	}
	t.Log(tried)
	g.Expect(tried["aside"]).To(BeNumerically(">", 400), "instances do step aside")
	g.Expect(tried["died aside"]).To(BeNumerically(">", 20))
	g.Expect(tried["not kept"]).To(BeNumerically(">", 20))
}
