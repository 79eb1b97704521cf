package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/mrgc/mrgc/bench/cluster"
	"github.com/mrgc/mrgc/bench/result"
	"github.com/mrgc/mrgc/internal/fleet"
)

// fault is a smaller one, which happens while package client sends requests.
type fault struct {
	name string
	// begin has it happen; end, if it has one, is over what does not end by itself.
	begin func() (end func() error, err error)
	// lasts is for how long at least, where it takes its time to show.
	lasts time.Duration
	// harmless says that no request may fail for it. drained is whose dial, and nobody
	// else's, has to be at 0 at the end; empty: no dial may move.
	harmless bool
	drained  fleet.Region
	// also is what else has to be seen while it lasts, and what is said of it.
	also func(ctx context.Context) (string, error)
}

// cost is what a fault cost.
type cost struct {
	fault
	tally
	decided string // by controllers, meanwhile
	unled   time.Duration
	missed  error
}

// normalLimit is how long controllers may take to call all well again after a fault.
const normalLimit = 4 * time.Minute

// smallerFaults has each happen in turn, when the controllers call all regions well.
func smallerFaults(ctx context.Context, c *cluster.Cluster, w *watcher, n *cluster.Network, o options) (costs []cost, err error) {
	env, err := c.Env()
	if err != nil {
		return nil, err
	}
	for _, f := range slices.Concat(processFaults(c), storeFaults(ctx, c, env), networkFaults(n)) {
		if !strings.Contains(f.name, o.only) {
			continue
		}
		if _, err := w.until(ctx, normalLimit, "all is well before "+f.name, seen.well); err != nil {
			return nil, err
		}
		l, err := startLoad(ctx, c, strings.Split(env["MRGC_ENDPOINTS"], ","), o.perSecond)
		if err != nil {
			return nil, err
		}
		began, said, err := f.happen(ctx, o.around)
		one := cost{fault: f}
		var moves []move
		moves, one.unled = w.since(began)
		one.tally = between(l.stop(), began, time.Now())
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
		one.decided = strings.Join(append(told(moves, began), said...), "; ")
		one.missed = one.judge(moves)
		costs = append(costs, one)
		fmt.Printf("%s: %d of %d requests failed, %d cut; nobody led for %.1f s; %s\n", f.name, one.failed, one.requests, one.cut, seconds(one.unled), one.decided)
	}
	return costs, nil
}

// happen waits before the fault, while it lasts, and afterwards.
func (f *fault) happen(ctx context.Context, around time.Duration) (began time.Time, said []string, err error) {
	if err := wait(ctx, around); err != nil {
		return began, nil, err
	}
	began = time.Now()
	end, err := f.begin()
	if err != nil {
		return began, nil, err
	}
	if f.also != nil {
		var one string
		if one, err = f.also(ctx); err == nil {
			said = []string{one}
		}
	}
	err = errors.Join(err, wait(ctx, max(around, f.lasts)-time.Since(began)))
	if end != nil {
		err = errors.Join(err, end())
	}
	if err != nil {
		return began, said, err
	}
	return began, said, wait(ctx, around)
}

// told is what was decided, for people: where dials moved, and otherwise phases.
func told(moves []move, began time.Time) (all []string) {
	for _, m := range moves {
		all = append(all, fmt.Sprintf("%s %s, dial %d, after %.1f s", m.region, m.phase, m.dial, seconds(m.at.Sub(began))))
	}
	if all == nil {
		all = []string{"nothing"}
	}
	return all
}

// judge says what is not as the fault has it.
func (c *cost) judge(moves []move) (missed error) {
	if c.harmless && c.failed+c.cut > 0 {
		missed = fmt.Errorf("goal missed: %s: %d requests failed, %d were cut: %w", c.name, c.failed, c.cut, c.why)
	}
	dials := map[fleet.Region]int{}
	for _, m := range moves {
		dials[m.region] = m.dial
	}
	for region, dial := range dials {
		if dial != 100 && region != c.drained {
			missed = errors.Join(missed, fmt.Errorf("goal missed: %s: the dial of %s is at %d", c.name, region, dial))
		}
	}
	if dial, moved := dials[c.drained]; c.drained != "" && (!moved || dial != 0) {
		missed = errors.Join(missed, fmt.Errorf("goal missed: %s: the dial of %s is not at 0: %v", c.name, c.drained, moves))
	}
	return missed
}

func missedOf(costs []cost) (missed error) {
	for _, c := range costs {
		missed = errors.Join(missed, c.missed)
	}
	return missed
}

func processFaults(c *cluster.Cluster) []fault {
	killing := func(want int, chosen func(name string) bool) func() (func() error, error) {
		return func() (func() error, error) {
			killed, err := kill(c, chosen)
			if err == nil && killed != want {
				err = fmt.Errorf("killed %d processes, want %d", killed, want)
			}
			return nil, err
		}
	}
	return []fault{
		{name: "an instance killed (parent, enclave, guard), restarted", begin: killing(3, func(name string) bool { return partOf(name, victim+"-0") })},
		{name: "a router of two killed, restarted", begin: killing(1, func(name string) bool { return name == "router-"+victim })},
		{name: "both of a region's pickers stopped (SIGSTOP) for a while", begin: func() (func() error, error) {
			children, err := c.Children()
			if err != nil {
				return nil, err
			}
			routers := []int{children["router-"+victim], children["router-"+victim+"-1"]}
			all := func(sig syscall.Signal) (err error) {
				for _, pid := range routers {
					err = errors.Join(err, syscall.Kill(pid, sig))
				}
				return err
			}
			return func() error { return all(syscall.SIGCONT) }, all(syscall.SIGSTOP)
		}},
		{name: "all controllers killed, the one that leads among them, restarted", harmless: true, begin: killing(3, func(name string) bool {
			return strings.HasPrefix(name, "controller-")
		})},
	}
}

// table has the region's death beside the smaller faults.
func (s *story) table(faults []cost) result.Table {
	t := result.Table{
		Title:   "faults, as a tenant of package client notices them, and what controllers decide meanwhile",
		Columns: []string{"fault", "requests", "failed, no byte yet", "cut", "last failure after", "slowest begin of an answer", "nobody led for", "decided"},
	}
	for _, c := range append([]cost{
		{fault: fault{name: fmt.Sprintf("a region killed with its store, for %.0f s", seconds(s.down))}, tally: s.died, unled: s.unled, decided: "see the figures"},
		{fault: fault{name: "the region restored"}, tally: s.back, decided: "see the figures"},
	}, faults...) {
		recovered, unled := "none failed", "–"
		if c.failed+c.cut > 0 {
			recovered = fmt.Sprintf("%.2f s", seconds(c.lastFailure))
		}
		if c.unled > 0 {
			unled = fmt.Sprintf("%.1f s", seconds(c.unled))
		}
		t.Rows = append(t.Rows, []string{
			c.name, fmt.Sprint(c.requests), fmt.Sprint(c.failed), fmt.Sprint(c.cut), recovered, fmt.Sprintf("%.2f s", seconds(c.slowest)), unled, c.decided,
		})
	}
	return t
}
