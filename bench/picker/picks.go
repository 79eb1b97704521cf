package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/mrgc/mrgc/bench/result"
	"github.com/mrgc/mrgc/bench/rig"
)

const (
	pickInstances = 40
	pickRate      = 500.0 // requests per second

	longPromptBytes  = 220_000
	longPromptsOpen  = 150
	longPromptsThink = time.Second // until an instance's first token
)

// measurePicks is about requests with the picker and without: many small ones,
// then large ones.
func measurePicks(ctx context.Context, o options, r *result.Result) error {
	small := errand{Tokens: 1}.request(1000)
	return withCluster(ctx, o, pickInstances, fleetPlan{Slots: 16}, true, small, func(c *cluster) error {
		if err := measureRate(ctx, o, c, small, r); err != nil {
			return err
		}
		return measureLongPrompts(ctx, o, c, r)
	})
}

// inTurns measures both sides, in random order.
func (c *cluster) inTurns(measure func(*side) error) error {
	order := []*side{&c.with, &c.without}
	rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] }) //nolint:gosec // the order is no secret
	for _, s := range order {
		if err := measure(s); err != nil {
			return err
		}
	}
	return nil
}

// picked is one round with the picker.
type picked struct {
	wait, decision metricSpread
	cpu            float64 // cores of the router's
}

// metricSpread are quantiles out of a histogram, in milliseconds.
type metricSpread struct{ p50, p95 float64 }

func spreadOf(histogram string, before, after metrics) metricSpread {
	return metricSpread{1e3 * quantile(histogram, before, after, 0.5), 1e3 * quantile(histogram, before, after, 0.95)}
}

func measureRate(ctx context.Context, o options, c *cluster, small rig.Request, r *result.Result) error {
	var rounds []picked
	with, without := &side95{}, &side95{}
	for round := range o.rounds {
		requests := arrivals(pickRate, o.window, uint64(round), func(*rand.Rand) rig.Request { return small }) //nolint:gosec // a few
		err := c.inTurns(func(s *side) error {
			play := func() (answered, error) { return s.play(ctx, requests) }
			if s == &c.without {
				return without.add(play())
			}
			p, a, err := c.observe(play)
			rounds = append(rounds, p)
			return with.add(a, err)
		})
		if err != nil {
			return err
		}
		p := rounds[len(rounds)-1]
		say("  %.0f requests/s: Envoy waits p50 %.3f p95 %.3f ms, the decision takes p95 %.3f ms, router %.3f cores; first byte p95 %.2f ms, without picker %.2f ms; client late %.1f ms",
			pickRate, p.wait.p50, p.wait.p95, p.decision.p95, p.cpu, last(with.p95), last(without.p95), max(with.lag, without.lag))
	}
	of := func(value func(picked) float64) (all []float64) {
		for _, p := range rounds {
			all = append(all, value(p))
		}
		return all
	}
	at := fmt.Sprintf("%.0f requests/s, %d instances, all of them recipients", pickRate, pickInstances)
	r.Figures = append(r.Figures,
		ofRounds("a pick as Envoy sees it, p95 ("+at+")", of(func(p picked) float64 { return p.wait.p95 }), "ms", "≤ 2"),
		ofRounds("a pick as Envoy sees it, p50", of(func(p picked) float64 { return p.wait.p50 }), "ms", ""),
		ofRounds("a decision as the router sees it, p95", of(func(p picked) float64 { return p.decision.p95 }), "ms", ""),
		ofRounds("the router's processor time meanwhile", of(func(p picked) float64 { return p.cpu }), "cores", ""))
	r.Comparisons = append(r.Comparisons, comparison(at+", time to first byte, p95", with.p95, without.p95), comparison(at+", time to first byte, p50", with.p50, without.p50))
	r.Notes = append(r.Notes, fmt.Sprintf("A pick as Envoy sees it is from its own clock: from the request's headers to the picker's answer (request_header_latency_us, "+
		"which the router publishes as mrgc_pick_wait_seconds); the router's is mrgc_pick_duration_seconds. Quantiles are interpolated within buckets. Of %d requests %d failed; "+
		"the client sent them %.1f ms late at p99 in the worst window.", with.n+without.n, with.failed+without.failed, max(with.lag, without.lag)))
	return nil
}

