package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/mrgc/mrgc/bench/cluster"
	"github.com/mrgc/mrgc/bench/result"
	"github.com/mrgc/mrgc/client"
	"github.com/mrgc/mrgc/internal/credential"
)

// hop is a request that goes so far and no further: it is answered, mostly by a
// refusal, where the name says.
type hop struct {
	name  string
	way   way
	body  []byte
	times []float64 // milliseconds
}

// measureHops asks every hop in each round, in random order. Each hop's request
// goes where the one before it went and a step further, so that the difference
// is the step.
func measureHops(ctx context.Context, c *cluster.Cluster, w ways, rounds int, r *result.Result) error {
	engine, steps, err := hopsOf(c, w)
	if err != nil {
		return err
	}
	all := append([]*hop{engine}, steps...)
	// The client has no recipients for an unknown key before somebody's known one
	// has fetched them.
	if _, err := steps[len(steps)-2].way.ask(ctx, engine.body); err != nil {
		return err
	}
	order := slices.Clone(all)
	for i := range rounds + 10*warmUp {
		shuffle(order)
		for _, h := range order {
			t, err := h.way.ask(ctx, h.body)
			if err != nil {
				return fmt.Errorf("%s: %w", h.name, err)
			}
			if i >= 10*warmUp {
				h.times = append(h.times, milliseconds(t.total))
			}
		}
	}
	for _, h := range all {
		spread := result.SpreadOf(h.times)
		r.Figures = append(r.Figures, result.Figure{Name: "one request " + h.name, Value: spread.P50, Unit: "ms", Spread: &spread})
	}
	return measureSeal(rounds, r)
}

func hopsOf(c *cluster.Cluster, w ways) (engine *hop, steps []*hop, err error) {
	env, err := c.Env()
	if err != nil {
		return nil, nil, err
	}
	config, err := c.ClientConfig()
	if err != nil {
		return nil, nil, err
	}
	tenant, err := client.New(config)
	if err != nil {
		return nil, nil, err
	}
	stranger, err := credential.New(rand.Reader, "dev")
	if err != nil {
		return nil, nil, err
	}
	body := chat(w.model, 1, nil)
	plain := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: config.RootCAs}}
	sealing := way{client: &http.Client{Transport: tenant}, url: "https://mrgc/v1" + pathChat, key: env["OPENAI_API_KEY"]}
	unknownKey, unknownField := sealing, sealing
	unknownKey.key, unknownKey.status = stranger.Text(), http.StatusUnauthorized
	unknownField.status = http.StatusBadRequest
	endpoint, _, _ := strings.Cut(env["MRGC_ENDPOINTS"], ",")
	return &hop{name: "straight to the engine", way: w.engine, body: body}, []*hop{
		{
			name: "to Envoy, refused there: not sealed", body: body,
			way: way{client: &http.Client{Transport: plain}, url: endpoint + "/v1" + pathChat, status: http.StatusBadRequest},
		},
		{name: "sealed in the Go client, to Envoy and the picker, refused there: unknown key", body: body, way: unknownKey},
		{
			name: "on to parent and enclave, opened, refused there under seal: unknown field", way: unknownField,
			body: chat(w.model, 1, map[string]any{"no_such_field": true}),
		},
		{name: "on through relay and guard to the engine: everything but connect", way: sealing, body: body},
		{name: "the same through connect: everything", way: w.through, body: body},
	}, nil
}
