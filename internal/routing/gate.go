package routing

// saturated says whether the home of a conversation has so much to do that its
// cache is not worth the wait: the first token is predicted later there, though
// most of the prompt is cached, than where all of it is to be read, by more than
// [GateMargin].
func saturated(rs []ranked, home int) bool {
	for i := range rs {
		if i != home && rs[home].atHome > rs[i].key+GateMargin.Seconds() {
			return true
		}
	}
	return false
}
