package main

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/mrgc/mrgc/bench/result"
	"github.com/mrgc/mrgc/bench/rig"
)

// arrivals are those of a Poisson process, the same for the same seed.
func arrivals(rate float64, window time.Duration, seed uint64, request func(*rand.Rand) rig.Request) []rig.Request {
	random := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // traffic is no secret
	var requests []rig.Request
	for at := 0.0; ; {
		at += random.ExpFloat64() / rate
		if at >= window.Seconds() {
			return requests
		}
		r := request(random)
		r.At = time.Duration(at * float64(time.Second))
		r.Conversation = random.Int()
		requests = append(requests, r)
	}
}

// chat is a request to an engine: no two begin alike.
func chat(random *rand.Rand, promptTokens, outputTokens int) rig.Request {
	const letters = "abcdefghijklmnopqrstuvwxyz     "
	prompt := make([]byte, 4*promptTokens)
	for i := range prompt {
		prompt[i] = letters[random.IntN(len(letters))]
	}
	body, err := json.Marshal(map[string]any{
		"model": rig.Model, "max_tokens": outputTokens, "stream": true,
		"messages": []map[string]string{{"role": "user", "content": string(prompt)}},
	})
	if err != nil {
		panic(err) // strings and numbers
	}
	return rig.Request{Body: body, PromptTokens: promptTokens, OutputTokens: outputTokens}
}

// answered are times in milliseconds of what was answered.
type answered struct {
	first, total []float64
	failed       int
	lag          float64 // p99 of how late requests were sent, ms
	err          error   // of one that failed
}

// sumUp looks at the requests that were due from a moment of the traffic on.
func sumUp(outcomes []rig.Outcome, from time.Duration) (a answered) {
	var lags []float64
	for _, o := range outcomes {
		if o.At < from {
			continue
		}
		lags = append(lags, ms(o.Lag))
		if o.Err != nil {
			a.failed, a.err = a.failed+1, o.Err
			continue
		}
		a.first, a.total = append(a.first, ms(o.First)), append(a.total, ms(o.Total))
	}
	a.lag = result.Quantile(lags, 0.99)
	return a
}

// keepOpen has so many requests under way at any time until the window is over,
// and gives those that were sent after the first second of it.
func keepOpen(ctx context.Context, f rig.Front, n int, window time.Duration, r rig.Request) answered {
	outcomes := make([][]rig.Outcome, n)
	start := time.Now()
	var workers sync.WaitGroup
	for i := range n {
		workers.Go(func() {
			time.Sleep(time.Duration(i) * time.Second / time.Duration(n)) // not all at the same moment
			for ctx.Err() == nil && time.Since(start) < window {
				sent := time.Now()
				first, err := f.Ask(ctx, r)
				outcomes[i] = append(outcomes[i], rig.Outcome{At: sent.Sub(start), First: first.Sub(sent), Total: time.Since(sent), Err: err})
			}
		})
	}
	workers.Wait()
	var all []rig.Outcome
	for _, some := range outcomes {
		all = append(all, some...)
	}
	return sumUp(all, time.Second)
}

func ms(d time.Duration) float64 { return d.Seconds() * 1e3 }
