package extproc

import (
	"maps"
	"sync"

	"github.com/mrgc/mrgc/internal/routing"
)

// saturated remembers which instances were saturated when they were last asked for,
// which decides when they no longer are ([routing.Candidate.IsSaturated]). Its zero
// value is ready. It is safe for concurrent use.
type saturated struct {
	mu  sync.RWMutex
	ids map[string]bool // guarded by mu: those that are
}

func (s *saturated) was(instanceID string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.ids[instanceID]
}

// note takes down what is otherwise now.
func (s *saturated) note(candidates []routing.Candidate) {
	for i := range candidates {
		c := &candidates[i]
		if now := c.IsSaturated(); now != c.Saturated {
			s.set(c.Instance.ID, now)
		}
	}
}

func (s *saturated) set(instanceID string, is bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !is {
		delete(s.ids, instanceID)
		return
	}
	if s.ids == nil {
		s.ids = map[string]bool{}
	}
	s.ids[instanceID] = true
}

func (s *saturated) forget(gone func(instanceID string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.ids, func(id string, _ bool) bool { return gone(id) })
}
