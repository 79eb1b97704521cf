package controller

import (
	"context"
	"log/slog"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/lease"
	"github.com/mrgc/mrgc/internal/state"
)

// heart writes the region's heartbeat after each renewal of its lease, and
// measures by the others' how far their rows lag.
type heart struct {
	region fleet.Region
	others []fleet.Region
	self   string
	alarm  time.Duration

	leases  state.Table[lease.Record]
	beats   state.Table[state.Heartbeat]
	renewed chan int64 // version of the lease; of two the newer
	log     *slog.Logger
	metric  *metrics

	// What follows is the goroutine's that runs a term.
	lags    lags
	alarmed map[fleet.Region]bool
	failing bool
}

// lookInterval is how often lag is measured, and so how much too long it may seem.
const lookInterval = 2 * time.Second

// renew takes note of a renewal. It never waits.
func (h *heart) renew(version int64) {
	select {
	case <-h.renewed:
	default:
	}
	select {
	case h.renewed <- version:
	default:
	}
}

// run beats and looks until the term ends.
func (h *heart) run(t *term, worst func(fleet.Region, time.Duration)) {
	h.lags, h.alarmed = lags{}, map[fleet.Region]bool{}
	defer h.forget()
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	for {
		var err error
		select {
		case <-t.ctx.Done():
			return
		case version := <-h.renewed:
			err = h.beat(t.ctx, version)
		case <-tick.C:
			err = h.look(t.ctx)
			h.judge(t.ctx, time.Now(), worst)
		}
		if t.ctx.Err() != nil {
			return
		}
		if err != nil && !h.failing {
			h.log.WarnContext(t.ctx, "heartbeats cannot be written or read, trying again", "error", err)
		}
		h.failing = err != nil
	}
}

func (h *heart) beat(ctx context.Context, version int64) error {
	row := state.Heartbeat{Beat: version, Controller: h.self, At: time.Now().UTC(), Lag: map[fleet.Region]float64{}}
	for _, other := range h.others {
		if behind, known := h.lags.behind(other, time.Now()); known {
			row.Lag[other] = behind.Seconds()
		}
	}
	_, err := h.beats.Put(ctx, state.Record[state.Heartbeat]{Key: state.HeartbeatKey(h.region), Value: row}, state.Anyway())
	return err
}

// look reads the others' leases, and then their heartbeats.
func (h *heart) look(ctx context.Context) error {
	if len(h.others) == 0 {
		return nil
	}
	var leases, beats []state.Key
	for _, other := range h.others {
		leases = append(leases, state.LeaseKey(RegionLease(other)))
		beats = append(beats, state.HeartbeatKey(other))
	}
	held, err := h.leases.GetMany(ctx, leases)
	if err != nil {
		return err
	}
	now := time.Now()
	for _, record := range held {
		for i, other := range h.others {
			if record.Key == leases[i] {
				h.lags.leased(other, record.Version, record.Value.Token, now)
			}
		}
	}
	heard, err := h.beats.GetMany(ctx, beats)
	now = time.Now()
	for _, record := range heard {
		for i, other := range h.others {
			if record.Key == beats[i] {
				h.lags.heard(other, record.Value.Beat, now)
			}
		}
	}
	return err
}

// judge shows how far rows lag, and says when that begins and ends to be too far.
func (h *heart) judge(ctx context.Context, now time.Time, worst func(fleet.Region, time.Duration)) {
	for _, other := range h.others {
		from := string(other)
		behind, known := h.lags.behind(other, now)
		if !known {
			h.metric.lag.DeleteLabelValues(from)
		} else {
			h.metric.lag.WithLabelValues(from).Set(behind.Seconds())
			worst(other, behind)
		}
		alarmed := known && behind > h.alarm
		switch {
		case alarmed && !h.alarmed[other]:
			h.log.ErrorContext(ctx, "another region's rows lag too far", "from", other, "lag", behind, "limit", h.alarm)
		case !alarmed && h.alarmed[other]:
			h.log.InfoContext(ctx, "another region's rows lag too far no longer", "from", other, "lag", behind, "known", known)
		}
		h.alarmed[other] = alarmed
		h.metric.alarm.WithLabelValues(from).Set(0)
		if alarmed {
			h.metric.alarm.WithLabelValues(from).Set(1)
		}
	}
}

// forget shows nothing of what only a leader knows.
func (h *heart) forget() {
	h.metric.lag.Reset()
	h.metric.alarm.Reset()
}
