package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"

	"github.com/mrgc/mrgc/bench/result"
	"github.com/mrgc/mrgc/bench/rig"
)

const (
	lossEngines = 4
	lossSlots   = 8    // of each engine
	lossRate    = 60.0 // requests per second: some two thirds of what the engines can take
	lossAfter   = time.Second
)

// fate is what becomes of the only router, a while after the traffic began.
type fate struct {
	name   string
	befall func(c *cluster) error
	mend   func(ctx context.Context, c *cluster) error
}

func nothing(*cluster) error { return nil }

var fates = []fate{
	{"lives", nothing, func(context.Context, *cluster) error { return nil }},
	{"killed", func(c *cluster) error { return c.router.Process.Kill() }, func(ctx context.Context, c *cluster) error {
		c.router.stop()
		return c.startRouter(ctx)
	}},
	{"stopped", func(c *cluster) error { return c.router.Process.Signal(syscall.SIGSTOP) }, func(_ context.Context, c *cluster) error {
		return c.router.Process.Signal(syscall.SIGCONT)
	}},
}

// suffered are the rounds of one fate.
type suffered struct {
	firstP50, firstP99, totalP99 []float64
	all                          answered // of all rounds
}

func (s *suffered) add(a answered) {
	s.firstP50, s.firstP99 = append(s.firstP50, result.Quantile(a.first, 0.5)), append(s.firstP99, result.Quantile(a.first, 0.99))
	s.totalP99 = append(s.totalP99, result.Quantile(a.total, 0.99))
	s.all.first, s.all.total = append(s.all.first, a.first...), append(s.all.total, a.total...)
	s.all.failed, s.all.lag = s.all.failed+a.failed, max(s.all.lag, a.lag)
	if a.failed > 0 {
		say("  %d failed: %v", a.failed, a.err)
	}
}

// measureLoss has the same traffic meet each fate, and counts meanwhile what
// changing scores make Envoy do.
func measureLoss(ctx context.Context, o options, r *result.Result) error {
	probe := chat(rand.New(rand.NewPCG(0, 1)), 16, 1) //nolint:gosec // no secret
	return withCluster(ctx, o, lossEngines, fleetPlan{Slots: lossSlots, Engines: true}, false, probe, func(c *cluster) error {
		byFate := make([]suffered, len(fates))
		var pushes counted
		for round := range o.rounds {
			requests := arrivals(lossRate, lossAfter+o.window, uint64(round), func(random *rand.Rand) rig.Request { //nolint:gosec // a few
				return chat(random, 128+random.IntN(768), 1+min(int(16*random.ExpFloat64()), 64))
			})
			for _, i := range rand.Perm(len(fates)) { //nolint:gosec // an order is no secret
				a, err := c.suffer(ctx, fates[i], requests, probe, &pushes)
				if err != nil {
					return fmt.Errorf("router %s: %w", fates[i].name, err)
				}
				byFate[i].add(a)
				say("  router %-8s first token p50 %6.1f p99 %6.1f ms, whole answer p99 %6.1f ms, %d of %d failed; client late %.1f ms",
					fates[i].name, last(byFate[i].firstP50), last(byFate[i].firstP99), last(byFate[i].totalP99), a.failed, len(a.first)+a.failed, a.lag)
			}
		}
		reportLoss(byFate, r)
		pushes.report(r)
		return nil
	})
}

// suffer plays the traffic, and sees to it that requests are picked again.
func (c *cluster) suffer(ctx context.Context, f fate, requests []rig.Request, probe rig.Request, pushes *counted) (answered, error) {
	lives := f.name == fates[0].name
	var before counted
	if lives {
		var err error
		if before, err = c.count(); err != nil {
			return answered{}, err
		}
	}
	befell := make(chan error, 1)
	time.AfterFunc(lossAfter, func() { befell <- f.befall(c) })
	outcomes := rig.Play(ctx, c.with.envoy.Front, requests)
	if err := <-befell; err != nil {
		return answered{}, err
	}
	if lives {
		after, err := c.count()
		if err != nil {
			return answered{}, err
		}
		pushes.changes += after.changes - before.changes
		pushes.rebuilds += after.rebuilds - before.rebuilds
		pushes.during += lossAfter.Seconds() + requests[len(requests)-1].At.Seconds()
	}
	if err := f.mend(ctx, c); err != nil {
		return answered{}, err
	}
	return sumUp(outcomes, lossAfter), c.picks(ctx, probe)
}

