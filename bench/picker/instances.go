package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/mrgc/mrgc/bench/rig"
	"github.com/mrgc/mrgc/engine/sim"
	"github.com/mrgc/mrgc/engine/sim/batching"
	"github.com/mrgc/mrgc/internal/loadreport"
)

// fleetPlan is what the process of the instances is told.
type fleetPlan struct {
	Identities []string // directories of certificates, by instance
	Slots      int
	Engines    bool          // that batch as vLLM's do; else errands
	Every      time.Duration // between load reports; 0: as a busy parent
}

// errand is what a request asks of an instance that is no engine: the first line
// of its body. The rest of the body is read and forgotten.
type errand struct {
	After  time.Duration // until the first token
	Tokens int
	Every  time.Duration // between tokens
}

// request is one that asks for an errand, of so many bytes.
func (e errand) request(bytes int) rig.Request {
	body, err := json.Marshal(e)
	if err != nil {
		panic(err) // numbers
	}
	body = append(body, '\n')
	body = append(body, make([]byte, max(bytes-len(body), 0))...)
	return rig.Request{Body: body, PromptTokens: bytes / 4, OutputTokens: e.Tokens}
}

// profile is that of each engine: an A100 that runs few requests at once, so
// that four are loaded by what one small machine can send and relay.
func profile(slots int) batching.Profile {
	p := batching.A100()
	p.MaxSequences = slots
	return p
}

// serveInstances is the part that is all instances, and answers with their
// addresses.
func serveInstances(ctx context.Context, p fleetPlan) (any, error) {
	var addresses []string
	for _, dir := range p.Identities {
		errands := &errands{slots: p.Slots}
		parent := rig.Parent{Engine: errands, Report: errands.report, Every: p.Every}
		if p.Engines {
			engine, err := sim.New(sim.Config{Model: rig.Model, Profile: profile(p.Slots)})
			if err != nil {
				return nil, err
			}
			parent.Engine, parent.Report = engine, func() (loadreport.Report, error) { return rig.EngineReport(engine, p.Slots) }
		}
		address, err := parent.Serve(ctx, dir)
		if err != nil {
			return nil, err
		}
		addresses = append(addresses, address)
	}
	return addresses, nil
}

// errands runs errands, as many at once as come.
type errands struct {
	slots   int
	running atomic.Int64
}

func (e *errands) report() (loadreport.Report, error) {
	return loadreport.Report{Running: int(e.running.Load()), Slots: e.slots}, nil
}

// chunk is a token as vLLM streams it.
const chunk = `data: {"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion.chunk","created":1789000000,"model":"sim",` +
	`"choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}]}` + "\n\n"

func (e *errands) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.running.Add(1)
	defer e.running.Add(-1)
	body := bufio.NewReader(r.Body)
	var todo errand
	line, err := body.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &todo)
	}
	if err == nil {
		_, err = io.Copy(io.Discard, body)
	}
	if err != nil {
		http.Error(w, "no errand", http.StatusBadRequest)
		return
	}
	due := time.Now().Add(todo.After)
	time.Sleep(todo.After)
	out := http.NewResponseController(w)
	for range todo.Tokens {
		_, _ = io.WriteString(w, chunk)
		if out.Flush() != nil {
			return // the tenant has gone
		}
		due = due.Add(todo.Every)
		time.Sleep(time.Until(due))
	}
	_, _ = io.WriteString(w, "data: [DONE]\n\n")
}
