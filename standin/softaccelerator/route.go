package softaccelerator

// choice is a group that a connection may go to, by the settings in effect.
type choice struct {
	dial      float64 // percent
	endpoints []weighed
}

// weighed is an endpoint of a group.
type weighed struct {
	weight int
	takes  bool // it is healthy, and has been for long enough
}

// closest is how many groups are tried when the one that dials have chosen has no
// endpoint to offer.
const closest = 3

// route chooses the group and the endpoint of a new connection. The groups, one at
// least, are in the order of how near they are to the client. The two numbers are
// random, in [0, 1). ok is false if no group has any endpoint.
//
//   - Each group, the nearest first, has its dial's share of what the nearer ones
//     leave. What all leave goes to the last that has a dial at all. (AWS documents
//     this for two groups: with both at 50 %, each has half of what is near to it, and
//     half of what is near to the other. For more it says nothing.)
//   - Within a group, endpoints that are healthy and have a weight share by weight.
//   - A group that has none fails over: to the nearest of three others that has one,
//     whatever its dial.
//   - When those have none either, it fails open: to any endpoint of the group that is
//     nearest to the client.
//
// Developer guide: "Use traffic dials to adjust traffic flow to Regions", and "How
// failover works for unhealthy endpoints".
func route(nearest []choice, byDial, byWeight float64) (group, endpoint int, ok bool) {
	original := dialled(nearest, byDial)
	tries := []int{original}
	for i := range nearest {
		if i != original && len(tries) <= closest {
			tries = append(tries, i)
		}
	}
	for _, group := range tries {
		if endpoint, ok := nearest[group].weighted(byWeight); ok {
			return group, endpoint, true
		}
	}
	for group, c := range nearest {
		if n := len(c.endpoints); n > 0 {
			return group, int(byWeight * float64(n)), true
		}
	}
	return 0, 0, false
}

// dialled chooses a group by the dials alone. When all are at 0, of which AWS says
// nothing, it is the nearest.
func dialled(nearest []choice, random float64) int {
	last, left := 0, 1.0
	for i, c := range nearest {
		share := left * c.dial / 100
		if share == 0 {
			continue
		}
		if random < share {
			return i
		}
		random, left, last = random-share, left-share, i
	}
	return last
}

// weighted chooses an endpoint by weight, of those that take connections.
func (c choice) weighted(random float64) (endpoint int, ok bool) {
	total := 0
	for _, e := range c.endpoints {
		if e.takes {
			total += e.weight
		}
	}
	at := random * float64(total)
	for i, e := range c.endpoints {
		if !e.takes || e.weight == 0 {
			continue
		}
		if at -= float64(e.weight); at < 0 {
			return i, true
		}
	}
	return 0, false
}
