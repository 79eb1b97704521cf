package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/mrgc/mrgc/controller/failover"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/schema"
)

const (
	// viewInterval is how often a region's leader looks at all regions.
	viewInterval = 2 * time.Second
	// viewTimeout is how long a front door may take to answer, and the fleet's store.
	viewTimeout = 1500 * time.Millisecond
)

// viewTable is what regions' controllers see of all regions.
func viewTable(store state.Store) state.Table[failover.Report] {
	return state.NewTable[failover.Report](store, schema.RoutingState, 0)
}

// watcher looks at all regions while its controller leads its own, and publishes
// what it sees.
type watcher struct {
	self    fleet.Region
	regions []fleet.Region
	door    func(context.Context, fleet.Region) error
	fleet   fleet.Store
	stale   func() time.Duration
	table   state.Table[failover.Report]
	log     *slog.Logger

	mu   sync.Mutex
	lags map[fleet.Region]lagSeen // guarded by mu

	// What follows is the goroutine's that runs a term.
	been    map[string]bool         // instances that have been ready
	shut    map[fleet.Region]string // doors that did not answer last, and why
	failing bool
}

// lagSeen is how far a region's rows lagged when that was last known.
type lagSeen struct {
	behind time.Duration
	at     time.Time
}

func newWatcher(config *Config, log *slog.Logger) *watcher {
	return &watcher{
		self: config.Region, regions: config.Regions, door: config.Door, fleet: config.Fleet, stale: config.StaleAfter,
		table: viewTable(config.Store), log: log, lags: map[fleet.Region]lagSeen{},
		been: map[string]bool{}, shut: map[fleet.Region]string{},
	}
}

// lag hears how far another region's rows lag.
func (w *watcher) lag(from fleet.Region, behind time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lags[from] = lagSeen{behind, time.Now()}
}

