package controller

import (
	"context"
	"log/slog"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/state"
)

// minutes gathers what the region does, and makes a row of it for each minute.
type minutes struct {
	region fleet.Region
	fleet  fleet.Store
	stale  func() time.Duration
	log    *slog.Logger

	// What follows is the goroutine's that runs a term.
	gathered state.Minute // sums, of the minute that is
	begun    time.Time
	outlets  []*outlet
	failing  bool
}

// outlet is where minutes go.
type outlet struct {
	name    string
	send    func(context.Context, []state.Record[state.Minute]) error
	unsent  []state.Record[state.Minute] // oldest first
	failing bool
}

const (
	sampleInterval = 10 * time.Second
	// mostUnsent minutes are kept while they cannot be written.
	mostUnsent = 60
)

func newMinutes(config *Config, log *slog.Logger) *minutes {
	table := state.MinuteTable(config.Store)
	m := &minutes{region: config.Region, fleet: config.Fleet, stale: config.StaleAfter, log: log}
	m.outlets = []*outlet{{name: "table", send: func(ctx context.Context, rows []state.Record[state.Minute]) error {
		return table.Replace(ctx, rows...)
	}}}
	if config.Publish != nil {
		m.outlets = append(m.outlets, &outlet{name: "publisher", send: func(ctx context.Context, rows []state.Record[state.Minute]) error {
			return config.Publish(ctx, config.Region, rows)
		}})
	}
	return m
}

// run samples until the term ends; lag hears of lags from elsewhere.
func (m *minutes) run(t *term, lag <-chan lagSample) {
	m.gathered = state.Minute{} // of an earlier term
	tick := time.NewTicker(sampleInterval)
	defer tick.Stop()
	for {
		select {
		case <-t.ctx.Done():
			return
		case sample := <-lag:
			m.lag(sample)
		case <-tick.C:
			m.sample(t.ctx, time.Now())
		}
	}
}

type lagSample struct {
	from   fleet.Region
	behind time.Duration
}

func (m *minutes) lag(sample lagSample) {
	if m.gathered.Lag == nil {
		m.gathered.Lag = map[fleet.Region]float64{}
	}
	m.gathered.Lag[sample.from] = max(m.gathered.Lag[sample.from], sample.behind.Seconds())
}

// sample takes one, after the minute before was closed.
func (m *minutes) sample(ctx context.Context, now time.Time) {
	if minute := now.Truncate(time.Minute); minute != m.begun {
		m.close()
		m.begun = minute
		m.send(ctx)
	}
	snapshot, err := m.fleet.Snapshot(ctx)
	tell(ctx, m.log, &m.failing, "fleet cannot be read for the metrics, trying again", err)
	if err != nil {
		return
	}
	ready := map[string]bool{}
	for _, in := range snapshot.Ready(m.stale()) {
		ready[in.ID] = true
	}
	m.gathered.Samples++
	for _, in := range snapshot.Instances {
		if in.Region != m.region {
			continue
		}
		m.gathered.Instances++
		if ready[in.ID] {
			m.gathered.Ready++
		}
		if in.Draining {
			m.gathered.Draining++
		}
		m.gathered.Running += float64(in.Load.Running)
		m.gathered.Queued += float64(in.Load.Queued)
		m.gathered.Slots += float64(in.Load.Slots)
	}
}

// close makes a row of the minute.
func (m *minutes) close() {
	row := m.gathered
	m.gathered = state.Minute{}
	if row.Samples == 0 {
		return
	}
	for _, sum := range []*float64{&row.Instances, &row.Ready, &row.Draining, &row.Running, &row.Queued, &row.Slots} {
		*sum /= float64(row.Samples)
	}
	for _, o := range m.outlets {
		o.unsent = append(o.unsent, state.Record[state.Minute]{Key: state.MinuteKey(m.region, m.begun), Value: row})
		o.unsent = o.unsent[max(len(o.unsent)-mostUnsent, 0):]
	}
}

// send writes what is unsent.
func (m *minutes) send(ctx context.Context) {
	for _, o := range m.outlets {
		if len(o.unsent) == 0 {
			continue
		}
		err := o.send(ctx, o.unsent)
		tell(ctx, m.log.With("to", o.name), &o.failing, "metrics cannot be written, keeping them", err)
		if err == nil {
			o.unsent = nil
		}
	}
}

// tell logs an error that was none the time before.
func tell(ctx context.Context, log *slog.Logger, failing *bool, what string, err error) {
	if err != nil && !*failing && ctx.Err() == nil {
		log.WarnContext(ctx, what, "error", err)
	}
	*failing = err != nil
}
