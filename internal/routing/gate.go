package routing

// SaturationTokens is by how many uncached tokens in flight for each slot the
// home of a conversation may be ahead of the least busy other instance before
// the conversation is released: a median prompt for each slot, as if all that
// the home is doing were new to it and the other idle. On an engine of 16 slots
// it comes to 16384 tokens, two steps' budget of reading (vLLM's
// max_num_batched_tokens of 8192). It catches long prompts; what usually fills a
// home first is its slots. In the simulation of this package half of it lost
// cache hits and won no time, and twice of it made no difference.
const SaturationTokens = 1024

// homeOf gives the index of the home of the request's conversation: the highest
// rendezvous hash of affinity and instance. It depends on no other request, nor
// on load, and needs no memory: when recipients come or go, the home is the
// best-ranked of those that are left, and the same again when they are back.
//
// An instance that starts slowly takes its conversations over one after the
// other, each for good.
func homeOf(rs []ranked) int {
	home := 0
	for i := range rs {
		if rs[i].isHomeBefore(&rs[home]) {
			home = i
		}
	}
	return home
}

func (r *ranked) isHomeBefore(o *ranked) bool {
	switch {
	case r.settled() != o.settled():
		return r.settled()
	case r.home != o.home:
		return r.home > o.home
	default:
		return r.instance.ID < o.instance.ID
	}
}

// settled says whether an instance can be the conversation's home already.
func (r *ranked) settled() bool {
	return fraction(r.home, forSlowStart) < r.ramp
}

// saturated says whether a home has so much to do that its cache is not worth
// the wait: it has [SaturationTokens] more to read than another instance, or
// the request would wait for a slot there and not elsewhere.
func saturated(rs []ranked, home int) bool {
	h := &rs[home]
	full := h.slots > 0 && h.requests >= h.slots
	for i := range rs {
		if i == home {
			continue
		}
		if h.backlog-rs[i].backlog > SaturationTokens || full && rs[i].requests < rs[i].slots {
			return true
		}
	}
	return false
}
