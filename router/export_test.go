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
func (c Collector) Get(kid string) (api.Recipient, bool) {
	h, ok := c.get(kid)
	return h.recipient, ok
}

// Refresh is refresh.
func (c Collector) Refresh(ctx context.Context, snapshot *fleet.Snapshot, now time.Time) {
	c.refresh(ctx, snapshot, now)
}

// Inspector is inspector.
type Inspector struct{ *inspector }

// NewInspector makes an inspector that logs nothing.
func NewInspector(config Inspection) Inspector {
	return Inspector{newInspector(config, slog.New(slog.DiscardHandler))}
}

// Inspect is inspect.
func (i Inspector) Inspect(in *fleet.Instance, recipients []api.Recipient, now time.Time) {
	i.inspect(in, recipients, now)
}

// Recheck is recheck.
func (i Inspector) Recheck(now time.Time) { i.recheck(now) }

// Forget is forget.
func (i Inspector) Forget(snapshot *fleet.Snapshot) { i.forget(snapshot) }

// Page is the admin's page.
func (i Inspector) Page(w http.ResponseWriter, r *http.Request) { i.serve(w, r) }

// PollCertificate has the tenant certificate looked at so often.
func (r *Router) PollCertificate(every time.Duration) { r.certificatePoll = every }

// LookUp has the names of peers looked up so.
func (r *Router) LookUp(lookup func(host string) ([]netip.Addr, error)) {
	r.peers.lookup = func(_ context.Context, _, host string) ([]netip.Addr, error) { return lookup(host) }
}

// LookUpEvery has the names of peers looked up so often.
func (r *Router) LookUpEvery(interval time.Duration) { r.peers.interval = interval }

// TakeForBroken has a stream of load reports count as broken after a silence.
func (r *Router) TakeForBroken(after time.Duration) { r.loads.silence = after }
