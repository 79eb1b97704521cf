// Startup measures what it costs to have a cluster on one machine: how long
// `mrgc up` takes to its first answer with parts fetched and programs built,
// and what the cluster uses when nobody asks anything.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/mrgc/mrgc/bench/cluster"
	"github.com/mrgc/mrgc/bench/result"
)

func main() {
	starts := flag.Int("starts", 3, "how often the start is measured; the median is reported")
	idle := flag.Duration("idle", 30*time.Second, "how long the idle cluster is watched")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *starts, *idle); err != nil {
		fmt.Fprintln(os.Stderr, "startup:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, starts int, idle time.Duration) error {
	var seconds []float64
	var idleUse usage
	for i := range starts {
		up, err := cluster.Start(ctx)
		if err != nil {
			return err
		}
		if i == starts-1 {
			idleUse, err = watch(ctx, up, idle)
		}
		if err := errors.Join(err, up.Stop()); err != nil {
			return err
		}
		seconds = append(seconds, up.StartedIn.Seconds())
		fmt.Printf("start %d of %d: %.1f s to the first answer\n", i+1, starts, up.StartedIn.Seconds())
	}
	r := result.Result{
		Name: "startup", Title: "Start and idle cost: three regions, two instances each, a real model",
		Command: "make bench-startup",
		Figures: []result.Figure{
			{Name: "start to the first answer, median of " + strconv.Itoa(starts), Value: result.SpreadOf(seconds).P50, Unit: "s", Goal: "< 30"},
			{Name: "start to the first answer, slowest", Value: slices.Max(seconds), Unit: "s", Goal: "< 30"},
			{Name: "idle processor time", Value: 100 * idleUse.cores, Unit: "% of a core", Goal: "≤ 10"},
			{Name: "memory of all processes (PSS)", Value: idleUse.memory.Sum(), Unit: "MiB"},
		},
		Breakdowns: []result.Breakdown{idleUse.memory},
	}
	r.Print(os.Stdout)
	return r.Write()
}

// usage is what an idle cluster uses.
type usage struct {
	cores  float64
	memory result.Breakdown
}

// watch adds up the processor time of all processes over a while.
func watch(ctx context.Context, up *cluster.Cluster, period time.Duration) (usage, error) {
	before, err := up.ProcessorTime()
	if err != nil {
		return usage{}, err
	}
	began := time.Now()
	select {
	case <-time.After(period):
	case <-ctx.Done():
		return usage{}, ctx.Err()
	}
	after, err := up.ProcessorTime()
	if err != nil {
		return usage{}, err
	}
	elapsed := time.Since(began)
	var used time.Duration
	for program := range after {
		used += after[program] - before[program]
	}
	memory, err := up.MemoryMiB()
	return usage{
		cores:  used.Seconds() / elapsed.Seconds(),
		memory: result.Breakdown{Name: "memory (PSS), all processes of the program", Unit: "MiB", Parts: memory},
	}, err
}
