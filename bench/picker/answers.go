package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mrgc/mrgc/bench/result"
	"github.com/mrgc/mrgc/bench/rig"
)

const (
	shortAnswer, longAnswer = 100, 10_000 // tokens
	answerRate              = 3.0         // requests per second
	tokenInterval           = 300 * time.Microsecond
	// answerPairs is how many pairs of windows each round has. A window is some 20
	// requests, of some 20 ms of the router's processor time in all, so that one pair
	// says little.
	answerPairs = 4
)

// measureAnswers is about the length of answers, of which the picker should not
// notice anything.
//
// The machine does the same in both windows of a pair, as each window has requests
// of both lengths: those of one through the Envoy with the picker, those of the
// other through its twin without. What the router uses more in one of them is
// the picker's doing, and not that its caches are cold because 10,000 chunks a
// second go through the same processors.
func measureAnswers(ctx context.Context, o options, r *result.Result) error {
	probe := errand{Tokens: 1}.request(1000)
	// Load reports cost the same however long answers are, and would hide what
	// requests cost; silence would break their streams.
	p := fleetPlan{Slots: 64, Every: 2 * time.Second}
	return withCluster(ctx, o, 2, p, true, probe, func(c *cluster) error {
		used := map[int][]float64{}
		var ratios []float64
		for pair := range answerPairs * o.rounds {
			requests := arrivals(answerRate, o.window, uint64(pair), func(*rand.Rand) rig.Request { return probe }) //nolint:gosec // a few
			order := []int{shortAnswer, longAnswer}
			rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] }) //nolint:gosec // the order is no secret
			for _, tokens := range order {
				perRequest, err := c.costOfAnswers(ctx, requests, tokens, shortAnswer+longAnswer-tokens)
				if err != nil {
					return err
				}
				used[tokens] = append(used[tokens], perRequest)
			}
			ratios = append(ratios, last(used[longAnswer])/last(used[shortAnswer]))
			say("  router %.3f ms per request of %d tokens, %.3f ms of %d: ratio %.3f", last(used[shortAnswer]), shortAnswer, last(used[longAnswer]), longAnswer, last(ratios))
		}
		r.Figures = append(r.Figures,
			ofRounds(fmt.Sprintf("picker's processor time per request, %d tokens over %d", longAnswer, shortAnswer), ratios, "", "≤ 1.1"),
			ofRounds(fmt.Sprintf("picker's processor time per request, %d tokens", shortAnswer), used[shortAnswer], "ms", ""),
			ofRounds(fmt.Sprintf("picker's processor time per request, %d tokens", longAnswer), used[longAnswer], "ms", ""))
		r.Notes = append(r.Notes, fmt.Sprintf("Answers: %.0f requests/s of either length for %v, a token each %v, all of what the router's process uses in a time in which the "+
			"last long answer ends, idle or not; %d pairs of such times. In each, as many requests of the other length go through an Envoy without the picker, so that the "+
			"machine does the same in both.", answerRate, o.window, tokenInterval, answerPairs*o.rounds))
		return nil
	})
}

// costOfAnswers is the router's processor time for a request, in milliseconds,
// over as long a time whatever the length of the answers. Requests with answers of
// the other length pass the picker by meanwhile.
func (c *cluster) costOfAnswers(ctx context.Context, requests []rig.Request, tokens, other int) (perRequest float64, err error) {
	whole := requests[len(requests)-1].At + 2*longAnswer*tokenInterval
	used, elapsed, err := c.routerTime(func() error {
		end := time.Now().Add(whole)
		sides, ctx := errgroup.WithContext(ctx)
		sides.Go(func() error { return c.with.answers(ctx, requests, tokens) })
		sides.Go(func() error { return c.without.answers(ctx, requests, other) })
		err := sides.Wait()
		time.Sleep(time.Until(end))
		return err
	})
	if err == nil && elapsed > whole+time.Second {
		err = fmt.Errorf("answers took %v and not %v: the machine is too slow, or too busy, for %.0f requests/s", elapsed, whole, answerRate)
	}
	return ms(used) / float64(len(requests)), err
}

// answers has requests answered in so many tokens each.
func (s *side) answers(ctx context.Context, requests []rig.Request, tokens int) error {
	asked := make([]rig.Request, len(requests))
	for i, r := range requests {
		asked[i] = errand{Tokens: tokens, Every: tokenInterval}.request(1000)
		asked[i].At, asked[i].Conversation = r.At, r.Conversation
	}
	a, err := s.play(ctx, asked)
	if err == nil && a.failed > 0 {
		err = fmt.Errorf("%d of %d requests for %d tokens failed: %w", a.failed, len(asked), tokens, a.err)
	}
	return err
}
