package main

import (
	"time"

	"github.com/mrgc/mrgc/engine/sim/batching"
)

// leastRequest is what proxies do that know of nothing but their own requests:
// the fewest in flight first, or one after the other.
type leastRequest struct {
	inFlight   []int
	engine     map[int]int // by request
	sequence   int
	roundRobin bool
}

func newLeastRequest(engines int, roundRobin bool) *leastRequest {
	return &leastRequest{inFlight: make([]int, engines), engine: map[int]int{}, roundRobin: roundRobin}
}

func (l *leastRequest) pick(_ time.Duration, r *request, _ []batching.Token) int {
	l.sequence++
	chosen := l.sequence % len(l.inFlight)
	for i := 0; i < len(l.inFlight) && !l.roundRobin; i++ {
		if e := (i + l.sequence) % len(l.inFlight); l.inFlight[e] < l.inFlight[chosen] {
			chosen = e
		}
	}
	return l.send(r, chosen)
}

func (l *leastRequest) send(r *request, engine int) int {
	l.inFlight[engine]++
	l.engine[r.index] = engine
	return engine
}

func (l *leastRequest) ended(_ time.Duration, request int)        { l.inFlight[l.engine[request]]-- }
func (l *leastRequest) begun(time.Duration, int)                  {}
func (l *leastRequest) logged(time.Duration, int)                 {}
func (l *leastRequest) report(time.Duration, int, batching.Stats) {}

// cacheAware is what the routers that come with SGLang and vLLM do, with the
// thresholds that [peers] gives them: the worker that has seen the longest part of
// the prompt, if it has seen enough of it, else the one that has seen least; but
// the one with the fewest requests while those are out of balance.
type cacheAware struct {
	leastRequest
	seen []map[uint64]bool // by engine: hashes of prompts' beginnings, by block
}

const (
	cacheThreshold      = 0.5
	balanceAbsThreshold = 8
	balanceRelThreshold = 1.5
)

func newCacheAware(engines int) *cacheAware {
	c := &cacheAware{leastRequest: *newLeastRequest(engines, false)}
	for range engines {
		c.seen = append(c.seen, map[uint64]bool{})
	}
	return c
}

func (c *cacheAware) pick(_ time.Duration, r *request, prompt []batching.Token) int {
	blocks := beginnings(prompt)
	chosen := c.choose(blocks)
	for _, b := range blocks {
		c.seen[chosen][b] = true
	}
	return c.send(r, chosen)
}

func (c *cacheAware) choose(blocks []uint64) int {
	fewest, most, smallest := 0, 0, 0
	longest, match := 0, -1
	for e, n := range c.inFlight {
		if n < c.inFlight[fewest] {
			fewest = e
		}
		if n > c.inFlight[most] {
			most = e
		}
		if len(c.seen[e]) < len(c.seen[smallest]) {
			smallest = e
		}
		known := 0
		for known < len(blocks) && c.seen[e][blocks[known]] {
			known++
		}
		if known > match {
			longest, match = e, known
		}
	}
	low, high := float64(c.inFlight[fewest]), float64(c.inFlight[most])
	switch {
	case high-low > balanceAbsThreshold && high > balanceRelThreshold*low:
		return fewest
	case float64(match) > cacheThreshold*float64(len(blocks)):
		return longest
	default:
		return smallest
	}
}

// beginnings gives a hash (FNV-1a) of the prompt up to the end of each block.
func beginnings(prompt []batching.Token) []uint64 {
	var hashes []uint64
	h := uint64(14695981039346656037)
	for i, t := range prompt {
		h = (h ^ uint64(t)) * 1099511628211
		if i%batching.BlockTokens == batching.BlockTokens-1 {
			hashes = append(hashes, h)
		}
	}
	return hashes
}
