// Routing measures who routes best: our policies and the peers that run on one
// machine, on the same seeded traffic, open loop, before engines that are
// simulated (package engine/sim) and of which one is half as fast.
//
// Routing alone is measured: requests are in clear, so that the peers can take
// part. Ours go the way of sealed ones otherwise: a real Envoy configured by
// our xDS server, and our picker, which sees headers alone. With -sealed the same
// traffic goes to whole clusters, in which everything is real but the engines.
//
// Every contender gets every seed's traffic, some of them at the same time, in an
// order that the seed shuffles; a run in which the client fell behind or the
// machine was too busy is void and repeated once.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/mrgc/mrgc/bench/rig"
)

// options say how long and what to measure.
type options struct {
	tools    string
	seeds    int
	together int
	duration time.Duration
	rate     float64
	slo      time.Duration
	only     *regexp.Regexp
	scene    *regexp.Regexp
	virtual  bool
	result   string // name of it
	sealed   bool
}

func main() {
	if rig.RunPart(map[string]rig.Part{"engines": rig.PartOf(serveEngines), "router": rig.PartOf(rig.ServeRouter)}) {
		return
	}
	var o options
	var only, scene string
	flag.StringVar(&o.tools, "tools-dir", ".tools", "where Envoy and the peers are")
	flag.IntVar(&o.seeds, "seeds", 10, "traffics that everyone gets")
	flag.IntVar(&o.together, "together", 4, "contenders measured at the same time, each before its own engines")
	flag.DurationVar(&o.duration, "duration", 40*time.Second, "of each traffic's arrivals")
	flag.Float64Var(&o.rate, "rate", 0, "requests per second; 0: 85 % of what the best peer can take within -slo")
	flag.DurationVar(&o.slo, "slo", time.Second, "time to first token that 99 % must keep")
	flag.StringVar(&only, "only", "", "measure the contenders whose names match this regular expression")
	flag.StringVar(&o.result, "result", "", "name of the result, for a part that is measured by itself (default routing, or routing-sealed)")
	flag.BoolVar(&o.sealed, "sealed", false, "measure our policies with everything real, sealed, at the rate of the last unsealed measurement")
	flag.StringVar(&scene, "scenario", "", "measure the scenarios whose names match this regular expression")
	flag.BoolVar(&o.virtual, "virtual", false, "simulate all in virtual time instead: a minute, on any machine")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if o.only, err = regexp.Compile(only); err == nil {
		o.scene, err = regexp.Compile(scene)
	}
	if err == nil {
		if o.sealed {
			o.result = cmp.Or(o.result, "routing-sealed")
			err = runSealed(ctx, o)
		} else {
			o.result = cmp.Or(o.result, "routing")
			err = run(ctx, o)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "routing:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	recording, err := readRecording()
	if err != nil {
		return err
	}
	if o.virtual {
		return runVirtual(ctx, o, recording)
	}
	scenes, err := o.scenes(scenarios())
	if err != nil {
		return err
	}
	b := book{options: o}
	var field []contender
	for _, c := range append(ours(o.tools), peers(o.tools)...) {
		switch {
		case !o.only.MatchString(c.name):
		case c.absent != "":
			b.absent = append(b.absent, c.name+": "+c.absent)
			say("%s: %s", c.name, c.absent)
		default:
			field = append(field, c)
		}
	}
	if len(field) == 0 {
		return errors.New("-only matches none of the contenders that are here")
	}
	if o.rate == 0 {
		if o.rate, err = sustainable(ctx, o, recording, field); err != nil {
			return err
		}
	}
	b.options = o
	for _, s := range scenes {
		for seed := range uint64(o.seeds) {
			requests := traffic(recording, shape{rate: o.rate, duration: o.duration, reuse: s.reuse}, seed)
			order := rand.New(rand.NewPCG(seed, 7)) //nolint:gosec // an order is no secret
			order.Shuffle(len(field), func(i, j int) { field[i], field[j] = field[j], field[i] })
			for beside := range slices.Chunk(field, o.together) {
				if err := b.enter(ctx, beside, s, seed, requests); err != nil {
					return errors.Join(err, b.write(err))
				}
			}
		}
	}
	return b.write(nil)
}

// scenarios are those of either table, in clear and sealed.
func scenarios() []scenario { return append(wellScenarios(), failingEngine()) }

// wellScenarios are those in which all engines are well.
func wellScenarios() []scenario { return []scenario{{name: "reuse", reuse: true}, {name: "no reuse"}} }

// failingEngine is the one in which an instance is idle because it fails.
func failingEngine() scenario {
	return scenario{name: "reuse, one engine fails fast", reuse: true, failing: true}
}

// scenes are the scenarios that are to be measured.
func (o *options) scenes(all []scenario) (scenes []scenario, err error) {
	var names []string
	for _, s := range all {
		if o.scene.MatchString(s.name) {
			scenes = append(scenes, s)
		}
		names = append(names, s.name)
	}
	if len(scenes) == 0 {
		err = fmt.Errorf("-scenario matches none of: %s", strings.Join(names, "; "))
	}
	return scenes, err
}

// sustainable is 85 % of the highest rate at which a peer still keeps the goal,
// of the best peer: found by raising the rate by a quarter until it does not.
func sustainable(ctx context.Context, o options, recording []arrival, field []contender) (float64, error) {
	best, s := 0.0, scenario{name: "capacity", reuse: true}
	for _, c := range field {
		if c.ours {
			continue
		}
		for rate := max(8, best); ; rate *= 1.25 {
			requests := traffic(recording, shape{rate: rate, duration: 20 * time.Second, reuse: true}, 1000)
			all, err := measure(ctx, []contender{c}, s, requests)
			if err != nil {
				return 0, err
			}
			m := all[0]
			say("%s at %.1f requests/s: p99 %.0f ms", c.name, rate, m.p99)
			if m.failed > 0 || m.p99 > o.slo.Seconds()*1e3 {
				break
			}
			best = rate
		}
	}
	if best == 0 {
		return 0, fmt.Errorf("no peer keeps %v at any rate: give one with -rate", o.slo)
	}
	return 0.85 * best, nil
}

// command is what was run, as a person types it.
func command() string {
	return strings.Join(append([]string{"go run ./bench/routing"}, os.Args[1:]...), " ")
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
