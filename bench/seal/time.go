package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/mrgc/mrgc/bench/result"
	"github.com/mrgc/mrgc/client"
	"github.com/mrgc/mrgc/internal/seal"
)

// warmUp is how many pairs are not counted: connections are made, recipients
// fetched and verified, pools filled.
const warmUp = 50

// question is the request that most is measured with.
var question = request{promptBytes: 200, tokens: 16}

// kind is a kind of request, sent in two ways.
type kind struct {
	name     string
	request  request
	ways     [2]way
	one, two []float64 // milliseconds; those of one pair have one index
}

// measureTime compares with and without sealing, then with and without a data key
// of KMS.
func measureTime(ctx context.Context, o options, r *result.Result) (err error) {
	bin, err := unsealedPrograms(ctx)
	if err != nil {
		return err
	}
	sealed, err := up(ctx, "bin", "--instances", instances)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sealed.Stop()) }()
	unsealed, err := up(ctx, bin, "--instances", instances)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unsealed.Stop()) }()
	one, err := tenantOf(ctx, unsealed, seal.MaxRecipients-1)
	if err != nil {
		return err
	}
	two, err := tenantOf(ctx, sealed, seal.MaxRecipients-1)
	if err != nil {
		return err
	}
	if err := compareSealing(ctx, one, two, o, r); err != nil {
		return err
	}
	sealing, err := two.sealing(nil)
	if err != nil {
		return err
	}
	sides := [2]*side{{name: "in clear", cluster: unsealed, way: one.clear()}, {name: "sealed", cluster: sealed, way: sealing}}
	if err := compareProcessor(ctx, question, two.model, sides, r); err != nil {
		return err
	}
	return compareKMS(ctx, sealed, two, o, r)
}

func compareSealing(ctx context.Context, unsealed, sealed *tenant, o options, r *result.Result) error {
	sealing, err := sealed.sealing(nil)
	if err != nil {
		return err
	}
	toOne, err := sealed.sealing(func(config *client.Config) { config.Recipients = 1 })
	if err != nil {
		return err
	}
	ways := [2]way{unsealed.clear(), sealing}
	kinds := []*kind{
		{name: "a question of 200 bytes, an answer of 16 tokens", request: question, ways: ways},
		{name: "the same, streamed", request: request{promptBytes: 200, tokens: 16, stream: true}, ways: ways},
		{name: "the question, sealed to one enclave alone", request: question, ways: [2]way{ways[0], toOne}},
		{name: "a prompt of 32 KiB, 256 tokens streamed", request: request{promptBytes: 32 << 10, tokens: 256, stream: true}, ways: ways},
	}
	if err := measurePairs(ctx, kinds, o.pairs, sealed.model, 0); err != nil {
		return err
	}
	for i, k := range kinds {
		figure := result.Figure{Name: "added by sealing to " + k.name + ", p50", Unit: "ms", Value: k.added().mid}
		if i < 3 {
			figure.Goal = "≤ 1"
		}
		r.Figures = append(r.Figures, figure)
	}
	r.Tables = append(r.Tables, tableOf("Sealed, to three enclaves unless it says otherwise, and in clear through the same parts", "in clear", "sealed", kinds))
	r.Notes = append(r.Notes, "In clear: a program that opens nothing stands in the enclaves' place, and Envoy, picker, parent, relay and guard are the same. "+
		"What is added is therefore everything that confidentiality needs: reading the request's JSON in the client, HPKE to three recipients, while the headers are routed if a core is free, opening, the "+
		"replay set, the tenant's credential, the strict reading of the JSON in the enclave, sealing the answer chunk by chunk, the receipt's signature and its "+
		"verification, and wiping. Medians of pairs in random order, with 95 % intervals (bootstrap over the pairs); the difference is that within pairs. On a machine that others use all of these wait for a processor, more where "+
		"there is more to do: processor time says what is done.")
	return nil
}

// measurePairs measures every kind once, n times around, so that all of them meet the
// same weather, and each follows all others: what a large request leaves to clean up
// is to fall on no kind alone. every is from one pair's begin to the next one's, if
// that leaves any time; 0: none is left.
func measurePairs(ctx context.Context, kinds []*kind, n int, model string, every time.Duration) error {
	for i := range n + warmUp {
		for _, at := range rand.Perm(len(kinds)) { //nolint:gosec // the order is no secret
			k, pause := kinds[at], time.NewTimer(every)
			body := k.request.body(model)
			var times [2]float64
			order := rand.Perm(2) //nolint:gosec // the order is no secret
			for _, which := range order {
				began := time.Now()
				if err := k.ways[which](ctx, body); err != nil {
					return fmt.Errorf("%s: %w", k.name, err)
				}
				times[which] = milliseconds(time.Since(began))
			}
			if i >= warmUp {
				k.one, k.two = append(k.one, times[0]), append(k.two, times[1])
			}
			select {
			case <-pause.C:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// added is the median of the differences within pairs.
func (k *kind) added() interval {
	differences := make([]float64, len(k.one))
	for i := range differences {
		differences[i] = k.two[i] - k.one[i]
	}
	return bootstrap(len(differences), func(pairs []int) float64 { return median(differences, pairs) })
}

// ratio is that of the medians.
func (k *kind) ratio() interval {
	return bootstrap(len(k.one), func(pairs []int) float64 { return median(k.two, pairs) / median(k.one, pairs) })
}

func tableOf(title, one, two string, kinds []*kind) result.Table {
	t := result.Table{Title: title, Columns: []string{"ms, median [95 %]", "pairs", one, two, "added in a pair", "ratio"}}
	for _, k := range kinds {
		of := func(samples []float64) string {
			return bootstrap(len(samples), func(pairs []int) float64 { return median(samples, pairs) }).text("%.3f")
		}
		t.Rows = append(t.Rows, []string{k.name, fmt.Sprint(len(k.one)), of(k.one), of(k.two), k.added().text("%.3f"), k.ratio().text("%.2f")})
	}
	return t
}
