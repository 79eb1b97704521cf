package rig

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"time"

	orcaservicev3 "github.com/cncf/xds/go/xds/service/orca/v3"
	"google.golang.org/grpc"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/engineload"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/loadreport"
	"github.com/mrgc/mrgc/internal/routing"
)

// Parent is an instance as our Envoy and router see it: HTTP/2, mutual TLS, load
// reports. What is sealed otherwise, its engine gets in clear.
type Parent struct {
	orcaservicev3.UnimplementedOpenRcaServiceServer
	Engine http.Handler // of completions
	// Report is what the engine says; the parent adds what it measures itself.
	Report func() (loadreport.Report, error)
	Every  time.Duration // between two reports; 0: 100 ms, as a busy parent has it

	mu    sync.Mutex
	meter routing.Meter // guarded by mu
}

// Serve serves a parent on a port of its own until the process ends, and gives
// its address.
func (p *Parent) Serve(ctx context.Context, identityDir string) (address string, err error) {
	source, err := identity.Open(ctx, "dir:"+identityDir, "")
	if err != nil {
		return "", err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	server := &http.Server{
		Handler: p.handler(), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), ReadHeaderTimeout: 10 * time.Second,
		TLSConfig: source.ServerTLS(func(id identity.ID) bool { return id.Role == identity.RoleEnvoy || id.Role == identity.RoleRouter }),
	}
	go func() { _ = server.ServeTLS(listener, "", "") }()
	return listener.Addr().String(), nil
}

func (p *Parent) handler() http.Handler {
	reports := grpc.NewServer()
	orcaservicev3.RegisterOpenRcaServiceServer(reports, p)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc"):
			reports.ServeHTTP(w, r)
		case r.URL.Path == "/healthz":
		case r.URL.Path == api.PathSealed:
			r.URL.Path = "/v1/chat/completions"
			p.serveMetered(w, r)
		default:
			http.NotFound(w, r)
		}
	})
}

// serveMetered has the engine answer, and measures how it reads the prompt, as a
// parent does.
func (p *Parent) serveMetered(w http.ResponseWriter, r *http.Request) {
	uncached, _ := strconv.Atoi(r.Header.Get(api.HeaderUncached))
	p.mu.Lock()
	prompt := p.meter.Begin(uncached, time.Now())
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		p.meter.End(prompt, time.Now())
		p.mu.Unlock()
	}()
	p.Engine.ServeHTTP(&firstByte{ResponseWriter: w, told: sync.OnceFunc(func() {
		p.mu.Lock()
		p.meter.First(prompt, time.Now())
		p.mu.Unlock()
	})}, r)
}

// firstByte tells when an answer begins that is none of a refusal.
type firstByte struct {
	http.ResponseWriter
	told    func()
	refused bool
}

// WriteHeader gives an engine's failure as an enclave does to a request that others
// can open, too.
func (w *firstByte) WriteHeader(status int) {
	w.refused = status != http.StatusOK
	if status >= http.StatusInternalServerError {
		status = http.StatusServiceUnavailable
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *firstByte) Write(b []byte) (int, error) {
	if !w.refused {
		w.told()
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap is for [http.ResponseController].
func (w *firstByte) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (p *Parent) report() (loadreport.Report, error) {
	report, err := p.Report()
	p.mu.Lock()
	defer p.mu.Unlock()
	report.UnreadTokens, report.ReadTokensPerSecond, report.RequestDuration = p.meter.Unread(), p.meter.ReadTokensPerSecond(), p.meter.Duration()
	return report, err
}

// StreamCoreMetrics reports the engine's load.
func (p *Parent) StreamCoreMetrics(_ *orcaservicev3.OrcaLoadReportRequest, stream orcaservicev3.OpenRcaService_StreamCoreMetricsServer) error {
	for tick := time.NewTicker(cmp.Or(p.Every, 100*time.Millisecond)); ; {
		report, err := p.report()
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

// EngineReport reads an engine's metrics, as a parent does.
func EngineReport(engine http.Handler, slots int) (loadreport.Report, error) {
	page := httptest.NewRecorder()
	engine.ServeHTTP(page, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	m, err := engineload.Read(page.Body)
	if err != nil {
		return loadreport.Report{}, err
	}
	return loadreport.Report{Queued: m.Queued, Running: m.Running, Slots: slots, KVCacheUse: m.KVCacheUse}, nil
}