func reportLoss(byFate []suffered, r *result.Result) {
	table := result.Table{
		Title: "The same traffic when the only router is lost under load",
		Columns: []string{
			"router", "first token p50, ms", "p99, ms", "whole answer p99, ms", "failed",
			"first token p99 over that with a router, pooled (p10–p90 of rounds)",
		},
	}
	lives := &byFate[0]
	for i := range byFate {
		s := &byFate[i]
		pooled := result.Quantile(s.all.first, 0.99) / result.Quantile(lives.all.first, 0.99)
		ratios := make([]float64, len(s.firstP99))
		for round := range ratios {
			ratios[round] = s.firstP99[round] / lives.firstP99[round]
		}
		spread := result.SpreadOf(ratios)
		table.Rows = append(table.Rows, []string{
			fates[i].name, fmt.Sprintf("%.0f", result.Quantile(s.all.first, 0.5)), fmt.Sprintf("%.0f", result.Quantile(s.all.first, 0.99)),
			fmt.Sprintf("%.0f", result.Quantile(s.all.total, 0.99)), fmt.Sprintf("%d of %d", s.all.failed, len(s.all.first)+s.all.failed),
			fmt.Sprintf("%.2f (%.2f–%.2f)", pooled, spread.P10, spread.P90),
		})
		switch fates[i].name {
		case "killed":
			r.Figures = append(r.Figures,
				result.Figure{Name: fmt.Sprintf("requests failed of %d when every picker is killed under load", len(s.all.first)+s.all.failed), Value: float64(s.all.failed), Goal: "0"},
				result.Figure{Name: "time to first token at p99 then, over that with a picker", Value: pooled, Goal: "≤ 1.15"},
				result.Figure{Name: "time of the whole answer at p99 then, over that with a picker", Value: result.Quantile(s.all.total, 0.99) / result.Quantile(lives.all.total, 0.99)})
		case "stopped":
			r.Figures = append(r.Figures,
				result.Figure{Name: fmt.Sprintf("requests failed of %d when every picker hangs", len(s.all.first)+s.all.failed), Value: float64(s.all.failed), Goal: "0"},
				result.Figure{
					Name:  "added to the time to first token at p50 by pickers that hang (Envoy waits 50 ms)",
					Value: result.Quantile(s.all.first, 0.5) - result.Quantile(lives.all.first, 0.5), Unit: "ms",
				})
		}
	}
	r.Tables = append(r.Tables, table)
	r.Notes = append(r.Notes, fmt.Sprintf("Loss: %.0f requests/s to %d simulated engines of %d slots, prompts of 128 to 896 tokens, answers of 16 at a mean; each round's traffic meets every fate, "+
		"in random order. Counted is what was due after the router was lost (SIGKILL, SIGSTOP); Envoy then goes by the weights that it has. The client was %.1f ms late at p99 in the worst window.",
		lossRate, lossEngines, lossSlots, max(byFate[0].all.lag, byFate[1].all.lag, byFate[2].all.lag)))
}

// counted is what scores did, and Envoy for their sake.
type counted struct{ changes, rebuilds, during float64 }

func (c *cluster) count() (n counted, err error) {
	page, err := c.metrics()
	if err != nil {
		return n, err
	}
	n.changes = page.sum("mrgc_score_changes_total")
	n.rebuilds, err = c.with.rebuilds()
	return n, err
}

func (n *counted) report(r *result.Result) {
	say("  %.0f score changes, %.0f rebuilds in %.0f s", n.changes, n.rebuilds, n.during)
	r.Figures = append(r.Figures,
		result.Figure{
			Name:  fmt.Sprintf("rebuilds of Envoy's load balancer spared, of the %.0f that pushing each change of a score would have made", n.changes),
			Value: 100 * (1 - n.rebuilds/n.changes), Unit: "%", Goal: "≥ 90",
		},
		result.Figure{Name: "rebuilds of Envoy's load balancer under load", Value: n.rebuilds / n.during, Unit: "per second"})
	r.Notes = append(r.Notes, "Rebuilds are Envoy's update_success less update_no_rebuild of the model's cluster, changes the router's mrgc_score_changes_total, while the traffic above met a router that lives.")
}
