package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/mrgc/mrgc/bench/rig"
	"github.com/mrgc/mrgc/bench/virtual"
	"github.com/mrgc/mrgc/engine/sim/batching"
	"github.com/mrgc/mrgc/extproc"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
	"github.com/mrgc/mrgc/internal/size"
	"github.com/mrgc/mrgc/internal/tenant"
)

const (
	engines    = 3  // of each region
	slots      = 32 // of each engine
	promptSize = 512
	outputSize = 256             // at most, as declared; any length up to that is as likely
	farEvery   = time.Second     // as routers take reports from other regions
	clients    = 20              // of each region
	refresh    = 5 * time.Second // of a client's recipients
)

var regions = []fleet.Region{"use1", "use2", "usw2"}

// apart is a round trip between two regions, of the size of AWS's.
func apart(a, b int) time.Duration {
	switch {
	case a == b:
		return 0
	case a+b == 1:
		return 12 * time.Millisecond
	case a+b == 2:
		return 62 * time.Millisecond
	default:
		return 51 * time.Millisecond
	}
}

// region is a region's router, which is all real but for its clock, and clients.
type region struct {
	at     int
	rate   float64 // requests per second
	spills bool    // when it has no room
	picker *extproc.Picker
	log    *rig.Log
	far    map[string]heard // reports of other regions' instances, by id
	ask    [clients]struct {
		recipients []string
		until      time.Duration
	}

	firsts []float64 // seconds until the first token, of requests that came when it was warm
	away   int       // of these, those that other regions served
	shares []float64 // of requests that went away, second by second
	second struct{ all, away int }
}

// heard is a report as a router of another region has it.
type heard struct {
	report routing.Report
	at     time.Duration
}

// instance is an engine and its parent.
type instance struct {
	*fleet.Instance
	virtual.Parent
	region int
	engine *batching.Machine
}

// request is one, wherever it is served.
type request struct {
	from, to int // region, instance
	asked    time.Duration
	id       string
	prompt   *routing.Prompt
}

// world is three regions in virtual time: one seed gives the same figures on any
// machine.
type world struct {
	*virtual.World[*request]
	regions   []*region
	instances []*instance
	random    *rand.Rand
	warmUp    time.Duration
	answers   int // that have ended since it was warm
	sent      int // requests so far
}

// play has requests meet the engines for a while.
func play(rates []float64, spills bool, seed uint64, warmUp, length time.Duration) (*world, error) {
	w := &world{
		warmUp: warmUp,
		random: rand.New(rand.NewPCG(seed, 1)), //nolint:gosec // a simulation is no secret
	}
	profile := batching.A100()
	profile.MaxSequences = slots
	machines, err := virtual.Engines(profile, len(rates)*engines)
	if err != nil {
		return nil, err
	}
	w.World = virtual.New(machines, w.token)
	var all []*fleet.Instance
	for i, m := range machines {
		in := &instance{region: i / engines, engine: m, Instance: &fleet.Instance{
			ID: fmt.Sprintf("%s-%d", regions[i/engines], i%engines), Region: regions[i/engines], Zone: fmt.Sprint(i % engines),
			Address: fmt.Sprintf("10.0.0.%d:8080", i), Models: []string{rig.Model}, KeyIDs: []string{rig.KeyID(i)},
			Health: fleet.Health{Enclave: true, Engine: true}, Load: fleet.Load{Slots: slots}, HeartbeatAt: w.Time(),
		}}
		w.instances, all = append(w.instances, in), append(all, in.Instance)
	}
	snapshot := fleet.NewSnapshot(w.Time(), all)
	for at, rate := range rates {
		r := &region{at: at, rate: rate, spills: spills, far: map[string]heard{}}
		w.regions = append(w.regions, r)
		if r.picker, err = w.newPicker(r, snapshot); err != nil {
			return nil, err
		}
		r.log = rig.OpenLog(r.picker)
		defer r.log.Close()
		if rate > 0 {
			w.At(0, func() error { return w.arrive(r) })
		}
		w.At(w.jitter(farEvery), func() error { return w.listen(r) })
	}
	w.At(0, w.tick)
	w.At(time.Second, w.count)
	return w, w.Until(length)
}

func (w *world) jitter(d time.Duration) time.Duration {
	return time.Duration(w.random.Float64() * float64(d))
}

// way is what the router of a region takes to be the way of its requests.
func (r *region) way() routing.Way {
	own := []fleet.Region{regions[r.at]}
	for _, other := range regions {
		if other != own[0] {
			own = append(own, other)
		}
	}
	way := routing.NewWay(own, nil, func(to fleet.Region) (time.Duration, bool) { return apart(r.at, slices.Index(regions, to)), true })
	if !r.spills {
		way.Detours = nil
	}
	return way
}

