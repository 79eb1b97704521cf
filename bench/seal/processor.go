package main

import (
	"context"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mrgc/mrgc/bench/cluster"
	"github.com/mrgc/mrgc/bench/result"
)

// side is one of the two that are compared.
type side struct {
	name    string
	cluster *cluster.Cluster
	way     way
	used    map[string]time.Duration // processor time, by program; this one's is the tenant's
}

// blocks of requests are sent to either side in turn.
const (
	blocks        = 10
	blockRequests = 100
	tenantProgram = "tenant"
)

// compareProcessor counts the processor time of one kind of request on either side:
// it does not depend on who else uses the machine, as times do.
func compareProcessor(ctx context.Context, one request, model string, sides [2]*side, r *result.Result) error {
	for range blocks {
		for _, s := range sides {
			if err := s.send(ctx, one.body(model), blockRequests); err != nil {
				return err
			}
		}
	}
	var sums [2]float64
	for i, s := range sides {
		b := result.Breakdown{Name: "processor time of a request, " + s.name, Unit: "ms", Parts: map[string]float64{}}
		for program, used := range s.used {
			b.Parts[program] = float64(used) / float64(time.Millisecond) / (blocks * blockRequests)
		}
		sums[i] = b.Sum()
		r.Breakdowns = append(r.Breakdowns, b)
	}
	r.Figures = append(r.Figures, result.Figure{
		Name: "processor time that sealing adds to such a question, in all programs together", Value: sums[1] - sums[0], Unit: "ms",
	})
	return nil
}

// send sends n requests and adds up what they used.
func (s *side) send(ctx context.Context, body []byte, n int) error {
	before, own, err := s.processorTime()
	if err != nil {
		return err
	}
	for range n {
		if err := s.way(ctx, body); err != nil {
			return err
		}
	}
	after, ownAfter, err := s.processorTime()
	if err != nil {
		return err
	}
	if s.used == nil {
		s.used = map[string]time.Duration{}
	}
	for program := range after {
		s.used[program] += after[program] - before[program]
	}
	s.used[tenantProgram] += ownAfter - own
	return nil
}

// processorTime is that of the cluster's programs, and of this one.
func (s *side) processorTime() (programs map[string]time.Duration, own time.Duration, err error) {
	if programs, err = s.cluster.ProcessorTime(); err != nil {
		return nil, 0, err
	}
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		return nil, 0, err
	}
	return programs, time.Duration(usage.Utime.Nano() + usage.Stime.Nano()), nil
}
