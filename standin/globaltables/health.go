package globaltables

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"
)

const (
	pingEvery   = 250 * time.Millisecond
	pingTimeout = 500 * time.Millisecond
	heardFor    = time.Second // after which a region that does not answer is not counted
)

// health is whom a region has heard of: its own DynamoDB Local, and other regions that
// said that theirs is well.
type health struct {
	r *Region

	mu    sync.Mutex
	heard map[string]time.Time // guarded by mu; when an answer came last, by region
}

func newHealth(r *Region) *health { return &health{r: r, heard: map[string]time.Time{}} }

func (h *health) run(ctx context.Context) {
	var running sync.WaitGroup
	watch := func(region string, ping func(context.Context) error) {
		running.Go(func() {
			for ctx.Err() == nil {
				call, cancel := context.WithTimeout(ctx, pingTimeout)
				err := ping(call)
				cancel()
				h.note(region, err == nil)
				pause(ctx, pingEvery)
			}
		})
	}
	watch(h.r.cfg.Region, func(ctx context.Context) error {
		return h.r.near.call(ctx, dynamoDB+"ListTables", map[string]int{"Limit": 1}, nil)
	})
	for region, p := range h.r.peers {
		watch(region, func(ctx context.Context) error { return h.r.ping(ctx, p) })
	}
	running.Wait()
}

// note takes an answer into account. One's own DynamoDB Local is on the same machine:
// it counts as gone with the first answer that does not come.
func (h *health) note(region string, well bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case well:
		h.heard[region] = time.Now()
	case region == h.r.cfg.Region:
		delete(h.heard, region)
	}
}

func (h *health) near() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, is := h.heard[h.r.cfg.Region]
	return is
}

// majority says whether this region and those that it hears of are more than half of
// all.
func (h *health) majority() bool {
	if !h.near() {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 1
	for region := range h.r.peers {
		if at, is := h.heard[region]; is && time.Since(at) < heardFor {
			n++
		}
	}
	return 2*n > 1+len(h.r.peers)
}

// serve says whether this region's DynamoDB Local is well.
func (h *health) serve(w http.ResponseWriter, req *http.Request) {
	if from := req.Header.Get(fromHeader); from != "" && h.r.isCut(from) {
		http.Error(w, "no way from "+from, http.StatusBadGateway)
		return
	}
	if !h.near() {
		http.Error(w, "DynamoDB Local is gone", http.StatusServiceUnavailable)
	}
}

func (r *Region) ping(ctx context.Context, p *peer) error {
	if r.isCut(p.region) {
		return fmt.Errorf("no way to %s", p.region)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+"/health", nil)
	if err != nil {
		return err
	}
	req.Header.Set(fromHeader, r.cfg.Region)
	resp, err := r.http.Do(req)
	if err != nil {
		return err
	}
	if err := resp.Body.Close(); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: status %d", p.region, resp.StatusCode)
	}
	return nil
}

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
