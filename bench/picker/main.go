// Picker measures what the picker costs, and what it costs to lose it: the time
// that a pick takes as Envoy sees it, long prompts, long answers, every picker
// killed or hung under load, how often Envoy rebuilds its load balancer, and load
// reports of an idle fleet.
//
// Tenants, Envoy, router and instances are processes of their own; instances are
// simulated. What has a baseline is measured in turns with it, in random order:
// a second Envoy with the same configuration but the picker, or the same traffic
// while the router lives.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"syscall"
	"time"

	"github.com/mrgc/mrgc/bench/result"
	"github.com/mrgc/mrgc/bench/rig"
)

// options say how long and what to measure.
type options struct {
	tools  string
	rounds int
	window time.Duration
	only   *regexp.Regexp
}

func main() {
	if rig.RunPart(map[string]rig.Part{
		"instances": rig.PartOf(serveInstances), "router": rig.PartOf(rig.ServeRouter), "no picker": rig.PartOf(serveWithoutPicker),
	}) {
		return
	}
	var o options
	var only string
	flag.StringVar(&o.tools, "tools-dir", ".tools", "where Envoy is")
	flag.IntVar(&o.rounds, "rounds", 3, "how often everything is measured")
	flag.DurationVar(&o.window, "window", 8*time.Second, "how long each time")
	flag.StringVar(&only, "only", "", "measure the parts whose names match this regular expression, and write nothing")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if o.only, err = regexp.Compile(only); err == nil {
		err = run(ctx, o, only == "")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "picker:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options, write bool) error {
	r := result.Result{Name: "routing-picker", Title: "The picker: what it costs, and what losing it costs", Command: "make bench-picker"}
	for _, part := range []struct {
		name    string
		measure func(context.Context, options, *result.Result) error
	}{
		{"pick", measurePicks}, {"answers", measureAnswers}, {"loss", measureLoss}, {"idle", measureIdleReports},
	} {
		if !o.only.MatchString(part.name) {
			continue
		}
		say("%s", part.name)
		if err := part.measure(ctx, o, &r); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	r.Notes = append(r.Notes, fmt.Sprintf("Medians of %d rounds (p10–p90), where a spread is given. Everything runs on one machine: tenants, Envoy, router and the "+
		"simulated instances share its processors.", o.rounds))
	r.Print(os.Stdout)
	if !write {
		return nil
	}
	return r.Write()
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// ofRounds is a figure whose samples are those of the rounds.
func ofRounds(name string, samples []float64, unit, goal string) result.Figure {
	spread := result.SpreadOf(samples)
	return result.Figure{Name: name, Value: spread.P50, Unit: unit, Goal: goal, Spread: &spread}
}
