package router

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/seal"
)

const (
	// documentRefresh is how often each instance is asked for its attestation
	// documents again. Enclaves renew them every 2 minutes and clients want them
	// at most 5 minutes old, so one refresh may fail without anyone noticing.
	documentRefresh    = time.Minute
	fetchTimeout       = 3 * time.Second
	fetchesAtOnce      = 16
	maxRecipientsBytes = 256 << 10
)

// collector holds the recipients of every instance, fetched from its parent
// directly: attestation documents do not go through the store.
type collector struct {
	client  *http.Client // mutual TLS, expects a parent
	log     *slog.Logger
	inspect func(*fleet.Instance, []api.Recipient, time.Time) // what was fetched

	mu    sync.Mutex
	known map[string]held // guarded by mu: key id → recipient
}

type held struct {
	recipient api.Recipient
	fetched   time.Time
	shared    bool   // a fleet's: others may hold it, too
	mode      string // of isolation, as the claims say; empty: they cannot be read
}

func newCollector(client *http.Client, log *slog.Logger) *collector {
	return &collector{client: client, log: log, known: map[string]held{}, inspect: func(*fleet.Instance, []api.Recipient, time.Time) {}}
}

// get gives the recipient of a key id.
func (c *collector) get(kid string) (held, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h, ok := c.known[kid]
	return h, ok
}

// own gives the newest recipient of an instance's own: an older key is for requests
// that are on their way.
func (c *collector) own(in *fleet.Instance) (api.Recipient, bool) {
	for _, kid := range in.KeyIDs {
		if h, ok := c.get(kid); ok && !h.shared {
			return h.recipient, true
		}
	}
	return api.Recipient{}, false
}

// fleets gives the newest recipient of a fleet's, of the first instance that has one.
func (c *collector) fleets(instances []*fleet.Instance) (api.Recipient, bool) {
	for _, in := range instances {
		for _, kid := range in.KeyIDs {
			if h, ok := c.get(kid); ok && h.shared {
				return h.recipient, true
			}
		}
	}
	return api.Recipient{}, false
}

// answer lists the recipients of the instances of all selections, each once, which
// of them each selection has, and last a fleet's. Of what the client knows it has the
// key ids alone.
func (c *collector) answer(selections [][]*fleet.Instance, known []string) (answer api.Recipients) {
	list := func(r api.Recipient) {
		if kid := kidOfClaims(r.Claims); slices.Contains(known, kid) {
			r = api.Recipient{KeyID: kid}
		}
		answer.Recipients = append(answer.Recipients, r)
	}
	places := map[string]int{} // in the answer, by instance
	for _, selection := range selections {
		var set []int
		for _, in := range selection {
			place, ok := places[in.ID]
			if !ok {
				r, ok := c.own(in)
				if !ok {
					continue
				}
				place = len(answer.Recipients)
				places[in.ID] = place
				list(r)
			}
			set = append(set, place)
		}
		if len(set) > 0 {
			answer.Sets = append(answer.Sets, set)
		}
	}
	if shared, ok := c.fleets(slices.Concat(selections...)); ok {
		list(shared)
	}
	return answer
}

func kidOfClaims(claims []byte) string {
	hash := sha256.Sum256(claims)
	return hex.EncodeToString(hash[:8])
}

// refresh fetches what is missing or older than documentRefresh, and forgets
// keys that nobody holds any more. It blocks until every instance has answered
// or timed out; instances that do not answer keep what they had.
func (c *collector) refresh(ctx context.Context, snapshot *fleet.Snapshot, now time.Time) {
	c.forget(snapshot)
	var fetches errgroup.Group
	fetches.SetLimit(fetchesAtOnce)
	for _, in := range snapshot.Instances {
		if !in.Health.Enclave || c.fresh(in.KeyIDs, now) {
			continue
		}
		fetches.Go(func() error {
			if err := c.fetch(ctx, in, now); err != nil && ctx.Err() == nil {
				c.log.Warn("no recipients from instance", "instance", in.ID, "error", err)
			}
			return nil
		})
	}
	_ = fetches.Wait() // each fetch has logged its own failure
}

func (c *collector) forget(snapshot *fleet.Snapshot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for kid := range c.known {
		if len(snapshot.Holders(kid)) == 0 {
			delete(c.known, kid)
		}
	}
}

func (c *collector) fresh(kids []string, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, kid := range kids {
		if h, ok := c.known[kid]; !ok || now.Sub(h.fetched) >= documentRefresh {
			return false
		}
	}
	return true
}

func (c *collector) fetch(ctx context.Context, in *fleet.Instance, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+in.Address+"/recipients", nil)
	if err != nil {
		return err
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if peer, _ := identity.Peer(resp.TLS); peer != parentOf(in) {
		return fmt.Errorf("%s answers at its address", peer)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	var answer api.Recipients
	if err := json.NewDecoder(http.MaxBytesReader(nil, resp.Body, maxRecipientsBytes)).Decode(&answer); err != nil {
		return fmt.Errorf("recipients: %w", err)
	}
	c.inspect(in, answer.Recipients, now)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range answer.Recipients {
		kid := kidOfClaims(r.Claims)
		if slices.Contains(in.KeyIDs, kid) { // no instance speaks for another's key
			claims, _ := seal.ParseClaims(r.Claims) // of what cannot be read, the zero value
			c.known[kid] = held{recipient: r, fetched: now, shared: claims.Type == seal.TypeFleet, mode: claims.Mode}
		}
	}
	return nil
}

func parentOf(in *fleet.Instance) identity.ID {
	return identity.ID{Region: string(in.Region), Instance: in.ID, Role: identity.RoleParent}
}