// run looks and publishes until the term ends. The term's token is the reports'
// epoch, so that they go on from one leader to the next.
func (w *watcher) run(t *term) {
	tick := time.NewTicker(viewInterval)
	defer tick.Stop()
	for sequence := uint64(1); ; sequence++ {
		err := w.publish(t, sequence)
		if t.ctx.Err() != nil {
			return
		}
		if err != nil && !w.failing {
			w.log.WarnContext(t.ctx, "what is seen of regions cannot be published, trying again", "error", err)
		}
		w.failing = err != nil
		select {
		case <-t.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (w *watcher) publish(t *term, sequence uint64) error {
	sights, err := w.look(t.ctx)
	if err != nil {
		return err
	}
	key := state.ViewKey(w.self)
	report := failover.Report{Epoch: t.token, Sequence: sequence, At: time.Now().UTC(), Sights: sights}
	_, err = w.table.Put(t.ctx, state.Record[failover.Report]{Key: key, Value: report}, state.Anyway(), state.Fenced(t.token))
	if errors.Is(err, state.ErrFenced) {
		if there, readErr := w.table.Get(t.ctx, key); readErr == nil {
			t.above(there.Fence)
		}
	}
	return err
}

// look knocks at all doors and reads the fleet, all at once. Without the fleet
// nothing can be said of any region.
func (w *watcher) look(ctx context.Context) (map[fleet.Region]failover.Sight, error) {
	limited, cancel := context.WithTimeout(ctx, viewTimeout)
	defer cancel()
	var knocking sync.WaitGroup
	answers := make([]error, len(w.regions))
	for i, region := range w.regions {
		knocking.Go(func() { answers[i] = w.door(limited, region) })
	}
	snapshot, err := w.fleet.Snapshot(limited)
	knocking.Wait()
	if err != nil {
		return nil, fmt.Errorf("fleet: %w", err)
	}
	seen := seen{regions: w.regions, open: map[fleet.Region]bool{}, snapshot: snapshot, stale: w.stale(), lag: map[fleet.Region]time.Duration{}, been: w.been}
	for i, region := range w.regions {
		seen.open[region] = answers[i] == nil
		if ctx.Err() == nil {
			w.tell(ctx, region, answers[i])
		}
	}
	w.mu.Lock()
	for region, l := range w.lags {
		if time.Since(l.at) < silence {
			seen.lag[region] = l.behind
		}
	}
	w.mu.Unlock()
	sights, been := seen.sights()
	w.been = been
	return sights, nil
}

// tell logs when a door does not answer any more, and when it does again.
func (w *watcher) tell(ctx context.Context, region fleet.Region, err error) {
	_, was := w.shut[region]
	switch {
	case err != nil && !was:
		w.shut[region] = err.Error()
		w.log.WarnContext(ctx, "a region's front door does not answer", "to", region, "error", err)
	case err == nil && was:
		delete(w.shut, region)
		w.log.InfoContext(ctx, "a region's front door answers again", "to", region)
	}
}

// seen is all that a look has found.
type seen struct {
	regions  []fleet.Region
	open     map[fleet.Region]bool // whose doors answered, and said that something is ready behind
	snapshot *fleet.Snapshot
	stale    time.Duration                  // age of a heartbeat that does not count
	lag      map[fleet.Region]time.Duration // of rows, as far as it is known
	been     map[string]bool                // instances that have been ready before
}

// sights says what was seen of each region, and which of the instances have been
// ready by now. It is pure.
//
// Where all heartbeats of a region are stale, and its door says that instances are
// ready, it is their way here that has died. What they said last counts then, and the
// region's rows lag by their age.
func (s *seen) sights() (sights map[fleet.Region]failover.Sight, been map[string]bool) {
	sights, been = map[fleet.Region]failover.Sight{}, map[string]bool{}
	for _, region := range s.regions {
		sight := failover.Sight{Door: s.open[region], Lag: s.lag[region]}
		age, any := s.youngest(region)
		late := any && age > s.stale
		if late {
			sight.Lag = max(sight.Lag, age)
		}
		for _, in := range s.snapshot.Instances {
			if in.Region != region || in.Draining {
				continue
			}
			ready := in.Health.OK() && (!s.snapshot.Stale(in, s.stale) || late && sight.Door)
			if ready {
				sight.Ready++
			}
			if ready || s.been[in.ID] {
				been[in.ID] = true
				sight.Want++
			}
		}
		sights[region] = sight
	}
	return sights, been
}

// youngest is the age of a region's youngest heartbeat, if it has instances.
func (s *seen) youngest(region fleet.Region) (age time.Duration, any bool) {
	for _, in := range s.snapshot.Instances {
		if in.Region != region {
			continue
		}
		if this := s.snapshot.At.Sub(in.HeartbeatAt); !any || this < age {
			age, any = this, true
		}
	}
	return age, any
}

// views reads what regions' controllers publish. It is safe for concurrent use.
type views struct {
	table state.Table[failover.Report]
	keys  map[state.Key]fleet.Region

	mu     sync.Mutex
	reader *failover.Reader // guarded by mu
}

func newViews(config failover.Config, store state.Store) *views {
	v := &views{table: viewTable(store), keys: map[state.Key]fleet.Region{}, reader: failover.NewReader(config)}
	for _, region := range config.Regions {
		v.keys[state.ViewKey(region)] = region
	}
	return v
}

func (v *views) read(ctx context.Context) (map[fleet.Region]failover.View, error) {
	records, err := v.table.GetMany(ctx, slices.Collect(maps.Keys(v.keys)))
	if err != nil && len(records) == 0 { // one that cannot be read is missing
		return nil, fmt.Errorf("views of regions: %w", err)
	}
	reports := map[fleet.Region]failover.Report{}
	for _, record := range records {
		reports[v.keys[record.Key]] = record.Value
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.reader.Read(reports, time.Now()), nil
}

// NewRouting is the loop by what regions' controllers publish in a store, with an
// accelerator's dials, which somebody must Run. Without an accelerator (nil) a dial is
// as it was decided, and says where tenants ought to go. Routers follow drains by
// themselves ([Drained]).
func NewRouting(config failover.Config, store state.Store, dials *Dials) Routing {
	looking := newViews(config, store)
	return Routing{
		Config: config, dials: dials, alone: dials == nil,
		Observe: func(ctx context.Context) (failover.Observation, error) {
			views, err := looking.read(ctx)
			return failover.Observation{Views: views}, err
		},
		Execute: func(_ context.Context, id string, action failover.Action) error {
			if action.Kind != failover.SetDial || dials == nil {
				return nil
			}
			return dials.Set(id, action.Region, action.Dial)
		},
	}
}
