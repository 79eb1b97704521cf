package main

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/mrgc/mrgc/controller"
	"github.com/mrgc/mrgc/controller/autoscaler"
	"github.com/mrgc/mrgc/internal/config"
	"github.com/mrgc/mrgc/internal/fleet"
)

// heldConfig is the configuration that a controller goes by. What may change while it
// runs its parts read from here whenever they need it.
type heldConfig struct{ atomic.Pointer[config.Config] }

func holding(cluster *config.Config) *heldConfig {
	held := &heldConfig{}
	held.Store(cluster)
	return held
}

// staleAfter is the age of a heartbeat that no longer counts, now.
func (h *heldConfig) staleAfter() time.Duration { return h.Load().Fleet.StaleAfter }

// rules are those that a region is scaled by, now. It is one of the configuration's, as
// none is taken without it.
func (h *heldConfig) rules(region fleet.Region, zones []string) autoscaler.Config {
	cluster := h.Load()
	is, s := cluster.Region(region), cluster.Scaling
	return autoscaler.Config{
		Region: region, Zones: zones, Min: is.MinInstances, Max: is.MaxInstances,
		TargetLow: float64(s.TargetLow), TargetHigh: float64(s.TargetHigh),
		Learn: s.Learn, Reserve: s.Reserve, Forecast: s.Forecast,
	}
}

// follow has a region's controller go by what the file says until ctx ends. What cannot
// be had as a whole changes nothing.
func (h *heldConfig) follow(ctx context.Context, path string, region fleet.Region, c *controller.Controller, log *slog.Logger) {
	config.Follow(ctx, path, func(next *config.Config, err error) {
		is := h.Load()
		if err == nil {
			err = is.ChangeEverywhere(next, region)
		}
		switch {
		case err != nil:
			log.Error("the configuration is refused; the one before stays in force", "in_force", is.Version(), "error", err)
		case next.Version() != is.Version():
			log.Info("the configuration has changed", "version", next.Version(), "before", is.Version())
			h.Store(next)
		}
		c.Configured(h.Load().Version(), err)
	})
}
