package xds

import (
	"fmt"
	"sync"
	"time"

	"github.com/mrgc/mrgc/internal/fleet"
)

// lockedStage is a region's stage, safe for concurrent use.
type lockedStage struct {
	mu     sync.Mutex
	*stage // guarded by mu
}

// step lets something happen to a region's stage, and tells its Envoys when what
// they should have is another because of it.
func (s *Server) step(region fleet.Region, event func(*stage)) {
	st := s.stages[region]
	st.mu.Lock()
	before, verdicts := st.revision, st.verdicts
	event(st.stage)
	changed := st.revision != before
	var held []string
	if st.verdicts != verdicts {
		held = st.heldBack()
	}
	st.mu.Unlock()
	if len(held) > 0 {
		s.config.Logger.Error("held back from all other Envoys, for the first one rejected it; publish another version", "envoy_region", string(region), "resources", held)
	}
	if changed {
		s.feed.wake()
	}
}

func (s *Server) join(node string, region fleet.Region, fresh bool) *connection {
	c := s.roster.join(node, region, fresh, time.Now())
	s.step(region, func(st *stage) { st.join(node, fresh, time.Now()) })
	return c
}

func (s *Server) leave(c *connection) {
	s.roster.leave(c)
	s.step(c.region, func(st *stage) { st.leave(c.node) })
}

// report says how far the Envoy that tries something is. Its stream alone calls
// it, which owns the session.
func (s *Server) report(c *connection) {
	s.step(c.region, func(st *stage) {
		if st.trial != nil && st.trial.node == c.node {
			st.report(c.node, c.session.report(st.trial.target, st.good), time.Now())
		}
	})
}

// view is what an Envoy should have, and a channel that is closed when that may
// have changed.
func (s *Server) view(region fleet.Region, node string) (resourceSet, <-chan struct{}) {
	_, changed := s.feed.get() // first: a change after it is not missed
	st := s.stages[region]
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.target(node), changed
}

// show is what is published, whether an Envoy tries it first, and why it may not
// have it all.
func (st *lockedStage) show(node string) (published resourceSet, trying bool, elsewhere string) {
	st.mu.Lock()
	defer st.mu.Unlock()
	trying = st.trial != nil && st.trial.node == node
	held := st.heldBack()
	switch {
	case len(held) > 0:
		elsewhere = fmt.Sprintf("held back: %s", held[0])
	case st.trial != nil && !trying:
		elsewhere = fmt.Sprintf("envoy %s tries it first", st.trial.node)
	}
	return st.want, trying, elsewhere
}

// heldBack says what that is published was refused by the Envoy that tried it.
func (s *stage) heldBack() []string {
	var out []string
	for _, typeURL := range staged {
		for key, why := range s.refused {
			if key.typeURL == typeURL && key.is(s.want) {
				out = append(out, fmt.Sprintf("%s %s: envoy %s rejected it: %s", shortType(typeURL), key.name, why.node, why.message))
			}
		}
	}
	return out
}
