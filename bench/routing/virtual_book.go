package main

import (
	"context"
	"fmt"
	"os"

	"github.com/mrgc/mrgc/bench/result"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/routing"
)

// virtualContender is a balancer by name.
type virtualContender struct {
	name string
	make func(engines int) balancer
}

// everything has every request choose among all instances, and offered is what routers
// offer to clients of which each has some of the traffic, in one set for all of a
// client's requests or in as many as package client asks for.
var (
	everything = offering{clients: 1, sets: 1}
	offered    = offering{clients: manyClients, recipients: api.Offered, sets: api.MaxSets}
)

const manyClients = 50

func virtualContenders() []virtualContender {
	all := []virtualContender{
		{"round robin", func(n int) balancer { return newLeastRequest(n, true) }},
		{"least request", func(n int) balancer { return newLeastRequest(n, false) }},
		{"cache-aware, as peers are tuned", func(n int) balancer { return newCacheAware(n) }},
	}
	for _, policy := range policies {
		all = append(all, virtualContender{"MRGC " + policy.String(), func(n int) balancer { return newVirtualPicker(n, everything, policy) }})
	}
	return all
}

// runVirtual simulates policies and ideals of the peers in virtual time, and what
// it costs that clients seal to a few recipients instead of all.
func runVirtual(ctx context.Context, o options, recording []arrival) error {
	if o.rate == 0 {
		o.rate = virtualRate
	}
	r := result.Result{
		Name: "routing-virtual", Title: "Routing in virtual time: policies, and what offering few recipients costs",
		Command: command(),
		Notes: []string{
			fmt.Sprintf("The traffic and the engines of the table above, %.1f requests/s before four engines, without Envoy, network or clock; %d seeds of %v. "+
				"The first three are ideals of what peers do. Ratios are geometric means within seeds, with their 95 %% intervals.", o.rate, o.seeds, o.duration),
			fmt.Sprintf("Offered: a client seals to %d recipients that it was offered within the last %v, and to a conversation's last one: always the same in one set, "+
				"the next of %d with each request in sets. Fleets grow with their traffic, which the recording bounds to %d requests.",
				offered.recipients, virtualRefresh, offered.sets, len(recording)-1),
		},
	}
	for _, s := range wellScenarios() {
		table, err := virtualPolicies(ctx, o, recording, s)
		if err != nil {
			return err
		}
		r.Tables = append(r.Tables, table)
	}
	table, err := virtualOffers(ctx, o, recording)
	if err != nil {
		return err
	}
	r.Tables = append(r.Tables, table)
	r.Print(os.Stdout)
	return r.Write()
}

// virtualRate is about what 85 % of the best peer's capacity comes to.
const virtualRate = 26

func virtualPolicies(ctx context.Context, o options, recording []arrival, s scenario) (result.Table, error) {
	table := result.Table{
		Title:   "In virtual time: " + s.name,
		Columns: []string{"contender", "TTFT p50, ms", "p90, ms", "p99, ms", "p99 of least request", "prompt cached"},
	}
	var base []float64
	runs := map[string][]virtualRun{}
	for _, c := range virtualContenders() {
		for seed := range uint64(o.seeds) {
			requests := traffic(recording, shape{rate: o.rate, duration: o.duration, reuse: s.reuse}, seed)
			run, err := simulate(requests, engineCount, c.make(engineCount))
			if err != nil || ctx.Err() != nil {
				return table, fmt.Errorf("%s: %w", c.name, firstError(err, ctx.Err()))
			}
			runs[c.name] = append(runs[c.name], run)
		}
		if c.name == "least request" {
			base = quantiles(runs[c.name], 0.99)
		}
	}
	for _, c := range virtualContenders() {
		median := func(q float64) string { return fmt.Sprintf("%.0f", quantile(quantiles(runs[c.name], q), 0.5)) }
		hits := 0.0
		for _, run := range runs[c.name] {
			hits += run.hits / float64(len(runs[c.name]))
		}
		table.Rows = append(table.Rows, []string{
			c.name, median(0.5), median(0.9), median(0.99), ratio(quantiles(runs[c.name], 0.99), base).text(), fmt.Sprintf("%.0f %%", 100*hits),
		})
	}
	return table, nil
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func quantiles(runs []virtualRun, share float64) []float64 {
	var all []float64
	for _, run := range runs {
		all = append(all, quantile(run.firsts, share))
	}
	return all
}

// virtualOffers compares the default policy among a few offered recipients with
// the same among all, in fleets of several sizes.
func virtualOffers(ctx context.Context, o options, recording []arrival) (result.Table, error) {
	sides := []struct {
		says string
		offering
	}{
		{fmt.Sprintf("%d clients, one set", manyClients), offering{clients: manyClients, recipients: api.Offered, sets: 1}},
		{fmt.Sprintf("%d clients, sets", manyClients), offered},
		{"one client, one set", offering{clients: 1, recipients: api.Offered, sets: 1}},
		{"one client, sets", offering{clients: 1, recipients: api.Offered, sets: offered.sets}},
	}
	table := result.Table{
		Title:   fmt.Sprintf("In virtual time: p99 of requests sealed to %d offered recipients over that among all", api.Offered),
		Columns: []string{"instances", "traffic", "p99 among all, ms"},
	}
	for _, side := range sides {
		table.Columns = append(table.Columns, side.says)
	}
	for _, engines := range []int{engineCount, 16, 40} {
		for _, s := range wellScenarios() {
			p99s := func(of offering) (all []float64, err error) {
				for seed := range uint64(o.seeds) {
					requests := traffic(recording, shape{rate: o.rate * float64(engines) / engineCount, duration: o.duration, reuse: s.reuse}, seed)
					run, err := simulate(requests, engines, newVirtualPicker(engines, of, routing.PolicyGateThenLoad))
					if err != nil || ctx.Err() != nil {
						return nil, fmt.Errorf("%d engines: %w", engines, firstError(err, ctx.Err()))
					}
					all = append(all, quantile(run.firsts, 0.99))
				}
				return all, nil
			}
			among, err := p99s(everything)
			if err != nil {
				return table, err
			}
			row := []string{fmt.Sprint(engines), s.name, fmt.Sprintf("%.0f", quantile(among, 0.5))}
			for _, side := range sides {
				few, err := p99s(side.offering)
				if err != nil {
					return table, err
				}
				row = append(row, ratio(few, among).text())
			}
			table.Rows = append(table.Rows, row)
		}
	}
	return table, nil
}