// observe looks at the router while it picks.
func (c *cluster) observe(play func() (answered, error)) (p picked, a answered, err error) {
	before, err := c.metrics()
	if err != nil {
		return p, a, err
	}
	used, elapsed, err := c.routerTime(func() error {
		a, err = play()
		time.Sleep(300 * time.Millisecond) // for the last of the access log
		return err
	})
	if err != nil {
		return p, a, err
	}
	after, err := c.metrics()
	return picked{
		wait: spreadOf("mrgc_pick_wait_seconds", before, after), decision: spreadOf("mrgc_pick_duration_seconds", before, after),
		cpu: used.Seconds() / elapsed.Seconds(),
	}, a, err
}

// routerTime is the processor time that the router uses while something is done.
func (c *cluster) routerTime(do func() error) (used, elapsed time.Duration, err error) {
	began := time.Now()
	before, err := rig.ThreadsTime(c.router.Process.Pid)
	if err != nil {
		return 0, 0, err
	}
	if err := do(); err != nil {
		return 0, 0, err
	}
	after, err := rig.ThreadsTime(c.router.Process.Pid)
	return after - before, time.Since(began), err
}

func (s *side) play(ctx context.Context, requests []rig.Request) (answered, error) {
	return sumUp(rig.Play(ctx, s.envoy.Front, requests), 0), ctx.Err()
}

// side95 gathers the rounds of one side: quantiles of the time to the first
// byte, in milliseconds.
type side95 struct {
	p50, p95  []float64
	n, failed int
	lag       float64 // the worst
}

func (s *side95) add(a answered, err error) error {
	if err != nil {
		return err
	}
	s.p50, s.p95 = append(s.p50, result.Quantile(a.first, 0.5)), append(s.p95, result.Quantile(a.first, 0.95))
	s.n, s.failed, s.lag = s.n+len(a.first)+a.failed, s.failed+a.failed, max(s.lag, a.lag)
	if a.failed > 0 {
		say("  %d failed: %v", a.failed, a.err)
	}
	return nil
}

func comparison(name string, with, without []float64) result.Comparison {
	added := make([]float64, len(with))
	for i := range with {
		added[i] = with[i] - without[i]
	}
	return result.Comparison{Name: name, Unit: "ms", Direct: result.SpreadOf(without), Through: result.SpreadOf(with), Added: result.SpreadOf(added)}
}

func last(samples []float64) float64 { return samples[len(samples)-1] }

// measureLongPrompts has many large requests under way at once, to instances
// that think before they answer.
func measureLongPrompts(ctx context.Context, o options, c *cluster, r *result.Result) error {
	long := errand{After: longPromptsThink, Tokens: 1}.request(longPromptBytes)
	with, without := &side95{}, &side95{}
	for range o.rounds {
		err := c.inTurns(func(s *side) error {
			into := with
			if s == &c.without {
				into = without
			}
			return into.add(keepOpen(ctx, s.envoy.Front, longPromptsOpen, o.window, long), ctx.Err())
		})
		if err != nil {
			return err
		}
		say("  %d bytes, %d at once: first byte p50 %.1f p95 %.1f ms, without picker p50 %.1f p95 %.1f ms",
			longPromptBytes, longPromptsOpen, last(with.p50), last(with.p95), last(without.p50), last(without.p95))
	}
	at := fmt.Sprintf("%d bytes, %d requests open", longPromptBytes, longPromptsOpen)
	p95, p50 := comparison(at+", time to first byte, p95", with.p95, without.p95), comparison(at+", time to first byte, p50", with.p50, without.p50)
	r.Figures = append(r.Figures, result.Figure{
		Name: "added to the time to the first byte at p95 by the picker (" + at + ")", Value: p95.Added.P50, Unit: "ms", Goal: "≤ 10", Spread: &p95.Added,
	})
	r.Comparisons = append(r.Comparisons, p95, p50)
	r.Notes = append(r.Notes, fmt.Sprintf("Large requests: instances think for %v, so that %d are open and the machine is not the bottleneck; of %d requests %d failed. "+
		"Direct is an Envoy without the picker.", longPromptsThink, longPromptsOpen, with.n+without.n, with.failed+without.failed))
	return nil
}
