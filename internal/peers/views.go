package peers

import (
	"slices"
	"strings"
	"sync"
	"time"
)

// ViewFor is how long a router is believed after its last message, unless the way to
// it breaks off: four times as long as it is silent at most.
const ViewFor = time.Second

// Views is what the other routers of the region have last said. A router is
// known by its epoch, so that one which is followed at two addresses counts
// once; an address has one router at a time, so that a new epoch there replaces
// the one before. It is safe for concurrent use; its zero value knows nobody.
type Views struct {
	mu      sync.RWMutex
	at      map[string]Epoch // guarded by mu: who was last heard at an address
	routers map[Epoch]view   // guarded by mu
}

// view is one router's last message. It is kept when it has expired, so that
// what comes late even then is known as such.
type view struct {
	sequence uint64
	heard    time.Time
	lost     bool // the way on which it came has broken off
	inFlight map[string]Work
	claims   []Claim        // in order
	tokens   map[string]int // of claims, by model
}

func (v *view) expired(now time.Time) bool { return v.lost || now.Sub(v.heard) >= ViewFor }

// Put takes a message that was received from an address, to keep, and says whether it is
// news: not when it has come before, or is older than one that has. A router that
// was restarted with its clock set back is heard once its last view has expired.
func (v *Views) Put(address string, m *Message, now time.Time) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if held, ok := v.routers[m.Epoch]; ok && m.Sequence <= held.sequence {
		return false
	}
	if before, ok := v.at[address]; ok && before != m.Epoch {
		if held, known := v.routers[before]; known && m.Epoch.compare(before) < 0 && !held.expired(now) {
			return false
		}
		delete(v.routers, before)
	}
	if v.at == nil {
		v.at, v.routers = map[string]Epoch{}, map[Epoch]view{}
	}
	v.at[address] = m.Epoch
	inFlight := make(map[string]Work, len(m.InFlight))
	for _, c := range m.InFlight {
		inFlight[c.Instance] = Work{c.Requests, c.Tokens, c.SentRequests, c.SentTokens}
	}
	tokens := make(map[string]int)
	for _, c := range m.Claims {
		tokens[c.Model] += c.Tokens
	}
	v.routers[m.Epoch] = view{sequence: m.Sequence, heard: now, inFlight: inFlight, claims: m.Claims, tokens: tokens}
	return true
}

// Lose no longer believes who was heard at an address, until it is heard again: the
// way there has broken off. Who dies says nothing of its requests' ends, and what is
// still there of them its instances report.
func (v *Views) Lose(address string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if view, ok := v.routers[v.at[address]]; ok {
		view.lost = true
		v.routers[v.at[address]] = view
	}
}

// Forget drops an address that is no longer followed, and who was there.
func (v *Views) Forget(address string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	gone, ok := v.at[address]
	if !ok {
		return
	}
	delete(v.at, address)
	for _, elsewhere := range v.at {
		if elsewhere == gone {
			return
		}
	}
	delete(v.routers, gone)
}

// On is what the others have in flight on an instance, which reported its load
// last at a time. Its reports come to all routers at once, so that what a router
// had sent before it and not seen reported is in the report by then.
func (v *Views) On(instanceID string, reported, now time.Time) (sum Work) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	for _, view := range v.routers {
		if view.expired(now) {
			continue
		}
		work := view.inFlight[instanceID]
		if view.heard.Before(reported) {
			work.SentRequests, work.SentTokens = 0, 0
		}
		sum = sum.Plus(work)
	}
	return sum
}

// Claimed is how many tokens the others have in flight of a model: a tenant's,
// and those of all tenants.
func (v *Views) Claimed(model, tenant string, now time.Time) (own, all int) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	of := Claim{Model: model, Tenant: tenant}
	for _, view := range v.routers {
		if view.expired(now) {
			continue
		}
		all += view.tokens[model]
		if i, found := slices.BinarySearchFunc(view.claims, &of, func(c Claim, of *Claim) int { return c.compare(of) }); found {
			own += view.claims[i].Tokens
		}
	}
	return own, all
}

// Peer is a router that was heard at an address, for people to look at.
type Peer struct {
	Address  string
	Epoch    Epoch
	Age      time.Duration // of its view
	Expired  bool          // the view counts nothing
	Requests int           // that it had in flight then
}

// All lists the routers that were heard, in order of address.
func (v *Views) All(now time.Time) []Peer {
	v.mu.RLock()
	defer v.mu.RUnlock()
	all := make([]Peer, 0, len(v.at))
	for address, epoch := range v.at {
		view, ok := v.routers[epoch]
		if !ok { // replaced at another address
			continue
		}
		p := Peer{Address: address, Epoch: epoch, Age: max(now.Sub(view.heard), 0), Expired: view.expired(now)}
		for _, work := range view.inFlight {
			p.Requests += work.Requests
		}
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b Peer) int { return strings.Compare(a.Address, b.Address) })
	return all
}
