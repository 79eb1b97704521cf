// Failover kills a region of a whole cluster, all its processes at once, under a steady
// load, and lets it come back; then it does smaller harm. It says what each fault cost
// whom: a tenant that uses package client with every region's endpoint, and one that
// knows only the accelerator's address near the region that dies. What the controllers
// decide, and what the accelerator has, is watched meanwhile.
//
// Each region has a network namespace and a DynamoDB Local of its own, so that it dies
// with its store, and can be cut off. This takes root, iproute2 and Java.
//
// It is a test, too: it fails when a goal is missed, of the region's death or of a fault
// that may cost no request. It takes some 18 minutes, most of it the recovery, which has
// its real times (docs/failover.md).
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

var regions = []string{victim, "use2", "usw2"}

// options say how much is asked.
type options struct {
	perSecond int           // requests, of each of the two
	down      time.Duration // how long the region is down at least
	only      string        // the one fault that happens, and nothing is written down
	around    time.Duration // how long requests are sent before and after each smaller fault
}

func main() {
	var o options
	flag.IntVar(&o.perSecond, "rate", 10, "requests a second, of each of the two tenants")
	flag.DurationVar(&o.down, "down", time.Minute, "how long the region is down at least")
	flag.DurationVar(&o.around, "around", 10*time.Second, "how long requests are sent before each smaller fault, while it lasts, and after")
	flag.StringVar(&o.only, "only", "", "have only those smaller faults happen whose names have this in them, and write no result")
	flag.Parse()
	if again, err := cluster.RunInOwnNetwork(os.Args[1:]...); again {
		if err != nil {
			fmt.Fprintln(os.Stderr, "failover:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "failover:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	network, err := cluster.NewNetwork(regions...)
	if err != nil {
		return err
	}
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} { // DynamoDB Local takes any
		if err := os.Setenv(name, "failover"); err != nil {
			return err
		}
	}
	c, err := cluster.Start(ctx, append(network.Arguments(),
		"--store", "dynamodb", "--accelerator", "--engine", "sim", "--sim-profile", "a100", "--ask=false")...)
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
	if o.only != "" {
		faults, err := smallerFaults(ctx, c, w, network, o)
		return errors.Join(err, missedOf(faults))
	}
	story, err := killRegion(ctx, c, w, o)
	if err != nil {
		return err
	}
	faults, err := smallerFaults(ctx, c, w, network, o)
	if err != nil {
		return err
	}
	r := result.Result{
		Name: "failover", Title: "Failover: a region killed under load, and smaller faults", Command: "make test-failover",
		Figures: story.figures(), Tables: []result.Table{story.table(faults)},
		Notes: notes(o),
	}
	r.Print(os.Stdout)
	return errors.Join(r.Write(), story.missed(), missedOf(faults))
}

func notes(o options) []string {
	return []string{
		fmt.Sprintf("Three regions of two routers and two instances (engine simulator, as fast as an A100) on one machine, each in a network namespace of its own, with a "+
			"controller and a DynamoDB Local; standin/globaltables makes global tables of these, with a fourth for the strongly consistent ones. In front is the "+
			"stand-in for Global Accelerator. Two tenants send %d requests a second each: one through package client with all "+
			"regions' endpoints, one with the accelerator's address near %s alone. A region's processes are killed at once, its store among them, and again whenever they are started, "+
			"until it is let.", o.perSecond, victim),
		"Counted are requests that had not ended when the fault came, and those sent while it lasted and for a while afterwards. Failed are those of which no byte had been answered; " +
			"cut are answers that broke off, which the client tells as an error.",
		"Nobody led: the longest time in which the lease of the failover loop was not renewed, as seen every 100 ms; a leader renews it every 1.7 s. A smaller fault begins when all regions are NORMAL.",
		"DynamoDB Local keeps its data on disk, and stays dead until the fault is over; then it is started again, by a supervisor that waits up to 5 s for those that die often.",
		"A cut drops every packet between the namespaces, without a word. Tenants reach all regions meanwhile, and so does what stands for the quorum of strongly consistent tables, which a region without a majority is denied.",
		"The accelerator sends new connections to a dead region until its dial is in effect or three of its health checks, each 10 s, have failed, and moves none that are there.",
	}
}

func seconds(d time.Duration) float64 { return d.Seconds() }
