package xds

import (
	"slices"
	"time"
)

// pace is what waits to be published, and since when something else was. What
// the fleet does cannot wait for long. Weights can: they decide only while no
// picker answers, and each change makes Envoy rebuild its load balancer.
type pace struct {
	news, scores       bool      // the fleet or the certificate, or scores, have changed since they were looked at
	published, weighed time.Time // when anything new was published, and when scores were last looked at
	leave              time.Time // when endpoints leave that are published still; zero: none does
}

// due says whether to publish now, and with new weights; if not, after what wait
// that will be so, which is 0 when nothing waits.
func (p *pace) due(c Config, now time.Time) (publish, weigh bool, wait time.Duration) {
	publication := c.MinPushInterval - now.Sub(p.published)
	weighing := max(publication, c.WeightInterval-now.Sub(p.weighed))
	var waits []time.Duration
	if p.scores {
		waits = append(waits, weighing)
	}
	if p.news {
		waits = append(waits, publication)
	}
	if !p.leave.IsZero() {
		waits = append(waits, max(publication, p.leave.Sub(now)))
	}
	if len(waits) == 0 {
		return false, false, 0
	}
	wait = slices.Min(waits)
	return wait <= 0, p.scores && weighing <= 0, max(wait, 0)
}

// looked is after what waited has been looked at, with or without the scores.
func (p *pace) looked(weighed bool, now time.Time) {
	p.news = false
	if weighed {
		p.scores, p.weighed = false, now
	}
}
