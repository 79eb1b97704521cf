package router

import (
	"context"
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
)

// Collector is collector.
type Collector struct{ *collector }

// NewCollector makes a collector that logs nothing.
func NewCollector(client *http.Client) Collector {
	return Collector{newCollector(client, slog.New(slog.DiscardHandler))}
}

// Get is get.
func (c Collector) Get(kid string) (api.Recipient, bool) { return c.get(kid) }

// Refresh is refresh.
func (c Collector) Refresh(ctx context.Context, snapshot *fleet.Snapshot, now time.Time) {
	c.refresh(ctx, snapshot, now)
}

// PollCertificate has the tenant certificate looked at so often.
func (r *Router) PollCertificate(every time.Duration) { r.certificatePoll = every }

// LookUp has the names of peers looked up so.
func (r *Router) LookUp(lookup func(host string) ([]netip.Addr, error)) {
	r.peers.lookup = func(_ context.Context, _, host string) ([]netip.Addr, error) { return lookup(host) }
}

// TakeForBroken has a stream of load reports count as broken after a silence.
func (r *Router) TakeForBroken(after time.Duration) { r.loads.silence = after }
