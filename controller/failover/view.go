package failover

import (
	"fmt"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
)

// Verdict is what one observer thinks of one region.
type Verdict string

// Verdicts. The empty one is of an observer that could not tell.
const (
	Down    Verdict = "down"    // takes no request
	Partial Verdict = "partial" // less than half of what it wants is ready
	Behind  Verdict = "behind"  // serves, but its state lags: it gets nothing back yet
	Up      Verdict = "up"
)

// MaxLag is how far a region's replicated state may lag while it recovers: its
// routers and controllers would act on what is no longer so.
const MaxLag = 5 * time.Second

// Sight is what an observer saw of a region: by a request of its own through the
// region's front door, and by the region's rows in the store.
type Sight struct {
	Door  bool          `json:"door"`   // the request was answered
	Ready int           `json:"ready"`  // instances that take requests
	Want  int           `json:"want"`   // instances that have been ready and are to stay: not those that are on their way
	Lag   time.Duration `json:"lag_ns"` // of the region's replicated state
}

// Verdict is what a sight means.
func (s Sight) Verdict() Verdict {
	switch {
	case !s.Door || s.Ready == 0:
		return Down
	case 2*s.Ready < s.Want:
		return Partial
	case s.Lag > MaxLag:
		return Behind
	default:
		return Up
	}
}

// Report is what a region's controller publishes, every two seconds or so.
type Report struct {
	Epoch    int64                  `json:"epoch"`    // rises with each start of the observer
	Sequence uint64                 `json:"sequence"` // rises with each report of one epoch
	At       time.Time              `json:"at"`       // by the observer's clock
	Sights   map[fleet.Region]Sight `json:"sights"`
}

// Validate checks what was read.
func (r Report) Validate() error {
	if r.Epoch < 1 || r.Sequence < 1 {
		return fmt.Errorf("epoch %d, sequence %d: want 1 or more", r.Epoch, r.Sequence)
	}
	for region, sight := range r.Sights {
		if sight.Ready < 0 || sight.Want < 0 || sight.Lag < 0 {
			return fmt.Errorf("sight of %s: %+v: want nothing below 0", region, sight)
		}
	}
	return nil
}

// Freshness is how much a view is worth.
type Freshness string

// Freshness of views. Only fresh ones are counted; the others are told apart for
// people.
const (
	Missing Freshness = "missing" // never heard of since this process started
	Stale   Freshness = "stale"   // not heard of lately
	Fresh   Freshness = "fresh"
)

// View is what one observer sees of all regions, as far as it can be believed.
type View struct {
	Freshness Freshness
	Of        map[fleet.Region]Verdict
}

// Reader turns reports into views. It is one process's memory of which numbers it
// has seen, and is not safe for concurrent use.
type Reader struct {
	config Config
	seen   map[fleet.Region]seen
}

type seen struct {
	epoch    int64
	sequence uint64
	rose     time.Time // when the number last rose; zero if it has not since it was first seen
}

// NewReader remembers nothing yet, so that the first report of each observer, of
// which nobody knows how long it has been lying there, is not counted.
func NewReader(config Config) *Reader {
	return &Reader{config: config.withDefaults(), seen: map[fleet.Region]seen{}}
}

// Read takes the newest report of each region that can be had.
func (r *Reader) Read(reports map[fleet.Region]Report, now time.Time) map[fleet.Region]View {
	views := make(map[fleet.Region]View, len(r.config.Regions))
	for _, from := range r.config.Regions {
		report, ok := reports[from]
		if !ok {
			freshness := Missing
			if _, ok := r.seen[from]; ok {
				freshness = Stale
			}
			views[from] = View{Freshness: freshness}
			continue
		}
		views[from] = View{Freshness: r.note(from, report, now), Of: verdicts(report.Sights)}
	}
	return views
}

// note says how fresh a report is.
func (r *Reader) note(from fleet.Region, report Report, now time.Time) Freshness {
	last, known := r.seen[from]
	switch {
	case !known:
		r.seen[from] = seen{epoch: report.Epoch, sequence: report.Sequence}
		return Missing
	case report.Epoch > last.epoch, report.Epoch == last.epoch && report.Sequence > last.sequence:
		last = seen{report.Epoch, report.Sequence, now}
		r.seen[from] = last
	case report.Epoch != last.epoch || report.Sequence != last.sequence:
		return Stale // an old one that came late
	}
	switch {
	case last.rose.IsZero():
		return Missing
	case now.Sub(last.rose) > r.config.FreshFor, now.Before(last.rose),
		now.Sub(report.At) > r.config.FreshFor+r.config.MaxSkew: // it was on its way for long
		return Stale
	}
	return Fresh
}

func verdicts(sights map[fleet.Region]Sight) map[fleet.Region]Verdict {
	of := make(map[fleet.Region]Verdict, len(sights))
	for region, sight := range sights {
		of[region] = sight.Verdict()
	}
	return of
}
