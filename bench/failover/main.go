// Failover kills a region of a whole cluster, all its processes at once, under a steady
// load, and lets it come back; then it does smaller harm. It says what each fault cost
// whom: a tenant that uses package client with every region's endpoint, and one that
// knows only the accelerator's address near the region that dies. What the controllers
// decide, and what the accelerator has, is watched meanwhile.
//
// It is a test, too: it fails when a goal of the region's death is missed. It takes some
// 12 minutes, most of it the recovery, which has its real times (docs/failover.md).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/mrgc/mrgc/bench/cluster"
	"github.com/mrgc/mrgc/bench/result"
)

// victim is the region that dies; preferred by the client and nearest to the
// accelerator's tenant.
const victim = "use1"

// options say how much is asked.
type options struct {
	perSecond int           // requests, of each of the two
	down      time.Duration // how long the region is down at least
	around    time.Duration // how long requests are sent before and after each smaller fault
}

func main() {
	var o options
	flag.IntVar(&o.perSecond, "rate", 10, "requests a second, of each of the two tenants")
	flag.DurationVar(&o.down, "down", time.Minute, "how long the region is down at least")
	flag.DurationVar(&o.around, "around", 10*time.Second, "how long requests are sent before each smaller fault, while it lasts, and after")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "failover:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	c, err := cluster.Start(ctx, "--accelerator", "--engine", "sim", "--sim-profile", "a100", "--ask=false")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Stop()) }()
	w, err := watch(ctx, c, victim)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	if _, err := w.until(ctx, 2*time.Minute, "the cluster is well", seen.well); err != nil {
		return err
	}
	story, err := killRegion(ctx, c, w, o)
	if err != nil {
		return err
	}
	faults, err := smallerFaults(ctx, c, o)
	if err != nil {
		return err
	}
	r := result.Result{
		Name: "failover", Title: "Failover: a region killed under load, and smaller faults", Command: "make test-failover",
		Figures: story.figures(), Tables: []result.Table{story.table(faults)},
		Notes: notes(o),
	}
	r.Print(os.Stdout)
	return errors.Join(r.Write(), story.missed())
}

func notes(o options) []string {
	return []string{
		fmt.Sprintf("Three regions of two routers and two instances (engine simulator, as fast as an A100) on one machine, with a controller each, which share "+
			"one SQLite file, and the stand-in for Global Accelerator. Two tenants send %d requests a second each: one through package client with all "+
			"regions' endpoints, one with the accelerator's address near %s alone. A region's processes are killed at once, and again whenever they are started, "+
			"until it is let.", o.perSecond, victim),
		"Counted are requests that had not ended when the fault came, and those sent while it lasted. Failed are those of which no byte had been answered; " +
			"cut are answers that broke off, which the client tells as an error.",
		"Who has a store open when its files are removed goes on with what nobody else can open: what is written is lost with the process, and who starts anew finds nothing. A store that cannot be reached at all is DynamoDB's, killed in controller/process_test.go.",
		"The accelerator sends new connections to a dead region until its dial is in effect or three of its health checks, each 10 s, have failed, and moves none that are there.",
	}
}

func seconds(d time.Duration) float64 { return d.Seconds() }
