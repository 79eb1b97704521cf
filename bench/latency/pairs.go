package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/mrgc/mrgc/bench/result"
)

// warmUp is how many pairs are not counted: connections are made, recipients
// fetched, pools filled.
const warmUp = 3

// pairs are the measurements of one kind of request, in milliseconds; those of
// one pair have one index.
type pairs struct {
	engine          string
	stream          bool
	atOnce          int
	direct, through samples
}

// samples are times in milliseconds.
type samples struct{ first, total []float64 }

func (s *samples) add(t timing) {
	s.first = append(s.first, milliseconds(t.first))
	s.total = append(s.total, milliseconds(t.total))
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// compare measures every kind of request in turn, n times around, so that all
// of them meet the same weather.
func compare(ctx context.Context, w ways, engine string, body func(stream bool) []byte, n int) ([]*pairs, error) {
	kinds := []*pairs{
		{engine: engine, stream: true, atOnce: 1},
		{engine: engine, stream: false, atOnce: 1},
		{engine: engine, stream: true, atOnce: 8},
		{engine: engine, stream: false, atOnce: 8},
	}
	for i := range n + warmUp {
		for _, kind := range kinds {
			direct, through, err := pair(ctx, w, kind.atOnce, body(kind.stream))
			if err != nil {
				return nil, err
			}
			if i >= warmUp {
				kind.direct.add(direct)
				kind.through.add(through)
			}
		}
	}
	return kinds, nil
}

// pair asks both, in random order.
func pair(ctx context.Context, w ways, atOnce int, body []byte) (direct, through timing, err error) {
	order := []struct {
		way  way
		into *timing
	}{{w.engine, &direct}, {w.through, &through}}
	shuffle(order)
	for _, step := range order {
		if *step.into, err = step.way.burst(ctx, atOnce, body); err != nil {
			return timing{}, timing{}, err
		}
	}
	return direct, through, nil
}

// shuffle keeps what comes first from being what comes first always.
func shuffle[T any](order []T) {
	rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] }) //nolint:gosec // the order is no secret
}

// added are the differences within each pair.
func (p *pairs) added() samples {
	return samples{first: differences(p.through.first, p.direct.first), total: differences(p.through.total, p.direct.total)}
}

func differences(a, b []float64) []float64 {
	d := make([]float64, len(a))
	for i := range a {
		d[i] = a[i] - b[i]
	}
	return d
}

// comparisons are what is reported: without a stream, the first token comes
// with the last.
func (p *pairs) comparisons() []result.Comparison {
	added := p.added()
	of := func(what string, direct, through, added []float64) result.Comparison {
		return result.Comparison{
			Name: fmt.Sprintf("%s, %d at once, %s", p.engine, p.atOnce, what), Unit: "ms",
			Direct: result.SpreadOf(direct), Through: result.SpreadOf(through), Added: result.SpreadOf(added),
		}
	}
	if !p.stream {
		return []result.Comparison{of("not streamed, total", p.direct.total, p.through.total, added.total)}
	}
	return []result.Comparison{
		of("streamed, first token", p.direct.first, p.through.first, added.first),
		of("streamed, total", p.direct.total, p.through.total, added.total),
	}
}
