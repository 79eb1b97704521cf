package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/credential"
)

const (
	// A region that is down is asked whether it is back at once, and then after
	// firstProbe, twice that, and so on up to longestProbe: beside requests, which
	// go elsewhere meanwhile.
	firstProbe   = time.Second
	longestProbe = 30 * time.Second
	// notForTenant is how long a region is passed over that has said that the
	// tenant's data may not be there.
	notForTenant = 5 * time.Minute
)

// region is one endpoint.
type region struct {
	place int // in the order of preference
	url   *url.URL

	mu      sync.Mutex
	state   reach                // guarded by mu
	refused map[string]time.Time // guarded by mu: by tenant, until when it is passed over
}

// reach is whether a region can be reached, as far as requests and probes have
// shown. The zero value is a region that can.
type reach struct {
	down    bool
	probing bool
	wait    time.Duration // before the next probe but one
	probeAt time.Time
}

// fail notes that a request could not be sent there, or got no answer.
func (r *reach) fail(now time.Time) {
	if !r.down {
		*r = reach{down: true, wait: firstProbe, probeAt: now}
	}
}

// probe says whether it is time to ask whether it is back; who is told so asks.
func (r *reach) probe(now time.Time) bool {
	if !r.down || r.probing || now.Before(r.probeAt) {
		return false
	}
	r.probing = true
	return true
}

// missed notes that a probe has failed.
func (r *reach) missed(now time.Time) {
	r.probing, r.probeAt, r.wait = false, now.Add(r.wait), min(2*r.wait, longestProbe)
}

// rank orders regions for a tenant's request: those that can be reached, those
// that could not, and those where the tenant may not be.
func (r *region) rank(tenant string, now time.Time) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch until := r.refused[tenant]; {
	case now.Before(until):
		return 2
	case r.state.down:
		return 1
	}
	return 0
}

func (r *region) refuse(tenant string, until time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refused == nil {
		r.refused = map[string]time.Time{}
	}
	r.refused[tenant] = until
}

// update changes what is known of the region, and says whether it was down before.
func (r *region) update(change func(*reach)) (wasDown bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	wasDown = r.state.down
	change(&r.state)
	return wasDown
}

// order gives the regions in the order in which a tenant's request tries them.
// All are in it: with nothing better left, one that is down is as good a guess as
// any.
func (c *Client) order(tenant string) []*region {
	now := c.config.Now()
	ranks := make([]int, len(c.regions))
	for i, r := range c.regions {
		ranks[i] = r.rank(tenant, now)
	}
	ordered := slices.Clone(c.regions)
	slices.SortStableFunc(ordered, func(a, b *region) int { return ranks[a.place] - ranks[b.place] })
	return ordered
}

// unanswered is an attempt in which a region gave no answer.
type unanswered struct {
	err   error
	ran   bool // the request may have reached it, and have run
	there bool // the region was there, and said that it would answer
}

func (u *unanswered) Error() string { return u.err.Error() }
func (u *unanswered) Unwrap() error { return u.err }

// eachRegion asks one region after the other until one answers: the next one is
// for when there was no connection to be had, when it broke off before the first
// byte of an answer, and when the region says that the tenant's data may not be in it. A
// request that must not run twice (once) stays with the region that may have run
// it. Nothing is asked twice of which a byte has been answered.
func eachRegion[T any](ctx context.Context, c *Client, tenant string, once bool, ask func(*region) (T, error)) (answer T, err error) {
	var failures []error
	var elsewhere *api.Error // what a region said that the tenant may not be in
	for i, r := range c.order(tenant) {
		if i > 0 {
			c.moved.Add(1)
		}
		if answer, err = ask(r); err == nil {
			c.answered(r)
			return answer, nil
		}
		var lost *unanswered
		var refused *api.Error
		switch {
		case ctx.Err() != nil:
			return answer, ctx.Err()
		case errors.As(err, &lost):
			failures = append(failures, err)
			if !lost.there && !r.update(func(s *reach) { s.fail(c.config.Now()) }) {
				c.config.Logger.Warn("region gives no answer; requests go to the next", "endpoint", r.url.Host, "error", err)
			}
			if once && lost.ran {
				return answer, fmt.Errorf("client: %w", err)
			}
		case errors.As(err, &refused) && refused.Code == api.CodeRegionNotAllowed:
			elsewhere = refused
			c.answered(r)
			r.refuse(tenant, c.config.Now().Add(notForTenant))
		default:
			c.answered(r)
			return answer, err
		}
	}
	if len(failures) == 0 {
		return answer, elsewhere
	}
	return answer, fmt.Errorf("client: %w", errors.Join(failures...))
}

// answered notes that a region is there.
func (c *Client) answered(r *region) {
	if r.update(func(s *reach) { *s = reach{probing: s.probing} }) {
		c.config.Logger.Info("region is back", "endpoint", r.url.Host)
	}
}

// probe asks regions that are down for the model's recipients, which is what a
// request would begin with, beside the request that it is called by.
func (c *Client) probe(ctx context.Context, key *credential.Key, model string) {
	for _, r := range c.regions {
		due := false
		r.update(func(s *reach) { due = s.probe(c.config.Now()) })
		if !due {
			continue
		}
		fetched := c.recipients.fetchNewer(ctx, r, key, model, c.recipients.list(r, model).version)
		go func() { // ends with the fetch, which has a time limit
			result := <-fetched
			r.update(func(s *reach) { s.missed(c.config.Now()) })
			var refused *api.Error
			if result.Err == nil || errors.As(result.Err, &refused) && refused.Code == api.CodeRegionNotAllowed {
				c.answered(r)
			}
		}()
	}
}

// request makes a request of a tenant's to a region. An error is an [unanswered]
// one, or ctx's.
func (c *Client) request(req *http.Request, key *credential.Key) (*http.Response, error) {
	if c.config.ClientCertificate == nil {
		req.Header.Set("Authorization", "Bearer "+string(key.EdgeToken()))
	}
	req.Header.Set(api.HeaderTenant, key.Tenant())
	var got atomic.Bool
	trace := &httptrace.ClientTrace{
		GetConn: func(string) { got.Store(false) }, // again when an idle connection turned out to be dead
		GotConn: func(httptrace.GotConnInfo) { got.Store(true) },
	}
	resp, err := c.http.Do(req.WithContext(httptrace.WithClientTrace(req.Context(), trace)))
	if err != nil {
		return nil, &unanswered{err: err, ran: got.Load() && req.Method != http.MethodGet}
	}
	return resp, nil
}
