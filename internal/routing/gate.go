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