func (w *world) newPicker(r *region, snapshot *fleet.Snapshot) (*extproc.Picker, error) {
	way := r.way()
	return extproc.New(extproc.Config{
		Region: regions[r.at], Settings: extproc.Settings{StaleAfter: time.Hour},
		View: func() *fleet.Snapshot { return snapshot }, Now: w.Time,
		Way: func(_, _ string) routing.Way { return way },
		Admit: func(name string, _ []byte, _ time.Time) (*tenant.Tenant, error) {
			return &tenant.Tenant{Name: name}, nil
		},
		Report: func(in *fleet.Instance) routing.Report { // as package router does
			h, late := r.far[in.ID], time.Duration(0)
			for _, own := range w.instances {
				if own.Instance == in {
					if late = apart(r.at, own.region); own.region == r.at {
						h = heard{own.Report, own.At}
					}
				}
			}
			h.report.Since = w.Now() - h.at + late
			return h.report
		},
	})
}

// arrive sends a region's next request, and the one after it.
func (w *world) arrive(r *region) error {
	w.At(w.Now()+time.Duration(w.random.ExpFloat64()/r.rate*float64(time.Second)), func() error { return w.arrive(r) })
	w.sent++
	q := &request{from: r.at, asked: w.Now(), id: fmt.Sprintf("%032x", w.sent)}
	address, _, err := rig.AskPicker(r.picker, rig.Sealed{
		ID: q.id, Tenant: "acme", Size: size.Round(promptSize, outputSize).String(), Recipients: w.recipients(r),
	})
	if err != nil {
		return err
	}
	if q.to = slices.IndexFunc(w.instances, func(in *instance) bool { return in.Address == address }); q.to < 0 {
		return fmt.Errorf("picked %q, which is nobody's", address)
	}
	r.second.all++
	if w.instances[q.to].region != r.at {
		r.second.away++
	}
	w.At(w.Now()+apart(r.at, w.instances[q.to].region)/2, func() error { return w.reach(q) })
	return nil
}

// recipients are those that one of the region's clients seals a request to, as the
// keys route offered them last.
func (w *world) recipients(r *region) []string {
	c := &r.ask[w.random.IntN(clients)]
	if w.Now() >= c.until {
		c.recipients, c.until = nil, w.Now()+refresh
		way := r.way()
		offer := routing.Offer{Model: rig.Model, N: 3, Regions: way.Regions, Detours: way.Detours, Seed: w.random.Uint64()}
		for _, in := range routing.Candidates(offer, r.picker.Candidates()) {
			c.recipients = append(c.recipients, in.KeyIDs...)
		}
	}
	return c.recipients
}

// reach has a request arrive at its instance.
func (w *world) reach(q *request) error {
	q.prompt = w.instances[q.to].Meter.Begin(promptSize, w.Time())
	return w.Send(q.to, batching.Request{
		Prompt: make([]batching.Token, promptSize), Output: make([]batching.Token, 1+w.random.IntN(outputSize)), Salt: q.id, // nothing is cached
	}, q)
}

func (w *world) token(q *request, engine int, e batching.Event) {
	in, r := w.instances[engine], w.regions[q.from]
	back := apart(q.from, in.region) / 2
	if e.Index == 0 {
		in.Meter.First(q.prompt, w.Time())
		if q.asked >= w.warmUp {
			r.firsts = append(r.firsts, (e.At + back - q.asked).Seconds())
			if in.region != q.from {
				r.away++
			}
		}
	}
	if !e.Last {
		return
	}
	if w.Now() >= w.warmUp {
		w.answers++
	}
	in.Meter.End(q.prompt, w.Time())
	w.At(w.Now()+back+virtual.LogDelay, func() error { return r.log.End(q.id) })
}

// tick has every parent report its load, over and over.
func (w *world) tick() error {
	for _, in := range w.instances {
		in.Tell(in.engine.Stats(), slots, w.Now())
	}
	w.At(w.Now()+virtual.ReportEvery, w.tick)
	return nil
}

// listen has a router take the reports of other regions, over and over: each is as
// old as its way was long.
func (w *world) listen(r *region) error {
	for _, in := range w.instances {
		if in.region != r.at {
			report, way := in.Report, apart(r.at, in.region)/2
			w.At(w.Now()+way, func() error { r.far[in.ID] = heard{report, w.Now()}; return nil })
		}
	}
	w.At(w.Now()+farEvery, func() error { return w.listen(r) })
	return nil
}

// count notes how many requests went away in the last second.
func (w *world) count() error {
	for _, r := range w.regions {
		if w.Now() > w.warmUp && r.second.all > 0 {
			r.shares = append(r.shares, float64(r.second.away)/float64(r.second.all))
		}
		r.second.all, r.second.away = 0, 0
	}
	w.At(w.Now()+time.Second, w.count)
	return nil
}
