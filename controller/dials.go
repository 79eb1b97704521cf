package controller

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
)

// Accelerator sends new connections to regions by traffic dials, in percent. Its calls
// end within some seconds.
type Accelerator interface {
	// Dials gives the dials that are configured. A region whose dial is not known is
	// absent.
	Dials(ctx context.Context) (map[fleet.Region]int, error)
	// SetDial sets one, for the action with the id. Doing it twice does no harm. After an
	// error it may be set or not.
	SetDial(ctx context.Context, id string, region fleet.Region, percent int) error
}

// Dials keeps an accelerator's API off the way of decisions: that API is in one region
// and may be gone with it, and a drain must not wait for it.
//
//	dials := controller.NewDials(accelerator, log)
//	go dials.Run(ctx)
//	observation.Dials = dials.Known()        // of whoever leads, each time round
//	err := dials.Set(id, region, percent)    // and again while Known says otherwise
//
// Neither call waits. It is safe for concurrent use.
type Dials struct {
	accelerator Accelerator
	log         *slog.Logger
	poked       chan struct{}

	mu      sync.Mutex
	known   map[fleet.Region]int   // guarded by mu; nil: never read
	read    time.Time              // guarded by mu: when known was asked for
	doubted bool                   // guarded by mu: it is to be read before it is old
	blind   bool                   // guarded by mu: it could not be read last
	wanted  []wantedDial           // guarded by mu: to be set, in this order; one for each region
	failing map[fleet.Region]error // guarded by mu: why setting it failed last
}

type wantedDial struct {
	id      string
	region  fleet.Region
	percent int
	at      time.Time
}

const (
	// dialsEvery is how old what is known may get before it is read again.
	dialsEvery = 5 * time.Second
	// dialsKnown is how old it may get before it is not known any more.
	dialsKnown = 15 * time.Second
	// dialsWanted is how long a dial that is to be set may wait for those before it. Then
	// whoever decides is to say again what holds, if that is still the same leader.
	dialsWanted = 3 * time.Second
)

// NewDials asks nobody yet.
func NewDials(accelerator Accelerator, log *slog.Logger) *Dials {
	return &Dials{accelerator: accelerator, log: log, poked: make(chan struct{}, 1), failing: map[fleet.Region]error{}}
}

// Known gives the dials as they were read lately; nil: they are not known. They are
// read because somebody asks: who does not lead need not.
func (d *Dials) Known() map[fleet.Region]int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.due() {
		d.poke()
	}
	if time.Since(d.read) > dialsKnown {
		return nil
	}
	return maps.Clone(d.known)
}

// due says whether it is time to read. It is called with mu held.
func (d *Dials) due() bool {
	return d.known == nil || d.doubted || time.Since(d.read) >= dialsEvery
}

// Set has a dial set soon. An error is of the last time that it was tried in vain; it
// is tried again now.
func (d *Dials) Set(id string, region fleet.Region, percent int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wanted = slices.DeleteFunc(d.wanted, func(w wantedDial) bool { return w.region == region })
	d.wanted = append(d.wanted, wantedDial{id, region, percent, time.Now()})
	d.poke()
	if err := d.failing[region]; err != nil {
		return fmt.Errorf("tried again, as before: %w", err)
	}
	return nil
}

func (d *Dials) poke() {
	select {
	case d.poked <- struct{}{}:
	default: // it has been
	}
}

// Run asks the accelerator until ctx ends.
func (d *Dials) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.poked:
		}
		for {
			next, waits := d.next()
			if !waits {
				break
			}
			err := d.accelerator.SetDial(ctx, next.id, next.region, next.percent)
			d.was(ctx, next, err)
		}
		d.look(ctx)
	}
}

// next takes what is to be set next.
func (d *Dials) next() (next wantedDial, waits bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(d.wanted) > 0 {
		next, d.wanted = d.wanted[0], d.wanted[1:]
		if time.Since(next.at) < dialsWanted {
			return next, true
		}
	}
	return wantedDial{}, false
}

// was notes what came of setting a dial.
func (d *Dials) was(ctx context.Context, tried wantedDial, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		if d.failing[tried.region] == nil && ctx.Err() == nil {
			d.log.WarnContext(ctx, "traffic dial cannot be set, trying again", "action", tried.id, "region", tried.region, "percent", tried.percent, "error", err)
		}
		d.failing[tried.region] = err
		delete(d.known, tried.region) // it may be set or not
		d.doubted = true
		return
	}
	delete(d.failing, tried.region)
	if d.known != nil {
		d.known[tried.region] = tried.percent
	}
}

// look reads the dials, if it is time to.
func (d *Dials) look(ctx context.Context) {
	d.mu.Lock()
	due := d.due()
	d.mu.Unlock()
	if !due {
		return
	}
	asked := time.Now()
	known, err := d.accelerator.Dials(ctx)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		if !d.blind && ctx.Err() == nil {
			d.log.WarnContext(ctx, "traffic dials cannot be read, trying again", "error", err)
		}
		d.blind = true
		return
	}
	d.known, d.read, d.doubted, d.blind = maps.Clone(known), asked, false, false
}
