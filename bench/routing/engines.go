package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	orcaservicev3 "github.com/cncf/xds/go/xds/service/orca/v3"
	"google.golang.org/grpc"

	"github.com/mrgc/mrgc/engine/sim"
	"github.com/mrgc/mrgc/engine/sim/batching"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/engineload"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/loadreport"
	"github.com/mrgc/mrgc/standin/devca"
)

// region is where everything of a benchmark stands.
const region fleet.Region = "use1"

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

func engineID(i int) string { return fmt.Sprintf("%s-%d", region, i) }

func startEngines(ctx context.Context, dir string, s scenario) (*engines, error) {
	ca, err := devca.New(time.Now())
	if err != nil {
		return nil, err
	}
	var p plan
	for i := range engineCount {
		faults := sim.Faults{}
		switch i {
		case engineCount - 1:
			faults.Slowness = slowFactor
		case 0:
			if s.failing {
				faults.FailShare = 1
			}
		}
		p.Faults = append(p.Faults, faults)
		p.Identities = append(p.Identities, filepath.Join(dir, engineID(i)))
	}
	for i, at := range p.Identities {
		if err := writeIdentity(ca, at, identity.ID{Region: string(region), Instance: engineID(i), Role: identity.RoleParent}); err != nil {
			return nil, err
		}
	}
	// What our own contenders need of the same authority.
	for _, role := range []identity.Role{identity.RoleRouter, identity.RoleEnvoy} {
		if err := writeIdentity(ca, filepath.Join(dir, string(role)), identity.ID{Region: string(region), Role: role}); err != nil {
			return nil, err
		}
	}
	certPEM, keyPEM, err := ca.ServerCertificate(time.Now(), "localhost")
	if err == nil {
		err = errors.Join(os.WriteFile(filepath.Join(dir, "tenant.crt"), certPEM, 0o600),
			os.WriteFile(filepath.Join(dir, "tenant.key"), keyPEM, 0o600), os.WriteFile(filepath.Join(dir, "ca.crt"), ca.RootPEM(), 0o600))
	}
	if err != nil {
		return nil, err
	}
	e := &engines{}
	e.process, e.input, err = startChild(ctx, "engines", p, e)
	return e, err
}

func writeIdentity(ca *devca.Authority, dir string, id identity.ID) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return ca.WriteFiles(dir, id, time.Now())
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

// startChild runs a part of this program in a process of its own: it is told in
// by JSON, answers with one line when it is ready, and ends when its input does.
func startChild(ctx context.Context, part string, told, answer any) (*exec.Cmd, io.WriteCloser, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.CommandContext(ctx, self, "child", part)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	input, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	output, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	err = json.NewEncoder(input).Encode(told)
	if err == nil {
		err = json.NewDecoder(output).Decode(answer)
	}
	if err != nil {
		_ = input.Close()
		return nil, nil, errors.Join(fmt.Errorf("%s: %w", part, err), cmd.Wait())
	}
	return cmd, input, nil
}

// child is a part of this program, in its own process.
func child(part string) error {
	input := bufio.NewReader(os.Stdin)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	switch part {
	case "engines":
		var p plan
		if err := json.NewDecoder(input).Decode(&p); err != nil {
			return err
		}
		e, err := serveEngines(ctx, p)
		if err != nil {
			return err
		}
		if err := json.NewEncoder(os.Stdout).Encode(e); err != nil {
			return err
		}
	case "router":
		var c routerConfig
		if err := json.NewDecoder(input).Decode(&c); err != nil {
			return err
		}
		if err := serveRouter(ctx, c); err != nil {
			return err
		}
		if err := json.NewEncoder(os.Stdout).Encode(struct{}{}); err != nil {
			return err
		}
	default:
		return fmt.Errorf("there is no part %q", part)
	}
	_, err := io.Copy(io.Discard, input)
	return err
}

// instance is an engine, and what a parent would add to it.
type instance struct {
	orcaservicev3.UnimplementedOpenRcaServiceServer
	engine *sim.Engine
	counts atomic.Pointer[instanceCounts]
}

type instanceCounts struct {
	marked      atomic.Bool
	early, late atomic.Int64
}

func serveEngines(ctx context.Context, p plan) (*engines, error) {
	e := &engines{}
	for i, faults := range p.Faults {
		engine, err := sim.New(sim.Config{Model: model, Profile: profile(), Faults: faults})
		if err != nil {
			return nil, err
		}
		in := &instance{engine: engine}
		in.counts.Store(&instanceCounts{})
		source, err := identity.Open(ctx, "dir:"+p.Identities[i], "")
		if err != nil {
			return nil, err
		}
		plain, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		parent, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		quiet := slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
		asParent := &http.Server{
			Handler: in.asParent(), ErrorLog: quiet, ReadHeaderTimeout: 10 * time.Second,
			TLSConfig: source.ServerTLS(func(id identity.ID) bool { return id.Role == identity.RoleEnvoy || id.Role == identity.RoleRouter }),
		}
		go func() {
			_ = (&http.Server{Handler: in, ErrorLog: quiet, ReadHeaderTimeout: 10 * time.Second}).Serve(plain)
		}()
		go func() { _ = asParent.ServeTLS(parent, "", "") }()
		e.Plain = append(e.Plain, plain.Addr().String())
		e.Parents = append(e.Parents, parent.Addr().String())
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

// asParent is what our Envoy and router see.
func (in *instance) asParent() http.Handler {
	reports := grpc.NewServer()
	orcaservicev3.RegisterOpenRcaServiceServer(reports, in)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc"):
			reports.ServeHTTP(w, r)
		case r.URL.Path == "/healthz":
		case r.URL.Path == api.PathSealed:
			r.URL.Path = "/v1/chat/completions"
			in.ServeHTTP(w, r)
		default:
			http.NotFound(w, r)
		}
	})
}

// StreamCoreMetrics reports the engine's load every 100 ms, as a busy parent
// does.
func (in *instance) StreamCoreMetrics(_ *orcaservicev3.OrcaLoadReportRequest, stream orcaservicev3.OpenRcaService_StreamCoreMetricsServer) error {
	for tick := time.NewTicker(100 * time.Millisecond); ; {
		report, err := in.report()
		if err != nil {
			return err
		}
		if err := stream.Send(loadreport.Encode(report)); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-stream.Context().Done():
			return nil
		}
	}
}

// report reads the engine's metrics, as a parent does.
func (in *instance) report() (loadreport.Report, error) {
	page := httptest.NewRecorder()
	in.engine.ServeHTTP(page, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	m, err := engineload.Read(page.Body)
	if err != nil {
		return loadreport.Report{}, err
	}
	return loadreport.Report{Queued: m.Queued, Running: m.Running, Slots: profile().MaxSequences, KVCacheUse: m.KVCacheUse}, nil
}
