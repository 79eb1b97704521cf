package main

import (
	"errors"
	"testing"
	"time"

	. "github.com/onsi/gomega"
)

func TestBetween(t *testing.T) {
	g := NewWithT(t)
	fault := time.Unix(1_790_000_000, 0)
	at := func(s float64) time.Time { return fault.Add(time.Duration(s * float64(time.Second))) }
	broken := errors.New("broken")
	got := between([]asked{
		{sent: at(-2), first: at(-2), ended: at(-1), err: broken},    // it was over
		{sent: at(-1), first: at(-0.5), ended: at(0.2), err: broken}, // within its answer
		{sent: at(-0.1), ended: at(0.1), err: errors.New("reset")},   // before it
		{sent: at(-0.1), first: at(1), ended: at(1)},                 // sent before the fault: not what is served afterwards
		{sent: at(1), first: at(4), ended: at(5)},
		{sent: at(2), first: at(2.5), ended: at(5)},
		{sent: at(9), ended: at(11), err: broken},
		{sent: at(10), first: at(10), ended: at(11), err: broken}, // when it was over
	}, fault, at(10))
	g.Expect(got).To(Equal(tally{
		requests: 6, failed: 2, cut: 1, lastFailure: 11 * time.Second, next: 2500 * time.Millisecond, slowest: 3 * time.Second, why: broken,
	}))
}

func TestMissed(t *testing.T) {
	g := NewWithT(t)
	met := story{active: 8 * time.Second, settled: 13 * time.Second, dials: []int{100, 0, 10, 100}, died: tally{next: time.Second, slowest: time.Second}}
	g.Expect(met.missed()).To(Succeed())
	for what, change := range map[string]func(*story){
		"no byte yet":        func(s *story) { s.died.failed = 1 },
		"first new request":  func(s *story) { s.died.next = 0 },
		"the slowest":        func(s *story) { s.died.slowest = 4 * time.Second },
		"FAILOVER_ACTIVE":    func(s *story) { s.active = 11 * time.Second },
		"dials settled":      func(s *story) { s.settled = time.Minute },
		"by client":          func(s *story) { s.back.failed = 1 },
		"by accelerator":     func(s *story) { s.backNear.cut = 1 },
		"turned 2 times":     func(s *story) { s.dials = []int{100, 0, 10, 0} },
		"the dial turned 0 ": func(s *story) { s.dials = []int{100} },
	} {
		s := met
		change(&s)
		g.Expect(s.missed()).To(MatchError(ContainSubstring(what)))
	}
}

func TestSince(t *testing.T) {
	g := NewWithT(t)
	fault := time.Unix(1_790_000_000, 0)
	at := func(s float64) time.Time { return fault.Add(time.Duration(s * float64(time.Second))) }
	w := &watcher{
		led:   []time.Time{at(-4), at(-2), at(1), at(9), at(10)},
		moves: []move{{at(-1), "use1", "NORMAL", 100}, {at(3), "use2", "DEGRADED", 100}},
	}
	moves, unled := w.since(fault)
	g.Expect(moves).To(Equal([]move{{at(3), "use2", "DEGRADED", 100}}))
	g.Expect(unled).To(BeNumerically(">", time.Hour), "it is long ago that anyone led")
	w.led = append(w.led, time.Now())
	_, unled = w.since(time.Now().Add(-time.Second))
	g.Expect(unled).To(BeNumerically("~", time.Second, 0.1*float64(time.Second)))
	g.Expect(told(moves, fault)).To(Equal([]string{"use2 DEGRADED, dial 100, after 3.0 s"}))
	g.Expect(told(nil, fault)).To(Equal([]string{"nothing"}))
}

func TestJudge(t *testing.T) {
	g := NewWithT(t)
	down := []move{{region: "use2", phase: "DEGRADED", dial: 100}, {region: "use2", phase: "FAILOVER_ACTIVE", dial: 0}}
	isCut := fault{name: "cut off", harmless: true, drained: "use2"}
	g.Expect((&cost{fault: isCut}).judge(down)).To(Succeed())
	g.Expect((&cost{fault: fault{}, tally: tally{failed: 1}}).judge(nil)).To(Succeed())
	for _, one := range []struct {
		cost
		moves []move
		says  string
	}{
		{cost{fault: isCut, tally: tally{cut: 1}}, down, "1 were cut"},
		{cost{fault: isCut}, down[:1], "the dial of use2 is not at 0"},
		{cost{fault: isCut}, nil, "the dial of use2 is not at 0"},
		{cost{fault: isCut}, append(down, move{region: "use1", dial: 50}), "the dial of use1 is at 50"},
		{cost{fault: fault{name: "none"}}, down, "the dial of use2 is at 0"},
	} {
		g.Expect(one.judge(one.moves)).To(MatchError(ContainSubstring(one.says)))
	}
}
