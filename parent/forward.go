package parent

import (
	"cmp"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/tenant"
)

// hop is where a sealed request goes next.
type hop struct {
	client *http.Client // nil: the own enclave's, which is not chosen yet
	url    string
	to     string // for the metrics
	peer   string // the other instance; empty for the own enclave
}

// regionsOf are those where Envoy says that a request's data may be. Envoy always
// says so: where nothing is said, it is this region alone.
func (p *Parent) regionsOf(r *http.Request) []string {
	if said := r.Header.Get(api.HeaderAllowedRegions); said != "" {
		return strings.Split(said, ",")
	}
	return []string{string(p.config.Instance.Region)}
}

// mayServe says whether a tenant's data may be here, by its rules and by what
// Envoy says of the request: unsigned rules, which only restrict, are known there.
func (p *Parent) mayServe(r *http.Request, rules *tenant.Tenant) bool {
	here := string(p.config.Instance.Region)
	return rules.Regions.Allow(here) && slices.Contains(p.regionsOf(r), here)
}

// next decides it. A request that is sealed to this instance's enclave goes
// there. Envoy's weights know nothing of recipients, so when the picker is
// silent a request can arrive that is not: it goes to the parent of one that it
// is sealed to, as ciphertext, and from there no further; never to a region that
// its tenant's data may not be in. So does one that comes while this instance's engine
// is being restarted. A request whose recipients nobody knows goes to
// the enclave too, which says so.
func (p *Parent) next(r *http.Request, from identity.Role) hop {
	own := hop{url: "http://enclave" + api.PathSealed, to: toEnclave}
	if from == identity.RoleParent {
		return own
	}
	recipients := recipientsOf(r)
	if p.enclaves.holds(recipients) && !p.washer.now().Closed() {
		return own
	}
	snapshot := p.view.Load()
	if snapshot == nil {
		return own
	}
	allowed := p.regionsOf(r)
	elsewhere := slices.DeleteFunc(slices.Clone(snapshot.Ready(p.settings.Load().StaleAfter)),
		func(in *fleet.Instance) bool { return !slices.Contains(allowed, string(in.Region)) })
	other := leastLoaded(elsewhere, recipients, p.forwarded.count)
	if other == nil || other.ID == p.config.Instance.ID {
		return own
	}
	return hop{client: p.peers, url: "https://" + other.Address + api.PathSealed, to: toPeer, peer: other.ID}
}

// recipientsOf are the keys that a request says it is sealed to.
func recipientsOf(r *http.Request) []string {
	return strings.Split(r.Header.Get(api.HeaderRecipients), ",")
}

// forwards counts the requests that are under way to each other instance. What
// those say of their load is as old as their last heartbeat: by that alone all
// requests until the next would go to one.
type forwards struct {
	mu sync.Mutex
	by map[string]int // guarded by mu
}

// begin counts a request until done is called; none to the own enclave.
func (f *forwards) begin(peer string) (done func()) {
	if peer == "" {
		return func() {}
	}
	f.add(peer, 1)
	return func() { f.add(peer, -1) }
}

func (f *forwards) add(peer string, n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.by == nil {
		f.by = map[string]int{}
	}
	if f.by[peer] += n; f.by[peer] == 0 {
		delete(f.by, peer)
	}
}

func (f *forwards) count(peer string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.by[peer]
}

// leastLoaded gives the instance with the least to do among those that hold one
// of the keys, with what this one has under way there; nil when none does.
func leastLoaded(ready []*fleet.Instance, keyIDs []string, forwarded func(id string) int) *fleet.Instance {
	holders := slices.DeleteFunc(slices.Clone(ready), func(in *fleet.Instance) bool {
		return !slices.ContainsFunc(in.KeyIDs, func(kid string) bool { return slices.Contains(keyIDs, kid) })
	})
	if len(holders) == 0 {
		return nil
	}
	return slices.MinFunc(holders, func(a, b *fleet.Instance) int {
		work := func(in *fleet.Instance) int { return in.Load.Running + in.Load.Queued + forwarded(in.ID) }
		return cmp.Or(cmp.Compare(work(a), work(b)), cmp.Compare(a.ID, b.ID))
	})
}
