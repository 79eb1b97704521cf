package router

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
)

const (
	drainInterval = 2 * time.Second
	drainTimeout  = time.Second
)

// serveDoor answers [api.PathDoor]: whether the region has an instance that takes
// requests, as this router sees it.
func (r *Router) serveDoor(w http.ResponseWriter, _ *http.Request) {
	if snapshot := r.view.Load(); snapshot != nil {
		for _, in := range snapshot.Ready(r.settings.Load().StaleAfter) {
			if in.Region == r.config.Region {
				w.WriteHeader(http.StatusOK)
				return
			}
		}
	}
	w.WriteHeader(http.StatusServiceUnavailable)
}

// followDrains has ways avoid regions that are drained, and the Envoys beside this
// router drain while its own is, or not. Envoys are looked at each time, since they
// forget it when they start anew.
//
// An Envoy drains by its failed health check (POST /healthcheck/fail): it tells each
// connection to go (GOAWAY) when it is used next, ends no request, fails the health
// check of what is in front of it, and still serves whoever comes. Unlike
// /drain_listeners, it can be taken back.
func (r *Router) followDrains(ctx context.Context) {
	client := &http.Client{Transport: &http.Transport{}, Timeout: drainTimeout}
	defer client.CloseIdleConnections()
	tick := time.NewTicker(drainInterval)
	defer tick.Stop()
	failing := false
	for {
		err := r.readDrains(ctx)
		known := err == nil || r.drainsKnown()
		if known {
			for _, admin := range r.config.EnvoyAdmins {
				err = errors.Join(err, r.drainEnvoy(ctx, client, admin))
			}
		}
		if err != nil && !failing && ctx.Err() == nil {
			r.log.Warn("drains cannot be followed, trying again", "error", err)
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// readDrains reads which regions are drained.
func (r *Router) readDrains(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	drained, err := r.config.Drained(ctx)
	if err != nil {
		return fmt.Errorf("which regions are drained: %w", err)
	}
	if drained == nil {
		drained = map[fleet.Region]bool{}
	}
	r.applying.Lock()
	defer r.applying.Unlock()
	if r.drained == nil || !maps.Equal(drained, r.drained) {
		r.drained = drained
		r.log.Info("regions that are drained have changed", "drained", drained)
		r.updateWays()
	}
	return nil
}

// drainsKnown says whether it has ever been read which regions are drained.
func (r *Router) drainsKnown() bool {
	r.applying.Lock()
	defer r.applying.Unlock()
	return r.drained != nil
}

// drainEnvoy has an Envoy be as it should.
func (r *Router) drainEnvoy(ctx context.Context, client *http.Client, admin string) error {
	r.applying.Lock()
	drain := r.drained[r.config.Region]
	r.applying.Unlock()
	state, err := askEnvoy(ctx, client, http.MethodGet, "http://"+admin+"/ready")
	if err != nil {
		return err
	}
	const live, draining = "LIVE\n", "DRAINING\n"
	switch {
	case drain && state == live:
		_, err = askEnvoy(ctx, client, http.MethodPost, "http://"+admin+"/healthcheck/fail")
	case !drain && state == draining:
		_, err = askEnvoy(ctx, client, http.MethodPost, "http://"+admin+"/healthcheck/ok")
	default: // as it should be, or not up yet
		return nil
	}
	if err == nil {
		r.log.Info("Envoy is told whether to drain", "admin", admin, "drain", drain)
	}
	return err
}

// askEnvoy gives an admin page, whatever its status: that of a draining Envoy's
// state is 503.
func askEnvoy(ctx context.Context, client *http.Client, method, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if err == nil && method == http.MethodPost && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", url, resp.Status)
	}
	return string(body), err
}

func checkEnvoyAdmins(admins []string) error {
	for _, admin := range admins {
		if a, err := netip.ParseAddrPort(admin); err != nil || !a.Addr().IsLoopback() {
			return fmt.Errorf("admin of Envoy %q: want an IP:port on loopback", admin)
		}
	}
	return nil
}
