package router

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/tenant"
)

// followTenants shows each new list of tenants to the picker and to Envoy.
func (r *Router) followTenants(ctx context.Context) {
	for {
		r.applying.Lock()
		changed := r.showTenants()
		r.applying.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// showTenants shows the present list; the channel is closed when there is a
// newer one. Only one may at a time: see applying.
func (r *Router) showTenants() (changed <-chan struct{}) {
	signed, _, changed := r.config.Tenants.Held()
	if signed != nil {
		effective := signed.Restrict(r.settings.Load().Restrictions)
		r.tenants.Store(effective)
		r.xds.SetTenants(effective)
	}
	return changed
}

// admit gives the rules of the tenant whose edge token a request has.
func (r *Router) admit(req *http.Request) (*tenant.Tenant, *api.Error) {
	rules, err := r.tenants.Load().AdmitRequest(req.Header.Values(api.HeaderTenant), req.Header.Values("Authorization"), req.Header.Values(api.HeaderTenantSAN), time.Now())
	switch {
	case errors.Is(err, tenant.ErrNoList):
		return nil, api.Errorf(http.StatusServiceUnavailable, "tenants_expired", "this cluster's list of tenants has expired: its operator has to sign a new one")
	case err != nil:
		return nil, api.Errorf(http.StatusUnauthorized, "invalid_api_key", "the API key is not one of this cluster's")
	}
	return rules, nil
}

// registerTenantMetrics shows which list holds and for how long: a list that
// expires is an outage, which an operator should see coming.
func (r *Router) registerTenantMetrics() error {
	labels := prometheus.Labels{"region": string(r.config.Region)}
	return errors.Join(
		r.metrics.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "mrgc_tenants_version", Help: "Version of the signed list of tenants that the router has; 0: none.", ConstLabels: labels,
		}, func() float64 { return float64(r.tenants.Load().Version()) })),
		r.metrics.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "mrgc_tenants_expiry_timestamp_seconds", Help: "When that list expires, in Unix time; 0: there is none.", ConstLabels: labels,
		}, func() float64 {
			if expires := r.tenants.Load().Expires(); !expires.IsZero() {
				return float64(expires.Unix())
			}
			return 0
		})),
	)
}
