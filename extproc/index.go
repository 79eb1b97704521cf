package extproc

import (
	"slices"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
)

// index is what a pick asks of a snapshot, worked out once for each snapshot
// and not once for each request. It is immutable.
type index struct {
	snapshot *fleet.Snapshot
	ready    map[*fleet.Instance]struct{}
	models   map[string]struct{}
	address  map[string]*fleet.Instance
}

// index gives the present snapshot's index; nil while nothing is known of the
// fleet. Requests that see a new snapshot at the same moment may each build it:
// the results are equal, and nobody waits.
func (p *Picker) index() *index {
	snapshot := p.view()
	if snapshot == nil || len(snapshot.Instances) == 0 {
		return nil
	}
	if ix := p.latest.Load(); ix != nil && ix.snapshot == snapshot {
		return ix
	}
	ix := &index{
		snapshot: snapshot,
		ready:    make(map[*fleet.Instance]struct{}),
		models:   make(map[string]struct{}),
		address:  make(map[string]*fleet.Instance, len(snapshot.Instances)),
	}
	for _, in := range snapshot.Ready(p.staleAfter) {
		ix.ready[in] = struct{}{}
	}
	for _, in := range snapshot.Instances {
		ix.address[in.Address] = in
		for _, model := range in.Models {
			ix.models[model] = struct{}{}
		}
	}
	p.latest.Store(ix)
	return ix
}

// serves says whether any instance serves a model, ready or not.
func (ix *index) serves(model string) bool {
	_, ok := ix.models[model]
	return ok
}

// at gives the instance that has an address; nil if none has, or ix is nil.
func (ix *index) at(address string) *fleet.Instance {
	if ix == nil {
		return nil
	}
	return ix.address[address]
}

// candidates appends the instances that hold the recipients' keys to dst, each
// once: an instance may hold several while its enclave changes keys.
func (ix *index) candidates(dst []routing.Candidate, recipients []string, inFlight *InFlight) []routing.Candidate {
	for _, kid := range recipients {
		in := ix.snapshot.ByKeyID(kid)
		if in == nil || slices.ContainsFunc(dst, func(c routing.Candidate) bool { return c.Instance == in }) {
			continue
		}
		_, ready := ix.ready[in]
		dst = append(dst, routing.Candidate{Instance: in, Ready: ready, InFlight: inFlight.Count(in.ID)})
	}
	return dst
}
