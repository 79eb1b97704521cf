package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mrgc/mrgc/bench/rig"
	"github.com/mrgc/mrgc/engine/sim"
	"github.com/mrgc/mrgc/engine/sim/batching"
	"github.com/mrgc/mrgc/internal/loadreport"
)

// profile is that of every engine: an A100 with as many slots, and as much of
// its cache, as four of them can keep busy on a small machine. The cache holds
// what runs and few conversations more.
func profile() batching.Profile {
	p := batching.A100()
	p.MaxSequences = 32
	p.KVBlocks /= 8
	return p
}

// engines are simulated ones in a process of their own, so that their work and
// the client's do not wait for each other's garbage collector. Each listens
// twice: in clear for the peers, and as an instance's parent does for our
// Envoy (HTTP/2, mutual TLS, load reports).
type engines struct {
	Plain, Parents []string // addresses, by engine

	process *exec.Cmd
	input   io.WriteCloser
}

// plan is what the process is told.
type plan struct {
	Identities []string // directories of the parents' certificates, by engine
	Faults     []sim.Faults
}

// faultsOf are an engine's: the last is slow, and in one scenario the first fails.
func faultsOf(engine int, s scenario) (faults sim.Faults) {
	switch {
	case engine == engineCount-1:
		faults.Slowness = slowFactor
	case engine == 0 && s.failing:
		faults.FailShare = 1
	}
	return faults
}

func startEngines(ctx context.Context, dir string, s scenario) (*engines, error) {
	identities, err := rig.WriteIdentities(dir, engineCount)
	if err != nil {
		return nil, err
	}
	p := plan{Identities: identities}
	for i := range engineCount {
		p.Faults = append(p.Faults, faultsOf(i, s))
	}
	e := &engines{}
	e.process, e.input, err = rig.StartPart(ctx, "engines", p, e)
	return e, err
}

func (e *engines) stop() {
	_ = e.input.Close()
	_ = e.process.Wait()
}

func (e *engines) urls() []string {
	var urls []string
	for _, address := range e.Plain {
		urls = append(urls, "http://"+address)
	}
	return urls
}

// tallies are what one engine has seen.
type tallies struct {
	Early, Late int64 // completions asked of it, before and after the mark
}

// reset forgets what came before the traffic.
func (e *engines) reset() error { return e.each(http.MethodPost, "/bench/reset", nil) }

// mark is the moment from which completions are late.
func (e *engines) mark() { _ = e.each(http.MethodPost, "/bench/mark", nil) }

// tally sums up a run: the share of prompt tokens that were cached, and the
// failing engine's share of the late attempts.
func (e *engines) tally(s scenario) (hits, failing float64, err error) {
	var all []tallies
	queried, hit := 0.0, 0.0
	err = e.each(http.MethodGet, "/bench/tally", func(content []byte) error {
		var t tallies
		defer func() { all = append(all, t) }()
		return json.Unmarshal(content, &t)
	})
	if err == nil {
		err = e.each(http.MethodGet, "/metrics", func(content []byte) error {
			queried += sumOf(content, "vllm:prefix_cache_queries_total")
			hit += sumOf(content, "vllm:prefix_cache_hits_total")
			return nil
		})
	}
	if err != nil {
		return 0, 0, fmt.Errorf("engines: %w", err)
	}
	if !s.failing {
		return hit / queried, math.NaN(), nil
	}
	late := int64(0)
	for _, t := range all {
		late += t.Late
	}
	return hit / queried, float64(all[0].Late) / float64(late), nil
}

func (e *engines) each(method, path string, use func([]byte) error) error {
	for _, url := range e.urls() {
		req, err := http.NewRequestWithContext(context.Background(), method, url+path, nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		content, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err == nil && use != nil {
			err = use(content)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// sumOf adds up the series of a metric in Prometheus' text format.
func sumOf(metrics []byte, name string) (sum float64) {
	for line := range strings.SplitSeq(string(metrics), "\n") {
		if labels, value, ok := strings.Cut(line, "} "); ok && strings.HasPrefix(labels, name+"{") {
			v, _ := strconv.ParseFloat(value, 64)
			sum += v
		}
	}
	return sum
}

// instance is an engine that counts what is asked of it.
type instance struct {
	engine *sim.Engine
	counts atomic.Pointer[instanceCounts]
}

type instanceCounts struct {
	marked      atomic.Bool
	early, late atomic.Int64
}

func serveEngines(ctx context.Context, p plan) (any, error) {
	e := &engines{}
	for i, faults := range p.Faults {
		engine, err := sim.New(sim.Config{Model: rig.Model, Profile: profile(), Faults: faults})
		if err != nil {
			return nil, err
		}
		in := &instance{engine: engine}
		in.counts.Store(&instanceCounts{})
		plain, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		quiet := slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
		go func() {
			_ = (&http.Server{Handler: in, ErrorLog: quiet, ReadHeaderTimeout: 10 * time.Second}).Serve(plain)
		}()
		parent := &rig.Parent{Engine: in, Report: func() (loadreport.Report, error) { return rig.EngineReport(engine, profile().MaxSequences) }}
		address, err := parent.Serve(ctx, p.Identities[i])
		if err != nil {
			return nil, err
		}
		e.Plain, e.Parents = append(e.Plain, plain.Addr().String()), append(e.Parents, address)
	}
	return e, nil
}

// ServeHTTP is the engine's API, counted.
func (in *instance) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	counts := in.counts.Load()
	switch r.URL.Path {
	case "/bench/reset":
		in.counts.Store(&instanceCounts{})
	case "/bench/mark":
		counts.marked.Store(true)
	case "/bench/tally":
		_ = json.NewEncoder(w).Encode(tallies{counts.early.Load(), counts.late.Load()})
	case "/v1/chat/completions":
		if counts.marked.Load() {
			counts.late.Add(1)
		} else {
			counts.early.Add(1)
		}
		in.engine.ServeHTTP(w, r)
	default:
		in.engine.ServeHTTP(w, r)
	}
}
